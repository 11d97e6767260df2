import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperCommand

from cli import cohort
from cli.main import COMMANDS, load, run_command


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


def test_a_fault_of_ours_is_one_line_too(monkeypatch, capsys, tmp_path):
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cohort.Cohort, "open", broken)

    assert run_command(["cohort", "show", str(tmp_path)]) == 1

    error = capsys.readouterr().err
    assert "ZeroDivisionError: by zero. This is a fault of FedBrainLM" in error.replace("\n", " ")
    assert "Traceback" not in error
