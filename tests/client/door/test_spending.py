"""The ε ledger: it equals Opacus' accountant, never counts too little, and never begins anew."""

import json
import math

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from brainlm.config import PrivacyConfig
from client.door.database import SiteDatabase
from client.door.spending import PrivacyLedger, Spend, epsilon_of
from exchange.refusals import Refusal, RefusalCode

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Optimal order")  # of Opacus, asked by hand
ROUND = Spend(1.2, 0.2, 20)


@pytest.fixture
def database(tmp_path) -> SiteDatabase:
    return SiteDatabase(tmp_path, b"key")


def ledger_of(database: SiteDatabase, study: str = "x", **changes: object) -> PrivacyLedger:
    """As a new process has it."""
    return PrivacyLedger(SiteDatabase(database.path.parent, b"key"), study, **{"delta": 1e-5, **changes})


def by_hand(*releases: Spend) -> float:
    accountant = PRVAccountant()
    for release in releases:
        for _ in range(release.steps):
            accountant.step(noise_multiplier=release.noise_multiplier, sample_rate=release.sample_rate)
    return accountant.get_epsilon(1e-5)


def test_rounds_and_sums_add_up_over_restarts_as_in_the_accountant(database):
    other = Spend(3.0, 1.0, 1)
    for spend in (ROUND, other, ROUND, other):
        ledger_of(database).commit([spend])

    assert ledger_of(database).epsilon == by_hand(ROUND, ROUND, other, other)
    assert ledger_of(database).epsilon < ledger_of(database, delta=1e-7).epsilon
    assert ledger_of(database, "y").epsilon == 0


@pytest.mark.parametrize(
    ("history", "delta", "exact"),
    [
        ([(1.0, 0.05, 500)], 1e-5, 7.5237),
        ([(2.0, 0.5, 100)], 1e-8, 18.2615),
        ([(5.0, 1.0, 50)], 1e-5, 6.5730),
        ([(1.0, 0.1, 100), (3.0, 1.0, 2)], 1e-5, 7.3941),
        ([(0.7714, 0.25, 200)], 1e-5, 44.9488),
        ([(0.5, 0.3, 20)], 1e-10, 50.0874),
        ([(0.8, 0.3, 500)], 1e-5, 97.4901),
        ([(20.0, 1.0, 1)], 1e-5, 0.1600),
    ],
)
def test_epsilon_is_a_tight_bound_however_large(history, delta, exact):
    """Beside Google's dp-accounting 0.6.0 (PLDAccountant, ADD_OR_REMOVE_ONE, value_discretization_interval 1e-4)."""
    assert exact <= epsilon_of(history, delta) <= exact + max(0.015, 2e-3 * exact)


@pytest.mark.parametrize("release", [Spend(0.3, 1.0, 200), Spend(0.02, 0.1, 10), Spend(1e-4, 1.0, 10**5)])
def test_what_protects_nobody_is_counted_all_the_same(release):
    """Where e^ε is no number any more, a bound stands for it; and where nothing is told, it is not below 0."""
    accountant = RDPAccountant()
    accountant.history = [tuple(release)]

    assert math.inf > epsilon_of([release], 1e-5) == accountant.get_epsilon(1e-5) > 500
    assert 0 <= epsilon_of([Spend(10_000, 1.0, 1)], 1e-5) < 0.02
    assert epsilon_of([Spend(10_000, 1.0, 1)], 0.5) == 0


def test_a_release_over_the_budget_is_refused_and_not_counted(database):
    budget = epsilon_of([ROUND, ROUND], 1e-5)
    ledger = ledger_of(database, budget=budget)
    ledger.commit([ROUND])
    ledger.commit([ROUND])

    for spend in (ledger.permit, lambda spend: ledger.commit([spend])):
        with pytest.raises(Refusal, match=r"epsilon is .* would be .* policy.epsilon is") as refused:
            spend(ROUND)
        assert refused.value.code is RefusalCode.BUDGET
    assert ledger.epsilon == budget


@pytest.mark.parametrize("damage", ["", "{}", "[]", "nonsense", "half", "fewer steps", "a list of nothing"])
def test_a_damaged_ledger_is_never_begun_anew(database, damage):
    """Of one study alone: the others go on."""
    ledger = ledger_of(database)
    ledger.commit([ROUND])
    text = stored(database)
    changed = {
        "half": text[: len(text) // 2],
        "fewer steps": text.replace("20", "1"),
        "a list of nothing": json.dumps({**json.loads(text), "ledger": {}}),
    }.get(damage, damage)
    with database.transaction() as connection:
        connection.execute("UPDATE spending SET content = ?", (changed,))

    for use in (lambda: ledger.epsilon, lambda: ledger.permit(ROUND), lambda: ledger.commit([ROUND])):
        with pytest.raises(Refusal, match="what study 'x' has spent is damaged") as refused:
            use()
        assert refused.value.code is RefusalCode.SETUP
    assert stored(database) == changed
    assert ledger_of(database, "y").epsilon == 0


def stored(database: SiteDatabase) -> str:
    with database.transaction() as connection:
        return connection.execute("SELECT content FROM spending WHERE study = 'x'").fetchone()[0]


@pytest.mark.parametrize(("epsilon", "least", "rounds", "steps"), [(3.0, 2.98, 10, 20), (45.0, 44.1, 3, 10)])
def test_the_noise_of_a_target_that_is_the_budget_lasts_to_the_last_round(database, epsilon, least, rounds, steps):
    """All rounds spend what was asked for and hardly less; every one has the same noise, also after a restart.

    Noise is chosen by the number that the budget is kept by, also where, as at 45, a looser bound is far above it.
    """
    privacy = PrivacyConfig(epsilon=epsilon)
    for _ in range(rounds):
        ledger = ledger_of(database, budget=epsilon)
        spend = Spend(ledger.noise_multiplier(privacy, 0.1, rounds * steps), 0.1, steps)
        ledger.commit([spend])

    assert least < ledger.epsilon <= epsilon
    with pytest.raises(Refusal, match=r"policy\.epsilon is"):
        ledger.permit(spend)
    assert len(json.loads(stored(database))["ledger"]["history"]) == 1
    assert ledger.noise_multiplier(PrivacyConfig(noise_multiplier=1.5), 0.1, 200) == 1.5


def test_a_target_that_no_noise_reaches_is_refused(database):
    with pytest.raises(Refusal, match="no noise gives 1000000000000 steps") as refused:
        ledger_of(database).noise_multiplier(PrivacyConfig(epsilon=0.1), 1.0, 10**12)
    assert refused.value.code is RefusalCode.NOT_PRIVATE
