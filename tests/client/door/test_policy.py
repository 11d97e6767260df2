import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from base.errors import SettingsError
from base.settings import check_settings
from client.door.audit import AuditLog
from client.door.database import SiteDatabase
from client.door.disclosure import permit_sums
from client.door.ledger import Question, Release, ReleaseLedger
from client.door.limits import time_limit
from client.door.policy import Policy
from client.keys.approvals import Approvals
from exchange.refusals import Refusal, RefusalCode
from harmonization import Projection
from harmonization.core.declared import everybody
from tests.support.apps import app_of


def code_of(call) -> RefusalCode:
    with pytest.raises(Refusal) as refused:
        call()
    return refused.value.code


def test_a_star_allows_all():
    assert Policy(studies=["*"]).permit("anything", ["whatever"], "r9") is None


@pytest.mark.parametrize("disclosing", ["leave_one_site_out", "reference_site"])
def test_what_shows_a_single_site_must_be_named(disclosing):
    assert code_of(lambda: Policy(studies=["*"]).permit("a", [disclosing])) is RefusalCode.ANALYSIS
    assert Policy(studies=["*"], analyses=["*", disclosing]).permit("a", ["combat", disclosing]) is None


def test_the_default_refuses_every_study_and_every_plain_sum():
    """But neither counts nor secure sums."""
    policy = Policy()

    assert code_of(lambda: policy.permit("any")) is RefusalCode.STUDY
    policy.permit_release(10, carries_sums=False, in_secure_sum=False)
    policy.permit_release(10, carries_sums=True, in_secure_sum=True)
    assert code_of(lambda: policy.permit_release(10, carries_sums=True, in_secure_sum=False)) is RefusalCode.PLAIN


KNOWN = ("age", "sex", "handedness")


def gram(policy: Policy) -> None:
    permit_sums(policy, Projection(2), {"moment": everybody(12, 12)}, {"moment": np.ones((12, 12))}, 12, clear=True)


def wait_for_two_seconds(policy: Policy) -> None:
    ends = time.monotonic() + 2
    with time_limit(policy):
        while time.monotonic() < ends:
            sum(range(1000))


ANNA, BO = (Ed25519PrivateKey.generate().public_key() for _ in range(2))
KEYS = [key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() for key in (ANNA, BO)]


def start_app(policy: Policy) -> None:
    """Start an app that somebody at the site's machine approved."""
    with TemporaryDirectory() as folder:
        log, app = AuditLog(Path(folder) / "audit.jsonl"), app_of("app = None\n")
        Approvals(Path(folder), log, Policy()).approve(app, "Anna", "small")
        Approvals(Path(folder), log, policy).check(app)


def test_rules_that_would_not_protect_are_errors_and_not_ignored():
    """A misspelt one, a secure sum of two, and approvers who are not told apart by their keys."""
    for wrong, said in (
        ({"min_participant": 3}, "Did you mean 'min_participants'"),
        ({"min_sites": 2}, "min_sites"),
        ({"approvers": 2}, "a number of names, which anybody can give"),
        ({"min_approvers": 2}, "told apart by keys alone"),
        ({"min_approvers": 2, "approvers": KEYS[:1]}, "told apart by keys alone"),
        ({"approvers": [KEYS[0], f"{KEYS[0]} bo"]}, "lists a key twice"),
        ({"approvers": ["anna"]}, "no Ed25519 public key"),
    ):
        with pytest.raises(SettingsError, match=said):
            check_settings(wrong, Policy, "site.yaml")
    check_settings({"min_approvers": 2, "approvers": KEYS}, Policy, "site.yaml")


