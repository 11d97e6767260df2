"""What the ledger promises: no two answers that it let out differ in a few people, or in one site once too often."""

import tempfile
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.door.database import SiteDatabase
from client.door.ledger import PRETRAINING, Question, Release, ReleaseLedger, question_of_job
from client.door.policy import Policy
from exchange.messages import FrameSpec, Job, TableSpec
from exchange.refusals import Refusal, RefusalCode
from harmonization import Design
from harmonization.core.design import KNOWN
from tests.support.programs import run_at_once

POLICY = Policy(min_change=3)
COMBAT = Question("combat", ("column/age", "features/embedding"), ("column/age",))
PEOPLE = [f"sub-{number:02d}" for number in range(20)]


@pytest.fixture
def database(tmp_path) -> SiteDatabase:
    return SiteDatabase(tmp_path / "state", b"a site's secret")


@pytest.fixture
def ledger(database) -> ReleaseLedger:
    return ReleaseLedger(database)


def answers(database: SiteDatabase) -> list[tuple[str, int]]:
    """Study and times of all that was entered."""
    with database.transaction() as connection:
        return connection.execute("SELECT study, times FROM answers ORDER BY study").fetchall()


def enter(
    ledger: ReleaseLedger,
    participants: list[str],
    question: Question = COMBAT,
    sites: tuple[str, ...] | None = None,
    policy: Policy = POLICY,
    study: str = "s",
) -> None:
    ledger.enter(study=study, run="1", releases=[Release(question, participants, sites=sites)], policy=policy)


def code_of(ledger: ReleaseLedger, *arguments: object, **named: object) -> RefusalCode:
    with pytest.raises(Refusal) as refused:
        enter(ledger, *arguments, **named)
    return refused.value.code


def test_the_same_people_may_be_asked_about_again(ledger, database):
    enter(ledger, PEOPLE)
    enter(ledger, PEOPLE[::-1], study="another")

    assert answers(database) == [("another", 1), ("s", 1)]


def test_a_cohort_that_changed_little_is_not(ledger):
    enter(ledger, PEOPLE)

    assert code_of(ledger, PEOPLE[:-1]) is RefusalCode.REPEAT
    assert code_of(ledger, [*PEOPLE[:-1], "another"], study="t") is RefusalCode.REPEAT
    enter(ledger, PEOPLE[:-3])


@pytest.mark.parametrize(
    "other",
    [
        Question("projection", ("features/embedding",)),
        Question("ridge", ("column/age", "features/connectivity"), ("target/age",)),
    ],
    ids=["features", "a covariate"],
)
def test_another_analysis_of_the_same_data_has_sums_in_common(ledger, other):
    enter(ledger, PEOPLE)

    assert code_of(ledger, PEOPLE[:-1], other) is RefusalCode.REPEAT
    enter(ledger, PEOPLE[:-1], Question("projection", ("features/connectivity",)))
    enter(ledger, PEOPLE[:-1], PRETRAINING)


def test_answers_of_one_message_are_compared_too_and_none_is_entered_alone(ledger, database):
    few_apart = [Release(COMBAT, PEOPLE), Release(COMBAT, PEOPLE[1:])]

    with pytest.raises(Refusal) as refused:
        ledger.enter(study="s", run="1", releases=few_apart, policy=POLICY)

    assert refused.value.code is RefusalCode.REPEAT
    assert answers(database) == []


def test_one_question_is_answered_among_few_sets_of_sites(ledger):
    enter(ledger, PEOPLE, sites=("a", "b", "c", "d"))
    enter(ledger, PEOPLE, sites=("a", "b", "c"))
    enter(ledger, PEOPLE, sites=("d", "c", "b", "a"))  # the order says nothing

    with pytest.raises(Refusal, match=r"policy\.max_attempts is 2\. Ask among the same sites") as refused:
        enter(ledger, PEOPLE, sites=("a", "b", "d"))
    assert refused.value.code is RefusalCode.SITES
    assert code_of(ledger, PEOPLE, sites=("a", "b", "d"), study="t") is RefusalCode.SITES
    enter(ledger, PEOPLE)  # a plain sum is this site's own
    enter(ledger, PEOPLE, sites=("a", "b", "d"), policy=Policy(max_attempts=3))


