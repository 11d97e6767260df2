"""`fedbrainlm cohort`: prepare, simulate, show, check and export."""

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import typer
from rich.table import Table

from base.errors import InputError
from base.files import locked
from base.output import PlainConsole, say
from base.settings import read_settings
from base.wording import docstrings_of
from cli.display import counter, show_notices, show_quarantine, show_remarks
from cli.options import finite
from cli.prepare import default_key, prepare, write_report
from cohorts import Cohort
from cohorts.checking import check_cohort
from cohorts.exports import PseudonymousCohort, export_bids, export_huggingface
from cohorts.identities import KeyedNames
from cohorts.quality import QualityRules
from cohorts.settings import Preparation
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from cohorts.vectors import import_vectors

app = typer.Typer(no_args_is_help=True, add_completion=False)

app.command()(prepare)


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="New folder; one cohort a hospital goes into it.")],
    sites: Annotated[int, typer.Option(min=1, max=200, help="Number of hospitals.")] = 4,
    participants: Annotated[int, typer.Option(min=2, help="Mean number of participants a hospital.")] = 40,
    minutes: Annotated[float, typer.Option(callback=finite, min=1, help="Length of a recording.")] = 8.0,
    atlas: Annotated[str, typer.Option(help=docstrings_of(Preparation)["atlas"])] = "schaefer100",
    seed: Annotated[int, typer.Option(help="The same seed gives the same recordings.")] = 0,
    site_effect: Annotated[
        float, typer.Option(callback=finite, min=0, help="Size of the scanners' fingerprints; 0 for none.")
    ] = 1.0,
    age_effect: Annotated[
        float, typer.Option(callback=finite, min=0, help="Size of the effect of age; 0 for none.")
    ] = 1.0,
    sex_effect: Annotated[
        float, typer.Option(callback=finite, min=0, help="Size of the effect of sex; 0 for none.")
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
        say(f"{path}: {hospital.n_participants} participants, TR {hospital.t_r:g} s, {hospital.n_frames} frames")


@app.command()
def vectors(
    folder: Annotated[Path, typer.Argument(help="Folder of the cohort.")],
    source: Annotated[Path, typer.Argument(help="Table (.parquet, .csv, .tsv): participant_id and numeric columns.")],
    name: Annotated[str, typer.Option(help="What studies call these vectors.")] = "vectors",
) -> None:
    """Add a second table of vectors of the same participants, such as gene embeddings, to associate with the first."""
    cohort = Cohort.open(folder)
    added = import_vectors(cohort, source, name)
    n, dimensions = added.matrix.shape
    say(f"{folder}: vectors '{name}' of {n} participants, {dimensions} dimensions.")
    people = set(cohort.recordings["participant_id"])
    if without := people - set(added.participants):
        say(f"{len(without)} of {len(people)} participants have none: analyses of vectors leave them out.")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of the cohort.")],
    recordings: Annotated[bool, typer.Option("--recordings", help="List every recording.")] = False,
) -> None:
    """Show what a cohort holds, and what was quarantined and why."""
    cohort = Cohort.open(folder)
    index, people = cohort.recordings, cohort.covariates()
    console = PlainConsole()
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
    show_remarks(cohort)
    show_notices(cohort)
    show_quarantine(cohort)
    if recordings:
        say(index.to_string(index=False))


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of the cohort.")],
    quality: Annotated[
        Path | None,
        typer.Option(help="Thresholds (YAML): quarantine what falls short, take back what no longer does."),
    ] = None,
    study: Annotated[Path | None, typer.Option(help="A study's YAML file: does the cohort meet its contract?")] = None,
    report: Annotated[bool, typer.Option(help="Write the quality report, site-only/quality.html.")] = True,
) -> None:
    """Read every recording again, judge its quality, and write the quality report, which stays at the site."""
    cohort = Cohort.open(folder)
    with counter("Checking recordings") as progress:
        damaged = check_cohort(cohort, progress)
    if damaged:
        more = f"\n{len(damaged) - 1} more are damaged." if len(damaged) > 1 else ""
        raise InputError(f"{damaged[0]}{more}")
    say(f"{folder}: {len(cohort)} recordings are whole and as indexed.")
    if quality:
        rules = read_settings(quality, QualityRules)
        with locked(folder):
            cohort = Cohort.open(folder)  # as it is now
            quarantined, taken_back = cohort.judge(rules)
        say(f"By {quality}: {len(quarantined)} quarantined, {len(taken_back)} taken back.")
    show_remarks(cohort)
    show_quarantine(cohort)
    if report:
        # Simulated recordings were judged by their structure alone: what is published is still worth a look.
        rules = cohort.about.rules if cohort.about.rules != QualityRules() else QualityRules.published()
        write_report(cohort, rules)
    if study:
        _show_contract(cohort, study)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of the cohort.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    format_: Annotated[
        Literal["bids", "huggingface"],
        typer.Option("--format", help="TSVs after BIDS-derivatives, or Parquet for Hugging Face datasets."),
    ] = "bids",
    key: Annotated[
        Path | None, typer.Option(help="Key of the pseudonyms, for a cohort that has none; else as for prepare.")
    ] = None,
    keep_ids: Annotated[
        bool, typer.Option("--keep-ids", help="Export the site's own ids, of a cohort that has no pseudonyms.")
    ] = False,
) -> None:
    """Export a cohort for other tools, under pseudonyms."""
    cohort = Cohort.open(folder)
    if not cohort.about.pseudonyms and not keep_ids:
        cohort = PseudonymousCohort(cohort, KeyedNames(key or default_key(folder)))
    write = export_bids if format_ == "bids" else export_huggingface
    say(f"Exported: {write(cohort, out)}")


def _show_contract(cohort: Cohort, path: Path) -> None:
    """Say whether a cohort meets a study's contract, and refuse it if not."""
    from study.fitting import left_out, misfits  # with torch, which takes seconds
    from study.settings import load_study

    study = load_study(path)
    if found := misfits(study, cohort):
        raise InputError("\n".join(found))
    say(f"{path}: the cohort meets its contract.")
    for said in left_out(study, cohort):
        say(said)


def _range(values: pd.Series) -> str:
    least, most = values.min(), values.max()
    return f"{least:g}" if least == most else f"{least:g} to {most:g}, median {values.median():g}"