CASES: dict[str, tuple[object, object, Callable[[Policy], None], RefusalCode]] = {
    "studies": (["s"], ["t"], lambda p: p.permit("s"), RefusalCode.STUDY),
    "analyses": (["a", "b"], ["a", "c"], lambda p: p.permit("s", ["a", "b"]), RefusalCode.ANALYSIS),
    "recipes": (["r"], ["q"], lambda p: p.permit("s", [], "r"), RefusalCode.RECIPE),
    "vectors": (["genes"], [], lambda p: p.permit_vectors("genes"), RefusalCode.ANALYSIS),
    "min_participants": (
        12,
        13,
        lambda p: p.permit_release(12, carries_sums=False, in_secure_sum=False),
        RefusalCode.PARTICIPANTS,
    ),
    "min_group": (5, 6, lambda p: p.permit_group(5, "a fold"), RefusalCode.GROUP),
    "columns": (["age"], ["sex"], lambda p: p.permit_columns(["age"], KNOWN), RefusalCode.COLUMN),
    "max_covariate_ratio": (0.5, 0.49, lambda p: p.permit_covariates(6, 12), RefusalCode.RATIO),
    "secure_sum_required": (
        False,
        True,
        lambda p: p.permit_release(12, carries_sums=True, in_secure_sum=False),
        RefusalCode.PLAIN,
    ),
    "min_sites": (3, 4, lambda p: p.permit_sites(3), RefusalCode.FEW_SITES),
    "max_attempts": (3, 2, lambda p: (p.permit_attempt(3), p.permit_site_sets(3)), RefusalCode.ATTEMPT),
    "plain_grams": (True, False, gram, RefusalCode.GRAM),
    "min_change": (4, 5, lambda p: p.permit_change(4), RefusalCode.REPEAT),
    "max_rounds": (7, 6, lambda p: p.permit_rounds(7), RefusalCode.ROUNDS),
    "max_releases": (7, 6, lambda p: p.permit_releases(7), RefusalCode.RELEASES),
    "max_steps": (7, 6, lambda p: p.permit_size("steps", 7, "steps"), RefusalCode.LIMIT),
    "max_seconds": (60, 1, wait_for_two_seconds, RefusalCode.LIMIT),
    "max_parameters": (7, 6, lambda p: p.permit_size("parameters", 7, "weights"), RefusalCode.LIMIT),
    "max_memory_gb": (7.0, 6.9, lambda p: p.permit_size("memory_gb", 7, "GB"), RefusalCode.LIMIT),
    "max_levels": (7, 6, lambda p: p.permit_size("levels", 7, "levels"), RefusalCode.LIMIT),
    "max_jobs": (7, 6, lambda p: p.permit_size("jobs", 7, "jobs"), RefusalCode.LIMIT),
    "max_components": (7, 6, lambda p: p.permit_size("components", 7, "components"), RefusalCode.LIMIT),
    "max_refusals": (8, 7, lambda p: p.permit_refusals(7), RefusalCode.REFUSALS),
    "privacy_required": (False, True, lambda p: p.permit_privacy(None), RefusalCode.PRIVACY),
    "epsilon": (8.0, 7.9, lambda p: p.permit_epsilon(8.0), RefusalCode.BUDGET),
    "outside_epsilon": (["ridge"], ["combat"], lambda p: p.permit_without_noise("ridge"), RefusalCode.PRIVACY),
    "delta": (1e-5, 1e-6, lambda p: p.permit_privacy(1e-5), RefusalCode.PRIVACY),
    "approvers": ([], KEYS[:1], start_app, RefusalCode.CODE),
    "share_metrics": (True, False, lambda p: p.permit_sharing("metrics"), RefusalCode.ANALYSIS),
    "share_parameters": (True, False, lambda p: p.permit_sharing("parameters"), RefusalCode.ANALYSIS),
    "share_embeddings": (True, False, lambda p: p.permit_sharing("embeddings"), RefusalCode.ANALYSIS),
}
"""Field → a value that allows, one that does not, what is then refused, and by which code."""
ELSEWHERE = ("min_approvers", "share_reasons")
"""Fields that a site's approvals (test_approvals.py) and its answers (test_release.py) are tried with."""
NAMED_ALONE = ("studies", "analyses", "recipes", "vectors", "min_participants", "min_group")
"""Fields whose sentence says what to change by naming the rule."""
BESIDE = {"studies": ["*"], "secure_sum_required": False}
"""Fields that a case needs beside its own."""


@pytest.mark.parametrize("field", [field for field in Policy.model_fields if field not in ELSEWHERE])
def test_every_rule_decides_what_is_refused(field):
    """And the log says which rule it was, and what to do."""
    allows, refuses, ask, code = CASES[field]
    needed = {"delta": {"privacy_required": True}, "outside_epsilon": {"epsilon": 8.0}}
    beside = {**BESIDE, **needed.get(field, {})}

    ask(Policy(**{**beside, field: allows}))
    with pytest.raises(Refusal) as refused:
        ask(Policy(**{**beside, field: refuses}))
    assert refused.value.code is code
    assert "policy." in refused.value.detail
    assert refused.value.detail.endswith(".")
    assert ". " in refused.value.detail or field in NAMED_ALONE


@pytest.mark.parametrize("columns", [["*"], ["participant_id", "age"]])
def test_ids_are_never_a_column(columns):
    assert code_of(lambda: Policy(columns=columns).permit_columns(["participant_id"], KNOWN)) is RefusalCode.COLUMN


def test_a_promise_that_nobody_asks_for_may_be_weak():
    Policy().permit_privacy(1e-3)
    assert code_of(lambda: Policy(epsilon=8).permit_privacy(1e-3)) is RefusalCode.PRIVACY


def test_limits_hold_in_the_ledger(tmp_path):
    ledger = ReleaseLedger(SiteDatabase(tmp_path, b"key"))
    release = Release(Question("combat", ("features/x",)), ["a", "b"])
    policy = Policy(max_releases=3, max_rounds=1)

    ledger.enter(study="s", run="1", releases=[release] * 3, policy=policy, rounds=1)

    assert code_of(lambda: ledger.enter(study="s", run="2", releases=[release], policy=policy)) is RefusalCode.RELEASES
    assert code_of(lambda: ledger.enter(study="s", run="2", releases=[], policy=policy, rounds=1)) is RefusalCode.ROUNDS
    ledger.enter(study="other", run="2", releases=[release], policy=policy)
