"""`fedbrainlm cohort`: simulate, import and show."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from cli.display import counter
from cli.errors import InputError
from cohorts import Cohort, atlas_names
from cohorts.matrices import MatrixOptions, import_matrices
from cohorts.quality import QualityRules
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from cohorts.vectors import import_vectors

app = typer.Typer(no_args_is_help=True, help="A site's recordings: make, import and show them.")

_ATLAS_HELP = f"Atlas of the columns: {', '.join(atlas_names())}, or a table file (.json, .csv, .tsv)."


def _finite(value: float) -> float:
    """Refuse nan and inf, which a range lets through."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number that can be used.")
    return value


class Orientation(StrEnum):
    """How matrices lie."""

    AUTO = "auto"
    FRAMES_FIRST = "frames-first"
    PARCELS_FIRST = "parcels-first"


class Scaling(StrEnum):
    """Whether matrices have kept their units."""

    RAW = "raw"
    ZSCORE = "zscore"


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="New folder; one cohort a hospital goes into it.")],
    sites: Annotated[int, typer.Option(min=1, max=200, help="Number of hospitals.")] = 4,
    participants: Annotated[int, typer.Option(min=2, help="Mean number of participants a hospital.")] = 40,
    minutes: Annotated[float, typer.Option(callback=_finite, min=1, help="Length of a recording.")] = 8.0,
    atlas: Annotated[str, typer.Option(help=_ATLAS_HELP)] = "schaefer100",
    seed: Annotated[int, typer.Option(help="The same seed gives the same recordings.")] = 0,
    site_effect: Annotated[
        float, typer.Option(callback=_finite, min=0, help="Size of the scanners' fingerprints; 0 for none.")
    ] = 1.0,
    age_effect: Annotated[
        float, typer.Option(callback=_finite, min=0, help="Size of the effect of age; 0 for none.")
    ] = 1.0,
    sex_effect: Annotated[
        float, typer.Option(callback=_finite, min=0, help="Size of the effect of sex; 0 for none.")
    ] = 1.0,
    vectors: Annotated[
        int, typer.Option(min=0, help="Dimensions of simulated gene vectors that bear on the signal; 0 for none.")
    ] = 0,
) -> None:
    """Simulate hospitals with known age, sex and site effects and different TRs."""
    effects = {"site_effect": site_effect, "age_effect": age_effect, "sex_effect": sex_effect}
    hospitals = simulated_hospitals(sites, participants, minutes, **effects)
    with counter("Simulating recordings") as progress:
        paths = simulate_cohorts(out, hospitals, atlas=atlas, seed=seed, vectors=vectors, progress=progress)
    for path, hospital in zip(paths, hospitals, strict=True):
        typer.echo(f"{path}: {hospital.n_participants} participants, TR {hospital.t_r:g} s, {hospital.n_frames} frames")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="An .npz with one matrix a recording, or a folder of matrices.")],
    out: Annotated[Path, typer.Argument(help="New folder of the cohort.")],
    atlas: Annotated[str, typer.Option(help=_ATLAS_HELP)],
    participants: Annotated[Path | None, typer.Option(help="Participants table (.tsv or .csv), after BIDS.")] = None,
    tr: Annotated[float | None, typer.Option(help="Repetition time in seconds, unless the table has t_r.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the cohort; the folder's name if not given.")] = None,
    select: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: only participants that have it.")] = None,
    columns: Annotated[str | None, typer.Option(help="FIRST-LAST column to take, counted from 1.")] = None,
    orientation: Annotated[Orientation, typer.Option(help="How the matrices lie.")] = Orientation.AUTO,
    min_frames: Annotated[int, typer.Option(min=2, help="Shortest run.")] = QualityRules().min_frames,
    min_coverage: Annotated[
        float, typer.Option(callback=_finite, min=0, max=1, help="Smallest fraction of parcels with signal.")
    ] = QualityRules().min_coverage,
    preprocessing: Annotated[
        str, typer.Option(help="Id of the preprocessing, kept with every result.")
    ] = "unspecified",
    scaling: Annotated[
        Scaling, typer.Option(help="zscore if the matrices were z-scored by parcel before; raw if they were not.")
    ] = Scaling.RAW,
) -> None:
    """Import ready matrices, frames by parcels; what is not usable is quarantined with its reason."""
    options = MatrixOptions(
        t_r=tr,
        select=tuple(_condition(condition) for condition in select or []),
        orientation=orientation.value,
        columns=_column_range(columns) if columns else None,
        rules=QualityRules(min_frames=min_frames, min_coverage=min_coverage),
        preprocessing=preprocessing,
        scaling=scaling.value,
    )
    with counter("Importing recordings") as progress:
        report = import_matrices(
            source, out, atlas=atlas, participants=participants, name=name, options=options, progress=progress
        )
    typer.echo(f"{report.path}: {report.n_recordings} recordings of {report.n_participants} participants.")
    if report.n_not_selected:
        typer.echo(f"{report.n_not_selected} recordings belong to participants that were not selected.")
    if participants is None:
        typer.echo("No participants table was given: age, sex and every other covariate are unknown.")
    _show_quarantine(Cohort.open(report.path))


