"""What a reader must know before believing a run's numbers, in sentences."""

import math
from typing import Any

import pandas as pd

from study.settings import Study
from study.state import Findings

_LINEAR = ("gaussian", "gaussian_space_time")
_BELOW = 0.005
"""Masked R² by which a model counts as worse than a linear predictor: another draw of masks moves it by as much."""
_RISING = 0.01
"""Gain in masked R² over the last quarter of the rounds from which training counts as cut short. The learning rate
falls all the time, so the curve gains little at the end even where more rounds would help."""


def cautions_of(study: Study, metrics: pd.DataFrame, pretraining: dict[str, Any], findings: Findings) -> list[str]:
    """List what the journal's metrics, and the summary's numbers of pretraining, do not say by themselves."""
    by_reason = findings.left_out_by_reason()
    return [
        *_of_training(study, metrics, pretraining),
        *(f"Left out: {', '.join(what)}: {why.removesuffix('.')}." for why, what in by_reason.items()),
    ]


def _of_training(study: Study, metrics: pd.DataFrame, pretraining: dict[str, Any]) -> list[str]:
    """Say whether the model is worse than what needs no training, and whether training ended too soon."""
    reached, baselines = pretraining.get("masked_r2", math.nan), pretraining.get("baselines", {})
    linear = max((baselines[name]["masked_r2"] for name in _LINEAR if name in baselines), default=math.nan)
    steps = study.averaging.rounds * study.training.steps_per_round
    remedy = f"{steps} steps a site were too few: raise averaging.rounds or training.steps_per_round."
    said = []
    if reached < linear - _BELOW:
        said.append(
            f"The model reconstructs what is hidden worse (masked R² {reached:.3f}) than linear prediction does "
            f"({linear:.3f}), which needs no training: it has not learned yet what there is to learn. {remedy}"
        )
    elif reached < 0:
        said.append(f"The model reconstructs what is hidden worse than its mean (masked R² {reached:.3f}). {remedy}")
    gain = _gain(metrics)
    if gain > _RISING:
        said.append(f"Training had not converged: masked R² still rose by {gain:.3f} in the last quarter. {remedy}")
    return said


def _gain(metrics: pd.DataFrame) -> float:
    """How much masked R² over all sites rose in the last quarter of the rounds; NaN of fewer than four."""
    chosen = metrics[(metrics["site"] == "all") & (metrics["name"] == "masked_r2") & (metrics["round"] > 0)]
    curve = chosen.sort_values("round")["value"].to_numpy()
    return float(curve[-1] - curve[-1 - len(curve) // 4]) if len(curve) >= 4 else math.nan
