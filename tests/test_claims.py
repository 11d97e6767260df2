"""Whatever the privacy guide and a hospital's settings promise or describe is tied to tests that try it.

In docs/privacy.md a comment follows each paragraph and each item of a list, ``<!-- file: test, test; file: test -->``
with files under tests/. One after a table has a line for each of its rows; or ``whole:`` and the test of this module
that holds all of the table to the code. What configs/sites/hospital.yaml says of its fields is tied by `HOSPITAL`.
"""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.door.audit import BEGIN, TORN, AuditLog
from client.door.policy import SHOWS_ONE_SITE, Policy
from client.keys.approvals import Approvals
from client.site import load_site
from exchange.refusals import RefusalCode
from tests.attacks.coordinator import Coordinator, write_careful_sites
from tests.client.door import test_policy
from tests.support.apps import app_of

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
UNTIED = (
    "Analysis by analysis they stand in",
    "[training.md](training.md#private-training) has the settings",
)
"""Paragraphs that say no more than where to read on."""


@dataclass(frozen=True)
class Block:
    """A paragraph, an item of a list or a table of the guide, and the lines of the comment after it."""

    kind: str
    lines: list[str]
    ties: list[str]

    @property
    def text(self) -> str:
        return " ".join(line.strip() for line in self.lines)


def blocks(page: str) -> list[Block]:
    """What makes claims on a page: all after its first heading of a section, but headings, commands and lead-ins."""
    found: list[Block] = []
    page = re.sub(r"^ *```.*?^ *```$", "", page[page.index("\n## ") :], flags=re.DOTALL | re.MULTILINE)
    for part in re.split(r"(<!--.*?-->)", page, flags=re.DOTALL):
        if part.startswith("<!--"):
            found[-1].ties.extend(line.strip() for line in part[4:-3].strip().splitlines())
            continue
        started = False
        for line in part.splitlines():
            item = bool(re.match(r" *(- |\d+\. )", line))
            if not line.strip() or line.startswith("#"):
                started = False
            elif started and not item:
                found[-1].lines.append(line)
            else:
                kind = "item" if item else "table" if line.startswith("|") else "paragraph"
                found.append(Block(kind, [line], []))
                started = True
    return found


def table_after(heading: str) -> list[list[str]]:
    """Cells of the rows of the first table after a heading, or any other words."""
    lines = GUIDE[GUIDE.index(heading) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@cache
def named_in(file: str) -> frozenset[str]:
    """Names of the tests of a file under tests/; none if it is not there."""
    path = ROOT / "tests" / file
    if not path.is_file():
        return frozenset()
    return frozenset(node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if is_test(node))


def is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


def unknown(tie: str) -> Iterator[str]:
    """What a tie names that is no test."""
    for part in tie.split(";"):
        file, _, names = part.strip().partition(": ")
        yield from (f"{file}: {name}" for name in names.split(", ") if name not in named_in(file))


def faults(page: str) -> list[str]:
    """All claims of a page that are not tied to a test, and all ties to tests that are not there."""
    found, claims = [], blocks(page)
    for block, following in zip(claims, [*claims[1:], None], strict=True):
        whole = [tie.removeprefix("whole: ") for tie in block.ties if tie.startswith("whole: ")]
        ties = [tie for tie in block.ties if tie not in ("", *(f"whole: {tie}" for tie in whole))]
        if block.kind == "table" and not whole and len(ties) != len(block.lines) - 2:
            found.append(f"{len(block.lines) - 2} rows and {len(ties)} ties: {block.text[:60]}")
        leads_in = following is not None and following.kind != "paragraph" and block.text.endswith(":")
        if not block.ties and not leads_in and not block.text.startswith(UNTIED):
            found.append(f"no test: {block.text[:60]}")
        found += [f"not of this module: {tie}" for tie in whole if not tie.startswith("test_claims.py: ")]
        found += [f"no such test: {name}" for tie in (*ties, *whole) for name in unknown(tie)]
    return found


def test_every_claim_of_the_guide_is_tied_to_tests_that_are_there():
    assert len(blocks(GUIDE)) > 100
    assert not faults(GUIDE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("- **Past messages**", "- Nobody can read anything.\n- **Past messages**"),
        ("\n**Keys.** A roster", "\nNobody can read anything.\n\n**Keys.** A roster"),
        ("| An array that nobody declared", "| Anything | a rule | a code |\n| An array that nobody declared"),
        ("test_limits_hold_in_the_ledger", "test_limits_hold_somewhere"),
        ("client/door/test_ledger.py: ", "client/test_ledgers.py: "),
        (
            "<!-- whole: test_claims.py: test_the_table_of_codes",
            "<!-- whole: client/door/test_policy.py: test_the_table_of",
        ),
    ],
    ids=["item", "paragraph", "row", "test", "file", "table"],
)
def test_a_claim_without_a_test_is_found(old, new):
    assert old in GUIDE
    assert faults(GUIDE.replace(old, new, 1))


