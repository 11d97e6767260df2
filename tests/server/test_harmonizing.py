"""Studies that ask for more than ComBat: what the sites' numbers add up to equals the pooled analysis."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from cohorts import Cohort
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from cohorts.vectors import Vectors, read_vectors, save_vectors
from exchange.messages import DescribeReply, DescribeRequest
from harmonization import ComBat, CrossValidatedCCA, CrossValidatedRidge, Projection, SiteTable, run_pooled
from server.errors import QuorumError
from server.report import write_report
from study.errors import StudyError
from tests.server.test_app import covariates as design
from tests.server.test_app import private_seed, summary_of
from tests.server.test_app import values as matrix
from tests.support.federation import PLAIN, STUDY, UNMEASURED, features, run_study, write_sites
from tests.support.local_grid import LocalGrid

RICH = {
    **STUDY,
    "averaging": {**STUDY["averaging"], "rounds": 1},
    "harmonization": {"order": "one_model", "prior": "none"},
    "analyses": {
        **STUDY["analyses"],
        "targets": ["age", "sex"],
        "permutations": 5,
        "bootstrap": 5,
        "category_permutations": 0,
        "leave_one_site_out": True,
        "site_classification": True,
        "compare": ["covbat"],
    },
    "association": {"vectors": "genes", "components": 4, "permutations": 5},
}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> list[Path]:
    """Three hospitals whose people have gene vectors."""
    folder = tmp_path_factory.mktemp("genes") / "cohorts"
    return simulate_cohorts(folder, simulated_hospitals(3, 16, minutes=2.2), atlas="schaefer100", seed=9, vectors=8)


@pytest.fixture(scope="module")
def rich_run(tmp_path_factory, cohorts) -> tuple[Path, list[Path]]:
    """Run the study with everything once."""
    folder = tmp_path_factory.mktemp("rich")
    sites = write_sites(folder / "sites", cohorts)
    run_study(folder / "run", LocalGrid(sites), RICH)
    return folder / "run", sites


def nuisance(table) -> np.ndarray:
    return np.column_stack([design(table), (table["mean_fd"] - 0.2) / 0.1, (table["tsnr"] - 60) / 30])


def pooled(sites: list[Path], covariates, **more) -> list[SiteTable]:
    """Tables of the raw embedding of all sites, as an analyst with all data would make them."""
    return [
        SiteTable(
            matrix(table := features(site, "embedding")),
            covariates(table),
            table["age"].to_numpy(),
            site=site.parent.name,
            seed=private_seed(site),
            **{name: values[number] for name, values in more.items()},
        )
        for number, site in enumerate(sites)
    ]


def test_the_reference_site_comes_back_unchanged_and_others_as_pooled_combat_makes_them(tmp_path, cohorts):
    sites = write_sites(tmp_path / "s", cohorts)
    run_study(tmp_path / "run", LocalGrid(sites), {**STUDY, **UNMEASURED, "harmonization": {"reference": "bergen"}})
    method = ComBat(reference="bergen")
    tables = pooled(sites, design)
    model = run_pooled(method, tables)

    for site, table in zip(sites, tables, strict=True):
        harmonized = matrix(features(site, "embedding.harmonized"))
        np.testing.assert_allclose(harmonized, method.harmonize(model, table), rtol=0, atol=1e-9)
    np.testing.assert_allclose(matrix(features(sites[1], "embedding.harmonized")), tables[1].features, atol=1e-12)
    assert "bergen as reference site" in write_report(tmp_path / "run").read_text()


def test_one_model_takes_its_own_coefficients_out(rich_run):
    _, sites = rich_run
    tables = pooled(sites, nuisance)
    model = run_pooled(ComBat(prior="none"), tables)
    harmonized = [matrix(features(site, "embedding.harmonized")) for site in sites]
    components = run_pooled(Projection(16), [SiteTable(values) for values in harmonized]).components

    for site, table, values in zip(sites, tables, harmonized, strict=True):
        expected = (values - model.grand_mean - table.design @ model.coefficients) @ components.T
        residuals = matrix(features(site, "embedding.residualized"))
        np.testing.assert_allclose(residuals, expected, rtol=0, atol=1e-8)


def test_probes_of_whole_sites_equal_the_pooled_ones(rich_run):
    folder, sites = rich_run
    scores = summary_of(folder)["probes"]["embedding"]["age"]
    loadings = run_pooled(Projection(16), pooled(sites, nuisance)).components.T
    names = tuple(site.parent.name for site in sites)

    expected = run_pooled(CrossValidatedRidge(sites=names), pooled(sites, nuisance, loadings=[loadings] * 3))

    assert scores["raw"]["new_site"]["r2"] == pytest.approx(expected.r2, rel=1e-8)
    assert "new_site" not in scores["control"]
    assert scores["raw"]["r2_low"] <= scores["raw"]["r2"] <= scores["raw"]["r2_high"]


def test_every_variant_is_measured_in_every_way(rich_run):
    folder, _ = rich_run
    summary = summary_of(folder)

    for effect in summary["harmonization"]["site_effect"].values():
        assert set(effect) == {"raw", "harmonized", "control", "covbat"}
        for measured in effect.values():
            assert {"balanced_accuracy", "eta_squared", "permanova", "site_spread", "covariance_distance"} <= set(
                measured
            )
    for probes in summary["probes"].values():
        assert {"balanced_accuracy", "auroc", "auroc_low"} <= set(probes["sex"]["covbat"])


def test_association_equals_the_pooled_one(rich_run, cohorts):
    folder, sites = rich_run
    found = summary_of(folder)["association"]
    raw = pooled(sites, nuisance)
    loadings = run_pooled(Projection(16), raw).components[:4].T
    genes = [read_vectors(Cohort.open(path), "genes").matrix for path in cohorts]
    projection = run_pooled(Projection(4), [SiteTable(values) for values in genes])
    tables = [
        SiteTable(
            matrix(features(site, "embedding.harmonized")),
            table.covariates,
            second=projection.project(values),
            loadings=loadings,
            seed=table.seed,
        )
        for site, table, values in zip(sites, raw, genes, strict=True)
    ]

    expected = run_pooled(CrossValidatedCCA(3, n_folds=3, permutations=5), tables)

    np.testing.assert_allclose(found["cca"]["correlations"], expected.correlations, atol=1e-8)
    assert found["cca"]["p_value"] == pytest.approx(expected.p_value)
    assert len(found["fusion/age"]["r2"]) == 4


def test_the_report_tells_of_all_of_it(rich_run):
    folder, _ = rich_run

    page = write_report(folder).read_text()

    for told in ("Embedding and vectors", "canonical correlation 1", "CovBat", "new site"):
        assert told in page


def test_sites_without_the_vectors_refuse_at_once(tmp_path, small_cohorts):
    with pytest.raises(QuorumError, match=r"contract\.vectors"):
        run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts)), RICH)


def test_vectors_of_other_dimensions_are_told_apart(tmp_path, cohorts):
    copies = simulate_cohorts(
        tmp_path / "c", simulated_hospitals(3, 16, minutes=2.2), atlas="schaefer100", seed=9, vectors=8
    )
    genes = read_vectors(Cohort.open(copies[0]), "genes")
    save_vectors(Cohort.open(copies[0]), Vectors(genes.participants, genes.matrix[:, :5]), "genes")

    with pytest.raises(StudyError, match="aalborg 5, bergen 8"):
        run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", copies)), RICH)

    assert not list((tmp_path / "run" / "checkpoints").glob("*"))  # before anybody trained


def test_one_site_s_vectors_of_other_dimensions_cost_the_others_nothing(tmp_path, cohorts):
    def lie(node: int, message: Message) -> Message | None:
        if node != 2 or message.metadata.message_type != DescribeRequest.message:
            return None
        reply = DescribeReply.from_records(grid._answer(node, message).content)
        return Message(reply.model_copy(update={"n_vector_dimensions": 10**9}).to_records(), reply_to=message)

    grid = LocalGrid(write_sites(tmp_path / "s", cohorts), lie)
    averaging = {**PLAIN["averaging"], "rounds": 1}
    association = {"vectors": "genes", "components": 2, "permutations": 5}
    study = {**PLAIN, **UNMEASURED, "averaging": averaging, "association": association}

    journal = run_study(tmp_path / "run", grid, study)

    assert journal.progress().status == "completed"
    assert [(site, stage) for site, stage, _ in journal.left_out()] == [("bergen", "describe")]
    assert "bergen is left out: its vectors 'genes' have 1000000000 dimensions; most have 8" in "".join(
        journal.table("notes")["text"]
    )


# Parcels that somebody lacks


def without_parcels(source: Path, folder: Path, parcels: list[int], only: slice = slice(None)) -> Path:
    """Copy a cohort whose first recordings, or all, have no signal in some parcels."""
    whole = Cohort.open(source)
    cohort = Cohort.create(folder, atlas=whole.atlas, participants=whole.participants, preprocessing="simulated")
    lacking = set(whole.recordings["recording_id"][only])
    for recording in whole:
        signal = recording.signal.copy()
        if recording.recording_id in lacking:
            signal[:, parcels] = 0
        cohort.add(replace(recording, signal=signal, coverage=np.empty(0, bool)))
    cohort.save()
    return folder


@pytest.fixture(scope="module")
def lacking_run(tmp_path_factory, small_cohorts) -> tuple[Path, list[Path]]:
    """A study whose second site lacks parcel 11, and a person of whose third site lacks parcel 40."""
    folder = tmp_path_factory.mktemp("lacking")
    second = without_parcels(small_cohorts[1], folder / "bergen", [11])
    third = without_parcels(small_cohorts[2], folder / "coimbra", [40], slice(1))
    sites = write_sites(folder / "sites", [small_cohorts[0], second, third])
    run_study(folder / "run", LocalGrid(sites), STUDY)
    return folder / "run", sites


def test_pairs_that_somebody_lacks_are_left_out_and_counted(lacking_run):
    folder, sites = lacking_run
    pairs = np.array(np.triu_indices(100, 1))
    lost = [(pairs == parcel).any(axis=0) for parcel in (11, 40)]

    summary = summary_of(folder)
    counts = summary["harmonization"]["features"]
    assert counts["connectivity"] == {"features": 4950, "left_out": 99 + 98}
    assert counts["embedding"]["left_out"] == counts["untrained"]["left_out"] == 0
    measured, shared, harmonized = (
        [wide(site, name) for site in sites]
        for name in ("connectivity", "connectivity.shared", "connectivity.shared.harmonized")
    )
    np.testing.assert_array_equal(np.isnan(measured[1]), np.tile(lost[0], (16, 1)))
    assert np.isnan(measured[2]).any(axis=1).sum() == 1
    for raw, kept, alike in zip(measured, shared, harmonized, strict=True):
        np.testing.assert_array_equal(kept, raw[:, ~(lost[0] | lost[1])])
        assert np.isfinite(alike).all()
    assert "197 of the 4,950 features of connectivity are left out" in write_report(folder).read_text()


def test_what_is_left_is_analysed_as_if_pooled(lacking_run):
    folder, sites = lacking_run
    tables = [
        replace(table, features=wide(site, "connectivity.shared"), seed=private_seed(site))
        for site, table in zip(sites, pooled(sites, design), strict=True)
    ]
    loadings = run_pooled(Projection(24), tables).components.T
    expected = run_pooled(
        CrossValidatedRidge(n_folds=3, method="combat"), [replace(table, loadings=loadings) for table in tables]
    )

    found = summary_of(folder)["probes"]["connectivity"]["age"]["harmonized"]

    assert found["r2"] == pytest.approx(expected.r2, rel=1e-6)
    model = run_pooled(ComBat(), tables)
    for site, table in zip(sites, tables, strict=True):
        rows = model.harmonize(table.features, table.design)
        np.testing.assert_allclose(wide(site, "connectivity.shared.harmonized"), rows, rtol=0, atol=1e-9)


def test_a_feature_set_of_which_nothing_is_left_is_left_out_and_said(tmp_path, small_cohorts):
    parcels = ([*range(40)], [*range(40, 80)], [*range(80, 99)])
    cohorts = [
        without_parcels(cohort, tmp_path / cohort.name, lost)
        for cohort, lost in zip(small_cohorts, parcels, strict=True)
    ]

    run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", cohorts)), STUDY)

    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "completed"
    assert summary["harmonization"]["features"]["connectivity"] == {"features": 4950, "left_out": 4950}
    assert set(summary["probes"]) == {"embedding", "untrained"}
    assert "4,950 of the 4,950 features of connectivity are left out" in write_report(tmp_path / "run").read_text()


def wide(site: Path, name: str) -> np.ndarray:
    """A feature set of many columns on a site's disk."""
    return load_file(site.parent / "state" / "studies" / "small" / f"{name}.safetensors")["features"]
