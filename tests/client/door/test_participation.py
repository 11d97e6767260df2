"""What a site is told beforehand is what it answers: when it is first asked, and in all that follows."""

import pytest
import yaml
from flwr.app import Context, Error, Message, RecordDict

from client.app import app
from client.door.participation import objections
from client.site import Site, load_site
from exchange.messages import DescribeRequest
from server.absences import absences_of
from study.settings import load_study
from tests.support.cohorts import with_gaps
from tests.support.federation import STUDY, run_study, write_sites
from tests.support.local_grid import LocalGrid, write_site
from tests.support.wire import be_in_run

MANY_COLUMNS = {
    "analyses": {**STUDY["analyses"], "targets": ["sex"]},
    "harmonization": {"keep": ["age", "sex", "mean_fd", "tsnr"]},
}


def opening(folder, changes: dict[str, object]) -> DescribeRequest:
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
    return load_study(folder / "study.yaml").opening()


def answered(site: Site, request: DescribeRequest) -> Error | None:
    be_in_run(7)
    context = Context(7, 1, {"site-config": str(site.state.parent / "site.yaml")}, RecordDict(), {})
    reply = app(Message(request.to_records(), dst_node_id=1, message_type=request.message), context)
    return reply.error if reply.has_error() else None


@pytest.mark.parametrize(
    ("policy", "gaps", "changes", "code"),
    [
        ({}, {}, {}, None),
        ({"min_participants": 18}, {}, {}, "policy.too-few-participants"),  # 21, and 17 once some are held out
        ({"min_participants": 17, "min_group": 5}, {}, {}, None),
        ({"min_group": 8}, {}, {}, "policy.small-group"),  # 21 in three folds
        ({"min_group": 6}, {"without_age": 5}, {}, "policy.small-group"),
        ({"min_group": 6}, {}, MANY_COLUMNS, "policy.small-group"),  # 21 for four columns
        ({"max_covariate_ratio": 0.15}, {}, MANY_COLUMNS, "policy.too-many-covariates"),
        ({}, {"short": 19}, {}, "contract.no-usable-recordings"),
        ({"max_levels": 1}, {}, MANY_COLUMNS, "policy.too-large"),
        ({"studies": ["other"]}, {}, {}, "policy.study-not-allowed"),
        ({"secure_sum_required": True}, {}, {"privacy": {"secure_sums": False}}, "policy.secure-sum-required"),
    ],
)
def test_what_a_site_has_against_a_study_is_what_it_refuses(tmp_path, small_cohorts, policy, gaps, changes, code):
    cohort = with_gaps(small_cohorts[0], tmp_path / "c", **gaps)
    site = load_site(write_site(tmp_path / "a", "aalborg", cohort, **policy))
    request = opening(tmp_path / "study", changes)

    found = [str(refusal.code) for refusal in objections(site, request)]

    assert found[:1] == ([code] if code else [])
    assert (answered(site, request) is not None) == bool(found)


def test_a_site_that_has_nothing_against_a_study_answers_all_of_it(tmp_path, small_cohorts):
    """The smallest has 11 people: 9 are trained on, 3 are in a fold, and there are 2 for each of four columns."""
    sites = write_sites(tmp_path, small_cohorts, min_participants=9, min_group=2, secure_sum_required=True)
    request = opening(tmp_path / "study", {})
    assert [objections(load_site(site), request) for site in sites] == [[], [], []]

    journal = run_study(tmp_path / "run", LocalGrid(sites))

    assert journal.facts()["status"] == "completed"
    assert absences_of(journal) == []
