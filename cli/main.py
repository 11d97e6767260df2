"""The commands, and how their errors are shown."""

import signal
import sys
from importlib import import_module
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from base.errors import (
    FedBrainLMError,
    InternalError,
    RunFailedError,
    StoppedError,
    of_the_disk,
    of_the_installation,
)
from base.output import PlainConsole, say
from cli.examples import with_examples
from cli.version import version_and_commit

COMMANDS = {
    "cohort": ("cli.cohort", "app", "A site's recordings: prepare, check and show them."),
    "model": ("cli.model", "app", "Checkpoints: import released ones, export, and show what they are."),
    "study": (
        "cli.study",
        "app",
        "A first study from the cohorts at hand, and the app with a study in it, which hospitals approve by its hash.",
    ),
    "site": (
        "cli.site",
        "app",
        "A hospital: its keys, the apps and rosters it approves, its SuperNode, and its audit log.",
    ),
    "federation": (
        "cli.federation",
        "app",
        "The coordinator: certificates, sites, the SuperLink, and the roster of the sites' keys.",
    ),
    "demo": (
        "cli.run",
        "demo",
        "Four simulated hospitals, from recordings to a report, in a real Flower simulation: about three minutes.",
    ),
    "run": (
        "cli.run",
        "run",
        "Run a study over local cohorts, one simulated site each (--simulate DIR...), or deployed (--federation NAME).",
    ),
    "watch": (
        "cli.watch",
        "watch",
        "Show a run while it goes on, and how it ended: rounds, sites and their last answers, time left, bytes.",
    ),
    "report": ("cli.run", "report", "Make the report of a run anew."),
    "evaluate": (
        "cli.evaluate",
        "evaluate",
        "Print how a model reconstructs what is hidden, beside predictors that need no training.",
    ),
}
"""Where each command is, a module and the command or the group of commands in it, and what it says of itself.

A module is imported when its command is given, since torch and Flower take seconds.
"""


def load(name: str) -> click.Command:
    """Import a command."""
    module, attribute, said = COMMANDS[name]
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command = typer.main.get_command(found)
        command.help = said
    else:
        single = typer.Typer(add_completion=False)
        single.command(name)(found)
        command = typer.main.get_command(single)
    command.name = name
    return with_examples(command, name)


class _Commands(TyperGroup):
    """The commands: those that are listed say what they are, and the one that is given is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][2]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, listed, others = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else listed, others


app = typer.Typer(
    name="fedbrainlm",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a brain foundation model together, without one recording leaving a hospital.",
)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"fedbrainlm {version_and_commit()}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show version and commit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command; `run` below reads --debug."""


def run_command(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    console = PlainConsole(stderr=True)
    try:
        app(arguments, standalone_mode=True)
    except RunFailedError as error:
        return _fail(console, error, 1, arguments)
    except StoppedError as stopped:
        say(f"Stopped. {stopped}", err=True)
        return 130
    except Exception as error:
        said = of_the_disk(error) or of_the_installation(error) or error
        if isinstance(said, FedBrainLMError):
            return _fail(console, said, 2, arguments)
        return _fail(console, InternalError(error), 1, arguments)  # a fault of ours: said in a line, too
    except (KeyboardInterrupt, SystemExit) as ended:  # typer makes an exit of an interrupt
        code = 130 if isinstance(ended, KeyboardInterrupt) else ended.code
        if code == 130:
            say("Stopped.", err=True)
        return code if isinstance(code, int) else 1
    return 0


def _fail(console: Console, error: Exception, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        console.print_exception()
    else:
        from base.wording import shortened  # takes half a second, which only errors are to cost

        said = "\n".join(map(shortened, str(error).split("\n")))
        console.print(Text.assemble(("Error: ", "bold red"), said), soft_wrap=True)
    return code


def main() -> None:
    """Entry point of the `fedbrainlm` command."""
    # Ended politely, a command stops what it started, as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:]))
