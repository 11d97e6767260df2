from dataclasses import replace

import numpy as np
import pytest
import torch

from harmonization import HarmonizationError, SiteTable, TableError, TwoTower, run_pooled
from harmonization.core.errors import SmallGroupError
from harmonization.networks.neural import unpack
from harmonization.networks.training import Training

SIZES = (80, 50, 120)


def study(
    sizes: tuple[int, ...] = SIZES, *, latents: int = 0, site_shift: float = 0.0, seed: int = 0
) -> list[SiteTable]:
    """Sites whose views share some latent numbers, or a shift of the site."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(latents, 22))
    shift = rng.normal(size=(len(sizes), 22)) * site_shift
    tables = []
    for number, n in enumerate(sizes):
        views = rng.normal(size=(n, 22)) + 2 * rng.normal(size=(n, latents)) @ loadings + shift[number]
        tables.append(SiteTable(views[:, :12] + 1e4, second=views[:, 12:], seed=number))
    return tables


def small(**options: object) -> TwoTower:
    return TwoTower(**{"rounds": 15, "width": 6, "learning_rate": 0.02, "permutations": 99, **options})


def test_gradient_equals_that_of_torch():
    rng = np.random.default_rng(0)
    training = Training(np.zeros(9), np.ones(9), np.array([5.0, 4.0]), 7.0, *[np.empty(0)] * 4)
    rows = SiteTable(rng.normal(size=(7, 5)), second=rng.normal(size=(7, 4)))
    weights = {"features": rng.normal(size=(5, 3)), "second": rng.normal(size=(4, 3))}

    loss, gradients = TwoTower(width=3, temperature=0.3).gradient(weights, rows, training)

    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    u, v = (
        torch.nn.functional.normalize(torch.tensor(getattr(rows, name)) @ leaf, dim=1) for name, leaf in leaves.items()
    )
    similarity = u @ v.T / 0.3
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(similarity, torch.arange(7)) + cross_entropy(similarity.T, torch.arange(7))) / 2
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, leaves[name].grad, atol=1e-12)


def test_scores_equal_a_plain_search_among_held_out_people():
    analysis, tables = small(rounds=3), study(latents=3)
    model = run_pooled(analysis, tables)
    first, top_five, reciprocal = [], [], []
    for table in tables:
        rows = table.take(analysis.is_held_out(table))
        u, v = model.embed(rows.features, rows.second)
        for similarity in (u @ v.T, v @ u.T):
            for person, row in enumerate(similarity):
                rank = 1 + sum(row > row[person])
                first.append(rank == 1)
                top_five.append(rank <= 5)
                reciprocal.append(1 / rank)

    np.testing.assert_allclose(model.scores, [np.mean(first), np.mean(top_five), np.mean(reciprocal)])
    assert (model.n, model.n_held_out) == (200, 50)
    expected = [3 / 50, 15 / 50, sum((1 / np.arange(1, m + 1)).sum() for m in (16, 10, 24)) / 50]
    np.testing.assert_allclose(model.chance, expected)
    np.testing.assert_allclose(model.null_mean, model.chance, atol=0.03)


def test_finds_partners_by_what_both_views_share():
    model = run_pooled(small(), study(latents=4))

    np.testing.assert_array_equal(model.p_value, 1 / 100)
    assert (model.scores > 2.5 * model.chance).all()
    assert model.loss[-1] < 0.7 * model.loss[0]
    u, v = model.embed(*(np.ones((2, width)) for width in (12, 10)))
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([u, v]), axis=1), 1)


@pytest.mark.parametrize("site_shift", [0.0, 10.0])
def test_neither_chance_nor_a_site_finds_partners(site_shift):
    model = run_pooled(small(), study(site_shift=site_shift))

    assert (model.p_value > 0.05).all()
    assert (model.scores < model.null_95 + 1e-12).all()


def test_held_out_people_teach_nothing():
    analysis, tables = small(rounds=3), study(latents=3)
    changed = [
        replace(table, features=np.where(analysis.is_held_out(table)[:, None], -7, table.features)) for table in tables
    ]

    model, other = run_pooled(analysis, tables), run_pooled(analysis, changed)

    np.testing.assert_array_equal(model.weights, other.weights)
    np.testing.assert_array_equal(model.mean, other.mean)
    # All who were held out look alike: one of a site is found by features, and nobody, as ties count, by the second.
    assert other.scores[0] == pytest.approx(other.chance[0] / 2)


def test_width_is_at_most_that_of_the_smaller_view():
    model = run_pooled(small(width=256, rounds=1), study())

    assert {name: value.shape for name, value in unpack(model.weights, TwoTower().layout(model)).items()} == {
        "features": (12, 10),
        "second": (10, 10),
    }


def test_works_with_gradients_of_whole_sites_and_without_permutations():
    model = run_pooled(small(rounds=40, local_steps=1, permutations=0), study(latents=4))

    assert model.scores[0] > 2 * model.chance[0]
    assert np.isnan(model.null_95).all()
    np.testing.assert_array_equal(model.p_value, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"second": None}, TableError, "no second"),
        ({"min_group": 15}, SmallGroupError, "10 of 50 participants would be held out; expected at least 15"),
        ({"participant": np.zeros(50, dtype=np.int64)}, TableError, "several rows"),
    ],
)
def test_refuses_tables_that_do_not_allow_it(change, error, message):
    with pytest.raises(error, match=message):
        run_pooled(small(), [replace(study()[1], **change)])


@pytest.mark.parametrize("options", [{"width": 0}, {"temperature": 0.0}, {"held_out": 1.0}, {"permutations": -1}])
def test_refuses_parameters_that_mean_nothing(options):
    with pytest.raises(HarmonizationError, match="expected at least 1, above 0, between 0 and 1, and at least 0"):
        TwoTower(**options)


def test_refuses_sites_with_too_few_to_leave_out():
    with pytest.raises(SmallGroupError, match="1 of 4 participants would be held out; expected at least 2"):
        run_pooled(small(), study((4,)))
