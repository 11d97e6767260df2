"""`fedbrainlm study`: a first one from the cohorts at hand, and the app with a study in it, which hospitals approve."""

import hashlib
import re
from pathlib import Path
from typing import Annotated

import typer

from base.errors import InputError, SettingsError
from base.files import atomic_path
from base.output import say
from cli.writing import write_once
from cohorts import Cohort
from runtime.fab import build_fab, print_study
from study.at_hand import open_cohorts
from study.first import first_study
from study.settings import load_study

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command()
def init(
    cohorts: Annotated[list[Path], typer.Argument(metavar="COHORT...", help="Folders of the cohorts at hand.")],
    out: Annotated[Path, typer.Option(help="New file for the study.")],
    name: Annotated[str | None, typer.Option(help="Name of the study; that of the file if not given.")] = None,
) -> None:
    """Write a commented study that the cohorts at hand meet: their atlases, TRs, lengths and columns."""
    if out.exists():
        raise InputError(f"{out}: exists already. Name a new file.")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out.parent}: no such folder. Make it, or choose another.")
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", out.stem).strip("-_") or "study"
    text = first_study([Cohort.open(folder) for folder in cohorts], name, out.absolute().parent)
    with atomic_path(out) as draft:
        draft.write_text(text, encoding="utf-8")
        try:
            open_cohorts(load_study(draft), cohorts)
        except SettingsError as error:
            raise InputError(str(error).replace(str(draft), str(out))) from None
    say(text)
    say(f"{out}: run it with  fedbrainlm run {out} --simulate {' '.join(map(str, cohorts))}")


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
    say(f"sha256: {hashlib.sha256(content).hexdigest()}")
