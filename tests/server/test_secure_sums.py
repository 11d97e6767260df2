"""Studies under secure sums: the same answers as in the clear, whoever falls silent, and nothing of a single site."""

import json

import numpy as np
import pandas as pd
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from client.door.audit import AuditLog
from client.keys.keyring import agree
from client.site import load_site
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from exchange.messages import TrainReply
from server.errors import QuorumError
from server.report import write_report
from tests.server.test_app import summary_of
from tests.support.federation import PLAIN, STUDY, UNMEASURED, run_study, write_sites
from tests.support.local_grid import LocalGrid, write_site

SHORT = {**STUDY, "averaging": {**STUDY["averaging"], "rounds": 1}}
ONE_ROUND = {**SHORT, **UNMEASURED}
SCORED = {**ONE_ROUND, "analyses": {**UNMEASURED["analyses"], "gaussian_baseline": True}}


@pytest.fixture(scope="module")
def four_cohorts(tmp_path_factory):
    return simulate_cohorts(
        tmp_path_factory.mktemp("four") / "c", simulated_hospitals(4, 12, minutes=2.2), atlas="schaefer100", seed=4
    )


def numbers(content: object, path: str = "") -> dict[str, float]:
    """All numbers of a nested summary, by their path."""
    if isinstance(content, dict):
        found = {}
        for name, value in content.items():
            found |= numbers(value, f"{path}/{name}")
        return found
    return {path: content} if isinstance(content, int | float) and not isinstance(content, bool) else {}


def test_a_study_finds_the_same_with_masks_and_without(finished_run, tmp_path, small_cohorts):
    """To the rounding of updates in their ring, which AdamW makes much of where a gradient is nothing but rounding."""
    clear = run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts)), PLAIN)

    masked, plain = (load_file(journal.checkpoint(1)) for journal in (finished_run.journal, clear))
    for name, values in plain.items():
        np.testing.assert_allclose(masked[name], values, rtol=1.2e-7, atol=1e-7)
    both = [summary_of(folder) for folder in (finished_run.folder, tmp_path / "run")]
    assert [summary["privacy"]["secure_sums"] for summary in both] == [True, False]
    masked, plain = (
        {k: v for part in ("harmonization", "probes") for k, v in numbers(s[part], part).items()} for s in both
    )
    assert masked.keys() == plain.keys()
    for name, value in plain.items():
        if "p_value" not in name and "null" not in name:
            assert masked[name] == pytest.approx(value, rel=2e-2, abs=2e-3), name


def test_replies_show_nothing_of_a_site_but_words_of_a_ring(finished_run):
    for message in finished_run.grid.received:
        if message.content["header"]["kind"] in ("TrainReply", "SummarizeReply", "EmbedReply", "HarmonizeReply"):
            for name, array in message.content["arrays"].items():
                assert name.startswith("sealed/")
                assert array.dtype in ("uint32", "uint64")
            header = json.loads(message.content["header"]["json"])
            assert header.keys() <= {"sealed", "pseudonyms"}
    metrics = finished_run.journal.table("metrics")
    assert set(metrics["site"]) == {"all"}
    assert {"loss", "masked_r2"} <= set(metrics["name"])


