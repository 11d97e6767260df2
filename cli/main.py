"""The commands, and how their errors are shown."""

import signal
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cli import cohort, federation, model, run, site
from cli.errors import INPUT_ERRORS, InternalError, RunFailedError
from cli.evaluate import evaluate

app = typer.Typer(
    name="fedbrainlm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a brain foundation model together, without one recording leaving a hospital.",
)
app.add_typer(cohort.app, name="cohort")
app.add_typer(model.app, name="model")
app.add_typer(site.app, name="site")
app.add_typer(federation.app, name="federation")
app.command()(run.demo)
app.command()(run.run)
app.command()(run.report)
app.command()(evaluate)


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
    except INPUT_ERRORS as error:
        return _fail(console, error, 2, arguments)
    except RunFailedError as error:
        return _fail(console, error, 1, arguments)
    except Exception as error:  # a fault of ours: said in a line, too
        return _fail(console, InternalError(error), 1, arguments)
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
        console.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
    return code


def main() -> None:
    """Entry point of the `fedbrainlm` command."""
    # Ended politely, a command stops what it started, as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:]))
