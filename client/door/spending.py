"""The ε ledger: what a study has told of this site's participants, on the site's own disk.

A release is written down after it was computed and before it leaves, together with the answer that is kept under masks.
A round that is killed before that has told nobody anything, so it costs nothing, and when it is done again its draws
and its noise are new. A round that is killed after that is counted, and what was kept of it leaves when it is asked for
again, at no further cost. So the ledger never counts too little, and a training that was killed and went on ends with
the ε of one that was not.
"""

import hashlib
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import Field, ValidationError

from base.settings import Settings
from brainlm.config import PrivacyConfig
from client.door.database import SiteDatabase
from exchange.refusals import Refusal, RefusalCode

_COMPOSED_UP_TO, _MOST_STEPS = 500.0, 10**5
"""Largest ε that is composed numerically: e^ε is a number up to ε of 709, and the domain is wider than ε. And most
steps: the time and memory that it takes grow with their root, to some seconds and half a gigabyte."""
_ERROR, _RELATIVE_ERROR = 0.01, 0.001
"""What is added to ε for what its composition leaves out: the finer, the longer it takes."""
_LOG_NOISE_ERROR, _NOISE_STEP, _MOST_LOG_NOISE = 5e-4, math.log(8), math.log(1e6)
"""Of the search for the noise that an ε takes: how exactly it is found, in which steps, and how large it may be."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Spend(NamedTuple):
    """Some equal steps of a Gaussian mechanism on a random sample of the participants."""

    noise_multiplier: float
    """Standard deviation of the noise over the most that one participant can add."""
    sample_rate: float
    """Probability with which each participant is in a step; 1 for all."""
    steps: int
    """How many."""


class Spent(Settings):
    """What one study has spent: releases as Opacus keeps them, and the noise chosen for each target."""

    history: tuple[tuple[Positive, Annotated[float, Field(gt=0, le=1)], Annotated[int, Field(ge=1)]], ...] = ()
    noise_multipliers: dict[str, Positive] = Field(default_factory=dict)
    epsilons: dict[str, float] = Field(default_factory=dict)
    """By the delta that each was computed for: it takes a second, and every answer of the site names it."""

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Undo `to_text`; a text that is damaged, or was changed, is a ValueError."""
        try:
            content = json.loads(text)
            if content["sha256"] == _digest(content["ledger"]):
                return cls.model_validate(content["ledger"])
        except (KeyError, RecursionError, TypeError, ValidationError):
            pass
        raise ValueError("damaged")

    def to_text(self) -> str:
        """Return it as JSON with its own checksum."""
        ledger = self.model_dump(mode="json")
        return json.dumps({"ledger": ledger, "sha256": _digest(ledger)})


class PrivacyLedger:
    """What one study has spent, and what it may spend.

    Parameters
    ----------
    database : SiteDatabase
        The site's.
    study : str
        Name of the study.
    delta : float
        Probability with which ε may not hold: the policy's.
    budget : float, optional
        Largest ε; no limit if not given.
    """

    def __init__(self, database: SiteDatabase, study: str, *, delta: float, budget: float | None = None) -> None:
        self.study = study
        self.delta = delta
        self.budget = budget
        self._database = database

    @property
    def epsilon(self) -> float:
        """What all releases up to now have spent together. A damaged ledger is refused, and never begun anew."""
        spent = self._read()
        known = spent.epsilons.get(str(self.delta))
        return epsilon_of(spent.history, self.delta) if known is None else known

    def permit(self, *spends: Spend) -> None:
        """Refuse a release that the budget does not allow."""
        spent = self._read()  # a damaged ledger is refused without a budget, too
        if self.budget is not None:
            self._require_budget(spent, epsilon_of([*spent.history, *spends], self.delta))

    def _require_budget(self, spent: Spent, after: float) -> None:
        if self.budget is not None and after > self.budget:
            raise Refusal(
                RefusalCode.BUDGET,
                f"epsilon is {epsilon_of(spent.history, self.delta):.2f} and would be {after:.2f} at delta "
                f"{self.delta:g}; policy.epsilon is {self.budget:g}. Let the study ask for less, or raise the budget.",
            )

    def commit(self, spends: Sequence[Spend]) -> None:
        """Write down what a release costs, before it leaves; refuse it if the budget was spent in the meantime."""
        if not spends:
            return
        with self._database.transaction():
            spent = self._read()
            history = _add([*spent.history, *spends])
            epsilon = epsilon_of(history, self.delta)
            self._require_budget(spent, epsilon)
            self._write(spent.model_copy(update={"history": history, "epsilons": {str(self.delta): epsilon}}))

    def noise_multiplier(self, privacy: PrivacyConfig, sample_rate: float, steps: int) -> float:
        """Return the noise of a study of so many steps in all: as stated, or what its ε takes.

        That is found once, and is the same in all rounds as long as the site has as many participants. If no noise is
        enough, the study is refused.
        """
        if privacy.noise_multiplier is not None:
            return privacy.noise_multiplier
        target = {"epsilon": privacy.epsilon, "delta": privacy.delta, "sample_rate": sample_rate, "steps": steps}
        key = json.dumps(target, sort_keys=True)
        known = self._read().noise_multipliers.get(key)
        if known is not None:
            return known
        found = _find_noise(privacy, sample_rate, steps)  # which takes seconds, and is the same in every process
        with self._database.transaction():
            spent = self._read()
            self._write(spent.model_copy(update={"noise_multipliers": {**spent.noise_multipliers, key: found}}))
        return found

    def _read(self) -> Spent:
        with self._database.transaction() as database:
            row = database.execute("SELECT content FROM spending WHERE study = ?", (self.study,)).fetchone()
        try:
            return Spent() if row is None else Spent.from_text(row[0])
        except ValueError:
            raise Refusal(
                RefusalCode.SETUP,
                f"{self._database.path}: what study '{self.study}' has spent is damaged or was changed, and nothing is "
                "released without it. Restore it from a backup; the audit log tells what left.",
            ) from None

    def _write(self, spent: Spent) -> None:
        with self._database.transaction() as database:
            database.execute("INSERT OR REPLACE INTO spending VALUES (?, ?)", (self.study, spent.to_text()))


