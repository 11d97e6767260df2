import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

import client
import runtime
from base.errors import SecretError
from brainlm.errors import DivergenceError
from client.door import release
from client.door.audit import AuditLog
from client.door.ledger import Question, Release
from client.door.release import Answer, _kept, _permit_shipped, _restored, answer
from client.door.spending import Spend
from client.keys.keyring import agree
from client.site import load_site
from cohorts.errors import CohortError
from exchange.messages import (
    DescribeRequest,
    HarmonizeReply,
    HarmonizeRequest,
    SecureSum,
    Step,
    audit_head_of,
    join,
)
from exchange.refusals import Refusal, RefusalCode
from exchange.ring import RingError, RingOverflowError
from exchange.secure_sum import SecureSumError
from harmonization.core.errors import HarmonizationError
from tests.support.local_grid import write_site
from tests.support.wire import be_in_run

CONTENT = HarmonizeRequest(study="s", steps=[Step(source="a", result="b", transform="combat")]).to_records()
SECRET = "/data/patients/sub-0042 aged 33"


@pytest.fixture
def site(tmp_path, small_cohorts) -> Path:
    return write_site(tmp_path / "a", "aalborg", small_cohorts[0], min_participants=10)


def ask(site: Path, handle, content: RecordDict | None = None) -> Message:
    be_in_run(7)
    message = Message(content or CONTENT, dst_node_id=1, message_type="query.harmonize")
    return answer(message, Context(7, 1, {"site-config": str(site)}, RecordDict(), {}), HarmonizeRequest, handle)


def good(site, request) -> Answer:
    return Answer(HarmonizeReply(arrays=join(tally={"x": np.array(12)})), 12)


def test_what_leaves_is_written_down_first(site):
    reply = ask(site, good)

    assert HarmonizeReply.from_records(reply.content).part("tally")["x"] == 12
    (event,) = AuditLog(site.parent / "state" / "audit.jsonl").read()
    assert (event["event"], event["payload"], event["n_participants"], event["run"]) == (
        "release",
        "HarmonizeReply",
        12,
        "7",
    )
    assert event["masked"] is False
    verdict = AuditLog(site.parent / "state" / "audit.jsonl").verify(audit_head_of(reply.content))
    assert verdict.intact
    assert verdict.head_line == verdict.n_lines


def test_what_is_kept_of_many_parts_names_their_people_once():
    """A few hundred lists of a large cohort's people would be larger than the answer."""
    people, fewer = [f"sub-{number:05d}" for number in range(1000)], ["sub-00001", "sub-00002"]
    releases = [Release(Question("combat", ("x",)), people, (f"job {number}",)) for number in range(300)]
    releases += [Release(Question("probe", ("x",), ("column/age",)), fewer, ("a", "b"))]
    answered = Answer(HarmonizeReply(), 1000, tuple(releases))

    kept = _kept(answered, "question")
    about = json.loads(json.dumps(kept.about))
    restored = _restored(replace(kept, about=about))

    assert [set(release.participants) for release in restored.releases] == [set(r.participants) for r in releases]
    assert [str(release.question) for release in restored.releases] == [str(r.question) for r in releases]
    assert [release.parts for release in restored.releases] == [r.parts for r in releases]
    assert len(json.dumps(about)) < 100_000


def test_nothing_leaves_that_cannot_be_written_down(site, capfd):
    (site.parent / "state").mkdir()
    (site.parent / "state" / "audit.jsonl").mkdir()  # a folder: no line can be appended

    reply = ask(site, good)

    assert reply.error.reason == "site.not-set-up"  # what cannot be counted is not told
    assert "cannot be written" in capfd.readouterr().out


ERRORS = [
    (Refusal(RefusalCode.ATLAS, SECRET), RefusalCode.ATLAS),
    (DivergenceError(SECRET), RefusalCode.DIVERGED),
    (HarmonizationError(SECRET), RefusalCode.ANALYSIS_FAILED),
    (CohortError(SECRET), RefusalCode.SETUP),
    (RingOverflowError(SECRET), RefusalCode.OVERFLOW),
    (RingError(SECRET), RefusalCode.ANALYSIS_FAILED),
    (SecureSumError(SECRET), RefusalCode.PROTOCOL),
    (SecretError(SECRET), RefusalCode.SETUP),
    (ValueError(SECRET), RefusalCode.INTERNAL),
    (KeyError(SECRET), RefusalCode.INTERNAL),
    (MemoryError(SECRET), RefusalCode.LIMIT),
    (OSError(28, SECRET), RefusalCode.SETUP),
]