# --- tables that are held to the code ---------------------------------------------------------------------------------


def test_the_table_of_codes_is_what_sites_answer():
    rows = table_after("\n## Refusal codes")
    said = {code: (number, sentence) for code, number, sentence, _ in rows}
    true = {
        f"`{code}`{' *' if code.told is not code else ''}": (str(code.number), code.sentence) for code in RefusalCode
    }

    assert said == true
    assert len(rows) == len(said)
    assert all(remedy for *_, remedy in rows)


def as_the_guide_writes(value: Any) -> str:
    """A default, in words of the table."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ", ".join(value) if value != ("*",) else '`"*"`'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "1e-5" if value == 1e-5 else f"{value:g}"
    return {10**9: "10⁹"}.get(value, f"{value:,}" if value >= 10_000 else str(value))


def test_the_table_of_the_policy_is_the_policy():
    """Each field has its row and its default, and is tried by `tests/client/door/test_policy.py`, which names all."""
    said = {}
    for fields, defaults, _ in table_after("\n## The site's policy"):
        names = re.findall(r"`(\w+)`", fields)
        said |= dict(zip(names, defaults.split("; ") if len(names) > 1 else [defaults], strict=True))
    thousands = {name: text.replace("2,000", "2000") for name, text in said.items()}
    known = {name: as_the_guide_writes(value) for name, value in Policy()}

    assert {name: text.replace(",", "") for name, text in thousands.items()} == {
        name: text.replace(",", "") for name, text in known.items()
    }
    assert set(test_policy.CASES) | set(test_policy.ELSEWHERE) == set(Policy.model_fields)
    (analyses,) = (row for row in table_after("\n## The site's policy") if row[0] == "`analyses`")
    assert set(re.findall(r"`(\w+)`", analyses[2].partition("must be named:")[2])) == SHOWS_ONE_SITE


def fields_of(*events: str) -> set[str]:
    """Fields that the guide's table says an event has."""
    rows = table_after("`state/audit.jsonl`: one line")
    return {name for names, of, _ in rows if of in ("all", *events) for name in re.findall(r"`(\w+)`", names)}


def test_the_table_of_the_audit_log_has_the_fields_of_each_line(finished_run, tmp_path):
    """No state, weight, seed or column is among them: of what was asked there is a hash."""
    lines = [event for path in finished_run.sites for event in load_site(path).audit.events()]
    site = load_site(finished_run.sites[0])
    log = AuditLog(tmp_path / "audit.jsonl")
    approvals, app = Approvals(tmp_path, log, Policy()), app_of("app = None\n")
    approvals.withdraw(approvals.approve(app, "Anna", "small").hash, "Anna")
    lines += log.events()

    def seen(event: str) -> set[str]:
        return {name for line in lines if line["event"] == event for name in line}

    assert seen("release") == fields_of("release")
    assert seen("roster-approved") == fields_of("rosters")
    assert seen("code-approved") == fields_of("code-…")
    assert seen("code-withdrawn") < fields_of("code-…")
    asked = {line["question"] for line in lines if line["event"] == "release"}
    assert all(re.fullmatch("[0-9a-f]{64}", question) for question in asked)
    assert site.name == next(line["site"] for line in lines if line["event"] == BEGIN)


def test_the_table_of_the_audit_log_has_all_events():
    (first, *_) = table_after("`state/audit.jsonl`: one line")
    said = set(re.findall(r"`([a-z-]+)`", first[2]))
    appended = {
        node.args[0].value
        for room in ("client", "runtime")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "append"
        and node.keywords
        and isinstance(node.args[0], ast.Constant)
    }

    assert said == appended | {BEGIN, TORN}