@pytest.mark.parametrize(
    ("stage", "silent"),
    [
        pytest.param(stage, silent, marks=[] if silent in always else pytest.mark.slow, id=f"{stage}-{silent}")
        for stage, always in {
            "query.summarize": ["aalborg"],
            "train": ["bergen", "delft"],
            "query.embed": ["coimbra"],
            "query.harmonize": ["delft"],
        }.items()
        for silent in ["aalborg", "bergen", "coimbra", "delft"]
    ],
)
def test_the_survivors_of_a_sum_have_the_right_answer(tmp_path, four_cohorts, stage, silent):
    """A site that falls silent for good, before it answers or after; the others end as if it had never been there."""
    names = [path.name for path in four_cohorts]
    node = names.index(silent) + 1
    gone = []

    def dies(to: int, message: Message) -> bool | None:
        if to == node and (gone or message.metadata.message_type == stage):
            gone.append(message.metadata.message_type)
            return False
        return None

    journal = run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", four_cohorts), dies), SHORT)

    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "completed"
    assert list(summary["sites"]) == [name for name in names if name != silent]
    n_left = sum(about["n_participants"] for about in summary["sites"].values())
    assert summary["probes"]["connectivity"]["age"]["raw"]["n"] == n_left
    if stage == "train":  # the weights are those of the three
        three = [path for path in four_cohorts if path.name != silent]
        without = run_study(tmp_path / "t", LocalGrid(write_sites(tmp_path / "ts", three)), ONE_ROUND)
        ours, theirs = (load_file(j.checkpoint(1)) for j in (journal, without))
        assert all(np.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in ours)


@pytest.fixture(scope="module")
def seven_cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seven")
    return simulate_cohorts(folder / "c", simulated_hospitals(7, 12, minutes=2.2), atlas="schaefer100", seed=4)


@pytest.mark.parametrize(
    ("stage", "n_sites"),
    [
        pytest.param("query.summarize", 6, marks=pytest.mark.slow),
        ("train", 6),
        pytest.param("train", 7, marks=pytest.mark.slow),
        pytest.param("query.embed", 6, marks=pytest.mark.slow),
        pytest.param("query.harmonize", 7, marks=pytest.mark.slow),
    ],
)
def test_a_study_comes_to_its_end_though_half_of_its_sites_fall_silent(tmp_path, seven_cohorts, stage, n_sites):
    """Three of six, or four of seven, at once and for good; the quorum is three."""
    gone = []

    def die(to: int, message: Message) -> bool | None:
        if to > 3 and (gone or message.metadata.message_type == stage):
            gone.append(to)
            return False
        return None

    cohorts, study = seven_cohorts[:n_sites], ONE_ROUND if stage == "train" else SHORT
    journal = run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", cohorts), die), study)

    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "completed"
    assert list(summary["sites"]) == [path.name for path in cohorts[:3]]
    assert set(journal.table("outcomes").query("site in @summary['sites']")["outcome"]) == {"ok"}


def test_sites_that_approved_other_rosters_do_not_begin(tmp_path, small_cohorts):
    sites = [write_site(tmp_path / path.name, path.name, path) for path in small_cohorts]
    absent = write_site(tmp_path / "absent", "absent", small_cohorts[0])
    agree("all-but-coimbra", [load_site(site).keys for site in (*sites[:2], absent)])

    with pytest.raises(QuorumError, match=r"fewer sites than the quorum of 3 .*coimbra: none"):
        run_study(tmp_path / "run", LocalGrid(sites), STUDY)


def test_a_site_without_the_roster_of_the_others_is_left_out(tmp_path, four_cohorts):
    sites = write_sites(tmp_path / "s", four_cohorts[:3])
    sites.append(write_site(tmp_path / "s" / "delft", "delft", four_cohorts[3]))

    journal = run_study(tmp_path / "run", LocalGrid(sites), ONE_ROUND)

    facts = journal.facts()
    assert (facts["status"], facts["left_out"]) == ("completed", "delft")
    (said,) = journal.table("notes")["text"]
    assert said.startswith(f"left out, not having approved roster {facts['roster'][:12]}: delft")


