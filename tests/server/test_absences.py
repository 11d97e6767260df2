"""Who was not in all of a run, where, and why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from cli.watching import end_of
from client.app import app as client_app
from client.keys.keyring import agree
from client.site import SIMULATED_SITES, load_site
from server.absences import Absence, absences_of
from server.journal import Journal
from server.report import write_report
from tests.support.federation import PLAIN, UNMEASURED, run_study
from tests.support.local_grid import LocalGrid, write_site


def ask(journal: Journal, stage: str, number: int, outcomes: dict[str, str]) -> None:
    """Write one exchange with all that came of it."""
    attempt = replace(journal.attempt(stage, number, f"{stage} {number}", tuple(outcomes)), number=number)
    round_number = number if stage == "pretraining" else None
    exchange = journal.begin_exchange(stage, "m", round_number, len(outcomes), 0, attempt)
    journal.end_exchange(exchange, outcomes, 0)


def test_rounds_that_were_missed_are_told_by_their_numbers(tmp_path):
    journal = Journal(tmp_path)
    for number, said in enumerate(["ok", "no reply", "ok", "no reply", "no reply", "training.diverged"], start=1):
        ask(journal, "pretraining", number, {"a": "ok", "b": said})
    ask(journal, "pretraining", 2, {"b": "ok"})  # asked again, and answered in the end
    ask(journal, "embedding", 1, {"a": "ok", "b": "no reply"})
    journal.leave_out("b", "embedding", "no reply")

    assert [absence.sentence for absence in absences_of(journal)] == [
        "b was left out in embedding: no reply",
        "b missed rounds 4-5 of pretraining: no reply",
        "b missed round 6 of pretraining: training.diverged (the local loss became NaN or infinite)",
    ]


def test_what_was_written_first_of_a_site_that_is_left_out_stays(tmp_path):
    journal = Journal(tmp_path)
    journal.leave_out("b", "measuring", "no reply")
    journal.leave_out("b", "harmonization", "sum.overflow")
    journal.leave_out("a", "describe", "not online")

    assert journal.left_out() == [("a", "describe", "not online"), ("b", "measuring", "no reply")]
    assert journal.facts()["left_out"] == "a, b"


class Simulation(LocalGrid):
    """Nodes of a simulation: each knows the number of its partition, and where the sites' folders lie."""

    def _answer(self, node: int, message: Message) -> Message:
        return client_app(message, Context(77, node, {"partition-id": node - 1}, RecordDict(), {}))


@pytest.fixture
def simulated(tmp_path, small_cohorts, monkeypatch) -> list[Path]:
    """Sites whose folders lie in the run's, as the command makes them."""
    folder = tmp_path / "run" / "sites"
    monkeypatch.setenv(SIMULATED_SITES, str(folder))
    sites = [write_site(folder / path.name, path.name, path, share_reasons=True) for path in small_cohorts]
    agree("simulation", [load_site(site).keys for site in sites])
    return sites


def test_a_simulated_site_that_refuses_at_the_start_is_named_everywhere(tmp_path, simulated):
    simulated[1].write_text(simulated[1].read_text().replace("min_participants: 2", "min_participants: 99"))
    averaging = {**PLAIN["averaging"], "rounds": 1, "sites": 3}

    journal = run_study(tmp_path / "run", Simulation(simulated), {**PLAIN, **UNMEASURED, "averaging": averaging})

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["left_out"], list(summary["sites"])) == (
        "completed",
        "bergen",
        ["aalborg", "coimbra"],
    )
    code = "policy.too-few-participants"
    assert absences_of(journal) == [Absence("bergen", "describe", (), code, for_good=True)]
    assert summary["absences"] == [{"site": "bergen", "stage": "describe", "rounds": [], "why": code, "for_good": True}]
    assert f"bergen was left out when the sites gathered: {code}" in write_report(tmp_path / "run").read_text()
    assert end_of(journal.progress(), journal)["absences"][0]["site"] == "bergen"
    assert [note for note in journal.table("notes")["text"] if note.startswith(f"bergen is left out: {code}")]


def test_too_few_simulated_sites_are_named_in_the_reason(tmp_path, simulated):
    for site in simulated[:2]:
        site.write_text(site.read_text().replace("min_participants: 2", "min_participants: 99"))

    with pytest.raises(Exception, match=r"1 of 3 sites answered.*aalborg: policy\.too-few.*bergen: policy\.too-few"):
        run_study(tmp_path / "run", Simulation(simulated), PLAIN)

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [(absence["site"], absence["stage"]) for absence in summary["absences"]] == [
        ("aalborg", "describe"),
        ("bergen", "describe"),
    ]
