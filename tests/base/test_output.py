"""What commands print cannot be obeyed by a terminal, whoever wrote it."""

import ast

import pytest
from rich.table import Table

from base.output import PlainConsole, say
from runtime.fab import PROJECT

MARKUP = "[/x][red]a[link=http://b]:warning:"
HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\x9b31m\u202ec\rd"


def obeyed(text: str) -> list[str]:
    """What a terminal would obey in a text of several lines."""
    return [letter for letter in text if not letter.isprintable() and letter != "\n"]


@pytest.mark.parametrize("err", [False, True])
def test_lines_reach_the_terminal_without_what_it_would_obey(capsys, err):
    say(f"{HOSTILE}\nnext", err=err)

    out, error = capsys.readouterr()
    said = error if err else out
    assert obeyed(said) == []
    assert said.endswith("next\n")
    assert (error == "") is not err


def test_tables_and_errors_do_too(capsys):
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)

    console = PlainConsole(width=200)
    console.print(table)
    console.print(HOSTILE)

    assert obeyed(capsys.readouterr().out) == []


def test_brackets_in_a_name_are_no_markup(capsys):
    """Which could forge a line, or end the command that shows it."""
    table = Table(title=MARKUP)
    table.add_row(MARKUP)

    PlainConsole(width=200, force_terminal=True, color_system=None).print(table, MARKUP, sep="\n")

    assert capsys.readouterr().out.count(MARKUP) == 3


def test_there_is_no_other_way_out():
    """Commands print through `say` and `PlainConsole` alone."""
    ways = {"print", "Console", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write", "sys.stderr.write"}
    found = [
        f"{path.name}: {ast.unparse(node.func)}"
        for room in ("base", "deployment", "cli")
        for path in sorted((PROJECT / room).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ways
    ]

    assert found == ["output.py: typer.echo"]