def test_sites_of_two_atlases_work_together_and_one_alone_keeps_what_is_by_parcel(tmp_path, small_cohorts):
    (other,) = simulate_cohorts(tmp_path / "c", simulated_hospitals(1, 12, minutes=2.2), atlas="aal116", seed=3)
    other.rename(tmp_path / "dalarna")
    study = {**SHORT, "cohort": {"atlases": ["schaefer100", "aal116"]}}
    grid = LocalGrid(write_sites(tmp_path / "s", [*small_cohorts, tmp_path / "dalarna"]))

    journal = run_study(tmp_path / "run", grid, study)

    trained = [TrainReply.from_records(m.content) for m in grid.received if m.content["header"]["kind"] == "TrainReply"]
    assert [len(reply.sealed) for reply in trained] == [2, 2, 2, 1]
    assert {path.name for path in (tmp_path / "run" / "moments").iterdir()} == {"schaefer100.safetensors"}
    assert set(pd.read_parquet(tmp_path / "run" / "parcels.parquet")["atlas"]) == {"schaefer100"}
    assert journal.facts()["status"] == "completed"
    summary = summary_of(tmp_path / "run")
    assert {site["atlas"] for site in summary["sites"].values()} == {"schaefer100", "aal116"}
    assert set(summary["probes"]) == {"embedding", "untrained"}  # edges of another atlas are other features
    assert write_report(tmp_path / "run").is_file()


def test_sites_of_which_each_has_its_own_atlas_are_scored_together(tmp_path, small_cohorts):
    cohorts = [small_cohorts[0]]
    for atlas, name in (("aal116", "dalarna"), ("schaefer200", "espoo")):
        (path,) = simulate_cohorts(tmp_path / atlas, simulated_hospitals(1, 12, minutes=2.2), atlas=atlas, seed=3)
        cohorts.append(path.rename(tmp_path / name))
    study = {**SCORED, "cohort": {"atlases": ["schaefer100", "aal116", "schaefer200"]}}
    sites = write_sites(tmp_path / "s", cohorts, share_metrics=True)

    journal = run_study(tmp_path / "run", LocalGrid(sites), study)

    final = journal.table("metrics").query("round == 1 and name == 'mse'").set_index("site")["value"]
    assert final["all"] == pytest.approx(final[["aalborg", "dalarna", "espoo"]].mean(), rel=0.5)
    assert final.drop("all").min() < final["all"] < final.drop("all").max()
    summary = summary_of(tmp_path / "run")["pretraining"]
    assert summary["by_network"] == {}
    assert set(summary["baselines"]) == {"parcel_mean", "time_interpolation"}
    assert not (tmp_path / "run" / "parcels.parquet").exists()


def test_the_journal_knows_the_heads_of_the_audit_logs(finished_run):
    heads = summary_of(finished_run.folder)["privacy"]["audit_heads"]

    for site in finished_run.sites:
        log = AuditLog(site.parent / "state" / "audit.jsonl")
        assert log.verify(heads[site.parent.name]).intact
        cut = site.parent / "cut.jsonl"
        cut.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-1]))
        assert AuditLog(cut).verify().intact
        assert not AuditLog(cut).verify(heads[site.parent.name]).intact


def test_what_a_site_shares_is_shown_beside_the_sums(tmp_path, small_cohorts):
    share = {"share_metrics": True, "share_parameters": True, "share_embeddings": True}
    sites = write_sites(tmp_path / "s", small_cohorts, **share)
    journal = run_study(tmp_path / "run", LocalGrid(sites), SHORT)

    assert set(journal.table("metrics")["site"]) == {"all", "aalborg", "bergen", "coimbra"}
    shown = tmp_path / "run" / "shown" / "bergen"
    table = pd.read_parquet(shown / "embeddings.parquet")
    own = pd.read_parquet(sites[1].parent / "state" / "studies" / "small" / "embedding.residualized.parquet")
    np.testing.assert_array_equal(table.filter(regex="^e").to_numpy(), own.filter(regex="^e").to_numpy())
    assert table["participant"].str.fullmatch("p-[0-9a-f]{16}").all()
    effect = load_file(
        sites[1].parent / "state" / "studies" / "small" / "embedding.harmonized.effect.model.safetensors"
    )
    for name, values in load_file(shown / "embedding.harmonized.safetensors").items():
        np.testing.assert_array_equal(values, effect[name])
