import numpy as np
import pytest
from sklearn.linear_model import LinearRegression as ReferenceLinear
from sklearn.linear_model import Ridge

from harmonization import HarmonizationError, LinearRegression, RidgeRegression, SiteTable, TableError, run_pooled


def test_nearly_collinear_features_are_solved_as_exactly_as_by_singular_values():
    """Cross-products square the condition number, 1e5 here, and alone leave an error of 1e-7."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 8))
    features[:, 7] = features[:, :7].sum(axis=1) + 5e-5 * features[:, 7]
    target = features[:, 0] + rng.normal(size=200)
    reference = ReferenceLinear().fit(features, target)

    tables = [SiteTable(features[rows], target=target[rows]) for rows in (slice(0, 90), slice(90, 200))]
    model = run_pooled(LinearRegression(), tables)

    np.testing.assert_allclose(model.coef, reference.coef_, rtol=1e-8)


@pytest.mark.parametrize("analysis", [LinearRegression(), RidgeRegression(2.0)], ids=lambda analysis: analysis.name)
def test_several_targets_are_as_many_regressions(five_sites, analysis):
    targets = np.column_stack([five_sites.target, five_sites.features[:, 0] ** 2])
    reference = (ReferenceLinear() if analysis.name == "linear_regression" else Ridge(2.0)).fit(
        five_sites.features, targets
    )
    tables = [
        SiteTable(five_sites.features[rows], target=targets[rows])
        for number in range(5)
        for rows in [five_sites.site == number]
    ]

    model = run_pooled(analysis, tables)

    np.testing.assert_allclose(model.coef, reference.coef_, atol=1e-9)
    np.testing.assert_allclose(model.intercept, reference.intercept_, atol=1e-9)
    np.testing.assert_allclose(model.predict(five_sites.features), reference.predict(five_sites.features), atol=1e-9)


def test_coefficients_that_the_data_do_not_tell_are_refused(five_sites):
    def fit(change):
        tables = [SiteTable(change(table.features), target=table.target) for table in five_sites.tables]
        return run_pooled(LinearRegression(), tables)

    with pytest.raises(HarmonizationError, match=r"collinear\. Leave some out, or use ridge"):
        fit(lambda x: np.column_stack([x, x[:, 0] - 2 * x[:, 1]]))
    with pytest.raises(HarmonizationError, match=r"feature 2 is the same for everybody\. Leave it out"):
        fit(lambda x: np.column_stack([x[:, 0], np.full(len(x), 0.1), x[:, 1]]))
    with pytest.raises(HarmonizationError, match="200 features are too many for 174 participants"):
        fit(lambda x: np.tile(x, 5))


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_refuses_penalties_that_are_none(alpha):
    with pytest.raises(HarmonizationError, match="expected a finite number, 0 or more"):
        RidgeRegression(alpha)


def test_refuses_tables_without_a_target(five_sites):
    with pytest.raises(TableError, match="has no target"):
        run_pooled(LinearRegression(), [SiteTable(five_sites.features)])