def test_a_refusal_has_the_fields_of_its_row(tmp_path, small_cohorts):
    coordinator = Coordinator(write_careful_sites(tmp_path, small_cohorts, studies=[]))
    coordinator.ask(coordinator.names[0], coordinator.sums())
    coordinator.ask(coordinator.names[0], coordinator.training())
    seen = {name for line in coordinator.audit_of(coordinator.names[0]) if line["event"] == "refusal" for name in line}

    assert seen == fields_of("refusal")


def test_the_commands_of_the_checklist_find_sets_of_sites_and_attempts(tmp_path, small_cohorts):
    coordinator = Coordinator(write_careful_sites(tmp_path, [*small_cohorts], max_attempts=2))
    names = coordinator.names
    coordinator.ask(names[0], coordinator.sums(groups={"projection": names}))
    (commands,) = (block for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) if '"attempt"' in block)
    folder = load_site(coordinator.sites[names[0]]).state.parent
    found = subprocess.run(["bash", "-c", commands], cwd=folder, capture_output=True, text=True, check=False).stdout

    listed = json.dumps(names)
    assert f'1 "among": {listed}' in found
    assert f'1 "groups": [{listed}]' in found
    assert found.splitlines()[-1].strip() == "0"  # second attempts


def test_measured_numbers_are_those_of_the_tables():
    tables = (ROOT / "docs" / "benchmarks" / "privacy.md").read_text(encoding="utf-8")
    rows = {cells[1].strip(): cells[2:] for line in tables.splitlines() if len(cells := line.split("|")) > 4}

    assert rows["one site's update"][2].strip() == "61 %"
    assert {rows[f"sum over {n} sites"][2].strip() for n in (3, 4)} == {"42 %", "43 %"}
    assert rows["one step of one window"][0].strip() == "0.98"
    assert all(words in GUIDE for words in ("find 61 % of them", "still found about 42 %", "correlation .98"))


# --- a hospital's settings --------------------------------------------------------------------------------------------

