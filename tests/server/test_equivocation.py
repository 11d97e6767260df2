"""A coordinator that tells sites different things to read one of them: what it gets for it."""

import pytest
from flwr.app import Message

from cohorts.simulation import simulate_cohorts, simulated_hospitals
from exchange.adding import add_replies
from exchange.messages import (
    Group,
    Job,
    MessageError,
    SecureSum,
    SummarizeReply,
    SummarizeRequest,
    TableSpec,
    TrainReply,
    TrainRequest,
)
from harmonization import Projection
from tests.support.federation import STUDY, UNMEASURED, run_study, write_sites
from tests.support.local_grid import LocalGrid

SHORT = {**STUDY, **UNMEASURED, "averaging": {**STUDY["averaging"], "rounds": 1}}


@pytest.fixture
def after_a_run(tmp_path, small_cohorts) -> LocalGrid:
    """Three sites that ran a study of one round, with the numbers of a careful policy."""
    policy = {"min_participants": 5, "min_group": 2, "min_change": 10, "secure_sum_required": True}
    grid = LocalGrid(write_sites(tmp_path / "s", small_cohorts, **policy))
    run_study(tmp_path / "run", grid, SHORT)
    return grid


def answers(grid: LocalGrid, requests: dict[int, SummarizeRequest | TrainRequest]) -> list[Message]:
    messages = [Message(request.to_records(), node, request.message) for node, request in requests.items()]
    return list(grid.pull_messages(grid.push_messages(messages)))


def test_answers_to_different_questions_never_add(after_a_run):
    """One site trains in earnest, the others with a learning rate of next to nothing: the sum would be its update."""
    (asked,) = {m.content["header"]["json"]: m for m in after_a_run.sent if m.metadata.message_type == "train"}.values()
    request = TrainRequest.from_records(asked.content)
    honest = request.model_copy(update={"secure": request.secure.model_copy(update={"step": 900})})
    hardly = honest.model_copy(update={"training": {**request.training, "learning_rate": 1e-30}})

    replies = answers(after_a_run, {1: honest, 2: hardly, 3: hardly})
    by_site = {site: TrainReply.from_records(r.content) for site, r in zip(request.secure.sites, replies, strict=True)}
    with pytest.raises(MessageError, match="masks did not cancel"):
        add_replies(honest, by_site)


def test_one_question_in_one_message_among_many_sets_of_sites_is_refused(tmp_path, small_cohorts):
    four = simulate_cohorts(tmp_path / "c", simulated_hospitals(4, 12, minutes=2.2), atlas="schaefer100", seed=4)
    grid = LocalGrid(write_sites(tmp_path / "s", four, min_change=10))
    journal = run_study(tmp_path / "run", grid, SHORT)
    names = [path.name for path in four]
    job = Job(analysis="projection", parameters=Projection(2).parameters(), table=TableSpec(features="embedding"))
    groups = [Group(parts=[f"without {left}"], sites=[name for name in names if name != left]) for left in names]
    request = SummarizeRequest(
        study="small",
        run=journal.run,
        groups=groups,
        secure=SecureSum(roster=journal.facts()["roster"], step=900, sites=names),
        jobs={"all": job, **{f"without {left}": job for left in names}},
    )

    replies = answers(grid, dict.fromkeys((1, 2, 3, 4), request))

    assert [reply.error.reason for reply in replies] == ["site.cannot-answer"] * 4
    allowed = request.model_copy(
        update={
            "jobs": {"all": job},
            "groups": [],
            "secure": SecureSum(roster=journal.facts()["roster"], step=901, sites=names),
        }
    )
    assert all(
        SummarizeReply.from_records(reply.content).sealed for reply in answers(grid, dict.fromkeys((1, 2), allowed))
    )
