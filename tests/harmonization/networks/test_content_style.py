from dataclasses import replace

import numpy as np
import pytest
import torch

from harmonization import (
    ComBat,
    ContentStyle,
    CrossValidatedRidge,
    DesignError,
    HarmonizationError,
    SiteClassification,
    SiteTable,
    TableError,
    add_sums,
    run_pooled,
)
from harmonization.networks.content_style import ContentTraining
from tests.support.bent_sites import make_bent_sites


def first_state(analysis: ContentStyle, tables: list[SiteTable]) -> ContentTraining:
    state = None
    while not isinstance(state, ContentTraining):
        state = analysis.solve(add_sums([analysis.summarize(table, state) for table in tables]), state)
    return state


def test_gradients_equal_those_of_torch():
    sites = make_bent_sites((20, 25, 30), 9)
    analysis = ContentStyle(hidden=5, code_size=3, features_a_round=6, match=3.0, reconstruct=0.7, consist=1.3)
    state = first_state(analysis, sites.tables)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in analysis.layout(state).items()}
    rows = analysis.standardize(sites.tables[1], state)

    loss, gradients = analysis.gradient(weights, rows, state)

    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    columns = np.random.default_rng([0, 0]).choice(9, size=6, replace=False)
    raw, typical = torch.tensor(rows.features[:, columns]), torch.tensor(state.typical[columns])

    def normalise(x: torch.Tensor) -> torch.Tensor:
        return (x - x[::2].mean(0)) / x[::2].std(0, unbiased=False)

    def shape(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.sin(x), torch.cos(x), torch.sin(2 * x), torch.cos(2 * x)], -1).mean(0)

    def bend(name: str, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(x[..., None] @ leaves[f"{name}.0.weight"] + leaves[f"{name}.0.bias"])
        return x + ((hidden @ leaves[f"{name}.1.weight"] + leaves[f"{name}.1.bias"]) * code).sum(-1)

    v = normalise(raw)
    code = 13 / (13 + 20) * (shape(v[::2]) - typical) @ leaves["code"]
    content, other = bend("encoder", v, code), torch.roll(code, 1, 0)
    expected = (
        3.0 * ((shape(normalise(content)[1::2]) - typical) ** 2).mean()
        + 0.7 * ((bend("decoder", content, code) - v) ** 2).mean()
        + 1.3 * ((bend("encoder", bend("decoder", content, other), other) - content) ** 2).mean()
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert gradients.keys() == leaves.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, leaves[name].grad, rtol=1e-9, atol=1e-11)


def test_without_training_it_is_combat():
    sites = make_bent_sites((20, 35, 50), 12, offset=1e4)
    analysis = ContentStyle(rounds=1, learning_rate=1e-200)

    model, combat = run_pooled(analysis, sites.tables), run_pooled(ComBat(), sites.tables)

    for table in sites.tables:
        np.testing.assert_allclose(
            analysis.harmonize(model, table), ComBat().harmonize(combat, table), rtol=1e-11, atol=1e-9
        )


def test_straightens_what_sites_bend_better_than_combat():
    """Half of each site's people are fitted, the others compared with their undistorted features."""
    sites = make_bent_sites((300, 300, 300, 300), 30, bend=0.5, seed=1)
    train, test = [[t.take(np.arange(t.n) % 2 == half) for t in sites.tables] for half in (0, 1)]
    truth = replace(sites, truth=[values[np.arange(len(values)) % 2 == 1] for values in sites.truth])

    def error(analysis: ComBat | ContentStyle) -> float:
        model = run_pooled(analysis, train)
        effects = [analysis.estimate(model, table) for table in train]
        return truth.error([analysis.apply(model, *pair) for pair in zip(test, effects, strict=True)])

    assert error(ContentStyle(rounds=12)) < 0.9 * error(ComBat())


def test_leaves_sites_that_do_not_bend_as_combat_does():
    sites = make_bent_sites((50, 50, 50, 50), 30, bend=0.0)

    def error(analysis: ComBat | ContentStyle) -> float:
        model = run_pooled(analysis, sites.tables)
        return sites.error([analysis.harmonize(model, table) for table in sites.tables])

    assert error(ContentStyle(rounds=6)) < 1.1 * error(ComBat())


def test_takes_the_site_and_leaves_age_in_held_out_people():
    tables = make_bent_sites((50, 50, 50, 50), 40).tables
    with_age = [replace(table, target=table.design[:, 0]) for table in tables]
    method = {"method": "content_style", "options": {"rounds": 3}}

    def accuracy(**options) -> float:
        return run_pooled(SiteClassification(n_folds=3, permutations=0, **options), tables).balanced_accuracy

    def age_r2(**options) -> float:
        return run_pooled(CrossValidatedRidge(n_folds=3, **options), with_age).r2

    assert accuracy() > 0.95
    assert accuracy(**method) < 0.5
    assert age_r2(**method) > age_r2() - 0.05


def test_a_new_site_finds_its_style_by_itself():
    sites = make_bent_sites((100, 100, 100, 100), 20)
    analysis = ContentStyle(rounds=10)

    model = run_pooled(analysis, sites.tables[:3])
    new = analysis.harmonize(model, sites.tables[3])
    known = [analysis.harmonize(model, table) for table in sites.tables[:3]]

    unharmonized = sites.error([table.features for table in sites.tables])
    assert sites.error([*known, new]) < 0.5 * unharmonized
    assert sites.error([*known, sites.tables[3].features]) > 1.2 * sites.error([*known, new])


def test_repeats_itself_and_draws_by_the_sites_seeds():
    tables = make_bent_sites((40, 30, 50), 10).tables
    analysis = ContentStyle(rounds=3)

    weights = run_pooled(analysis, tables).weights

    np.testing.assert_array_equal(run_pooled(analysis, tables).weights, weights)
    reseeded = [replace(table, seed=table.seed + 10) for table in tables]
    assert not np.array_equal(run_pooled(analysis, reseeded).weights, weights)


def test_features_that_do_not_vary_come_back_as_they_were():
    tables = make_bent_sites((30, 30), 8).tables
    for number, table in enumerate(tables):
        table.features[:, 3] = 7.1
        table.features[:, 5] = number  # inside each site
        if number == 0:
            table.features[:, 6] = 2.0  # at one site
    analysis = ContentStyle(rounds=2)

    model = run_pooled(analysis, tables)

    for table in tables:
        harmonized = analysis.harmonize(model, table)
        np.testing.assert_array_equal(harmonized[:, [3, 5]], table.features[:, [3, 5]])
        assert np.isfinite(harmonized).all()


def test_refuses_what_has_no_style():
    tables = make_bent_sites((30, 30, 30), 8).tables
    with pytest.raises(HarmonizationError, match="there is one site"):
        run_pooled(ContentStyle(), tables[:1])
    with pytest.raises(TableError, match="two participants at a site"):
        run_pooled(ContentStyle(), [*tables, tables[0].take(np.array([0]))])
    with pytest.raises(DesignError, match="constant inside every site"):
        run_pooled(ContentStyle(), [replace(t, covariates=np.ones((30, 1))) for t in tables])
    with pytest.raises(HarmonizationError, match="expected to be at least 1"):
        ContentStyle(hidden=0)
    with pytest.raises(HarmonizationError, match=r"not finite in round .\. Lower learning_rate"):
        run_pooled(ContentStyle(learning_rate=1e160), tables)
    model = run_pooled(ContentStyle(rounds=1), tables)
    with pytest.raises(TableError, match="have 7 and 2 columns"):
        ContentStyle().harmonize(model, replace(tables[0], features=tables[0].features[:, :7]))
