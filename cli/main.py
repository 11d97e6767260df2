"""The commands, and how their errors are shown."""

import signal
import sys
from importlib import import_module
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from cli.errors import UNWRITABLE, InternalError, RunFailedError, UnwritableError, is_input_error, printable

#: Where each command is: a module, and the command or the group of commands in it. A module is imported when its
#: command is asked for, since torch and Flower take seconds.
COMMANDS = {
    "cohort": ("cli.cohort", "app"),
    "model": ("cli.model", "app"),
    "study": ("cli.study", "app"),
    "site": ("cli.site", "app"),
    "federation": ("cli.federation", "app"),
    "demo": ("cli.run", "demo"),
    "run": ("cli.run", "run"),
    "watch": ("cli.watch", "watch"),
    "report": ("cli.run", "report"),
    "evaluate": ("cli.evaluate", "evaluate"),
}


class _Commands(TyperGroup):
    """The commands, imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        found = getattr(import_module(module), name)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(cmd_name)(found)
            found = single
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="fedbrainlm",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a brain foundation model together, without one recording leaving a hospital.",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Options of every command; `run` below reads --debug."""


def run_command(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    console = Console(stderr=True)
    try:
        app(arguments, standalone_mode=True)
    except RunFailedError as error:
        return _fail(console, error, 1, arguments)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            return _fail(console, InternalError(error), 1, arguments)
        return _fail(console, UnwritableError(error), 2, arguments)
    except Exception as error:
        if is_input_error(error):
            return _fail(console, error, 2, arguments)
        return _fail(console, InternalError(error), 1, arguments)  # a fault of ours: said in a line, too
    except (KeyboardInterrupt, SystemExit) as ended:  # typer makes an exit of an interrupt
        code = 130 if isinstance(ended, KeyboardInterrupt) else ended.code
        if code == 130:
            console.print("Stopped.")
        return code if isinstance(code, int) else 1
    return 0


def _fail(console: Console, error: Exception, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        console.print_exception()
    else:
        said = "\n".join(map(printable, str(error).split("\n")))
        console.print(Text.assemble(("Error: ", "bold red"), said), soft_wrap=True)
    return code


def main() -> None:
    """Entry point of the `fedbrainlm` command."""
    # Ended politely, a command stops what it started, as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:]))
