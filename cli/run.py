"""`fedbrainlm demo`, `run` and `report`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml

from brainlm.windows import usable_recordings
from cli.display import console, counter
from cli.errors import InputError, RunFailedError
from cli.flower import PROJECT, Outcome, connections, flwr_run, simulation_superlink, stage_app
from cli.watching import print_summary, watching
from client.keys import agree
from client.policy import EVERYTHING, SHOWS_ONE_SITE
from client.site import SIMULATED_SITES, load_site
from cohorts import Cohort
from cohorts.files import write_text
from cohorts.seeding import derive_seed
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from server.journal import Journal
from server.report import write_report
from server.study import Study, load_study
from server.summary import write_summary

_RUNS = Annotated[Path, typer.Option("--runs", help="Folder that the run's own folder is made in.")]


def demo(runs: _RUNS = Path("runs")) -> None:
    """Four simulated hospitals, from recordings to a report, in a real Flower simulation: about three minutes."""
    study = load_study(PROJECT / "configs" / "studies" / "demo.yaml")
    folder = _new_run(runs, study)
    with counter("Simulating four hospitals") as progress:
        hospitals = simulated_hospitals(4, 40, minutes=8)
        atlas = study.cohort.atlases[0]
        paths = simulate_cohorts(folder / "cohorts", hospitals, atlas=atlas, seed=study.seed, progress=progress)
    _simulate(study, [Cohort.open(path) for path in paths], folder)


def run(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    simulate: Annotated[
        list[Path] | None, typer.Option(help="Folder of a cohort; once for each simulated site.")
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(help="Further cohorts, after --simulate.")] = None,
    federation: Annotated[
        str | None, typer.Option(help="Name of a SuperLink connection: run on a deployed federation.")
    ] = None,
    runs: _RUNS = Path("runs"),
) -> None:
    """Run a study over local cohorts, one simulated site each (--simulate DIR...), or deployed (--federation NAME)."""
    loaded = load_study(study)
    folders = [*(simulate or []), *(more or [])]
    if bool(folders) == bool(federation):
        raise InputError("Say where to run: either --simulate COHORT_DIR... or --federation NAME.")
    if federation:
        if federation not in connections():
            raise InputError(
                f"--federation {federation}: Flower's configuration has no such connection "
                f"(found: {', '.join(connections()) or 'none'}). Add [superlink.{federation}] to its config.toml."
            )
        folder = _new_run(runs, loaded)
        app = stage_app(folder / "flower" / "app")
        with _end_noted(folder), watching(Journal(folder)) as watch:
            outcome = flwr_run(app, federation, folder, None, watch=watch)
        _finish(loaded, folder, outcome)
        return
    cohorts = _open_all(loaded, folders)
    _simulate(loaded, cohorts, _new_run(runs, loaded))


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder: runs/<study>/<run-id>.")],
) -> None:
    """Make the report of a run anew."""
    if not (folder / "summary.json").is_file():
        status = Journal(folder).progress().status if (folder / "journal.sqlite").is_file() else ""
        what = f"its status is '{status}'" if status else "it holds no journal"
        raise InputError(f"{folder}: has no summary, {what}; expected the folder of a run that completed or failed.")
    typer.echo(f"Report: {write_report(folder)}")


def _simulate(study: Study, cohorts: list[Cohort], folder: Path) -> None:
    """Run a study with one simulated site a cohort, and write its report."""
    for cohort in cohorts:
        _write_site(study, cohort, folder / "sites" / cohort.name)
    agree("simulation", [load_site(folder / "sites" / cohort.name / "site.yaml").keys for cohort in cohorts])
    app, home = stage_app(folder / "flower" / "app"), folder / "flower"
    with (
        _end_noted(folder),
        watching(Journal(folder)) as watch,
        simulation_superlink(home, {SIMULATED_SITES: str((folder / "sites").resolve())}) as connection,
    ):
        outcome = flwr_run(app, connection, folder, home, simulated_sites=len(cohorts), watch=watch)
    _finish(study, folder, outcome)


@contextmanager
def _end_noted(folder: Path) -> Iterator[None]:
    """Note in the journal when the user stops the run, or Flower does not start it."""
    try:
        yield
    except KeyboardInterrupt:
        Journal(folder).note(status="stopped", reason="stopped by the user")
        raise
    except RunFailedError as error:
        Journal(folder).note(status="failed", reason=str(error))
        raise


def _finish(study: Study, folder: Path, outcome: Outcome) -> None:
    """Write the report, print the headlines, and raise if the run failed.

    Raises
    ------
    RunFailedError
        With the reason.
    """
    journal = Journal(folder)
    facts = journal.facts()
    # The journal knows of a completed study even where Flower could not be asked.
    if facts.get("status") != "completed" or outcome.status not in ("finished:completed", "unknown"):
        reason = facts.get("reason") or outcome.details or f"Flower ended the run as {outcome.status}"
        journal.note(status="failed", reason=reason)
        if not (folder / "summary.json").is_file():  # the ServerApp died before it could say anything
            write_summary(study, journal, {}, None)
        raise RunFailedError(f"{reason}\nLogs: {folder / 'flower.log'}" + _site_logs(folder))
    path = write_report(folder)
    print_summary(json.loads((folder / "summary.json").read_text()))
    typer.echo(f"Report: {path}")


def _site_logs(folder: Path) -> str:
    logs = sorted((folder / "sites").glob("*/state/site.log"))
    return f" and {folder / 'sites'}/*/state/site.log" if logs else ""


def _new_run(runs: Path, study: Study) -> Path:
    """Make the run's folder, named after the time, with the resolved study in it."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 100):
        folder = runs / study.study / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be made ({error.strerror}). Choose another place with --runs."
            ) from None
        write_text(folder / "study.yaml", study.to_yaml())
        Journal(folder).note(status="starting", stage="")
        console.print(f"Run: {folder}", highlight=False, markup=False)
        return folder
    raise InputError(f"{runs / study.study}: too many runs were started this second. Try again.")