def epsilon_of(history: Iterable[tuple[float, float, int]], delta: float) -> float:
    """ε of all releases of a history together, an upper bound.

    By numerical composition (Gopi, Lee & Wutschitz, NeurIPS 2021), to a thousandth or to 0.01. This is the number by
    which noise is chosen and budgets are kept. Where ε is so large that nobody is protected, or steps are too many, the
    bound stands for it by which the composition sets its domain, by Rényi divergences (Mironov 2017).

    Parameters
    ----------
    history : iterable of Spend
        In any order.
    """
    releases = _add(history)
    if not releases:
        return 0.0
    # Here, since it takes a second, and every message to a site is a process of its own.
    from opacus.accountants import PRVAccountant, RDPAccountant

    domain, composed = RDPAccountant(), PRVAccountant()
    domain.history = composed.history = list(releases)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of orders at the end of their range: the bound holds all the same
        bound = float(domain.get_epsilon(delta))
        if bound > _COMPOSED_UP_TO or sum(release.steps for release in releases) > _MOST_STEPS:
            return bound
        epsilon = float(composed.get_epsilon(delta, eps_error=max(_ERROR, _RELATIVE_ERROR * bound)))
    return max(epsilon, 0.0)


def _find_noise(privacy: PrivacyConfig, sample_rate: float, steps: int) -> float:
    """Find the least noise, to a thousandth of it, whose ε is not above the target."""
    from scipy.optimize import brentq

    assert privacy.epsilon is not None, "the noise is stated otherwise"
    target = privacy.epsilon

    @cache
    def excess(log_noise: float) -> float:
        epsilon = epsilon_of([Spend(math.exp(log_noise), sample_rate, steps)], privacy.delta)
        return math.log(max(epsilon, _ERROR) / target)

    low, high = -_NOISE_STEP, 0.0
    while excess(high) > 0:
        low, high = high, high + _NOISE_STEP
        if high > _MOST_LOG_NOISE:
            raise Refusal(
                RefusalCode.NOT_PRIVATE,
                f"no noise gives {steps} steps at a sampling rate of {sample_rate:g} an epsilon of {target:g}. Let the "
                "study ask for a larger epsilon, or for fewer steps.",
            )
    while excess(low) <= 0:
        low, high = low - _NOISE_STEP, low
    least = brentq(excess, low, high, xtol=_LOG_NOISE_ERROR) + _LOG_NOISE_ERROR
    while excess(least) > 0:
        least += _LOG_NOISE_ERROR
    return math.exp(least)


def _add(history: Iterable[tuple[float, float, int]]) -> tuple[Spend, ...]:
    """Put equal releases together, and all in order: when each was says nothing, and every kind takes time."""
    steps: Counter[tuple[float, float]] = Counter()
    for noise_multiplier, sample_rate, n in history:
        steps[noise_multiplier, sample_rate] += n
    return tuple(Spend(*kind, n) for kind, n in sorted(steps.items()))


def _digest(ledger: Any) -> str:
    return hashlib.sha256(json.dumps(ledger, sort_keys=True).encode()).hexdigest()
