import json

import numpy as np
import pandas as pd
import pytest

from cohorts import ParticipantsError
from cohorts.cells import TableRules
from cohorts.participants import apply_missing_rule, load_participants, read_participants, write_participants


@pytest.fixture
def path(tmp_path):
    return tmp_path / "participants.tsv"


def describe(path, **columns):
    path.with_suffix(".json").write_text(json.dumps(columns))


PLAIN = "participant_id\tage\tsex\nsub-01\t30.5\tF\nsub-02\tn/a\tmale\n"
HEADER, ROW1, ROW2 = PLAIN.splitlines()


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        (PLAIN + "\n\n").encode(),
        PLAIN.replace("age", " Age ").replace("participant_id", "Participant_ID").encode(),
        PLAIN.replace("\n", "\t\n").encode(),
        f"{HEADER}\t\t\n{ROW1}\n{ROW2}\t\n".encode(),
        f"{HEADER}\n{ROW1}\t\n{ROW2}\n\t\t\n".encode(),
        PLAIN.replace("n/a", ".").encode(),
        PLAIN.replace("n/a", "#N/A").replace("30.5", "\N{NO-BREAK SPACE}30.5 ").encode(),
        "".join(f'"{cell}"\t"{age}"\t"{sex}"\n' for cell, age, sex in map(str.split, PLAIN.splitlines())).encode(),
        f"# exported\n\n{HEADER}\n# added in May\t\t\n{ROW1}\n{HEADER}\n{ROW2}\n".encode(),
        f"\t{HEADER}\n0\t{ROW1}\n1\t{ROW2}\n".encode(),
    ],
)
def test_what_programs_make_of_a_table_is_read_alike(path, content):
    path.write_bytes(content)

    table = read_participants(path)

    expected = pd.DataFrame({"participant_id": ["sub-01", "sub-02"], "age": [30.5, np.nan], "sex": ["F", "M"]})
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    pd.testing.assert_frame_equal(load_participants(path).participants, table)


REFUSED = {
    "semicolons": (PLAIN.replace("\t", ";"), "semicolons"),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), "cannot be read as a table"),
    "zeros": (bytes(1000), "cannot be read as a table"),
    "a cell too many": ("participant_id\tage\nsub-01\t3\nsub-02\t4\t5\n", "row 3 has 3 cells"),
    "one person, two spellings": ("participant_id\tage\n01\t3\nsub-01\t4\n", r"'01' stands twice \(again in row 3\)"),
    "ages in words": ("participant_id\tage\na\tforty\nb\tfifty\nc\t30\n", "row 2 has age 'forty'.*number alone"),
    "ages about zero": ("participant_id\tage\na\t-1.2\nb\t0.3\nc\t-0.5\n", "row 2 has age '-1.2'.*from 0 to 120"),
    "thousands or decimals": ("participant_id\tage\na\t12,345\nb\t13,456\n", "row 2 has age '12,345'"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED)
def test_broken_tables_are_refused_with_their_reason(path, content, said):
    path.write_bytes(content.encode() if isinstance(content, str) else content)

    for read in (read_participants, load_participants):
        with pytest.raises(ParticipantsError, match=said):
            read(path)


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        *[("months", 366), ("Week", 30.5 * 365.25 / 7), ("days", 30.5 * 365.25)],
        *[("in years", 30.5), ("Years (decimal)", 30.5), ("year at scan", 30.5), ("n/a", 30.5)],
    ],
)
def test_ages_in_another_unit_become_years_if_the_json_says_so(path, unit, value):
    path.write_text(f"participant_id\tage\nsub-01\t{value}\n")
    describe(path, age={"Units": unit, "Description": "Age at the scan"})

    loaded = load_participants(path)

    assert loaded.participants["age"].tolist() == [pytest.approx(30.5)]
    assert any("converted to years" in notice for notice in loaded.notices) == (value != 30.5)
    assert loaded.descriptions["age"] == {"Units": "year", "Description": "Age at the scan"}


