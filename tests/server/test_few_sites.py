"""What one site, or two, cannot do, and what the people of all sites do not tell, is left out and said."""

import json
from pathlib import Path

import pandas as pd
import pytest

from cli.watching import print_summary
from cohorts.simulation import SimulatedSite, simulate_cohorts
from server.journal import Journal
from server.report import write_report
from study.errors import StudyError
from tests.support.federation import PLAIN, run_study, write_sites
from tests.support.local_grid import LocalGrid, write_site

ANALYSES = {**PLAIN["analyses"], "targets": ["age", "sex"], "category_permutations": 1, "bootstrap": 5}


def run(folder: Path, cohorts: list[Path], **changes: object) -> tuple[dict, list[str], Path]:
    """Run a study in the clear over all of some cohorts; return its summary, its notes and its folder."""
    if len(cohorts) < 3:
        sites = [write_site(folder / "sites" / cohort.name, cohort.name, cohort) for cohort in cohorts]
    else:
        sites = write_sites(folder / "sites", cohorts)
    averaging = {**PLAIN["averaging"], "quorum": len(cohorts), "rounds": 1}
    journal: Journal = run_study(folder / "run", LocalGrid(sites), {**PLAIN, "averaging": averaging, **changes})
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return summary, journal.table("notes")["text"].tolist(), folder / "run"


def embedded(folder: Path, site: str) -> set[str]:
    """Feature sets on a site's disk."""
    return {path.stem for path in (folder.parent / "sites" / site / "state" / "studies" / "small").glob("*.parquet")}


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"harmonization": {"method": "none"}, "analyses": {**ANALYSES, "targets": []}}, {"site effects"}),
        ({"analyses": ANALYSES}, {"site effects", "harmonization by combat"}),
    ],
)
def test_one_site_trains_embeds_and_says_what_is_left_out(tmp_path, small_cohorts, changes, left_out, capsys):
    summary, notes, folder = run(tmp_path, small_cohorts[:1], **changes)

    assert summary["status"] == "completed"
    assert set(summary["harmonization"]["left_out"]) == left_out
    assert not any(summary["harmonization"]["site_effect"].values())
    assert sum("will be left out, since one site takes part" in note for note in notes) == len(left_out)
    targets = set(changes["analyses"]["targets"])
    assert set(summary["probes"]["embedding"]) == targets
    assert {"embedding", "embedding.projected", "embedding.residualized"} <= embedded(folder, "aalborg")
    (caution,) = (one for one in summary["cautions"] if one.startswith("Left out: "))
    assert "one site takes part, and nothing to compare it with" in write_report(folder).read_text()
    print_summary(summary)
    assert caution.split(":")[1].strip() in capsys.readouterr().out.replace("\n", " ")


def test_two_sites_are_compared_but_neither_is_left_out_as_a_whole(tmp_path, small_cohorts):
    summary, notes, _ = run(tmp_path, small_cohorts[:2], analyses={**ANALYSES, "leave_one_site_out": True})

    assert summary["harmonization"]["left_out"] == {"leave_one_site_out": "it needs 3 sites, and 2 take part"}
    assert "leave_one_site_out: will be left out, since it needs 3 sites, and 2 take part" in notes
    assert {"permanova", "eta_squared"} <= summary["harmonization"]["site_effect"]["embedding"]["harmonized"].keys()
    assert "new_site" not in summary["probes"]["embedding"]["age"]["raw"]


def test_a_reference_that_does_not_take_part_is_said_before_training(tmp_path, small_cohorts):
    with pytest.raises(StudyError, match="site 'oslo' does not take part"):
        run(tmp_path, small_cohorts, harmonization={"reference": "oslo"})

    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.fixture(scope="module")
def uniform(tmp_path_factory) -> list[Path]:
    """Three sites of people who are all of one sex, with an intelligence of 100."""
    sites = [SimulatedSite(name, n_participants=8, t_r=2.0, n_frames=66) for name in ("a", "b", "c")]
    folders = simulate_cohorts(tmp_path_factory.mktemp("uniform") / "c", sites, atlas="schaefer100", seed=3)
    for folder in folders:
        table = pd.read_csv(folder / "participants.tsv", sep="\t")
        table["sex"], table["iq"] = "F", 100.0
        table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folders


def test_targets_that_are_the_same_for_everybody_cost_none_of_the_others(tmp_path, uniform):
    summary, notes, folder = run(
        tmp_path,
        uniform,
        covariates={"iq": {"center": 100, "scale": 15}},
        harmonization={"keep": ["age"], "residualize": ["age", "site"]},
        analyses={**ANALYSES, "targets": ["age", "sex", "iq"]},
    )

    assert summary["status"] == "completed"
    assert set(summary["probes"]["embedding"]) == {"age"}
    left_out = summary["harmonization"]["left_out"]
    assert {name.split("/", 2)[2] for name in left_out} == {"probe/sex", "probe/iq"}
    assert left_out["embedding/raw/probe/iq"] == "the probe's target is the same for everybody. Choose another."
    assert any(note.startswith("left out: probe/iq: the probe's target is the same") for note in notes)
    assert "embedding.residualized" in embedded(folder, "a")
    assert "probe/iq" in write_report(folder).read_text()


def test_a_harmonization_that_the_people_do_not_allow_is_left_out_by_name(tmp_path, uniform):
    """With a column that nobody differs in, ComBat has no answer; what does not rest on it is there all the same."""
    summary, _, folder = run(
        tmp_path, uniform, harmonization={"keep": ["age", "sex"], "residualize": ["age", "site"]}, analyses=ANALYSES
    )

    left_out = summary["harmonization"]["left_out"]
    assert "The columns are 1 age, 2 sex=M." in left_out["embedding/harmonized/model"]
    assert {"raw", "control"} == set(summary["harmonization"]["site_effect"]["embedding"])
    assert "age" in summary["probes"]["embedding"]
    assert "embedding.harmonized" not in embedded(folder, "a")
    assert "embedding.residualized" not in embedded(folder, "a")  # it would bear the name of what it is not
    assert "harmonized by ComBat" not in write_report(folder).read_text()