SETTINGS = yaml.safe_load((ROOT / "configs" / "sites" / "hospital.yaml").read_text(encoding="utf-8"))
HOSPITAL = {
    "name": "exchange/test_messages.py: test_what_a_site_says_of_itself_is_plain_short_and_no_path",
    "cohort": "client/test_app.py: test_a_cohort_is_only_read",
    "state": "client/test_process.py: test_a_folder_is_made_private_with_all_in_it_and_nothing_outside; "
    "client/door/test_kept_answers.py: test_only_the_last_plaintext_stays_on_the_disk",
    "device": "client/test_site.py: test_gpus_that_are_not_there_are_a_fault_of_the_set_up",
    "devices": "brainlm/test_parallel.py: test_a_cpu_has_one_process_unless_told_otherwise",
    "threads": "client/test_app.py: test_whom_a_study_leaves_out_is_counted_and_a_few_are_not_told_apart",
    "supernode": "base/test_proxies.py: test_the_setting_goes_before_the_environment; "
    "deployment/test_checks.py: test_of_two_containers_each_looks_at_what_it_has",
}
"""Field of configs/sites/hospital.yaml → what tries what its comment says."""
POLICY = {
    "studies": "client/door/test_policy.py: test_the_default_refuses_every_study_and_every_plain_sum; "
    "attacks/test_chosen_questions.py: test_a_second_attempt_is_for_the_same_study",
    "approvers": "client/keys/test_approvals.py: test_whoever_writes_to_the_state_folder_cannot_approve_for_others",
    "min_approvers": "client/keys/test_approvals.py: test_two_people_are_two_keys_and_not_two_names",
    "analyses": "client/door/test_policy.py: test_what_shows_a_single_site_must_be_named",
    "vectors": "client/door/test_policy.py: test_every_rule_decides_what_is_refused",
    "recipes": "client/door/test_policy.py: test_every_rule_decides_what_is_refused",
    "min_participants": "client/door/test_policy.py: test_every_rule_decides_what_is_refused; "
    "client/test_app.py: test_an_update_stands_for_enough_participants",
    "min_group": "client/test_app.py: test_the_held_out_are_not_evaluated_where_they_are_few, "
    "test_folds_hold_enough_participants; "
    "client/door/test_disclosure.py: test_a_part_that_is_too_small_is_refused_before_anything_is_summed; "
    "attacks/test_open_attacks.py: test_a_state_that_nobody_solved_does_not_give_a_person_s_row",
    "columns": "client/door/test_policy.py: test_ids_are_never_a_column; "
    "client/door/test_disclosure.py: test_columns_that_only_choose_people_are_named_too",
    "max_covariate_ratio": "client/door/test_disclosure.py: test_a_column_for_each_person_gives_all_rows",
    "secure_sum_required": "attacks/test_active_coordinator.py: "
    "test_nothing_leaves_in_the_clear_where_sums_must_be_secure, "
    "test_a_sum_among_accomplices_is_the_honest_site_s_and_stands_in_its_log",
    "min_sites": "client/door/test_policy.py: test_rules_that_would_not_protect_are_errors_and_not_ignored; "
    "attacks/test_active_coordinator.py: test_a_policy_asks_for_more_sites_than_side_with_the_coordinator",
    "max_attempts": "client/door/test_ledger.py: test_one_question_is_answered_among_few_sets_of_sites; "
    "attacks/test_open_attacks.py: test_with_one_set_of_sites_allowed_no_difference_is_left",
    "plain_grams": "client/door/test_disclosure.py: "
    "test_a_matrix_as_large_as_the_people_completes_a_row_of_which_half_is_known, "
    "test_what_tells_of_few_leaves_only_under_masks",
    "min_change": "client/door/test_ledger.py: test_no_two_answers_about_the_same_data_differ_in_a_few",
    "max_rounds": "client/door/test_policy.py: test_limits_hold_in_the_ledger",
    "max_releases": "client/door/test_policy.py: test_limits_hold_in_the_ledger",
    **dict.fromkeys(
        ["max_steps", "max_parameters", "max_levels", "max_jobs", "max_components"],
        "attacks/test_chosen_questions.py: test_no_question_takes_a_site_s_hours_and_memory",
    ),
    "max_seconds": "client/door/test_limits.py: test_what_takes_too_long_is_ended_whatever_it_does_with_errors",
    "max_memory_gb": "runtime/test_prefork.py: test_an_app_has_the_memory_that_its_policy_gives_and_no_more",
    "max_refusals": "attacks/test_chosen_questions.py: test_a_site_tells_little_by_refusing_however_often_it_is_asked",
    "privacy_required": "client/test_app.py: test_a_study_that_will_be_refused_later_is_refused_at_once",
    "epsilon": "client/test_private_rounds.py: test_a_site_whose_budget_is_spent_refuses; "
    "client/test_app.py: test_a_budget_is_all_that_is_told_unless_the_policy_names_more",
    "outside_epsilon": "client/test_app.py: test_a_budget_is_all_that_is_told_unless_the_policy_names_more; "
    "runtime/test_fab.py: test_what_leaves_beyond_a_budget_is_listed",
    "delta": "client/door/test_policy.py: test_a_promise_that_nobody_asks_for_may_be_weak",
    "share_metrics": "server/test_secure_sums.py: test_what_a_site_shares_is_shown_beside_the_sums",
    "share_parameters": "server/test_secure_sums.py: test_what_a_site_shares_is_shown_beside_the_sums",
    "share_embeddings": "attacks/test_active_coordinator.py: "
    "test_who_shares_embeddings_shares_any_features_of_a_participant",
    "share_reasons": "client/door/test_release.py: test_the_log_has_the_code_that_left_and_the_rule",
}
"""The same of the fields of its policy."""


def test_every_field_of_a_hospital_s_settings_is_tied_to_tests_that_are_there():
    assert set(SETTINGS) == {*HOSPITAL, "policy"}
    assert set(SETTINGS["policy"]) == set(POLICY) == set(Policy.model_fields)
    assert not [name for tie in (*HOSPITAL.values(), *POLICY.values()) for name in unknown(tie)]


def test_a_hospital_s_settings_are_the_defaults():
    assert Policy(**SETTINGS["policy"]) == Policy()
