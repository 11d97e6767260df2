import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, RecordDict

from client.features import FeatureSet, FeatureStore, complete_rows, find_table
from client.site import Site, find_site
from cohorts import Cohort, Recording
from cohorts.vectors import Vectors, save_vectors
from exchange.messages import TableSpec
from exchange.refusals import Refusal
from harmonization import Design
from harmonization.core.design import KNOWN
from tests.support.local_grid import write_site

AGE = Design((KNOWN["age"],))


@pytest.fixture
def site(tmp_path) -> Site:
    """Four people, one of unknown age and one of unknown sex."""
    people = pd.DataFrame({"participant_id": [f"sub-{n}" for n in range(4)], "age": [30.0, np.nan, 50.0, 70.0]})
    people["sex"] = ["F", "M", None, "M"]
    cohort = Cohort.create(tmp_path / "cohort", atlas="schaefer100", participants=people)
    for name in people["participant_id"]:
        signal = np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32)
        cohort.add(Recording(name, signal, t_r=2.0))
    cohort.save()
    path = write_site(tmp_path / "site", "here", tmp_path / "cohort")
    return find_site(Context(1, 1, {"site-config": str(path)}, RecordDict(), {}))


@pytest.mark.parametrize("p", [3, 3000])
def test_feature_sets_come_back_the_same(tmp_path, p):
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(4, p)))
    store = FeatureStore(tmp_path)

    store.write("x", FeatureSet([f"sub-{n}" for n in range(4)], values, {"recipe": "r"}))
    back = store.read("x")

    np.testing.assert_array_equal(back.features, values)
    assert (back.participants, back.about) == ([f"sub-{n}" for n in range(4)], {"recipe": "r"})
    with pytest.raises(Refusal, match="was not made yet"):
        store.read("y")


def test_a_run_does_not_take_what_another_one_made(tmp_path):
    FeatureStore(tmp_path, "one").write("x", FeatureSet(["sub-0"], np.eye(1)))

    np.testing.assert_array_equal(FeatureStore(tmp_path, "one").read("x").features, np.eye(1))
    with pytest.raises(Refusal, match="was made by another run of the study"):
        FeatureStore(tmp_path, "two").read("x")


def test_people_without_a_covariate_drop_out(site):
    rows, matrix = complete_rows(site, ["sub-3", "sub-1", "sub-0", "sub-2"], AGE)

    assert rows == [0, 2, 3]
    np.testing.assert_array_equal(matrix[:, 0], [1.0, -1.0, 0.0])


def test_tables_hold_the_people_for_whom_all_is_known(site):
    FeatureStore(site.folder_of("s")).write("x", FeatureSet([f"sub-{n}" for n in range(4)], np.eye(4)))

    plain = find_table(site, "s", TableSpec(features="x")).rows
    with_sex = find_table(
        site, "s", TableSpec(features="x", covariates=Design((KNOWN["sex"],)).to_json(), target="age")
    ).rows
    by_site = find_table(site, "s", TableSpec(features="x", target="site", levels=["elsewhere", "here"])).rows

    assert plain.n == 4
    np.testing.assert_array_equal(with_sex.features, np.eye(4)[[0, 3]])
    np.testing.assert_array_equal(with_sex.target, [30.0, 70.0])
    np.testing.assert_array_equal(with_sex.design, [[0.0], [1.0]])
    np.testing.assert_array_equal(by_site.target, np.tile([0.0, 1.0], (4, 1)))
    assert plain.seed == by_site.seed == site.private_seed("s", "folds")


def test_loadings_are_those_of_the_projection(site):
    store = FeatureStore(site.folder_of("s"))
    store.write("x", FeatureSet([f"sub-{n}" for n in range(4)], np.eye(4)))
    components = np.arange(8.0).reshape(2, 4)
    store.write_model("x.components", {"components": components, "mean": np.zeros(4)})

    table = find_table(site, "s", TableSpec(features="x", through="x.components")).rows

    np.testing.assert_array_equal(table.loadings, components.T)
    with pytest.raises(Refusal, match="was not made yet"):
        find_table(site, "s", TableSpec(features="x", through="y.components"))


