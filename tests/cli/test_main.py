import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from typer.core import TyperCommand

from base.errors import StoppedError
from cli import cohort
from cli.examples import EXAMPLES
from cli.main import COMMANDS, load, run_command
from tests.support.federation import STUDY

LONG = "x" * 50_000


def test_the_command_is_installed_and_explains_itself():
    command = Path(sys.executable).parent / "fedbrainlm"

    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout

    for name in COMMANDS:
        assert name in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_by_what_it_says_of_itself(name):
    *_, listed = COMMANDS[name]
    assert load(name).get_short_help_str(limit=1000) == TyperCommand(name, help=listed).get_short_help_str(limit=1000)


def test_help_imports_nothing_that_takes_seconds():
    code = "import sys; from cli.main import run_command; run_command(['--help']); print(*sorted(sys.modules))"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert {"torch", "flwr", "pandas", "numpy"} & set(shown.split()) == set()


@pytest.mark.parametrize("arguments", [["nonsense"], ["cohort", "simulate"], ["cohort", "prepare", "a", "b"], ["run"]])
def test_misuse_exits_with_2(arguments, capsys):
    assert run_command(arguments) == 2

    assert "Traceback" not in capsys.readouterr().err


def test_who_stops_a_run_is_told_last_how_to_go_on(monkeypatch, capsys, tmp_path):
    def stopped(*args: object, **kwargs: object) -> None:
        raise StoppedError("Go on with it: fedbrainlm run --resume runs/a/b")

    monkeypatch.setattr(cohort.Cohort, "open", stopped)

    assert run_command(["cohort", "show", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "Stopped. Go on with it: fedbrainlm run --resume runs/a/b\n"


def test_a_fault_of_ours_is_one_line_too(monkeypatch, capsys, tmp_path):
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cohort.Cohort, "open", broken)

    assert run_command(["cohort", "show", str(tmp_path)]) == 1

    error = capsys.readouterr().err
    assert "ZeroDivisionError: by zero. This is a fault of FedBrainLM" in error.replace("\n", " ")
    assert "Traceback" not in error


def commands(words: str, command: click.Command) -> dict[str, click.Command]:
    """Every command of a group, or itself, by its words."""
    if not isinstance(command, click.Group):
        return {words: command}
    found = {}
    for name, own in command.commands.items():
        found |= commands(f"{words} {name}", own)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_ends_with_examples_that_parse(name):
    for words, command in commands(name, load(name)).items():
        assert command.epilog, f"{words}: has no example in cli/examples.py"
        said, *examples = command.epilog.split("\n\n")
        assert said.startswith("Example")
        assert examples
        for example in examples:
            program, *arguments = shlex.split(example)
            assert [program, *arguments[: len(words.split())]] == ["fedbrainlm", *words.split()]
            command.make_context(words, arguments[len(words.split()) :])  # raises where an option or argument is wrong


def test_there_are_no_examples_of_commands_that_do_not_exist():
    found = {words for name in COMMANDS for words in commands(name, load(name))}

    assert EXAMPLES.keys() == found


def test_help_shows_the_examples(capsys):
    assert run_command(["study", "init", "--help"]) == 0

    assert "fedbrainlm study init data/oslo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"model": LONG},
        {"start": LONG},
        {"recipe": LONG},
        {"cohort": {"atlases": [LONG]}},
        {"covariates": {"dx": {"levels": [LONG, LONG]}}},
        {"analyses": {"targets": [LONG]}},
        {"analyses": {"targets": [str(number) for number in range(5000)]}},
        {LONG: LONG},
    ],
    ids=lambda changes: next(iter(changes))[:9],
)
def test_no_error_repeats_a_whole_input(tmp_path, capsys, changes):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))

    assert run_command(["run", str(tmp_path / "study.yaml"), "--simulate", str(tmp_path)]) == 2
    assert max(map(len, capsys.readouterr().err.splitlines())) < 1100
