import re
from pathlib import Path

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


def test_every_code_is_what_some_test_expects():
    texts = [path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py") if path != Path(__file__)]

    def expected(code: RefusalCode, text: str) -> bool:
        return code.value in text.replace("\\.", ".") or f"RefusalCode.{code.name}" in text

    assert [code for code in RefusalCode if not any(expected(code, text) for text in texts)] == []