@pytest.mark.parametrize("female", ["female", "F", {"Description": "Female"}])
def test_sex_by_code_is_read_if_the_json_says_which(path, female):
    path.write_text("participant_id\tsex\nsub-01\t2\nsub-02\t1\nsub-03\tn/a\n")
    describe(path, sex={"Levels": {"1": "male", "2": female}})

    sex = read_participants(path)["sex"]

    assert sex[:2].tolist() == ["F", "M"]
    assert sex.isna()[2]


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000])
def test_a_broken_json_is_refused(path, content):
    path.write_text(PLAIN)
    path.with_suffix(".json").write_text(content)

    with pytest.raises(ParticipantsError, match="expected a JSON object"):
        read_participants(path)

    describe(path, age={"Units": "decades"})
    with pytest.raises(ParticipantsError, match="'decades'; expected year"):
        read_participants(path)


def test_what_tells_who_somebody_is_stays_out(path):
    table = pd.DataFrame(
        {
            "participant_id": ["sub-0050003", "sub-0050004", "sub-0050005"],
            "SUB_ID": [50003, 50004, 50005],
            "FILE_ID": ["PITT_0050003", "PITT_0050004", "PITT_0050005"],
            "mother": ["sub-0050004", "sub-0050003", "n/a"],
            "First Name": ["A", "B", "C"],
            "DOB": ["2001-01-01"] * 3,
            "e-mail": ["a@b", "c@d", "e@f"],
            "MRN": [7, 8, 9],
            "age": [20, 30, 40],
            "visit": [1, 2, 3],
            "scanner": ["x", "x", "y"],
        }
    )
    table.to_csv(path, sep="\t", index=False)

    loaded = load_participants(path)

    assert loaded.left_out == ("SUB_ID", "FILE_ID", "mother", "First Name", "DOB", "e-mail", "MRN")
    assert list(loaded.participants) == ["participant_id", "age", "visit", "scanner"]


def test_small_numbers_that_happen_to_be_ids_stay(path):
    path.write_text("participant_id\tscore\tgroup\nsub-01\t1\t2\nsub-02\t5\t1\nsub-03\t9\t1\n")

    assert load_participants(path).left_out == ()


def test_what_is_left_out_is_said(path):
    path.write_text(f"\t{HEADER}\n0\t{ROW1}\n# a comment\n1\t{ROW2}\n")

    notices = load_participants(path).notices

    assert notices == (
        "1 row was left out: a comment, or the header again.",
        "1 column was left out: without a name.",
    )


def test_values_named_as_missing_become_missing(path):
    """Named by the command, by MissingValues, or by a level that is said to be missing; -9999.0 is -9999."""
    rows = [(100, 3, "ASD"), (-9999.0, 1, "TDC"), (77, 2, "ASD"), (120, 9, "999"), (95, 8, "TDC"), (101, 7, "ASD")]
    path.write_text(
        "participant_id\tiq\tmeds\tdx\n" + "".join(f"p{n}\t{a}\t{b}\t{c}\n" for n, (a, b, c) in enumerate(rows))
    )
    levels = {"1": "none", "2": "one", "3": "many", "7": "stopped", "9": "n/a"}
    levels["8"] = {"Description": "Refused to answer"}
    describe(path, meds={"Levels": levels}, iq={"MissingValues": [-9999, "77"], "Description": "IQ"})

    loaded = load_participants(path, TableRules(missing=(("dx", "999"), ("", "120"))))

    table = loaded.participants
    assert table["iq"].dropna().tolist() == [100, 95, 101]
    assert table["meds"].dropna().tolist() == [3, 2, 7]
    assert table["dx"].dropna().tolist() == ["ASD", "TDC", "ASD", "TDC", "ASD"]
    assert "iq: 3 of 6 rows have '-9999.0', '77', '120': named as missing." in loaded.notices
    assert loaded.descriptions["iq"] == {"Description": "IQ"}  # the rule was applied
    with pytest.raises(ParticipantsError, match=r"--missing-value age=9: .* has no such column"):
        load_participants(path, TableRules(missing=(("age", "9"),)))


