"""Networks see features about their mean to the last digit, however far from zero that is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from harmonization import Analysis, ContentStyle, SiteAdversarial, SiteNetwork, SiteTable, TwoTower, add_sums
from harmonization.networks.site_network import NetworkTraining
from harmonization.probes.crossvalidation import Progress
from tests.support.conditioning import assert_as_exact_as_data, tolerance
from tests.support.people import People, make_people

NETWORKS: dict[str, Callable[[tuple[str, ...]], Analysis]] = {
    "two_tower": lambda sites: TwoTower(rounds=2, local_steps=2, width=2, permutations=0),
    "site_adversarial": lambda sites: SiteAdversarial(rounds=2, sites=sites, n_components=5),
    "content_style": lambda sites: ContentStyle(rounds=2, local_steps=2),
    "site_network": lambda sites: SiteNetwork(n_folds=2, permutations=0, rounds=2),
}
FINE = 2.0**-24
"""Features are multiples of this, so that a shift by `FAR` rounds none of them."""
FAR = 2.0**20


def tables_of(people: People, features: np.ndarray, name: str) -> list[SiteTable]:
    return [
        SiteTable(
            features[rows],
            people.covariates[rows],
            people.one_hot[rows] if name == "site_network" else None,
            people.second[rows],
            site=str(number),
            seed=number,
        )
        for number, rows in enumerate(people.rows)
    ]


def trained(analysis: Analysis, tables: list[SiteTable]) -> dict[str, Any]:
    """Weights after the last round, the losses so far, and rows that were harmonized."""
    state, networks = None, None
    while state is None or not state.done:
        state = analysis.solve(add_sums([analysis.summarize(table, state) for table in tables]), state)
        if isinstance(state, Progress) and isinstance(state.own, NetworkTraining):
            networks = state.own
    if networks is not None:
        return {"weights": networks.weights}
    return {"weights": state.weights, "loss": state.loss}


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=4)
@given(
    sizes=st.lists(st.integers(12, 60), min_size=2, max_size=4),
    p=st.integers(10, 20),
    q=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
@example(sizes=[29, 31, 39], p=5, q=5, seed=24174)
def test_an_offset_costs_a_network_no_digit(name, sizes, p, q, seed):
    people = make_people(sizes, p, q, seed, 0.0, categories=False)
    assume(name != "site_adversarial" or p > len(sizes) + 2)
    analysis = NETWORKS[name](tuple(map(str, range(len(sizes)))))
    near = FINE * np.round(people.features / FINE)

    def answer(features: np.ndarray) -> dict[str, Any]:
        return trained(analysis, tables_of(people, features, name))

    assert_as_exact_as_data(answer(near + FAR), answer(near), tolerance(answer, near))


def test_what_is_standardised_is_restored_far_from_zero():
    people = make_people([20, 30, 25], 12, 1, 0, 0.0, categories=False)
    near = FINE * np.round(people.features / FINE)
    analysis = NETWORKS["site_adversarial"](("0", "1", "2"))
    rows = []
    for features in (near, near + FAR):
        tables, state = tables_of(people, features, "site_adversarial"), None
        while state is None or not state.done:
            state = analysis.solve(add_sums([analysis.summarize(table, state) for table in tables]), state)
        rows.append(np.concatenate([analysis.harmonize(state, table) for table in tables]))

    np.testing.assert_allclose(rows[1] - FAR, rows[0], rtol=0, atol=np.spacing(FAR))
