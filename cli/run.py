"""`fedbrainlm demo`, `run` and `report`."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import yaml

from base.errors import FedBrainLMError, InputError, RunFailedError
from base.files import atomic_folder, write_text
from base.output import say
from base.seeding import derive_seed
from cli.display import console, counter
from cli.ending import end_noted, how_to_go_on, note_stopping, settle
from cli.options import RUNS
from cli.watch import AS_JSON, find_run
from cli.watching import end_of, print_absences, print_event, print_summary, watching
from client.door.policy import EVERYTHING, every_analysis
from client.keys.keyring import agree
from client.process import private_files
from client.site import SIMULATED_SITES, load_site
from cohorts import Cohort
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from deployment.coordinator import registered_names
from runtime.control import Outcome
from runtime.fab import PROJECT, pack_fab, stage_app
from runtime.flower import Simulation, connections, flwr_run, simulation_superlink
from runtime.postmortem import Postmortem
from server.journal import WHERE, Journal
from server.keeping import hold_study, keep_study
from server.report import write_report
from study.at_hand import open_cohorts
from study.settings import Study, load_study


def demo(runs: RUNS = Path("runs")) -> None:
    """Four simulated hospitals, from recordings to a report, in a real Flower simulation: about three minutes."""
    study = load_study(PROJECT / "configs" / "studies" / "demo.yaml")
    with _new_run(runs, study, "simulation") as folder:
        _run_to_its_end(folder, as_json=False, set_up=lambda: _simulate_hospitals(study, folder))


def run_study(
    study: str | Path,
    cohorts: Iterable[str | Path],
    runs: str | Path = "runs",
    *,
    at_once: int | None = None,
    as_json: bool = False,
) -> Path:
    """Run a whole study on this machine, one simulated site for each cohort, as `fedbrainlm run --simulate` does.

    Parameters
    ----------
    study : str or Path
        The study's YAML file.
    cohorts : iterable of str or Path
        Folders of the cohorts.
    runs : str or Path
        Folder that holds the folders of runs.
    at_once : int, optional
        Sites that compute at the same time, else one a processor: fewer take less memory.
    as_json : bool
        Print a line of JSON for each event on standard output, in place of a table on standard error.

    Returns
    -------
    Path
        The run's folder, with ``summary.json``, ``report.html``, ``metrics.parquet`` and ``checkpoints/``.

    Raises
    ------
    FedBrainLMError
        Before anything starts: with a line for all that is wrong with the study or the cohorts.
    RunFailedError
        With the reason, and how to go on.
    """
    if isinstance(cohorts, str | Path):  # whose letters would be taken for folders
        raise InputError(f"cohorts is {str(cohorts)!r}; expected a list of folders. Put it into one.")
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once is {at_once}; expected 1 site or more. Correct it, or leave it out.")
    loaded = load_study(study)
    opened = open_cohorts(loaded, [Path(folder) for folder in cohorts])
    with _new_run(Path(runs), loaded, "simulation") as folder:
        _run_to_its_end(folder, as_json, at_once, set_up=lambda: _write_sites(loaded, opened, folder))
    return folder


def run(
    study: Annotated[Path | None, typer.Argument(help="The study's YAML file; not with --resume.")] = None,
    simulate: Annotated[
        list[Path] | None, typer.Option(help="Folder of a cohort; once for each simulated site.")
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(help="Further cohorts, after --simulate.")] = None,
    federation: Annotated[
        str | None, typer.Option(help="Name of a SuperLink connection: run on a deployed federation.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with a run that did not come to its end: its folder, or its id.")
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once",
            min=1,
            help="Sites of a simulation that compute at the same time, else one a processor: fewer take less memory.",
        ),
    ] = None,
    as_json: AS_JSON = False,
    runs: RUNS = Path("runs"),
) -> None:
    """Run a study over local cohorts, one simulated site each (--simulate DIR...), or deployed (--federation NAME)."""
    folders = [*(simulate or []), *(more or [])]
    if resume is not None:
        if study is not None or folders or federation:
            raise InputError(
                "--resume goes on with the study and the sites that the run began with. Name nothing else."
            )
        _resume(find_run(resume, runs), as_json, at_once)
        return
    if study is None:
        raise InputError("Name a study's YAML file, or a run to go on with: --resume RUN.")
    if bool(folders) == bool(federation):
        raise InputError("Say where to run: either --simulate COHORT_DIR... or --federation NAME.")
    if not federation:
        run_study(study, folders, runs, at_once=at_once, as_json=as_json)
        return
    loaded = load_study(study)
    _require_simulation(at_once, "federation")
    _check_connection(federation)
    with _new_run(runs, loaded, f"federation:{federation}") as folder:
        _run_to_its_end(folder, as_json)


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder: runs/<study>/<run-id>.")],
) -> None:
    """Make the report of a run anew."""
    if not (folder / "journal.sqlite").is_file():
        raise InputError(f"{folder}: has no summary, it holds no journal; expected the folder of a run that ended.")
    journal = Journal(folder)
    if (end := journal.end()) is None:
        raise InputError(f"{folder}: the run is still going on. See 'fedbrainlm watch {folder}'.")
    if end.status != "completed":  # whoever was killed could not write it
        settle(load_study(folder / "study.yaml"), journal, end.status, end.reason)
    say(f"Report: {write_report(folder)}")


def _resume(folder: Path, as_json: bool, at_once: int | None) -> None:
    """Go on with a run where it was, unless it is completed, still going on, or of an earlier version."""
    journal = Journal(folder)
    facts = journal.facts()
    if facts.get("status") == "completed":
        raise InputError(f"{folder}: the run is completed. Its report: fedbrainlm report {folder}")
    if WHERE not in facts:
        raise InputError(f"{folder}: the run was begun by an earlier version. Begin it again with its study.yaml.")
    if journal.is_worked_on:
        raise InputError(f"{folder}: the run is still going on. See 'fedbrainlm watch {folder}'.")
    _require_simulation(at_once, facts[WHERE])
    hold_study(journal)
    _require_cohorts(folder)
    with journal.at_work("command"):
        journal.note(status="starting", stage="", reason="", stopped="")
        journal.say("resumed")
        for name in ("summary.json", "report.html"):  # of the end that it has no more
            (folder / name).unlink(missing_ok=True)
        say(f"Run: {folder}", err=True)
        _run_to_its_end(folder, as_json, at_once)


def _require_cohorts(folder: Path) -> None:
    """Refuse to go on with a simulation whose recordings are not where they were: nobody would bring them back."""
    left_out = {site for site, _, _ in Journal(folder).left_out()}
    for path in sorted(folder.glob("sites/*/site.yaml")):
        if path.parent.name in left_out:
            continue
        try:
            _ = load_site(path).cohort
        except FedBrainLMError as error:
            raise InputError(
                f"{folder}: the recordings of site {path.parent.name} cannot be read. {error} Put them back where they "
                f"were, or correct cohort in {path}; then resume again."
            ) from None


def _simulate_hospitals(study: Study, folder: Path) -> None:
    """Simulate the demo's hospitals, and set up their sites."""
    with counter("Simulating four hospitals") as progress:
        hospitals = simulated_hospitals(4, 40, minutes=8)
        atlas = study.cohort.atlases[0]
        paths = simulate_cohorts(folder / "cohorts", hospitals, atlas=atlas, seed=study.seed, progress=progress)
    _write_sites(study, [Cohort.open(path) for path in paths], folder)