@settings(max_examples=30, deadline=None)
@given(
    cohorts=st.lists(st.tuples(st.sampled_from("xyz"), st.sets(st.integers(0, 9), min_size=4)), max_size=12),
    min_change=st.integers(1, 5),
)
def test_no_two_answers_about_the_same_data_differ_in_a_few(cohorts, min_change):
    told: list[tuple[str, set[int]]] = []
    with tempfile.TemporaryDirectory() as folder:
        ledger = ReleaseLedger(SiteDatabase(Path(folder), b"key"))
        for data, cohort in cohorts:
            differs = [len(cohort ^ other) for known, other in told if known == data]
            try:
                enter(
                    ledger, [str(one) for one in cohort], Question(data, (data,)), policy=Policy(min_change=min_change)
                )
            except Refusal:
                assert any(0 < n < min_change for n in differs)  # nothing else is refused
            else:
                told.append((data, cohort))

    for (data, one), (other_data, other) in combinations(told, 2):
        assert data != other_data or len(one ^ other) == 0 or len(one ^ other) >= min_change


_WRITER = """
import sys
from pathlib import Path
from client.door.database import SiteDatabase
from client.door.ledger import Question, Release, ReleaseLedger
from client.door.policy import Policy
from exchange.refusals import Refusal
ledger, first, let_out = ReleaseLedger(SiteDatabase(Path(sys.argv[1]), b"key")), int(sys.argv[2]), []
sys.stdin.readline()
for number in range(first, 40, 2):
    people = [str(one) for one in range(60) if one != number]
    try:
        ledger.enter(study="s", run="1", releases=[Release(Question("q", ("d",)), people)], policy=Policy())
        let_out.append(number)
    except Refusal as refusal:
        assert refusal.code == "disclosure.cohort-changed-little", refusal
print(len(let_out))
"""


def test_two_processes_cannot_slip_past_each_other(tmp_path):
    """Each leaves another one out, so that only one of all their answers may leave."""
    let_out = run_at_once(_WRITER, (tmp_path, 0), (tmp_path, 1))

    assert sorted(map(int, let_out)) == [0, 1]
    assert answers(SiteDatabase(tmp_path, b"key")) == [("s", 1)]


def test_a_question_is_what_is_asked_and_not_how(ledger):
    """Parameters, states, levels (which may be sites), who is asked for beside and names of feature sets leave it be.

    The data behind feature sets, which the coordinator does not name, do not.
    """
    age = Design((KNOWN["age"],)).to_json()
    table = TableSpec(features="x", covariates=age, target="site", levels=["a", "b"])
    asked = Job(analysis="combat", parameters={"prior": "none"}, table=table)
    again = Job(
        analysis="combat",
        parameters={},
        table=table.model_copy(
            update={
                "features": "x.copy",
                "levels": ["a", "c"],
                "complete": age,
                "covariates": [{**age[0], "center": 1.0}],
            }
        ),
        state="Moments",
    )
    data = ("features/x", "column/age")

    assert question_of_job(asked, data) == question_of_job(again, data[::-1])
    assert question_of_job(asked, ("features/y", "column/age")) != question_of_job(asked, data)
    for other in ({"target": "age"}, {"covariates": []}):
        changed = asked.model_copy(update={"table": table.model_copy(update=other)})
        assert question_of_job(changed, data) != question_of_job(asked, data)


def test_a_question_about_frames_is_that_of_its_atlas():
    frames = FrameSpec(atlas="a424", window={}, holdout=0.1, seed=1)
    job = Job(analysis="quantiles", parameters={}, table=frames)
    other = job.model_copy(update={"table": frames.model_copy(update={"seed": 2, "holdout": 0.5})})

    assert question_of_job(job) == question_of_job(other) == Question("quantiles", ("frames/a424",))