def _open_all(study: Study, folders: list[Path]) -> list[Cohort]:
    """Open the cohorts of a simulation, and say what is wrong before Flower starts."""
    cohorts = [Cohort.open(folder) for folder in folders]
    names = [cohort.name for cohort in cohorts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"two cohorts are called '{repeated[0]}'. Import one of them again with another --name.")
    if len(cohorts) < study.averaging.quorum:
        secure = (
            " Secure sums need three: with fewer, set privacy.secure_sums: false." if study.privacy.secure_sums else ""
        )
        raise InputError(
            f"{len(cohorts)} cohorts were given; the study's quorum is {study.averaging.quorum}. "
            f"Give more, or lower averaging.quorum.{secure}"
        )
    window = study.model.window
    for cohort in cohorts:
        for mismatch in study.contract().mismatches(cohort):
            raise InputError(mismatch.message)
        if not usable_recordings(cohort, window):
            raise InputError(
                f"cohort {cohort.name}: no recording is {window.seconds:g} s long, the model's window. "
                "Shorten model.window, or leave the cohort out."
            )
    return sorted(cohorts, key=lambda cohort: cohort.name)


def _write_site(study: Study, cohort: Cohort, folder: Path) -> None:
    """Set up a simulated site: its data are at hand anyway, so its policy lets everything out."""
    settings = {
        "name": cohort.name,
        "cohort": str(cohort.path.resolve()),
        "state": "state",
        "policy": {
            "studies": [EVERYTHING],
            "analyses": [EVERYTHING, *sorted(SHOWS_ONE_SITE)],
            "vectors": [EVERYTHING],
            "min_participants": 2,
            "min_group": 1,
            "columns": [EVERYTHING],
            "max_covariate_ratio": 1.0,
            "secure_sum_required": False,
            "plain_grams": True,
            "min_change": 1,
            "max_attempts": study.privacy.max_attempts,
            "max_rounds": 10 * study.averaging.rounds,
            "share_metrics": True,
        },
    }
    write_text(folder / "site.yaml", yaml.safe_dump(settings, sort_keys=False))
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    # A real site draws its private seed; a simulated one derives it, so that the same study gives the same numbers.
    write_text(folder / "state" / "private_seed", str(derive_seed(study.seed, cohort.name, "private")))
