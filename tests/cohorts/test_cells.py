import numpy as np
import pandas as pd
import pytest

from cohorts import ParticipantsError
from cohorts.cells import ColumnRules, TableRules, read_column


def read(name, cells, *, unit="years", about=None, **rules):
    """Values (None where missing) and what was said of them, of a column whose first row is row 2."""
    column = pd.Series(cells, index=range(2, len(cells) + 2), name=name, dtype="str")
    values, notices = read_column(column, ColumnRules.of(name, about or {}, TableRules(**rules)), unit)
    return [None if pd.isna(value) else value for value in values], notices


TWELVE_AND_A_HALF = (
    *("12.5", "12,5", "1.25e1", "12.5 years", "12.5y", "12.5 Yrs.", "12.5 years old", "P12Y6M", "12y 6m"),
    *("12 years, 6 months", "150 months", "150mo", "P150M"),
)


@pytest.mark.parametrize("cell", TWELVE_AND_A_HALF)
def test_ages_are_read_however_they_are_written(cell):
    (age, other), notices = read("age", [cell, "30"])

    assert age == pytest.approx(12.5)
    assert other == 30
    assert len(notices) == (0 if cell in ("12.5", "1.25e1") else 1)


@pytest.mark.parametrize(("cell", "age"), [("3 weeks", 21 / 365.25), ("P10D", 10 / 365.25), ("6", 0.5), ("1 year", 1)])
def test_a_unit_in_a_cell_goes_before_that_of_the_column(cell, age):
    assert read("age", [cell], unit="months")[0] == [pytest.approx(age)]


@pytest.mark.parametrize(
    ("cell", "bound"),
    [("89+", 89), ("> 89", 89), (">=90", 90), ("≥90", 90), ("90 or older", 90), ("over 85 years", 85), ("<18", 18)],
)
def test_of_a_bound_alone_the_user_says_what_becomes(cell, bound):
    (missing, other), said = read("age", [cell, "61"])
    taken, told = read("age", [cell, "61"], top_coded="bound")

    assert (missing, other) == (None, 61)
    assert said == [
        f"age: 1 of 2 rows has '{cell}': a bound alone, read as missing. --top-coded bound takes the bound."
    ]
    assert taken == [bound, 61]
    assert told == [f"age: 1 of 2 rows has '{cell}': a bound alone, which was taken."]


@pytest.mark.parametrize("cell", ["35-40", "35 - 40", "35–40", "35 to 40 years"])
def test_of_a_range_alone_the_user_says_what_becomes(cell):
    assert read("age", [cell, "61"])[0] == [None, 61]
    assert read("age", [cell, "61"], ranges="midpoint")[0] == [37.5, 61]
    assert "a range alone, read as missing" in read("age", [cell, "61"])[1][0]


def test_bounds_and_ranges_are_in_the_units_of_the_column():
    assert read("age", ["60+", "12-24"], unit="months", top_coded="bound", ranges="midpoint")[0] == [5, 1.5]


@pytest.mark.parametrize("code", ["-9999", "-1", "999", "-9", "unknown", "Not reported", "?"])
def test_a_code_among_ages_costs_nobody_else_the_age(code):
    ages, notices = read("age", [code, "11", "12"])

    assert ages == [None, 11, 12]
    assert code in notices[0]


def test_what_cannot_be_read_costs_few_people_their_own_value_and_many_the_table():
    good = [str(age) for age in range(20, 39)]

    ages, notices = read("age", [*good, "forty"])
    assert ages == [*range(20, 39), None]
    assert notices == [
        "age: 1 of 20 rows has what cannot be read (first row 21): read as missing; expected a number in years from 0 "
        "to 120, or n/a."
    ]
    with pytest.raises(ParticipantsError, match="row 21 has age 'forty'; expected a number in years"):
        read("age", [*good, "forty", "fifty", "sixty"])


