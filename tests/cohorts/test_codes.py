import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohorts.codes import says_missing, suspects


def found(values, described=()):
    return {suspect.value: suspect.certain for suspect in suspects(np.array(values, dtype=float), described)}


IQ = range(70, 131)
CERTAIN, DOUBTFUL = True, False


@pytest.mark.parametrize(
    ("others", "code", "verdict"),
    [
        (IQ, -9999, CERTAIN),
        (IQ, -999, CERTAIN),
        (IQ, 9999, CERTAIN),
        (IQ, 999, CERTAIN),
        (IQ, 888.8, CERTAIN),
        (IQ, 998, CERTAIN),
        (IQ, -997, CERTAIN),
        (range(18, 61), 97, DOUBTFUL),
        (range(60, 93), 97, None),
        ((98, 110), -9999, CERTAIN),
        ((97.5, 98.2, 99.1), 99.7, None),
        (IQ, -777, CERTAIN),
        (IQ, -(2**31), CERTAIN),
        (range(91, 102), -99, CERTAIN),
        (range(5), 99, CERTAIN),
        (range(1, 6), 9, DOUBTFUL),
        (range(1, 6), 8, None),
        (range(31), -1, DOUBTFUL),
        ((5, 7), -1, DOUBTFUL),
        ((5, 7, 8, 9), 99, CERTAIN),
        (range(31), -9, DOUBTFUL),
        (range(18, 81), 99, DOUBTFUL),
        (range(350, 900, 7), 999, DOUBTFUL),
        (IQ, 0, DOUBTFUL),
        (IQ, 1000, DOUBTFUL),
        ((0, 0, 0), 999, CERTAIN),
        ((), -9999, CERTAIN),
    ],
)
def test_codes_are_told_by_their_form_and_by_how_far_they_lie(others, code, verdict):
    assert found([*others, code, code]) == ({} if verdict is None else {code: verdict})


@pytest.mark.parametrize(
    "values",
    [
        [*IQ, 99, 88],
        range(1, 100),
        range(10),
        [-1, 1, -1],
        [500, 777, 888, 999, 1200],
        np.random.default_rng(0).normal(size=200),
        [*np.random.default_rng(0).normal(size=50), -1, -3],
        np.random.default_rng(0).lognormal(0, 1, size=300),
        [0, 0, 0, 20],
        [np.nan] * 3,
    ],
)
def test_values_among_others_are_no_codes(values):
    assert found(values) == {}


@pytest.mark.parametrize("codes", [(997, 998, 999), (-9999, -999, 999)])
def test_several_codes_at_once_hide_none_of_each_other(codes):
    assert found([*IQ, *codes]) == dict.fromkeys(codes, CERTAIN)


def test_numbers_that_are_known_to_mean_something_are_no_codes():
    assert found([1, 2, 3, 999], described=[999]) == {}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.randoms())
def test_what_is_suspected_lies_beyond_all_others_and_its_order_does_not_matter(values, random):
    told = found(values)
    rest = [value for value in values if value not in told]

    assert all(not rest or value < min(rest) or value > max(rest) for value in told)
    random.shuffle(values)
    assert found(values) == told


def test_a_code_is_found_among_real_iqs_and_nothing_else(real_data):
    fiq = pd.read_csv(real_data / "real" / "abide_dev_participants.tsv", sep="\t")["fiq"].to_numpy()
    assert {99.0, 88.0} <= set(fiq)

    assert found(fiq) == {}
    assert found([*fiq, -9999, -9999]) == {-9999: CERTAIN}


def test_words_for_missing_values_are_told_from_others():
    missing = ["Missing", "not available", "Refused to answer", "Don't know", "n.a.", "No data", "?"]
    others = ["other", "Refused treatment", "no", "not depressed", "first visit", ""]

    assert [words for words in missing + others if says_missing(words)] == missing
