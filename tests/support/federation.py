"""A small federation over simulated cohorts, run in one process."""

from pathlib import Path

import pandas as pd
import yaml
from flwr.app import Context, RecordDict

from base.seeding import derive_seed
from client.keys.keyring import agree
from client.site import load_site
from cohorts import Cohort
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from server.app import app as server_app
from server.journal import Journal
from study.settings import load_study
from tests.support.local_grid import LocalGrid, write_site

STUDY = {
    "study": "small",
    "title": "A small study",
    "seed": 5,
    "cohort": {"atlases": ["schaefer100"]},
    "model": {
        "window": {"t_r": 2.0, "n_frames": 32, "patch_frames": 16},
        "width": 16,
        "depth": 1,
        "heads": 2,
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "training": {"batch_size": 4, "steps_per_round": 3, "warmup_steps": 2, "precision": "float32"},
    "averaging": {"rounds": 2, "quorum": 3, "deadline_s": 60, "start_deadline_s": 120, "quorum_deadline_s": 0},
    "analyses": {"targets": ["age"], "folds": 3, "permutations": 10},
}
PLAIN = {**STUDY, "averaging": {**STUDY["averaging"], "quorum": 2}, "privacy": {"secure_sums": False}}
"""The same without secure sums, for two sites or more."""
UNMEASURED = {
    "harmonization": {"method": "none"},
    "analyses": {"targets": [], "folds": 3, "permutations": 0, "bootstrap": 0, "gaussian_baseline": False},
}
"""Settings of a study of which only gathering, training and embedding matter."""


def simulate_small_cohorts(folder: Path) -> list[Path]:
    """Three hospitals of 21, 16 and 11 people, TR 2, 1.5 and 2.5 s."""
    return simulate_cohorts(folder, simulated_hospitals(3, 16, minutes=2.2), atlas="schaefer100", seed=9)


def write_sites(folder: Path, cohorts: list[Path], **policy: object) -> list[Path]:
    """Write a ``site.yaml`` for each cohort, with private seeds and an approved roster as a simulation gives them."""
    sites = []
    for cohort in cohorts:
        sites.append(write_site(folder / cohort.name, cohort.name, cohort, **policy))
        state = folder / cohort.name / "state"
        state.mkdir()
        (state / "private_seed").write_text(str(derive_seed(STUDY["seed"], cohort.name, "private")))
    agree("simulation", [load_site(site).keys for site in sites])
    return sites


def run_study(folder: Path, grid: LocalGrid, study: dict[str, object] = STUDY) -> Journal:
    """Run a study over a grid in this process; its folder is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "as-given.yaml").write_text(yaml.safe_dump(study))
    (folder / "study.yaml").write_text(load_study(folder / "as-given.yaml").to_yaml())
    server_app(grid, Context(77, 0, {}, RecordDict(), {"run-directory": str(folder)}))
    return Journal(folder)


def features(site: Path, name: str, study: str = "small") -> pd.DataFrame:
    """A feature set on a site's disk, with the participants' covariates."""
    table = pd.read_parquet(site.parent / "state" / "studies" / study / f"{name}.parquet").set_index("participant_id")
    settings = yaml.safe_load(site.read_text())
    people = Cohort.open(settings["cohort"]).covariates().set_index("participant_id")
    return table.join(people)
