import numpy as np
import pytest

from harmonization import Categorical, Continuous, Design, DesignError

DESIGN = Design((Continuous("age", 50, 20), Categorical("sex", ("F", "M")), Categorical("dx", ("none", "ASD", "ADHD"))))
TABLE = {"age": [30.0, 70.0, 50.0], "sex": ["F", "M", "M"], "dx": ["ADHD", "none", "ASD"], "other": [1, 2, 3]}


def test_codes_numbers_and_levels():
    np.testing.assert_array_equal(DESIGN.encode(TABLE, 3), [[-1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]])
    assert DESIGN.columns == ("age", "sex=M", "dx=ASD", "dx=ADHD")


def test_no_covariates_make_no_columns():
    assert Design().encode({}, 3).shape == (3, 0)


def test_travels_as_json():
    assert Design.from_json(DESIGN.to_json()) == DESIGN


def test_finds_complete_rows():
    table = {**TABLE, "age": [30.0, float("nan"), 50.0], "sex": ["F", "M", None]}

    np.testing.assert_array_equal(DESIGN.complete(table, 3), [True, False, False])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"age": [1.0, float("nan"), 2.0]}, "missing values"),
        ({"age": ["old", "young", "old"]}, "not a number"),
        ({"age": [1.0, float("inf"), 2.0]}, "infinite"),
        ({"sex": ["F", "M", "X"]}, r"levels outside the agreed F, M: 'X' \(1 rows\)"),
    ],
)
def test_refuses_values_it_cannot_code(change, said):
    with pytest.raises(DesignError, match=said):
        DESIGN.encode({**TABLE, **change}, 3)


def test_whole_numbers_of_a_column_with_gaps_are_their_levels():
    design = Design((Categorical("dx", ("1", "2")),))

    np.testing.assert_array_equal(design.encode({"dx": [2.0, 1.0]}, 2), [[1], [0]])
    np.testing.assert_array_equal(Design((Categorical("dx", ("1.0", "2.0")),)).encode({"dx": [2.0]}, 1), [[1]])


def test_refuses_a_covariate_that_is_not_there():
    with pytest.raises(DesignError, match="'sex' is not in the table"):
        DESIGN.encode({"age": [1.0]}, 1)