@pytest.mark.parametrize(("shares", "told"), [(True, "policy.small-group"), (False, "site.cannot-answer")])
def test_the_log_has_the_code_that_left_and_the_rule(tmp_path, small_cohorts, shares, told):
    site = write_site(tmp_path / "a", "aalborg", small_cohorts[0], share_reasons=shares)

    def fail(site, request) -> Answer:
        raise Refusal(RefusalCode.GROUP, SECRET)

    assert ask(site, fail).error.reason == told
    (event,) = AuditLog(site.parent / "state" / "audit.jsonl").read()
    assert (event["code"], event["rule"]) == (told, "policy.small-group")


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_leave_as_codes_and_stay_as_sentences(site, error, code):
    def fail(site, request) -> Answer:
        raise error

    reply = ask(site, fail)

    assert (reply.error.code, reply.error.reason) == (code.told.number, str(code.told))
    log = (site.parent / "state" / "site.log").read_text()
    assert "0042 aged 33" in log
    assert ("Traceback" in log) == (code is RefusalCode.INTERNAL)
    (event,) = AuditLog(site.parent / "state" / "audit.jsonl").read()
    assert (event["event"], event["code"], event["rule"]) == ("refusal", str(code.told), str(code))
    assert (event["study"], event["question"]) == ("s", HarmonizeRequest.from_records(CONTENT).question)
    assert "sub-0042" not in json.dumps(event)


def summing(value: float, n_people: int = 12, spends: tuple[Spend, ...] = ()):
    """A handler whose sum has this number."""

    def handle(site, request) -> Answer:
        release = Release(Question("combat", ("x",)), [f"sub-{number}" for number in range(n_people)], ("job",))
        return Answer(HarmonizeReply(arrays=join(job={"x": np.array([1.0, value])})), n_people, (release,), spends)

    return handle


@pytest.fixture
def masked(tmp_path, site) -> RecordDict:
    """A question to the site and two others, under masks."""
    others = [write_site(tmp_path / name, name, tmp_path) for name in ("bergen", "coimbra")]
    agree("three", [load_site(path).keys for path in (site, *others)])
    (approval,) = load_site(site).keys.approvals()
    secure = SecureSum(roster=approval.hash, step=1, sites=["aalborg", "bergen", "coimbra"])
    step = Step(source="a", result="b", transform="combat")
    return HarmonizeRequest(study="s", steps=[step], secure=secure).to_records()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("in_secure_sum", [True, False])
def test_what_is_no_number_is_no_overflow_and_mended_data_answer_the_same_question(site, masked, wrong, in_secure_sum):
    """However often it was asked before, in the same run."""
    content = masked if in_secure_sum else None
    for _ in range(5):
        assert ask(site, summing(wrong), content).error.reason == "site.cannot-answer"

    assert HarmonizeReply.from_records(ask(site, summing(2.0), content).content).arrays
    log = (site.parent / "state" / "site.log").read_text()
    assert log.count("job/x: a number is NaN or infinite") == 5


def test_a_number_that_is_too_large_is_counted_and_mended_data_answer_until_the_third(site, masked):
    asked = HarmonizeRequest.from_records(masked)
    later = asked.model_copy(update={"secure": asked.secure.model_copy(update={"step": 2})}).to_records()

    site.write_text(site.read_text().replace("policy:", "policy:\n  share_reasons: true"))
    for _ in range(2):
        assert ask(site, summing(1e17), masked).error.reason == "sum.overflow"
    assert ask(site, summing(2.0), masked).has_content()

    assert ask(site, summing(1e17), later).error.reason == "sum.overflow"
    assert ask(site, summing(2.0), later).error.reason == "sum.overflow"


def test_an_answer_what_it_told_and_what_it_cost_are_kept_together_or_not_at_all(site, masked):
    """Refused by the ledger, it costs nothing and its context is free; too large, it costs what a refusal may tell."""
    asked = HarmonizeRequest.from_records(masked)
    later = asked.model_copy(update={"secure": asked.secure.model_copy(update={"step": 2})}).to_records()
    spends = (Spend(1.0, 1.0, 1),)
    site.write_text(site.read_text().replace("min_change: 1", "min_change: 2"))
    assert ask(site, summing(2.0, spends=spends), masked).has_content()
    once = load_site(site).spending("s").epsilon

    assert ask(site, summing(2.0, n_people=11, spends=spends), later).error.reason == "site.cannot-answer"
    assert load_site(site).spending("s").epsilon == once > 0
    assert load_site(site).kept.find("7", HarmonizeRequest.from_records(later)) is None
    assert ask(site, summing(1e17, spends=spends), later).error.reason == "site.cannot-answer"
    assert load_site(site).spending("s").epsilon > once