@app.command()
def vectors(
    folder: Annotated[Path, typer.Argument(help="Folder of the cohort.")],
    source: Annotated[Path, typer.Argument(help="Table (.parquet, .csv, .tsv): participant_id and numeric columns.")],
    name: Annotated[str, typer.Option(help="What studies call these vectors.")] = "vectors",
) -> None:
    """Add a second table of vectors of the same participants, such as gene embeddings, to associate with the first."""
    added = import_vectors(Cohort.open(folder), source, name)
    n, dimensions = added.matrix.shape
    typer.echo(f"{folder}: vectors '{name}' of {n} participants, {dimensions} dimensions.")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of the cohort.")],
    recordings: Annotated[bool, typer.Option("--recordings", help="List every recording.")] = False,
) -> None:
    """Show what a cohort holds, and what was quarantined and why."""
    cohort = Cohort.open(folder)
    index, people = cohort.recordings, cohort.covariates()
    console = Console()
    table = Table(title=f"Cohort {cohort.name}", show_header=False, title_justify="left")
    table.add_row("participants", str(index["participant_id"].nunique()))
    table.add_row("recordings", f"{len(index)} ({len(cohort.quarantined)} quarantined)")
    table.add_row("atlas", f"{cohort.atlas.name}, {cohort.atlas.n_parcels} parcels")
    table.add_row("preprocessing", cohort.preprocessing)
    table.add_row("scaling", cohort.scaling)
    table.add_row("TR (s)", ", ".join(f"{t_r:g}" for t_r in sorted(index["t_r"].unique())))
    table.add_row("frames", _range(index["n_frames"]))
    table.add_row("missing parcels", f"{index['n_missing_parcels'].sum()} in {(index['n_missing_parcels'] > 0).sum()}")
    for column in ("age", "mean_fd", "tsnr"):
        if column in people and people[column].notna().any():
            missing = int(people[column].isna().sum())
            table.add_row(column, _range(people[column]) + (f" ({missing} unknown)" if missing else ""))
    if "sex" in people and people["sex"].notna().any():
        table.add_row("sex", ", ".join(f"{n} {sex}" for sex, n in people["sex"].value_counts().sort_index().items()))
    console.print(table)
    _show_quarantine(cohort)
    if recordings:
        typer.echo(index.to_string(index=False))


def _show_quarantine(cohort: Cohort) -> None:
    quarantined = cohort.quarantined
    if quarantined.empty:
        return
    typer.echo(f"{len(quarantined)} quarantined:")
    for message in quarantined["message"][:20]:
        typer.echo(f"  {message}")
    if len(quarantined) > 20:
        typer.echo(f"  … and {len(quarantined) - 20} more in {cohort.path / 'quarantine.jsonl'}")


def _range(values: pd.Series) -> str:
    least, most = values.min(), values.max()
    return f"{least:g}" if least == most else f"{least:g} to {most:g}, median {values.median():g}"


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not (column and equals and value):
        raise InputError(f"--select {text}: expected COLUMN=VALUE, such as site=PITT.")
    return column, value


def _column_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise InputError(f"--columns {text}: expected FIRST-LAST counted from 1, such as 1-400.")
    return int(first), int(last)
