"""What the protocol promises, and what a coordinator who sees all messages can make of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from exchange.ring import RingOverflowError, encode
from exchange.secure_sum import MaskContext, Masker, SecureSumError, SumLayout, open_sum
from tests.exchange.sealing import KEYS, ROSTER, SITES, roster_of

NAMES = tuple(SITES)
MASKERS = {name: Masker(name, key, ROSTER) for name, key in KEYS.items()}
CONTEXT = MaskContext("study", "77", 3, 1, NAMES, "what is asked")


def arrays_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "moment": rng.normal(size=(7, 7)) * 1e3,
        "n": np.array(seed + 10),
        "empty": np.empty((0, 3)),
        "update/weight": rng.normal(scale=0.01, size=301).astype(np.float32),
    }


def seal(name: str, context: MaskContext = CONTEXT, seed: int | None = None, maskers=MASKERS):
    return maskers[name].seal(arrays_of(NAMES.index(name) if seed is None else seed), context, bound=0.1)


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(NAMES), min_size=3), st.randoms())
def test_masks_cancel_for_any_sites_in_any_order(sites, random):
    sites = sorted(sites)
    context = replace(CONTEXT, sites=tuple(sites))
    sealed = [seal(name, context) for name in sites]
    random.shuffle(sealed)

    total = open_sum(sealed)

    for name in arrays_of(0):
        expected = sum(arrays_of(NAMES.index(site))[name].astype(float) for site in sites)
        np.testing.assert_allclose(total[name], expected, rtol=1e-12, atol=1e-8)


def _sum_of(sealed):
    return {bits: sum(words[bits] for _, words in sealed) for bits in (32, 64)}


def test_a_message_is_uniform_whatever_it_hides():
    """Chi-square over the bytes of messages that hide zeros, and of the sum of all messages but one."""
    zeros = {"x": np.zeros(60_000), "update/y": np.zeros(60_000)}
    sealed = [MASKERS[name].seal(zeros, CONTEXT, 1.0) for name in NAMES]

    for words in (sealed[2][1], _sum_of(sealed[1:])):
        for values in words.values():
            counts = np.bincount(values.view(np.uint8), minlength=256)
            assert chisquare(counts).pvalue > 1e-6


def test_masks_do_not_depend_on_what_they_hide():
    """So that, uniform as they are, any plaintext could have made a message."""
    nothing = MASKERS["b"].seal({key: np.zeros_like(v) for key, v in arrays_of(1).items()}, CONTEXT, 0.1)[1]

    for seed in (1, 2):
        sealed = seal("b", seed=seed)[1]
        moment = encode(arrays_of(seed)["moment"], "sum", len(NAMES))
        update = encode(arrays_of(seed)["update/weight"], "update", len(NAMES), 0.1)
        np.testing.assert_array_equal((sealed[64] - nothing[64])[: len(moment)], moment)
        np.testing.assert_array_equal((sealed[32] - nothing[32])[:-1], update)


@pytest.mark.parametrize(
    "changes",
    [{"study": "other"}, {"run": "78"}, {"step": 4}, {"attempt": 2}, {"question": "something else"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_message_of_another_context_does_not_open(changes):
    sealed = [seal(name) for name in NAMES[:-1]] + [seal(NAMES[-1], replace(CONTEXT, **changes))]

    with pytest.raises(SecureSumError, match="did not cancel"):
        open_sum(sealed)


def test_messages_of_other_sites_rosters_and_layouts_do_not_open():
    fewer = [seal(name, replace(CONTEXT, sites=NAMES[:4])) for name in NAMES[:4]]
    imposter = roster_of({**KEYS, "d": X25519PrivateKey.generate()})
    lied_to = {name: Masker(name, KEYS[name], imposter) for name in NAMES}

    assert _opened([seal(name) for name in NAMES])
    for others in ([*fewer, seal("e")], [*(seal(name) for name in NAMES[:4]), seal("e", maskers=lied_to)]):
        with pytest.raises(SecureSumError, match="did not cancel"):
            open_sum(others)
    other = MASKERS["e"].seal({**arrays_of(4), "n": np.array(4.0)}, CONTEXT, bound=0.1)
    with pytest.raises(SecureSumError, match="different arrays"):
        open_sum([*(seal(name) for name in NAMES[:4]), other])


def _opened(sealed) -> bool:
    """Whether messages add to what the sites put in."""
    expected = sum(arrays_of(number)["moment"] for number in range(len(NAMES)))
    return bool(np.allclose(open_sum(sealed)["moment"], expected))


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "missing"])
def test_damaged_messages_do_not_open(damage):
    sealed = [seal(name) for name in NAMES]
    layout, words = sealed[1]
    if damage == "flip":
        words[64][5] ^= np.uint64(1 << 60)
        assert not _opened(sealed)
        return
    if damage == "swap":  # of two fields of the same ring
        words[64][:-1] = words[64][-2::-1]
        assert not _opened(sealed)
        return
    sealed[1] = (layout, {32: words[32]} if damage == "missing" else {**words, 64: words[64][:-1]})
    with pytest.raises(SecureSumError, match="incomplete"):
        open_sum(sealed)


def test_a_sum_is_among_three_sites_in_order_this_one_included():
    with pytest.raises(SecureSumError, match="among 2 sites"):
        seal("b", replace(CONTEXT, sites=("a", "b")))
    with pytest.raises(SecureSumError):
        seal("e", replace(CONTEXT, sites=NAMES[:3]))
    with pytest.raises(SecureSumError, match="order"):
        seal("b", replace(CONTEXT, sites=("c", "b", "a")))
    with pytest.raises(SecureSumError):
        seal("b", replace(CONTEXT, sites=("a", "b", "b")))


def test_what_does_not_fit_is_named():
    with pytest.raises(RingOverflowError, match="moment"):
        MASKERS["b"].seal({"moment": np.array([1e300])}, CONTEXT)


SHAPES = ([math.inf], [math.nan], [-1], [1.0], [True], ["1"], [10**30], [2**20, 2**20], "ab", 7, [[1]], None)
"""Shapes of no array that a message could hold."""


def test_layouts_travel_as_json_and_damaged_ones_are_refused():
    layout = SumLayout.of(arrays_of(1), bound=0.1)

    assert SumLayout.from_json(layout.to_json()) == layout
    for damaged in (
        {},
        {"fields": [{"name": "a"}], "bound": 1},
        {"fields": [], "bound": "x"},
        {"fields": 3, "bound": 1},
        {"fields": ["a"], "bound": 1},
        *({"fields": [{"name": "a", "shape": shape, "kind": "sum"}], "bound": 1} for shape in SHAPES),
        {"fields": [{"name": "a", "shape": [1], "kind": "other"}], "bound": 1},
        {"fields": [{"name": 3, "shape": [1], "kind": "sum"}], "bound": 1},
        *({"fields": [], "bound": bound} for bound in (math.nan, math.inf, -1, 10**400)),
    ):
        with pytest.raises(SecureSumError):
            SumLayout.from_json(damaged)
    twice = layout.to_json()
    twice["fields"] = [twice["fields"][0], twice["fields"][0]]
    with pytest.raises(SecureSumError):
        SumLayout.from_json(twice)
