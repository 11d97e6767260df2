import csv
import io

from cohorts.report.page import Shown, Table


def stored(table: Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table.to_csv())))


def test_the_page_rounds_and_the_file_does_not():
    table = Table(["site", "score", "n"], [["a", 1 / 3, 1234], ["b", None, 5], ["c", -0.5, Shown(7, "7 of 9")]])

    assert [[text for text, _ in row] for row in table.shown] == [
        ["a", "0.333", "1,234"],
        ["b", "–", "5"],
        ["c", "−0.500", "7 of 9"],
    ]
    assert stored(table) == [["site", "score", "n"], ["a", str(1 / 3), "1234"], ["b", "", "5"], ["c", "-0.5", "7"]]
    assert [number for _, number in table.titles] == [False, True, True]


def test_common_titles_span_their_columns_and_name_them_in_the_file():
    table = Table(["site", ("age", "mean"), ("age", "SD"), ("sex", "F"), "p"], [["a", 1.0, 2.0, 3, 0.5]])

    assert table.groups == [("", 1), ("age", 2), ("sex", 1), ("", 1)]
    assert [name for name, _ in table.titles] == ["site", "mean", "SD", "F", "p"]
    assert stored(table)[0] == ["site", "age mean", "age SD", "sex F", "p"]
    assert Table(["site"], [["a"]]).groups == []


def test_the_page_shows_some_rows_and_the_file_has_all():
    table = Table(["n"], [[number] for number in range(30)], most=10)

    assert len(table.shown) == 10
    assert len(stored(table)) == 31


def test_no_spreadsheet_takes_a_name_for_a_formula():
    names = ["=1+1", "+a", "-b", "@c", "\td", "e=f"]

    assert [row[0] for row in stored(Table(["site"], [[name] for name in names]))[1:]] == [
        *(f"'{name}" for name in names[:5]),
        "e=f",
    ]


def test_only_words_that_are_too_long_are_broken_and_sentences_do_not_make_a_table_wide():
    long, sentence = "a" * 30, "words and words " * 20
    table = Table(["what", "n"], [[long, 1], [sentence, 2], ["short", 3]])

    assert [kind for (_, kind), _ in table.shown] == ["long", "", ""]
    assert {kind for _, (_, kind) in table.shown} == {"number"}
    assert table.size == "small"
    assert Table(["what"] * 4, [[long] * 4]).size == "wide"
