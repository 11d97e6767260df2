import re

import pytest

from exchange.refusals import Refusal, RefusalCode


@pytest.mark.parametrize("code", RefusalCode)
def test_codes_are_stable_and_say_nothing_of_the_data(code):
    assert re.fullmatch(r"[a-z]+\.[a-z-]+", code.value)
    assert code.sentence
    assert not re.search(r"\d|/|sub-", code.sentence)


def test_numbers_are_above_flower_s_own_and_differ():
    numbers = [code.number for code in RefusalCode]

    assert min(numbers) >= 1000
    assert len(set(numbers)) == len(numbers)


def test_a_refusal_tells_two_readers_two_things():
    refusal = Refusal(RefusalCode.PARTICIPANTS, "3 participants, the policy asks for 10")

    assert str(refusal.code) == "policy.too-few-participants"
    assert refusal.detail == "3 participants, the policy asks for 10"