def test_codes_are_told_unless_the_json_says_that_there_are_none(path):
    path.write_text("participant_id\tchange\n" + "".join(f"p{n}\t{v}\n" for n, v in enumerate([1, 2, 3, -9999])))
    judged = load_participants(path)
    describe(path, change={"MissingValues": []})
    believed = load_participants(path)

    assert judged.participants["change"].isna().tolist() == [False, False, False, True]
    assert "-9999 (the others: 1 to 3): taken for a code" in judged.notices[0]
    assert believed.participants["change"].tolist() == [1, 2, 3, -9999]
    assert believed.notices == ()


def test_rules_stand_in_the_json_and_options_go_before_them(path):
    path.write_text("participant_id\tage\nsub-01\t89+\nsub-02\t35-40\nsub-03\t30\n")

    def ages(rules: TableRules | None = None) -> list[float]:
        return load_participants(path, rules).participants["age"].fillna(-1).tolist()

    assert ages() == [-1, -1, 30]
    describe(path, age={"TopCoded": "bound", "Ranges": "midpoint"})
    assert ages() == [89, 37.5, 30]
    assert ages(TableRules(top_coded="missing")) == [-1, 37.5, 30]
    describe(path, age={"TopCoded": "keep"})
    with pytest.raises(ParticipantsError, match="TopCoded of age is 'keep'; expected missing or bound"):
        ages()


def test_notices_tell_nothing_of_columns_that_are_left_out(path):
    rows = "".join(f"p{n}\t555{n:04d}\t{n}\n" for n in range(9)) + "p9\t-9999\t3\n"
    path.write_text("participant_id\tphone\tscore\n" + rows)

    loaded = load_participants(path)

    assert loaded.left_out == ("phone",)
    assert loaded.notices == ()


def test_what_was_written_is_read_as_it_is(path, tmp_path):
    """A cohort's own table holds what was decided: a number that was kept does not vanish later."""
    digits = np.random.default_rng(0).uniform(0, 90, 500)
    table = pd.DataFrame({"participant_id": [f"p{n}" for n in range(502)], "age": [3.0, 99.0, *digits]})
    table["score"] = [3.0, -9999.0, *digits]

    write_participants(table, tmp_path)

    pd.testing.assert_frame_equal(read_participants(path), table, check_dtype=False, check_exact=True)


def test_sessions_give_a_row_each_and_one_for_the_participant(path):
    path.write_text(
        "participant_id\tsession_id\tage\tsex\tscore\n"
        "sub-01\tses-2\t32\tF\t5\nsub-01\tses-1\t30\tF\t4\n01\t3\tn/a\tn/a\t6\nsub-02\tses-1\t50\tM\t7\n"
    )

    loaded = load_participants(path)

    assert loaded.participants.to_dict("records") == [
        {"participant_id": "sub-01", "age": 30.0, "sex": "F"},
        {"participant_id": "sub-02", "age": 50.0, "sex": "M"},
    ]
    assert loaded.sessions["session_id"].tolist() == ["2", "1", "3", "1"]
    assert loaded.sessions["participant_id"].tolist() == ["sub-01"] * 3 + ["sub-02"]
    assert loaded.sessions["score"].tolist() == [5, 4, 6, 7]
    with pytest.raises(ParticipantsError, match="'sub-01' stands twice"):
        read_participants(path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("sub-01\tses-1\nsub-01\t1\n", "'sub-01' stands twice with session '1'"),
        ("sub-01\tses-1\nsub-01\tn/a\n", "row 3 has no session_id"),
    ],
)
def test_sessions_that_cannot_be_told_apart_are_refused(path, rows, said):
    path.write_text("participant_id\tsession_id\n" + rows)

    with pytest.raises(ParticipantsError, match=said):
        load_participants(path)


