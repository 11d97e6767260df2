"""A model that was not trained enough says so, and so does what was left out."""

import math

import pandas as pd
import pytest

from server.cautions import cautions_of
from study.settings import Study
from study.state import Findings, Found, Measure
from tests.support.federation import STUDY


def cautions(curve: list[float], linear: float | None = None, *left_out: Found) -> list[str]:
    rows = [(number, "all", "masked_r2", value) for number, value in enumerate(curve)]
    metrics = pd.DataFrame(rows, columns=["round", "site", "name", "value"])
    baselines = {"parcel_mean": {"masked_r2": -0.1}}
    if linear is not None:
        baselines |= {"gaussian": {"masked_r2": linear - 0.02}, "gaussian_space_time": {"masked_r2": linear}}
    pretraining = {"masked_r2": curve[-1], "baselines": baselines}
    return cautions_of(Study.model_validate(STUDY), metrics, pretraining, Findings(found=left_out))


def flat(reached: float) -> list[float]:
    return [-1.4, 0.2, *[reached] * 6]


def test_a_model_below_linear_prediction_is_told_with_both_numbers():
    (said,) = cautions(flat(0.35), linear=0.62)

    assert "(masked R² 0.350) than linear prediction does (0.620)" in said
    assert "6 steps a site were too few: raise averaging.rounds or training.steps_per_round." in said


@pytest.mark.parametrize(("reached", "linear"), [(0.62, 0.62), (0.616, 0.62), (0.7, 0.62), (0.35, None)])
def test_a_model_that_is_as_good_within_the_noise_of_masks_is_not(reached, linear):
    assert cautions(flat(reached), linear) == []


def test_a_curve_that_still_rises_is_told():
    (said,) = cautions([-1.4, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.54, 0.58])

    assert "Training had not converged: masked R² still rose by 0.080 in the last quarter" in said


def test_a_few_rounds_are_not_judged_as_a_curve_but_a_model_worse_than_the_mean_is():
    (said,) = cautions([-1.4, -0.9, -0.6])

    assert "worse than its mean (masked R² -0.600)" in said


def test_scores_that_nobody_measured_are_not_judged():
    assert cautions([math.nan] * 8, linear=0.6) == []


def test_one_reason_is_told_once_for_all_that_it_costs():
    measures = [Measure("probe", features, "raw", "sex") for features in ("embedding", "connectivity")]
    measures.append(Measure("model", "embedding", "harmonized"))

    assert cautions(flat(0.7), None, *(Found(measure, why="no sex. Choose.") for measure in measures)) == [
        "Left out: probe/sex, harmonization: no sex. Choose."
    ]
