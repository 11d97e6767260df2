import pytest

from client.policy import Policy
from cohorts import SettingsError
from cohorts.settings import check_settings
from exchange.refusals import Refusal, RefusalCode


def code_of(call) -> RefusalCode:
    with pytest.raises(Refusal) as refused:
        call()
    return refused.value.code


def test_the_default_refuses_every_study_and_every_plain_sum():
    policy = Policy()

    assert code_of(lambda: policy.permit("any")) is RefusalCode.STUDY
    assert code_of(lambda: policy.permit_release(100, carries_sums=True, in_secure_sum=False)) is RefusalCode.PLAIN


def test_what_is_named_is_allowed_and_nothing_else():
    policy = Policy(studies=["a"], analyses=["pretraining", "combat"], recipes=["r1"])

    policy.permit("a", ["pretraining", "combat"], "r1")
    assert code_of(lambda: policy.permit("b")) is RefusalCode.STUDY
    assert code_of(lambda: policy.permit("a", ["combat", "ridge"])) is RefusalCode.ANALYSIS
    assert code_of(lambda: policy.permit("a", [], "r2")) is RefusalCode.RECIPE


def test_a_star_allows_all():
    assert Policy(studies=["*"]).permit("anything", ["whatever"], "r9") is None


@pytest.mark.parametrize("disclosing", ["leave_one_site_out", "reference_site"])
def test_what_shows_a_single_site_must_be_named(disclosing):
    assert code_of(lambda: Policy(studies=["*"]).permit("a", [disclosing])) is RefusalCode.ANALYSIS
    assert Policy(studies=["*"], analyses=["*", disclosing]).permit("a", ["combat", disclosing]) is None


def test_too_few_participants_let_nothing_out():
    policy = Policy(min_participants=10, secure_sum_required=False)

    policy.permit_release(10, carries_sums=True, in_secure_sum=False)
    assert (
        code_of(lambda: policy.permit_release(9, carries_sums=False, in_secure_sum=False)) is RefusalCode.PARTICIPANTS
    )


def test_counts_and_secure_sums_may_leave_where_plain_sums_may_not():
    policy = Policy()

    policy.permit_release(10, carries_sums=False, in_secure_sum=False)
    policy.permit_release(10, carries_sums=True, in_secure_sum=True)
    assert code_of(lambda: policy.permit_release(10, carries_sums=True, in_secure_sum=False)) is RefusalCode.PLAIN


def test_a_misspelt_rule_is_an_error_and_not_ignored():
    with pytest.raises(SettingsError, match="Did you mean 'min_participants'"):
        check_settings({"min_participant": 3}, Policy, "site.yaml")