def test_nothing_leaves_beside_a_damaged_audit_log(site):
    ask(site, good)
    log = site.parent / "state" / "audit.jsonl"
    log.write_text(log.read_text() + "something else\n")

    assert ask(site, good).error.reason == "audit.broken"


def test_a_damaged_ledger_stops_every_answer(site):
    """Also such as are not entered into it."""
    assert not ask(site, good).has_error()
    (site.parent / "state" / "ledger.sqlite").write_bytes(b"no database")

    assert ask(site, good).error.reason == "site.not-set-up"


@pytest.mark.parametrize("name", ["metrics", "parameters", "embeddings"])
def test_what_a_site_shows_of_itself_is_asked_of_its_policy(site, name):
    arrays = {"metrics": "shown/loss", "parameters": "shown/parameters/x/shift", "embeddings": "shown/other"}

    def showing(site, request) -> Answer:
        return Answer(HarmonizeReply(arrays={arrays[name]: np.ones(3)}), 12)

    assert ask(site, showing).error.reason == "policy.analysis-not-allowed"
    site.write_text(site.read_text().replace("policy:", f"policy:\n  share_{name}: true"))
    assert ask(site, showing).has_content()


def test_masking_counts_among_the_time_that_an_answer_may_take(tmp_path, small_cohorts, monkeypatch):
    site = write_site(tmp_path / "a", "aalborg", small_cohorts[0], max_seconds=1)

    def for_ever(*_: object) -> None:
        while True:
            sum(range(1000))

    monkeypatch.setattr(release, "_masked", for_ever)

    assert ask(site, good).error.reason == RefusalCode.LIMIT


def test_the_policy_has_the_last_word(site):
    reply = ask(site, lambda site, request: Answer(HarmonizeReply(), 9))

    assert reply.error.reason == "site.cannot-answer"
    assert AuditLog(site.parent / "state" / "audit.jsonl").read()[-1]["rule"] == "policy.too-few-participants"
    site.write_text(site.read_text().replace("policy:", "policy:\n  share_reasons: true"))
    reply = ask(site, lambda site, request: Answer(HarmonizeReply(), 9))
    assert reply.error.reason == "policy.too-few-participants"


def test_messages_of_another_kind_are_refused(site):
    other = DescribeRequest(study="s", contract={}, window={}, analyses=[], recipe="r", holdout=0, folds=1).to_records()

    assert ask(site, good, other).error.reason == "protocol.unreadable"


def test_a_site_that_is_not_set_up_says_only_that(tmp_path, capfd):
    reply = ask(tmp_path / "sub-0042" / "site.yaml", good)

    assert reply.error.reason == "site.not-set-up"
    assert "sub-0042" in capfd.readouterr().out  # in the SuperNode's own output


def test_settings_that_cannot_be_read_do_not_leave_their_path(tmp_path, capfd):
    (tmp_path / "sub-0042").write_text("a file, no folder")

    reply = ask(tmp_path / "sub-0042" / "site.yaml", good)

    assert (reply.error.code, reply.error.reason) == (RefusalCode.SETUP.number, "site.not-set-up")


def test_no_other_module_of_the_client_makes_messages():
    """But the SuperNode, where no app runs that could: it makes one, of an error, which holds a code alone."""
    calls = [
        (path.name, node)
        for room in (client, runtime)
        for path in Path(room.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Message"
    ]

    made = [(name, ast.unparse(call.args[0])) for name, call in calls if name != "release.py"]
    assert made == [("supernode.py", "Error(refusal.code.number, str(refusal.code))")]
    assert len(calls) > 1


def test_an_app_answers_about_the_study_that_it_was_built_for_and_no_other(tmp_path):
    _permit_shipped("any", tmp_path)  # the source tree has no study

    (tmp_path / "study.yaml").write_text("study: small\n")

    _permit_shipped("small", tmp_path)
    with pytest.raises(Refusal) as refused:
        _permit_shipped("other", tmp_path)
    assert refused.value.code is RefusalCode.CODE
