"""An answer holds what was asked for, in the clear or under masks, or it is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.expected import Expected, check_reply
from exchange.messages import Group, MessageError, SealedGroup, SecureSum, TrainReply, TrainRequest
from exchange.secure_sum import SumLayout
from tests.exchange.sealing import GROUPS, ROSTER, SITES, sealed

CLEAR = TrainRequest(study="s", model={}, training={}, round_number=1, rounds=1, seed=0, groups=GROUPS)
SECURE = CLEAR.model_copy(update={"secure": SecureSum(roster=ROSTER.hash, step=1, sites=SITES, bound=0.5)})
OTHERS = "an answer is masked among other sites than it was asked among."
EXPECTED = {
    "tally/n": Expected("count", most=100),
    "weights/w": Expected("weights", (6,), "float32"),
    "update/w": Expected("update", (6,)),
    "evaluation/large/parcels": Expected("sum", (3, 4)),
    "evaluation/small/parcels": Expected("sum", (3, 2)),
    "shown/loss": Expected("shown"),
    "shown/rows": Expected("shown", (None, 2)),
}


def arrays_of(site: str, *, masked: bool) -> dict[str, np.ndarray]:
    own = {"update/w": np.full(6, 0.1)} if masked else {"weights/w": np.ones(6, dtype=np.float32)}
    if site in "abc":
        own["evaluation/large/parcels"] = np.ones((3, 4))
    return {**own, "tally/n": np.array(7), "shown/rows": np.array([[np.nan, 1.0]] * 5)}


def answer(site: str, request: TrainRequest, **changes: np.ndarray | None) -> TrainReply:
    """Answer as asked, but for arrays that are other ones, more, or (None) missing."""
    masked = request.secure is not None
    arrays = {name: values for name, values in (arrays_of(site, masked=masked) | changes).items() if values is not None}
    reply = TrainReply(arrays=arrays)
    return sealed(reply, request, site) if masked else reply


def refuse(reply: TrainReply, request: TrainRequest, site: str = "b") -> str:
    with pytest.raises(MessageError) as error:
        check_reply(reply, request, site, EXPECTED)
    return str(error.value)


@pytest.mark.parametrize("request_", [CLEAR, SECURE], ids=["clear", "masked"])
@pytest.mark.parametrize("site", ["a", "e"])
def test_what_was_asked_for_is_taken(request_, site):
    for change in ({}, {"shown/rows": None}):
        assert check_reply(answer(site, request_, **change), request_, site, EXPECTED) is None
    assert "'tally/n' is missing." in refuse(answer(site, request_, **{"tally/n": None}), request_, site)


CHANGES: list[dict[str, np.ndarray | None]] = [
    {"tally/n": None},
    {"tally/n": np.array([7])},
    {"tally/more": np.array(1)},
    {"evaluation/large/parcels": np.ones((4, 3))},
    {"evaluation/large/parcels": np.ones((3, 4), dtype=np.int64)},
    {"evaluation/large/../../x": np.ones((3, 4))},
    {"shown/rows": np.ones((5, 3))},
    {"shown/rows": np.ones((1, 5, 2))},
    {"shown/rows": np.array([["a", "b"]])},
    {"shown/loss": np.ones(1)},
    {"shown/../../x": np.array(0.5)},
    {"/x": np.ones(1)},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ", ".join(change))
@pytest.mark.parametrize("request_", [CLEAR, SECURE], ids=["clear", "masked"])
def test_what_was_not_asked_for_is_refused_by_its_name(change, request_):
    said = refuse(answer("b", request_, **change), request_)

    assert any(repr(name) in said for name in change)


@pytest.mark.parametrize(
    "change",
    [
        {"tally/n": np.array(-1)},
        {"tally/n": np.array(101)},
        {"tally/n": np.array(7.0)},
        {"weights/w": np.ones(6)},
        {"weights/w": np.array([1, 1, 1, 1, 1, np.inf], dtype=np.float32)},
        {"evaluation/large/parcels": np.full((3, 4), np.nan)},
        {"evaluation/large/parcels": np.full((3, 4), -1e300)},  # which would be infinite in everybody's sums
        {"evaluation/large/parcels": np.ones((3, 4), dtype=np.float32)},
        {"evaluation/small/parcels": np.ones((3, 2))},  # of which too few make a sum
        {"update/w": np.zeros(6)},
    ],
    ids=lambda change: ", ".join(change),
)
def test_numbers_in_the_clear_are_looked_at_too(change):
    said = refuse(answer("b", CLEAR, **change), CLEAR)

    (name,) = change
    assert repr(name) in said
    assert "asked for." in said


def test_an_answer_in_the_clear_does_not_pass_for_a_masked_one_nor_the_other_way_round():
    assert OTHERS in refuse(answer("a", CLEAR), SECURE, "a")
    assert "an answer in the clear was asked for, and this one is masked." in refuse(answer("a", SECURE), CLEAR, "a")


def test_a_bound_of_updates_is_the_one_that_was_asked_for():
    other = SECURE.model_copy(update={"secure": SECURE.secure.model_copy(update={"bound": 0.25})})

    assert "within" in refuse(answer("b", other), SECURE)


def test_nobody_can_put_the_others_out_by_naming_them_in_a_sum_of_its_own():
    lied = SECURE.model_copy(update={"groups": [Group(parts=["update"], sites=["c", "d", "e"]), *GROUPS]})

    assert OTHERS in refuse(answer("c", lied), SECURE, "c")


@pytest.mark.parametrize("sites", [["d"], SITES], ids=["alone", "twice"])
def test_a_sum_that_nobody_asked_for_takes_no_other_s_place(sites):
    """Its words open alone, and what they hold could be called like anything that the sites sum."""
    alone = SumLayout.of({"evaluation/large/parcels": np.zeros((3, 4))}, 0.5)
    words = np.zeros(alone.n_words(64), dtype=np.uint64)
    words[-1] = 1
    right = answer("d", SECURE)
    groups = [*right.sealed, SealedGroup(sites=sites, layout=alone.to_json())]
    reply = right.model_copy(update={"sealed": groups, "arrays": {**right.arrays, "sealed/1/64": words}})

    assert OTHERS in refuse(reply, SECURE, "d")


_NAMES = st.sampled_from([*EXPECTED, "sealed/0/64", "sealed/0/32", "sealed/9/64", "../x", "", "shown/", "tally/n/"])
_ARRAYS = st.sampled_from([np.array(7), np.ones(6), np.ones((3, 4)), np.array(["x"]), np.zeros((0, 2)), np.ones(())])
_JSON = st.recursive(
    st.none() | st.integers(-2, 2**65) | st.text(max_size=3) | st.just(float("nan")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["fields", "bound", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    arrays=st.dictionaries(_NAMES, _ARRAYS, max_size=5),
    groups=st.lists(st.tuples(st.lists(st.sampled_from(SITES), max_size=5), _JSON), max_size=3),
    masked=st.booleans(),
)
def test_whatever_a_site_sends_is_taken_or_refused(arrays, groups, masked):
    sent = [
        SealedGroup(sites=sites, layout=layout if isinstance(layout, dict) else {"fields": layout})
        for sites, layout in groups
    ]
    reply = TrainReply(arrays=arrays, sealed=sent)
    with pytest.raises(MessageError):  # none of these is right
        check_reply(reply, SECURE if masked else CLEAR, "e", EXPECTED)