def _write_sites(study: Study, cohorts: list[Cohort], folder: Path) -> None:
    """Set up one simulated site a cohort, all at once: a run is resumed with all of its sites or begun again."""
    with private_files(), atomic_folder(folder / "sites") as sites:
        for cohort in cohorts:
            _write_site(study, cohort, sites / cohort.name)
        agree("simulation", [load_site(sites / cohort.name / "site.yaml").keys for cohort in cohorts])


def _run_to_its_end(
    folder: Path, as_json: bool, at_once: int | None = None, set_up: Callable[[], None] = lambda: None
) -> None:
    """Run the study that lies in a run's folder, on the federation that its journal names, and write its report."""
    study, journal = load_study(folder / "study.yaml"), Journal(folder)
    where, _, federation = journal.facts()[WHERE].partition(":")
    with _end_shown(journal, as_json):
        with end_noted(study, folder), watching(journal, as_json=as_json) as watch:
            set_up()
            if where == "simulation":
                outcome = _simulate(study, folder, watch, at_once)
            else:
                _check_connection(federation)
                app = stage_app(folder / "flower" / "app", study)
                console.print(f"App: {hashlib.sha256(pack_fab(app)).hexdigest()}", highlight=False, soft_wrap=True)
                journal.note(nodes=json.dumps(registered_names(federation)))
                outcome = flwr_run(app, federation, folder, None, watch=watch, stopping=lambda: _stopping(journal))
        _finish(study, folder, outcome, quiet=as_json)


