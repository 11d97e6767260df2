from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from harmonization import (
    ComBat,
    ComBatHarmonizer,
    DesignError,
    HarmonizationError,
    LongitudinalComBat,
    PooledHarmonizer,
    TableError,
    Unharmonized,
    make_harmonizer,
    run_pooled,
)
from harmonization.core import saving
from tests.support.sites import Sites

METHODS = [
    Unharmonized(),
    ComBat(),
    ComBat("none", mean_only=True, reference="2"),
    ComBat("nonparametric", missing="per_feature"),
    LongitudinalComBat(),
]


def people(sites: Sites) -> np.ndarray:
    """Numbers of participants with two visits each, at one site."""
    return 1000 * sites.site + np.arange(len(sites.site)) // 2


def frames(sites: Sites) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features and covariates as tables, with strings and categories."""
    features = pd.DataFrame(sites.features, columns=[f"roi{k}" for k in range(sites.features.shape[1])])
    scanner = pd.Categorical(np.array(["GE", "Siemens", "Philips"])[np.arange(len(features)) % 3])
    sex = np.where(sites.covariates[:, 1] > 0, "M", "F")
    covariates = pd.DataFrame({"age": sites.covariates[:, 0], "sex": sex, "scanner": scanner})
    return features, covariates


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_equals_the_federation(five_sites, method):
    harmonized = PooledHarmonizer(method).fit_transform(
        five_sites.features, five_sites.covariates, five_sites.site, participant=people(five_sites)
    )

    whose = people(five_sites)
    tables = [
        replace(table, site=str(number), participant=whose[five_sites.site == number])
        for number, table in enumerate(five_sites.tables)
    ]
    model = run_pooled(method, tables)
    for number, table in enumerate(tables):
        expected = method.harmonize(model, table)
        np.testing.assert_allclose(harmonized[five_sites.site == number], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_comes_back_from_a_file_bit_by_bit(five_sites, tmp_path, method):
    features, covariates = frames(five_sites)
    rows = {"site": five_sites.site, "participant": people(five_sites)}
    harmonizer = PooledHarmonizer(method).fit(features, covariates, **rows)
    path = tmp_path / "harmonizer.safetensors"
    harmonizer.save(path)

    loaded = PooledHarmonizer.load(path)

    assert loaded.method == method
    assert (loaded.design_, loaded.feature_names_) == (harmonizer.design_, harmonizer.feature_names_)
    expected = harmonizer.transform(features, covariates, **rows)
    np.testing.assert_array_equal(loaded.transform(features, covariates, **rows), expected)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_face_loads_its_own_method_only(five_sites, tmp_path):
    data = five_sites.features, five_sites.covariates, five_sites.site
    ComBatHarmonizer(prior="none", reference=3).fit(*data).save(tmp_path / "combat")
    loaded = ComBatHarmonizer.load(tmp_path / "combat")
    assert isinstance(loaded, ComBatHarmonizer)
    assert loaded.method == ComBat("none", reference="3")

    PooledHarmonizer(Unharmonized()).fit(*data).save(tmp_path / "none")
    with pytest.raises(HarmonizationError, match="holds the method 'none'"):
        ComBatHarmonizer.load(tmp_path / "none")


def test_refuses_files_of_other_versions(five_sites, tmp_path):
    path = tmp_path / "combat"
    ComBatHarmonizer().fit(five_sites.features, None, five_sites.site).save(path)
    arrays, about = saving.read(path)
    for change in ({"model": "Other"}, {"method": "kriging"}, {"parameters": {"prior": "flat"}}):
        saving.write(path, arrays, {**about, **change})
        with pytest.raises(HarmonizationError, match=r"version|not known|expected one of"):
            ComBatHarmonizer.load(path)
    unfit = "harmonization.probes.crossvalidation.Progress"  # which cannot be told from its arrays alone
    sites = [{**about, "sites": [["0", kind]]} for kind in ("os.system", unfit)]
    for broken in ([], *sites, {**about, "features": 3}):
        saving.write(path, arrays, broken)
        with pytest.raises(HarmonizationError, match="another version"):
            ComBatHarmonizer.load(path)


def test_refuses_to_work_before_it_is_fitted(tmp_path):
    with pytest.raises(HarmonizationError, match="not fitted"):
        ComBatHarmonizer().transform(np.zeros((2, 2)), None, [0, 1])
    with pytest.raises(HarmonizationError, match="not fitted"):
        ComBatHarmonizer().save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


# Rows and sites


def test_new_rows_take_the_effect_that_training_rows_estimated(five_sites):
    rows = np.arange(len(five_sites.site)) % 4 > 0
    harmonizer = ComBatHarmonizer().fit(five_sites.features[rows], five_sites.covariates[rows], five_sites.site[rows])
    one = np.flatnonzero(~rows)[:1]

    alone = harmonizer.transform(five_sites.features[one], five_sites.covariates[one], five_sites.site[one])
    together = harmonizer.transform(five_sites.features, five_sites.covariates, five_sites.site)

    np.testing.assert_allclose(alone, together[one], atol=1e-12)


def test_a_new_site_is_made_alike_and_changes_nothing_else(five_sites):
    known = five_sites.site < 4
    data = five_sites.features, five_sites.covariates, five_sites.site
    harmonizer = ComBatHarmonizer(prior="none").fit(*(values[known] for values in data))

    harmonized = harmonizer.transform(*data)

    np.testing.assert_array_equal(harmonized[known], harmonizer.transform(*(values[known] for values in data)))
    model = harmonizer.model_
    left = (harmonized - model.grand_mean - five_sites.covariates @ model.coefficients)[~known]
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(left.var(axis=0, ddof=1), model.pooled_variance, rtol=1e-10)
    assert set(harmonizer.effects_) == {"0", "1", "2", "3"}


def test_a_site_is_the_same_whether_its_label_is_a_number_or_text(five_sites):
    harmonizer = ComBatHarmonizer().fit(five_sites.features, None, five_sites.site)
    few = five_sites.features[:3]

    expected = harmonizer.transform(few, None, five_sites.site[:3])

    for labels in ([0.0] * 3, ["0"] * 3, pd.Series(["0", "0", "0"], dtype="category")):
        np.testing.assert_array_equal(harmonizer.transform(few, None, labels), expected)


def test_refuses_rows_without_a_site(five_sites):
    features = five_sites.features
    for missing in (None, float("nan"), pd.NA, ""):
        with pytest.raises(TableError, match="has no name of its site"):
            ComBatHarmonizer().fit(features, None, [*five_sites.site[:-1], missing])
    with pytest.raises(TableError, match=r"site has shape \(3,\)"):
        ComBatHarmonizer().fit(features, None, five_sites.site[:3])


def test_says_which_site_is_too_small(five_sites):
    site = five_sites.site.astype(object)
    site[0] = "lonely"

    with pytest.raises(HarmonizationError, match="site 'lonely': ComBat needs two participants"):
        ComBatHarmonizer().fit(five_sites.features, None, site)


# Tables with names


@pytest.mark.parametrize("as_mapping", [False, True])
def test_named_columns_are_coded_as_a_matrix_would_be(five_sites, as_mapping):
    features, covariates = frames(five_sites)
    coded = np.column_stack(
        [
            covariates["age"],
            covariates["sex"] == "M",
            covariates["scanner"] == "Philips",
            covariates["scanner"] == "Siemens",
        ]
    ).astype(np.float64)
    given = {name: list(covariates[name]) for name in covariates} if as_mapping else covariates

    harmonized = ComBatHarmonizer().fit_transform(features, given, five_sites.site)

    assert isinstance(harmonized, pd.DataFrame)
    expected = ComBatHarmonizer().fit_transform(five_sites.features, coded, list(five_sites.site))
    np.testing.assert_allclose(harmonized, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["covariates", "site"])
def test_the_same_people_in_another_order_are_refused(five_sites, name):
    features, covariates = frames(five_sites)
    rows = {"covariates": covariates, "site": pd.Series(five_sites.site)}
    mixed = rows | {name: rows[name].sample(frac=1, random_state=0)}
    elsewhere = {key: values.set_axis(np.arange(len(values)) + 10_000) for key, values in rows.items()}

    with pytest.raises(TableError, match=f"the index of {name} has the labels of X in another order"):
        ComBatHarmonizer().fit(features, **mixed)
    harmonized = ComBatHarmonizer().fit_transform(features, **elsewhere)
    np.testing.assert_array_equal(harmonized, ComBatHarmonizer().fit_transform(features, **rows))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_table_comes_back_as_one_and_an_array_as_an_array(five_sites, tmp_path, method):
    features, covariates = frames(five_sites)
    features.index = covariates.index = pd.Index([f"sub-{n}" for n in range(len(features))], name="participant_id")
    rows = {"site": five_sites.site, "participant": people(five_sites)}
    harmonizer = PooledHarmonizer(method).fit(features, covariates, **rows)
    harmonizer.save(tmp_path / "file")

    harmonized = harmonizer.transform(features, covariates, **rows)
    plain = harmonizer.transform(five_sites.features, covariates, **rows)

    pd.testing.assert_index_equal(harmonized.index, features.index)
    pd.testing.assert_index_equal(harmonized.columns, features.columns)
    assert type(plain) is np.ndarray
    np.testing.assert_array_equal(harmonized.to_numpy(), plain)
    loaded = PooledHarmonizer.load(tmp_path / "file")
    pd.testing.assert_frame_equal(loaded.transform(features, covariates, **rows), harmonized)
    pd.testing.assert_frame_equal(PooledHarmonizer(method).fit_transform(features, covariates, **rows), harmonized)


def test_levels_of_categories_are_those_of_the_fit(five_sites):
    features, covariates = frames(five_sites)
    harmonizer = ComBatHarmonizer().fit(features, covariates, five_sites.site)
    everybody = harmonizer.transform(features, covariates, five_sites.site)

    men = np.flatnonzero(covariates["sex"] == "M")  # one level alone, and columns in another order, change nothing
    some = harmonizer.transform(
        features.iloc[men], covariates.iloc[men][["sex", "scanner", "age"]], five_sites.site[men]
    )
    pd.testing.assert_frame_equal(some, everybody.iloc[men])
    with pytest.raises(DesignError, match="'sex' has levels outside the agreed F, M"):
        harmonizer.transform(features, covariates.assign(sex="unknown"), five_sites.site)
    with pytest.raises(DesignError, match="'age' is not a number everywhere"):
        harmonizer.transform(features, covariates.assign(age="old"), five_sites.site)
    with pytest.raises(DesignError, match="'sex' is not in the table"):
        harmonizer.transform(features, covariates[["age", "scanner"]], five_sites.site)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_refuses_covariates_with_missing_values(five_sites, missing):
    features, covariates = frames(five_sites)
    for name in ("age", "sex"):
        values = covariates[name].astype(object)
        values[3] = missing
        with pytest.raises(DesignError, match=f"'{name}' has missing values"):
            ComBatHarmonizer().fit(features, covariates.assign(**{name: values}), five_sites.site)


def test_refuses_features_in_another_order(five_sites):
    features, covariates = frames(five_sites)
    harmonizer = ComBatHarmonizer().fit(features, covariates, five_sites.site)

    for other in (features[features.columns[::-1]], features.rename(columns={"roi3": "roi03"}), features.iloc[:, 1:]):
        with pytest.raises(TableError, match="in the same order"):
            harmonizer.transform(other, covariates, five_sites.site)


def test_refuses_tables_of_another_form_than_fitted(five_sites):
    features, covariates = frames(five_sites)
    named = ComBatHarmonizer().fit(features, covariates, five_sites.site)
    plain = ComBatHarmonizer().fit(five_sites.features, five_sites.covariates, five_sites.site)

    with pytest.raises(TableError, match="names in one of fit and transform"):
        named.transform(features, five_sites.covariates, five_sites.site)
    with pytest.raises(TableError, match="names in one of fit and transform"):
        plain.transform(features, covariates, five_sites.site)
    with pytest.raises(DesignError, match="'age' is not in the table"):
        named.transform(features, None, five_sites.site)
    with pytest.raises(TableError, match="40 and 0 columns; this model was fitted on 40 and 2"):
        plain.transform(features, None, five_sites.site)
    with pytest.raises(TableError, match="covariates holds values that are no numbers"):
        plain.fit(features, np.full((len(features), 1), "F"), five_sites.site)
    with pytest.raises(TableError, match="'age' has 3 values; expected 174"):
        plain.fit(features, {"age": [1.0, 2.0, 3.0]}, five_sites.site)


def test_missing_features_pass_where_the_method_allows_them(five_sites):
    features = five_sites.features.copy()
    features[5, 2] = np.nan
    with pytest.raises(TableError, match="NaN"):
        ComBatHarmonizer().fit(features, None, five_sites.site)

    harmonized = ComBatHarmonizer(missing="complete").fit_transform(features, None, five_sites.site)

    assert np.argwhere(np.isnan(harmonized)).tolist() == [[5, 2]]


def test_any_method_has_a_face(five_sites):
    face = PooledHarmonizer(make_harmonizer("combat", {"prior": "none"}))

    harmonized = face.fit_transform(five_sites.features, five_sites.covariates[:, 0], five_sites.site)

    expected = ComBatHarmonizer(prior="none").fit_transform(
        five_sites.features, {"age": five_sites.covariates[:, 0]}, five_sites.site
    )
    np.testing.assert_array_equal(harmonized, expected)


@pytest.mark.parametrize("smooth", [{"age": (-1.6, 2.0)}, [["age", -1.6, 2.0]], [[0, -1.6, 2.0]], {0: [-1.6, 2.0]}])
def test_covariates_are_smooth_by_name_or_by_number(five_sites, tmp_path, smooth):
    """A number is that of the column in the design: the names of the table, in their order."""
    features, covariates = frames(five_sites)
    face = PooledHarmonizer(make_harmonizer("combat_gam", {"smooth": smooth}))
    coded = np.column_stack([covariates["age"], *(covariates["scanner"] == name for name in ("Philips", "Siemens"))])
    named = covariates[["age", "scanner"]]

    harmonized = face.fit_transform(features, named, five_sites.site)

    matrix = PooledHarmonizer(make_harmonizer("combat_gam", {"smooth": [[0, -1.6, 2.0]]}))
    expected = matrix.fit_transform(five_sites.features, coded.astype(float), five_sites.site)
    np.testing.assert_allclose(harmonized, expected, rtol=0, atol=1e-12)
    face.save(tmp_path / "gam")
    loaded = PooledHarmonizer.load(tmp_path / "gam")
    pd.testing.assert_frame_equal(loaded.transform(features, named, five_sites.site), harmonized)


def test_smooth_names_numbers_of_covariates_that_have_names(five_sites):
    features, covariates = frames(five_sites)
    for name in ("sex", "height"):
        face = PooledHarmonizer(make_harmonizer("combat_gam", {"smooth": {name: (0, 1)}}))
        with pytest.raises(DesignError, match=f"smooth names '{name}', which is no number among the covariates age"):
            face.fit(features, covariates, five_sites.site)
    by_name = PooledHarmonizer(make_harmonizer("combat_gam", {"smooth": {"age": (0, 1)}}))
    with pytest.raises(
        DesignError, match=r"smooth names 'age', and the covariates have no names\. Give them as a table"
    ):
        by_name.fit(features, five_sites.covariates, five_sites.site)
    for smooth in ({"age": (1, 0)}, {"age": (0, float("nan"))}):
        with pytest.raises(DesignError, match="expected a lower and an upper"):
            make_harmonizer("combat_gam", {"smooth": smooth})
    for smooth in ({"age": 3}, {"age": (1, 2, 3)}, {"age": "18-90"}, 7):
        with pytest.raises(HarmonizationError, match="smooth of 'combat_gam' is"):
            make_harmonizer("combat_gam", {"smooth": smooth})
