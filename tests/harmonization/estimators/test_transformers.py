import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from harmonization import Projector, Residualizer, TableError


@pytest.mark.parametrize("by_site", [True, False])
def test_rows_that_were_not_fitted_are_predicted_by_those_that_were(five_sites, by_site):
    train = np.random.default_rng(0).random(len(five_sites.site)) < 0.7
    one_hot = np.eye(5)[five_sites.site] if by_site else np.ones((len(train), 1))
    design = np.column_stack([one_hot, five_sites.covariates])
    coefficients = np.linalg.lstsq(design[train], five_sites.features[train], rcond=None)[0]
    names = np.array(list("abcde"))[five_sites.site]

    residualizer = Residualizer(by_site).fit(five_sites.features[train], five_sites.covariates[train], names[train])
    residuals = residualizer.transform(five_sites.features[~train], five_sites.covariates[~train], names[~train])

    np.testing.assert_allclose(residuals, (five_sites.features - design @ coefficients)[~train], atol=1e-11)


def test_a_new_site_has_the_mean_of_its_own_rows(five_sites):
    known = five_sites.site < 4
    residualizer = Residualizer().fit(five_sites.features[known], five_sites.covariates[known], five_sites.site[known])

    new = residualizer.transform(five_sites.features[~known], five_sites.covariates[~known], five_sites.site[~known])

    unexplained = (five_sites.features - five_sites.covariates @ residualizer.model_.coefficients)[~known]
    np.testing.assert_allclose(new, unexplained - unexplained.mean(axis=0), atol=1e-12)


def test_site_alone_needs_no_covariates_and_covariates_no_site(five_sites):
    alone = Residualizer().fit_transform(five_sites.features, site=five_sites.site)

    for number in range(5):
        np.testing.assert_allclose(alone[five_sites.site == number].mean(axis=0), 0, atol=1e-12)
    Residualizer(site=False).fit(five_sites.features, five_sites.covariates)
    with pytest.raises(TableError, match="one name a row"):
        Residualizer().fit(five_sites.features, five_sites.covariates)
    with pytest.raises(TableError, match="in the same order"):
        Residualizer().fit(five_sites.features, None, five_sites.site).transform(
            five_sites.features, five_sites.covariates, five_sites.site
        )


def test_projector_has_the_numbers_of_scikit_learn(five_sites):
    ours, theirs = Projector(6).fit(five_sites.features), PCA(6).fit(five_sites.features)

    for name in ("mean_", "components_", "explained_variance_", "explained_variance_ratio_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-9)
    scores = ours.fit_transform(five_sites.features)
    np.testing.assert_allclose(scores, theirs.transform(five_sites.features), atol=1e-9)


def test_a_table_comes_back_as_one(five_sites):
    people = pd.Index([f"sub-{n}" for n in range(len(five_sites.site))], name="participant_id")
    table = pd.DataFrame(five_sites.features, index=people, columns=[f"roi{k}" for k in range(40)])
    plain = Residualizer().fit_transform(five_sites.features, five_sites.covariates, five_sites.site)
    scores = Projector(3).fit_transform(five_sites.features)

    residuals = Residualizer().fit_transform(table, five_sites.covariates, five_sites.site)
    pd.testing.assert_frame_equal(residuals, pd.DataFrame(plain, people, table.columns))
    named = pd.DataFrame(scores, people, ["c0", "c1", "c2"])
    pd.testing.assert_frame_equal(Projector(3).fit_transform(table), named)
    assert type(plain) is type(scores) is np.ndarray