def test_what_columns_mean_goes_along(path, tmp_path):
    path.write_text(
        "participant_id\tsex\tiq\tsite\tdx\nsub-01\t1\t101\tA\t1\nsub-02\t2\t99\tA\t2\nsub-03\t2\t9\tB\t2\n"
    )
    describe(
        path,
        sex={"Levels": {"1": "M", "2": "F"}, "Description": "Sex at birth"},
        iq={"Description": "Full-scale IQ", "Units": "points", "Path": "secret"},
        dx={"Levels": {"1": "autism", "2": "control"}},
        gone={"Description": "no such column"},
    )
    loaded = load_participants(path)
    out = tmp_path / "out"

    write_participants(loaded.participants, out, loaded.descriptions)
    first = (out / "participants.json").read_bytes()
    write_participants(read_participants(out / "participants.tsv"), out)  # what stands there already is kept

    described = json.loads(first)
    assert (out / "participants.json").read_bytes() == first
    assert described["sex"] == {"Description": "Sex at birth", "Levels": {"F": "female", "M": "male"}}
    assert described["iq"] == {"Description": "Full-scale IQ", "Units": "points"}
    assert described["dx"] == {"Levels": {"1": "autism", "2": "control"}}
    assert set(described) == {"participant_id", "sex", "iq", "dx"}


def test_columns_of_a_few_texts_list_their_levels(tmp_path):
    table = pd.DataFrame({"participant_id": list("abcd"), "site": ["B", "A", None, "A"], "note": list("wxyz")})

    write_participants(table, tmp_path)

    described = json.loads((tmp_path / "participants.json").read_text())
    assert described["site"]["Levels"] == {"A": "A", "B": "B"}
    assert "note" not in described


def test_a_rule_says_what_becomes_of_missing_values():
    table = pd.DataFrame({"participant_id": ["a", "b", "c"], "age": [1.0, np.nan, np.nan], "sex": ["F", "M", None]})

    assert apply_missing_rule(table, ["age", "sex"], "keep") == {}
    quarantined = apply_missing_rule(table, ["age", "sex"], "quarantine")
    assert set(quarantined) == {"b", "c"}
    assert quarantined["c"].startswith("has no age")
    with pytest.raises(ParticipantsError, match="2 of 3 participants have no age"):
        apply_missing_rule(table, ["age", "sex"], "refuse")
    with pytest.raises(ParticipantsError, match="no column 'height'"):
        apply_missing_rule(table, ["height"], "keep")
    assert apply_missing_rule(table.iloc[:1], ["age", "sex"], "refuse") == {}


@pytest.mark.parametrize(
    ("column", "values", "left_out"),
    [
        ("Nachname", list("aabbccdd"), True),
        ("MRI_ID", list("aabbccdd"), True),
        ("free", ["1952-02-03", *["n/a"] * 7], True),
        ("when", [f"{day}.3.2019" for day in range(1, 9)], True),
        ("contact", [f"+47 9212345{number}" for number in range(8)], True),
        ("number", list(range(10_0001, 10_0009)), True),
        ("remark", ["came late", "left handed", "tall", "short", "n/a", "a scar", "none", "none"], True),
        ("group", list("ababcdcd"), False),
        ("clinic", ["north", "south"] * 4, False),
        ("score", [1.25, 3.5, 2.0, 7.75, 8.0, 9.5, 1.0, 0.5], False),
        ("volume_mm3", [1_200_000.5 + number for number in range(8)], False),
    ],
)
def test_columns_that_single_people_out_are_left_out(tmp_path, column, values, left_out):
    rows = [f"sub-x{number}y\t{value}" for number, value in enumerate(values)]
    (tmp_path / "participants.tsv").write_text("\n".join([f"participant_id\t{column}", *rows, ""]))

    table = load_participants(tmp_path / "participants.tsv")

    assert table.left_out == ((column,) if left_out else ())
    assert (column in table.participants) != left_out
