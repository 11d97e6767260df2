"""Before training: what all sites measure together equals numpy on their pooled training frames."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from base.seeding import derive_seed
from brainlm import Scaling, WindowConfig, embed, load_checkpoint
from brainlm.windows import prepare, split_participants, usable_recordings
from client.site import load_site
from cohorts import Cohort
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from server.app import Run
from server.errors import QuorumError
from server.inquiry import Inquiry
from server.journal import Journal
from server.presence import Presence
from study.errors import StudyError
from study.measuring import MEASURING
from study.program import Program
from study.settings import Study, load_study
from study.state import State
from tests.server.test_app import bergen_answers_one_sum
from tests.support.federation import PLAIN, STUDY, UNMEASURED, features, run_study, write_sites
from tests.support.local_grid import LocalGrid

ROBUST = {**PLAIN, "model": {**STUDY["model"], "window": {**STUDY["model"]["window"], "scaling": "robust"}}}


def training_frames(site: Path, scaling: str, scale: Scaling | None = None) -> list[np.ndarray]:
    """Frames [T, P] of each recording of the training participants of a site."""
    settings = yaml.safe_load(site.read_text())
    cohort, window = Cohort.open(settings["cohort"]), WindowConfig(**{**ROBUST["model"]["window"], "scaling": scaling})
    usable = usable_recordings(cohort, window)
    people, _ = split_participants(list(usable), 0.2, derive_seed(STUDY["seed"], settings["name"]))
    return [
        prepare(cohort.read(recording), window, scale).T.astype(np.float64)
        for person in people
        for recording in usable[person]
    ]


def assert_moments_are_those_of(recordings: list[np.ndarray], moments: dict[str, np.ndarray]) -> None:
    pooled = np.concatenate(recordings)
    np.testing.assert_allclose(moments["covariance"], pooled.T @ pooled / len(pooled), rtol=0, atol=1e-9)
    lags = STUDY["model"]["window"]["n_frames"]
    products = [sum((x[: len(x) - lag] * x[lag:]).sum() for x in recordings) for lag in range(lags)]
    pairs = [sum(x[lag:].size for x in recordings) for lag in range(lags)]
    np.testing.assert_allclose(moments["autocovariance"], np.divide(products, pairs), rtol=0, atol=1e-9)
    assert moments["n"] == len(pooled)


def test_moments_equal_numpy_s_on_the_pooled_training_frames(finished_run):
    recordings = [frames for site in finished_run.sites for frames in training_frames(site, "zscore")]

    moments = load_file(finished_run.folder / "moments" / "schaefer100.safetensors")

    assert_moments_are_those_of(recordings, moments)
    assert not (finished_run.folder / "scaling").exists()
    for site in finished_run.sites:  # for the baseline, beside the embeddings
        arrived = load_file(site.parent / "state" / "studies" / "small" / "moments.safetensors")
        np.testing.assert_array_equal(arrived["covariance"], moments["covariance"])
        np.testing.assert_array_equal(arrived["autocovariance"], moments["autocovariance"])


def test_a_robust_study_with_two_atlases(tmp_path, small_cohorts):
    """Medians, ranges and moments equal numpy's in each atlas, and a checkpoint embeds as its study did."""
    others = simulate_cohorts(tmp_path / "c", simulated_hospitals(2, 12, minutes=2.2), atlas="aal116", seed=3)
    renamed = [path.rename(path.with_name(name)) for path, name in zip(others, ("dalarna", "espoo"), strict=True)]
    sites = write_sites(tmp_path / "s", [*small_cohorts, *renamed])
    analyses = {**UNMEASURED["analyses"], "gaussian_baseline": True}
    study = {**ROBUST, **UNMEASURED, "analyses": analyses, "cohort": {"atlases": ["schaefer100", "aal116"]}}

    journal = run_study(tmp_path / "run", LocalGrid(sites), study)

    model, about = load_checkpoint(journal.checkpoint(2))
    for atlas, of_atlas in (("schaefer100", sites[:3]), ("aal116", sites[3:])):
        unscaled = np.concatenate([frames for site in of_atlas for frames in training_frames(site, "none")])
        first, median, third = np.quantile(unscaled, [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
        scale = Scaling.from_arrays(load_file(tmp_path / "run" / "scaling" / f"{atlas}.safetensors"))
        np.testing.assert_allclose(scale.median, median, rtol=2e-6)
        np.testing.assert_allclose(scale.iqr, third - first, rtol=0, atol=4e-6 * third.max())
        kept = Scaling.from_checkpoint(about, atlas)
        np.testing.assert_array_equal([kept.median, kept.iqr], [scale.median, scale.iqr])
        recordings = [frames for site in of_atlas for frames in training_frames(site, "robust", scale)]
        assert_moments_are_those_of(recordings, load_file(tmp_path / "run" / "moments" / f"{atlas}.safetensors"))
    embedded = embed(model, Cohort.open(renamed[0]), scale=kept).set_index("participant_id")
    stored = features(sites[3], "embedding")[embedded.columns]
    np.testing.assert_array_equal(embedded.loc[stored.index], stored)
    measuring = journal.table("exchanges").query("stage == 'measuring'")
    assert len(measuring) == 4  # three rounds of quantiles and one of moments, all atlases in each


def gathered(tmp_path: Path, grid: LocalGrid, content: dict[str, object]) -> tuple[Study, Presence, Journal]:
    """A study whose sites have gathered, and nothing more."""
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study, journal = load_study(tmp_path / "study.yaml"), Journal(tmp_path / "run")
    presence = Presence(grid, journal, study.averaging, study.privacy)
    presence.gather(study.opening())
    return study, presence, journal


def measure(study: Study, presence: Presence, journal: Journal) -> State:
    program = Program(study)
    return Run(program, Inquiry(presence, 2), journal).through(
        MEASURING, program.begin(presence.about, {"w": np.zeros(1)})
    )


def test_what_a_model_needs_of_an_atlas_that_too_few_share_ends_the_study(tmp_path, small_cohorts):
    """Under secure sums: two sites would each see the other's medians."""
    others = simulate_cohorts(tmp_path / "c", simulated_hospitals(2, 12, minutes=2.2), atlas="aal116", seed=3)
    renamed = [path.rename(path.with_name(name)) for path, name in zip(others, ("dalarna", "espoo"), strict=True)]
    grid = LocalGrid(write_sites(tmp_path / "s", [*small_cohorts, *renamed]))
    secure = {
        **ROBUST,
        "averaging": STUDY["averaging"],
        "privacy": {},
        "cohort": {"atlases": ["schaefer100", "aal116"]},
    }

    with pytest.raises(StudyError, match="sites with atlas aal116, which are fewer than the 3"):
        measure(*gathered(tmp_path, grid, secure))


def test_noise_on_sums_over_frames_is_paid_for_at_every_site(tmp_path, small_cohorts):
    """Moments of the whole are near those without noise where it is small, and each site's ledger counts them."""
    noise = {"clip": 1e6, "noise_multiplier": 1e-4}
    sites = write_sites(tmp_path / "s", small_cohorts)
    study = {**STUDY, "privacy": {"frame_noise": noise}}

    moments = measure(*gathered(tmp_path, LocalGrid(sites), study)).part("moments/schaefer100")

    pooled = np.concatenate([frames for site in sites for frames in training_frames(site, "zscore")])
    error = moments["covariance"] - pooled.T @ pooled / len(pooled)
    assert 0 < np.abs(error).max() < 1
    assert np.std(error[np.triu_indices(100, 1)]) == pytest.approx(np.sqrt(3) * 100 / len(pooled), rel=0.1)
    for site in sites:
        assert load_site(site).spending("small").epsilon > 50  # next to no noise protects next to nobody


def test_a_site_that_falls_silent_is_left_out_of_every_sum(tmp_path, small_cohorts):
    sites = write_sites(tmp_path / "s", small_cohorts)
    study, presence, journal = gathered(tmp_path, LocalGrid(sites, bergen_answers_one_sum()), ROBUST)
    measured = measure(study, presence, journal)

    unscaled = np.concatenate([frames for site in (sites[0], sites[2]) for frames in training_frames(site, "none")])
    median = np.quantile(unscaled, 0.5, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(measured.part("scaling/schaefer100")["median"], median, rtol=2e-6)
    assert measured.part("moments/schaefer100")["n"] == len(unscaled)
    assert presence.sites == ["aalborg", "coimbra"]
    assert journal.facts()["left_out"] == "bergen"


def test_a_study_that_needs_nothing_measures_nothing(tmp_path, small_cohorts):
    study = {**STUDY, "analyses": {**STUDY["analyses"], "gaussian_baseline": False}}
    grid = LocalGrid(write_sites(tmp_path / "s", small_cohorts))

    measured = measure(*gathered(tmp_path, grid, study))

    assert measured.part("scaling") == measured.part("moments") == {}
    assert len(grid.sent) == len(small_cohorts)  # to gather them


def test_sites_may_refuse_to_be_measured_and_z_scored_ones_are_refused(tmp_path, small_cohorts):
    every = ["pretraining", "embedding", "projection", "site_variance", "site_classification", "residualization"]
    every += ["cross_validated_ridge", "combat", "quantiles"]
    with pytest.raises(QuorumError, match=r"policy\.analysis-not-allowed"):
        gathered(tmp_path, LocalGrid(write_sites(tmp_path / "s", small_cohorts, analyses=every)), ROBUST)

    stored = []
    for path in small_cohorts:
        copy = tmp_path / "z" / path.name
        copy.mkdir(parents=True)
        for file in path.iterdir():
            (copy / file.name).symlink_to(file)
        about = yaml.safe_load((path / "cohort.yaml").read_text())
        (copy / "cohort.yaml").unlink()
        (copy / "cohort.yaml").write_text(yaml.safe_dump({**about, "scaling": "zscore"}))
        stored.append(copy)
    with pytest.raises(QuorumError, match=r"contract\.scaling \(the cohort's recordings were z-scored before"):
        gathered(tmp_path, LocalGrid(write_sites(tmp_path / "t", stored)), ROBUST)