def _simulate(study: Study, folder: Path, watch: Callable[[], None], at_once: int | None) -> Outcome:
    """Run with one simulated site for each that was set up, as many at once as there are processors, or as said."""
    sites = folder / "sites"
    if not sites.is_dir():
        raise RunFailedError(f"{folder}: the run was killed before its sites were set up. Begin it again.")
    app, home = stage_app(folder / "flower" / "app", study), folder / "flower"
    n_sites = len(list(sites.glob("*/site.yaml")))
    at_once = min(n_sites, at_once or os.cpu_count() or 1)
    logs = [site / "state" / "site.log" for site in sites.iterdir()]
    postmortem = Postmortem(folder / "flower.log", home / "superlink.log", *logs)
    try:
        with simulation_superlink(home, {SIMULATED_SITES: str(sites.resolve())}) as (connection, alive):
            simulation = Simulation(n_sites, at_once, alive)
            stopping = partial(_stopping, Journal(folder))
            outcome = flwr_run(app, connection, folder, home, simulation=simulation, watch=watch, stopping=stopping)
    except RunFailedError as error:
        raise RunFailedError(" ".join(filter(None, (postmortem.cause(_less_memory(at_once)), str(error))))) from None
    return replace(outcome, cause=postmortem.cause(_less_memory(at_once)))


def _less_memory(at_once: int) -> str:
    if at_once == 1:
        return "Close other programs, or let a batch be smaller (training.batch_size)."
    return f"Close other programs, or let fewer than {at_once} sites compute at once: --at-once {at_once // 2}."


def _require_simulation(at_once: int | None, where: str) -> None:
    if at_once is not None and where != "simulation":
        raise InputError("--at-once is of simulations: sites of a federation compute on machines of their own.")


def _check_connection(federation: str) -> None:
    if federation not in connections():
        raise InputError(
            f"--federation {federation}: Flower's configuration has no such connection "
            f"(found: {', '.join(connections()) or 'none'}). Add [superlink.{federation}] to its config.toml."
        )


@contextmanager
def _end_shown(journal: Journal, as_json: bool) -> Iterator[None]:
    """Tell a script how the run ended, however it did."""
    try:
        yield
    finally:
        if as_json:
            print_event(end_of(journal.progress(), journal))


def _stopping(journal: Journal) -> None:
    note_stopping(journal)
    console.print("Stopping the run …", highlight=False)


def _finish(study: Study, folder: Path, outcome: Outcome, *, quiet: bool) -> None:
    """Write the report, print the headlines, and raise with the reason if the run failed."""
    journal = Journal(folder)
    facts = journal.facts()
    # A completed study is one even where Flower could not be asked, or was not told.
    if facts.get("status") != "completed":
        stopped = outcome.status.endswith("stopped")
        reason = facts.get("reason") or outcome.details or f"Flower ended the run as {outcome.status}"
        if outcome.cause and not stopped:
            reason = f"{outcome.cause} ({reason})"
        settle(study, journal, "stopped" if stopped else "failed", reason)
        raise RunFailedError(f"{reason}\n{how_to_go_on(journal)}\nLogs: {folder / 'flower.log'}{_site_logs(folder)}")
    path = write_report(folder)
    if not quiet:
        print_summary(json.loads((folder / "summary.json").read_text()))
        say(f"Report: {path}")
        print_absences(journal)


def _site_logs(folder: Path) -> str:
    logs = sorted((folder / "sites").glob("*/state/site.log"))
    return f" and {folder / 'sites'}/*/state/site.log" if logs else ""


@contextmanager
def _new_run(runs: Path, study: Study, where: str) -> Iterator[Path]:
    """Make the run's folder, named after the time, with the resolved study in it, and hold it."""
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
        try:
            keep_study(study, folder)
            journal = Journal(folder)
            journal.note(status="starting", stage="", **{WHERE: where})
        except BaseException:  # interrupted, or the disk is full: there is no run yet
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with journal.at_work("command"):
            say(f"Run: {folder}", err=True)
            yield folder
        return
    raise InputError(f"{runs / study.study}: too many runs were started this second. Try again.")


def _write_site(study: Study, cohort: Cohort, folder: Path) -> None:
    """Set up a simulated site: its data are at hand anyway, so its policy lets everything out."""
    settings = {
        "name": cohort.name,
        "cohort": str(cohort.path.resolve()),
        "state": "state",
        "policy": {
            "studies": [EVERYTHING],
            "analyses": every_analysis(),
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
            "share_reasons": True,
        },
    }
    write_text(folder / "site.yaml", yaml.safe_dump(settings, sort_keys=False))
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    # A real site draws its private seed; a simulated one derives it, so that the same study gives the same numbers.
    write_text(folder / "state" / "private_seed", str(derive_seed(study.seed, cohort.name, "private")))
