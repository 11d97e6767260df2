import numpy as np
import pandas as pd
import pytest

from cohorts import Cohort
from cohorts.errors import VectorsError
from cohorts.simulation import simulate_cohorts, simulate_people, simulate_vectors, simulated_hospitals
from cohorts.vectors import import_vectors, read_vectors


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("vectors") / "cohorts"
    return Cohort.open(simulate_cohorts(folder, simulated_hospitals(1, 4, 1.0), atlas="schaefer100", seed=1)[0])


def table(cohort: Cohort) -> pd.DataFrame:
    people = sorted(cohort.recordings["participant_id"].unique())
    values = np.random.default_rng(0).normal(size=(len(people), 3))
    return pd.DataFrame({"participant_id": people, "v0": values[:, 0], "v1": values[:, 1], "v2": values[:, 2]})


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_vectors_come_back_as_they_were_given_of_people_with_a_recording(cohort, tmp_path, suffix):
    given, source = table(cohort), tmp_path / f"genes.{suffix}"
    stranger = pd.DataFrame({"participant_id": ["sub-x"], "v0": [1.0], "v1": [1.0], "v2": [1.0]})
    written = pd.concat([given, stranger])
    if suffix == "parquet":
        written.to_parquet(source)
    else:
        written.to_csv(source, index=False, sep="\t" if suffix == "tsv" else ",")

    import_vectors(cohort, source, "genes")
    vectors = read_vectors(cohort, "genes")

    assert vectors.participants == given["participant_id"].tolist()
    np.testing.assert_array_equal(vectors.matrix, given[["v0", "v1", "v2"]].to_numpy())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.drop(columns="participant_id"), "has no column participant_id"),
        (lambda t: t[["participant_id"]], "no numeric columns"),
        (lambda t: pd.concat([t, t.head(1)]), "stands twice"),
        (lambda t: t.assign(v1="high"), "column 'v1' holds text"),
        (lambda t: t.assign(v1=[*t["v1"][:-1], np.nan]), "missing or infinite"),
        (lambda t: t.assign(participant_id=["a", "b", "c", "d", "e"][: len(t)]), "none of its"),
    ],
)
def test_a_broken_table_is_refused_and_nothing_is_written(cohort, tmp_path, change, sentence):
    change(table(cohort)).to_csv(tmp_path / "broken.csv", index=False)

    with pytest.raises(VectorsError, match=sentence):
        import_vectors(cohort, tmp_path / "broken.csv", "broken")
    with pytest.raises(VectorsError, match="fedbrainlm cohort vectors"):
        read_vectors(cohort, "broken")


def test_a_file_that_is_no_table_is_refused(cohort, tmp_path):
    (tmp_path / "genes.parquet").write_text("not a table")

    for name in ("genes.parquet", "genes.txt", "absent.csv"):
        with pytest.raises(VectorsError, match=name):
            import_vectors(cohort, tmp_path / name, "genes")


def test_simulated_vectors_carry_what_recordings_carry_and_their_site():
    """Inborn gains explain a fifth of the variance within a site: the same in both, and nothing else of the person."""
    site = simulated_hospitals(1, 3000, 1.0)[0]
    people = simulate_people(site, seed=2)
    vectors = simulate_vectors(site, people, 40, seed=2).matrix
    centred = vectors - vectors.mean(axis=0)

    shares = np.linalg.svd(centred, compute_uv=False) ** 2 / (centred**2).sum()

    # Twelve directions, one a network, hold their own share and noise; the others hold noise alone.
    noise = shares[12:].mean() * 40
    assert noise == pytest.approx(0.8, abs=0.05)
    np.testing.assert_array_equal(vectors[:5], simulate_vectors(site, people[:5], 40, seed=2).matrix)
