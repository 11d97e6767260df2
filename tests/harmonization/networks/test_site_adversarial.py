from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

from harmonization import (
    CrossValidatedRidge,
    DesignError,
    HarmonizationError,
    SiteAdversarial,
    SiteClassification,
    SiteTable,
    TableError,
    add_sums,
    run_pooled,
)
from harmonization.networks.site_adversarial import AdversarialTraining
from tests.support.bent_sites import make_bent_sites

NAMES = ("0", "1", "2", "3")


def first_state(analysis: SiteAdversarial, tables: list[SiteTable]) -> AdversarialTraining:
    state = None
    while not isinstance(state, AdversarialTraining):
        state = analysis.solve(add_sums([analysis.summarize(table, state) for table in tables]), state)
    return state


def ages(tables: list[SiteTable]) -> list[SiteTable]:
    return [replace(table, target=table.design[:, 0]) for table in tables]


def test_gradients_equal_those_of_torch():
    sites = make_bent_sites((20, 25, 30), 9)
    analysis = SiteAdversarial(sites=sites.names, n_components=7, hidden=5, classifier_hidden=4, reversal=1.7)
    state = first_state(analysis, sites.tables)
    rng = np.random.default_rng(0)
    layout = analysis.layout(state)
    weights = {name: rng.normal(size=shape) for name, shape in layout.items()}
    rows = analysis.standardize(sites.tables[1], state)

    loss, gradients = analysis.gradient(weights, rows, state)

    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    u, c = torch.tensor(rows.features), torch.tensor(rows.design)
    erasing = torch.eye(7) - torch.tensor(state.erased @ state.erased.T)

    def network(name: str, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(x @ leaves[f"{name}.0.weight"] + leaves[f"{name}.0.bias"])
        return hidden @ leaves[f"{name}.1.weight"] + leaves[f"{name}.1.bias"]

    change = network("correction", u @ erasing) @ erasing
    h = u @ erasing + change
    probability = torch.softmax(network("classifier", torch.cat([h, h**2, c], 1)), 1)[:, 1]
    of_classifier = -torch.log(probability).mean()
    kept = change @ torch.tensor(state.kept)
    of_correction = (
        1.7 * -torch.log(1 - probability).mean() + 0.1 * (change**2).sum(1).mean() + 10 * (kept**2).sum(1).mean()
    )
    assert loss == pytest.approx(of_classifier.item(), rel=1e-12)
    for name, gradient in gradients.items():
        total = of_classifier if name.startswith("classifier") else of_correction
        expected = torch.autograd.grad(total, leaves[name], retain_graph=True)[0]
        np.testing.assert_allclose(gradient, expected, atol=1e-11)


@pytest.mark.parametrize("p", [30, 90, 1100], ids=["all components", "some components", "sketched components"])
def test_training_rows_do_not_tell_the_site_by_any_line(p):
    """At given covariates, harmonized features are uncorrelated with the site, also outside the components."""
    sites = make_bent_sites((40, 30, 50), p, offset=1e3)
    analysis = SiteAdversarial(sites=sites.names, n_components=40, rounds=1, learning_rate=1e-12)

    model = run_pooled(analysis, sites.tables)
    harmonized = np.concatenate([analysis.harmonize(model, table) for table in sites.tables])

    covariates = np.concatenate([table.design for table in sites.tables])
    site = np.concatenate([table.target for table in sites.tables])
    design = np.column_stack([np.ones(len(site)), covariates])
    left = site - design @ np.linalg.lstsq(design, site, rcond=None)[0]
    centred = harmonized - harmonized.mean(axis=0)
    before = np.concatenate([table.features for table in sites.tables])
    assert np.abs(left.T @ (before - before.mean(axis=0))).max() > 1
    np.testing.assert_allclose(left.T @ centred, 0, atol=1e-8)


def test_rows_may_be_spread_over_tables_of_a_site():
    sites = make_bent_sites((40, 30, 50), 20, offset=1e6)
    analysis = SiteAdversarial(sites=sites.names, rounds=8)
    halves = [table.take(rows) for table in sites.tables for rows in (np.arange(11), np.arange(11, table.n))]

    whole, split = run_pooled(analysis, sites.tables), run_pooled(analysis, halves)

    np.testing.assert_allclose(split.loss, whole.loss, rtol=1e-6)
    for table in sites.tables:
        of_whole, of_split = analysis.harmonize(whole, table), analysis.harmonize(split, table)
        np.testing.assert_allclose(of_split, of_whole, rtol=1e-9)
    again = run_pooled(analysis, sites.tables)
    np.testing.assert_array_equal(again.weights, whole.weights)


def test_takes_the_site_and_leaves_age_in_held_out_people():
    tables = make_bent_sites((50, 50, 50, 50), 64).tables
    method = {"method": "site_adversarial", "options": {"sites": NAMES}}

    def accuracy(**options) -> float:
        return run_pooled(SiteClassification(permutations=0, **options), tables).balanced_accuracy

    def age_r2(**options) -> float:
        return run_pooled(CrossValidatedRidge(**options), ages(tables)).r2

    assert accuracy() > 0.95
    assert accuracy(**method) < 0.4
    assert age_r2(**method) > age_r2() - 0.06


def test_the_adversary_takes_what_no_line_can_tell():
    """Sites differ in the spread of two features alone; a quadratic classifier is trained after they are corrected."""

    def draw(seed: int) -> list[SiteTable]:
        rng, tables = np.random.default_rng(seed), []
        for number in range(3):
            features, age = rng.normal(size=(150, 10)), rng.normal(size=(150, 1))
            features[:, 5:] += 0.5 * age
            features[:, :2] *= np.exp(1.2 * (number - 1))
            tables.append(SiteTable(features, age, site=str(number)))
        return tables

    train, test = draw(seed=1), draw(seed=2)
    site = np.repeat(range(3), 150)

    def recognised(**options) -> float:
        analysis = SiteAdversarial(sites=("0", "1", "2"), **options)
        model = run_pooled(analysis, train)
        seen, unseen = [np.concatenate([analysis.harmonize(model, t) for t in tables]) for tables in (train, test)]
        return QuadraticDiscriminantAnalysis(reg_param=0.1).fit(seen, site).score(unseen, site)

    assert recognised() < recognised(rounds=1, learning_rate=1e-12) - 0.1


def test_applies_to_sites_that_took_no_part():
    tables = make_bent_sites((60, 60, 60, 60), 30).tables
    analysis = SiteAdversarial(sites=("0", "1", "2"), rounds=10)

    model = run_pooled(analysis, tables[:3])
    new = replace(tables[3], site="new")

    assert analysis.harmonize(model, new).shape == new.features.shape
    # Nothing depends on which other rows are there.
    one = new.take(np.array([5]))
    np.testing.assert_allclose(analysis.harmonize(model, one)[0], analysis.harmonize(model, new)[5], rtol=1e-12)


def test_features_that_do_not_vary_come_back_as_they_were():
    tables = make_bent_sites((30, 30), 8).tables
    for table in tables:
        table.features[:, 3] = 7.1
    analysis = SiteAdversarial(sites=("0", "1"), rounds=3)

    model = run_pooled(analysis, tables)

    np.testing.assert_allclose(analysis.harmonize(model, tables[0])[:, 3], 7.1, rtol=1e-12)


def test_refuses_what_cannot_be_unlearned():
    tables = make_bent_sites((30, 30, 30), 8).tables
    names = ("0", "1", "2")
    for wrong in ((), ("0",), ("0", "0")):
        with pytest.raises(HarmonizationError, match="names of two sites or more"):
            SiteAdversarial(sites=wrong)
    with pytest.raises(HarmonizationError, match="one step a round"):
        SiteAdversarial(sites=names, local_steps=5)
    with pytest.raises(TableError, match="not among those"):
        run_pooled(SiteAdversarial(sites=names), [*tables[:2], replace(tables[2], site="other")])
    with pytest.raises(HarmonizationError, match="only one site"):
        run_pooled(SiteAdversarial(sites=names), tables[:1])
    telling = [replace(t, covariates=np.full((30, 1), float(t.site == "1"))) for t in tables]
    with pytest.raises(DesignError, match="covariates tell some of the sites"):
        run_pooled(SiteAdversarial(sites=names), telling)
    with pytest.raises(TableError, match="NaN"):
        run_pooled(
            SiteAdversarial(sites=names), [replace(t, features=t.features * np.nan, incomplete=True) for t in tables]
        )
    with pytest.raises(HarmonizationError, match="differ in all 2 components"):
        run_pooled(SiteAdversarial(sites=names), [replace(t, features=t.features[:, :2]) for t in tables])
    with pytest.raises(HarmonizationError, match="is not finite"):
        run_pooled(SiteAdversarial(sites=names, learning_rate=1e160), tables)
    model = run_pooled(SiteAdversarial(sites=names, rounds=1), tables)
    with pytest.raises(TableError, match="have 8 and 1 columns"):
        SiteAdversarial(sites=names).harmonize(model, replace(tables[0], covariates=np.ones((30, 1))))