def test_leading_components_are_enough_where_few_are_wanted(site):
    store = FeatureStore(site.folder_of("s"))
    store.write("x", FeatureSet([f"sub-{n}" for n in range(4)], np.eye(4)))
    store.write_model("x.components", {"components": np.eye(4), "mean": np.zeros(4)})

    table = find_table(site, "s", TableSpec(features="x", through="x.components", n_loadings=2)).rows

    np.testing.assert_array_equal(table.loadings, np.eye(4)[:, :2])


def test_a_category_is_a_target_of_one_column_a_level(site):
    FeatureStore(site.folder_of("s")).write("x", FeatureSet([f"sub-{n}" for n in range(4)], np.eye(4)))

    table = find_table(site, "s", TableSpec(features="x", target="sex", levels=["F", "M"])).rows

    np.testing.assert_array_equal(table.target, [[1, 0], [0, 1], [0, 1]])
    strict = site.policy.model_copy(update={"min_group": 2})
    site.policy = strict
    with pytest.raises(Refusal, match="sex = F"):
        find_table(site, "s", TableSpec(features="x", target="sex", levels=["F", "M"]))


def test_both_views_are_of_the_same_people_in_the_same_order(site):
    FeatureStore(site.folder_of("s")).write("x", FeatureSet([f"sub-{n}" for n in range(4)], np.eye(4)))
    matrix = np.arange(6.0).reshape(3, 2)
    save_vectors(site.cohort, Vectors(["sub-3", "sub-0", "sub-1"], matrix), "genes")

    table = find_table(site, "s", TableSpec(features="x", second="vectors.genes", covariates=AGE.to_json())).rows

    np.testing.assert_array_equal(table.features, np.eye(4)[[0, 3]])  # sub-1 has no age, sub-2 no vector
    np.testing.assert_array_equal(table.second, matrix[[1, 0]])


def test_a_table_says_whose_it_is_and_what_sums_over_it_tell(site):
    store = FeatureStore(site.folder_of("s"))
    store.write("x.projected", FeatureSet([f"sub-{n}" for n in range(4)], np.eye(4), {"features": "x"}))
    store.write("y", FeatureSet(["sub-3", "sub-1", "sub-0"], np.eye(3)))

    table = find_table(
        site,
        "s",
        TableSpec(features="x.projected", second="y", target="age", complete=Design((KNOWN["sex"],)).to_json()),
    )

    assert table.participants == ["sub-0", "sub-3"]
    assert table.data == ("column/age", "features/x", "features/y")
    assert table.rows.n == 2


@pytest.mark.parametrize("lacking", ["sub-0", "sub-1"])
def test_nothing_is_summed_of_features_that_somebody_lacks(site, lacking):
    """Whether or not whoever lacks one is in the table: sub-1, whose age is not known, is not."""
    people = [f"sub-{n}" for n in range(4)]
    features = np.eye(4)
    features[people.index(lacking), 2] = np.nan
    store = FeatureStore(site.folder_of("s"))
    store.write("x", FeatureSet(people, features))
    store.write("y", FeatureSet(people, np.eye(4)))

    for spec in ({"features": "x"}, {"features": "y", "second": "x"}):
        with pytest.raises(Refusal, match="'x' was asked for before those that all have"):
            find_table(site, "s", TableSpec(**spec, covariates=AGE.to_json()))


@pytest.mark.parametrize(
    "spec", [{"target": "site", "levels": ["a", "b"]}, {"covariates": [{"name": "iq", "center": 0, "scale": 1}]}]
)
def test_what_the_site_does_not_know_is_refused(site, spec):
    FeatureStore(site.folder_of("s")).write("x", FeatureSet([f"sub-{n}" for n in range(4)], np.eye(4)))

    with pytest.raises(Exception, match=r"not in the list|not among the cohort's covariates"):
        find_table(site, "s", TableSpec(features="x", **spec))