def test_one_age_of_another_unit_refuses_all():
    """Were they months, ages below 120 would be wrong without a trace."""
    with pytest.raises(ParticipantsError, match=r"row 4 has age '200'.*--missing-value age=200; if ages are in months"):
        read("age", ["100", "110", "200"])
    assert read("age", ["100", "110", "200"], missing=(("age", "200"),))[0] == [100, 110, None]


@pytest.mark.parametrize("cell", ["O", "other", "Other", "intersex", "non-binary", "X"])
def test_a_sex_beside_f_and_m_costs_no_table(cell):
    sexes, notices = read("sex", [cell, "F", "m", "Male", cell])

    assert sexes == [None, "F", "M", "M", None]
    assert len(notices) == 1
    assert notices[0].startswith(f"sex: 2 of 5 rows have '{cell}': neither F nor M, read as missing.")


@pytest.mark.parametrize("cell", ["unknown", "U", "-9", "999", "not reported", "9"])
def test_a_sex_that_is_missing_is_missing(cell):
    assert read("sex", [cell, "F"]) == ([None, "F"], [f"sex: 1 of 2 rows has '{cell}': a missing value."])


def test_levels_tell_the_sexes():
    levels = {"1": "Male participant", "2": {"Description": "female"}, "3": "other", "9": "not reported"}

    sexes, notices = read("sex", ["1", "2", "3", "9"], about={"Levels": levels})

    assert sexes == ["M", "F", None, None]
    assert [notice.split(": ")[-1] for notice in notices[:1]] == ["named as missing."]
    assert "'3': neither F nor M" in notices[1]
    assert read("sex", ["1.0", "2.0", "n/a"], about={"Levels": levels})[0] == ["M", "F", None]
    with pytest.raises(ParticipantsError, match=r"row 2 has sex '1'.*cannot be guessed"):
        read("sex", ["1", "2", "1"])


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["101,5", "99,25", "98"], [101.5, 99.25, 98]),
        (["0,123", "1,234"], [0.123, 1.234]),
        (["1", "2", "1,2"], ["1", "2", "1,2"]),  # two boxes were ticked
        (["1,234", "5,678"], ["1,234", "5,678"]),
        (["1", "2", "inf"], [1, 2, None]),
        (["12", "14", "16+", "unknown"], [12, 14, None, None]),
        (["8-10", "11-13", "8-10"], ["8-10", "11-13", "8-10"]),
        (["5 mg", "6", "7"], ["5 mg", "6", "7"]),
        (["none", "none", "unknown"], ["none", "none", "unknown"]),
        (["ASD", "TDC", "-9999"], ["ASD", "TDC", None]),
        (["ASD", "TDC", "1"], ["ASD", "TDC", "1"]),
        (["A1", "B2", "999"], ["A1", "B2", "999"]),
        (["n1", "7", "8"], ["n1", "7", "8"]),
    ],
)
def test_other_columns_are_numbers_only_where_all_of_them_say_so(cells, values):
    assert read("other", cells)[0] == values


@pytest.mark.parametrize("cell", ["abc", "95,5", "30*", "3.5 mg"])
def test_a_slip_among_numbers_costs_its_own_row_alone(cell):
    """Of few numbers, it may be one more word for a kind."""
    numbers = [str(number) for number in range(91, 103)]

    values, notices = read("iq", [*numbers, cell])

    assert values == [*map(float, numbers), None]
    assert notices == [
        "iq: 1 of 13 rows has what cannot be read (first row 14): read as missing; expected a number, or n/a."
    ]
    assert read("iq", [*numbers, cell, cell]) == ([*numbers, cell, cell], [])
    assert read("iq", [*numbers[:5] * 3, cell]) == ([*numbers[:5] * 3, cell], [])


def test_whole_numbers_stay_whole():
    column = pd.Series(["1", "2"], name="dx", dtype="str")

    assert read_column(column, ColumnRules.of("dx", {}, TableRules()))[0].dtype == np.int64


def test_levels_of_a_code_say_that_it_is_none():
    about = {"Levels": {"1": "a", "2": "b", "3": "c", "999": "all of them"}}

    assert read("other", ["1", "2", "3", "999"], about=about) == ([1, 2, 3, 999], [])
