"""`fedbrainlm study`: the app with a study in it, which hospitals approve."""

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from cli.fab import build_fab, print_study
from cli.output import write_once
from server.study import load_study

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The app with a study in it, which hospitals approve by its hash."
)


@app.callback()
def _group() -> None:
    """Keep `build` a command of its own name while it is the only one."""


@app.command()
def build(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study's YAML file.")],
    out: Annotated[Path, typer.Option(help="New file for the app, which goes to every hospital.")],
) -> None:
    """Make the app of a study, as 'fedbrainlm run --federation' submits it."""
    loaded = load_study(study)
    content = build_fab(loaded)
    write_once(out, content)
    print_study(loaded)
    typer.echo(f"sha256: {hashlib.sha256(content).hexdigest()}")
