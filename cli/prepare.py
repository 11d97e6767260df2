"""`fedbrainlm cohort prepare`: from a scanner's derivatives to a cohort."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from click.core import ParameterSource

from base.errors import InputError, SettingsError
from base.files import require_apart
from base.output import say
from base.settings import read_settings, read_yaml
from cli.display import counter, show_notices, show_quarantine, show_remarks
from cli.options import with_settings
from cohorts import Cohort
from cohorts.cohort import About
from cohorts.identities import KeyedNames, OwnNames
from cohorts.participants import ParticipantsTable
from cohorts.preparation import PreparationReport, prepare_cohort
from cohorts.quality import QualityRules
from cohorts.settings import KINDS, SourceSettings, check_preparation, with_paths
from cohorts.sources.formats import Kind, kind_of


@with_settings(KINDS.values())
def prepare(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(help="Folder of fMRIPrep, XCP-D, NIfTI images or matrices; or an .npz of matrices."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the cohort: new, or prepared from this source before.")],
    settings: Annotated[
        Path | None,
        typer.Option(
            help="Options by name in a YAML file, such as a cohort's site-only/prepare.yaml; given ones count."
        ),
    ] = None,
    kind: Annotated[Literal["auto", Kind], typer.Option(help="What the source is; found out if not given.")] = "auto",
    key: Annotated[
        Path | None, typer.Option(help="Key of the pseudonyms; pseudonyms.key beside OUT if not given. Keep it secret.")
    ] = None,
    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="Keep ids as they are, with no pseudonyms.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes, each of which holds one run; as many as processors.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write the quality report, site-only/quality.html.")] = True,
    **options: Any,
) -> None:
    """Prepare a cohort: parcellate, check, quarantine what is bad, call everybody by pseudonyms.

    Stopped or killed, the same command goes on where it was; of a source that grew, it adds what is new.
    """
    require_apart(source, out)
    given = {name: options[name] for name in options if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    how = _settings(source, settings, kind, given)
    people = how.read_participants(source)
    opened = how.open(source, people)
    names = OwnNames() if keep_ids else KeyedNames(_key(key, out))
    with counter("Preparing recordings") as progress:
        workers = os.cpu_count() or 1 if workers is None else workers
        done = prepare_cohort(opened, out, how, participants=people, names=names, workers=workers, progress=progress)
    cohort = Cohort.open(out)
    _say_what_was_done(done, source, str(how.kind))
    _say_of_people(people, cohort)
    show_remarks(cohort)
    show_notices(cohort)
    show_quarantine(cohort)
    if report:
        write_report(cohort, cohort.about.rules)


def write_report(cohort: Cohort, rules: QualityRules) -> None:
    """Write the quality report into a cohort's folder."""
    from cohorts.report import write_quality_report  # with matplotlib and nilearn, which take seconds

    say(f"Quality report: {write_quality_report(cohort, cohort.path / 'site-only' / 'quality.html', rules=rules)}")


def _settings(source: Path, file: Path | None, kind: str, given: dict[str, Any]) -> SourceSettings:
    """Read the file of settings, if there is one, and put the options that were given in its place."""
    content = with_paths(read_yaml(file), file.absolute().parent) if file else {}
    stated = "auto" if content.get("kind") is None else content["kind"]
    asked: Any = stated if kind == "auto" else kind
    if asked != "auto" and asked not in get_args(Kind):
        raise SettingsError(f"{file}: 'kind' is {asked!r}; expected one of {', '.join(get_args(Kind))}. Correct it.")
    found: Kind = kind_of(source) if asked == "auto" else asked
    where = "" if file is None else f"{file}, with the options given" if given else str(file)
    return check_preparation({**content, **given, "kind": found}, found, where)


def _say_what_was_done(done: PreparationReport, source: Path, kind: str) -> None:
    say(f"{done.path}: {done.n_recordings} recordings of {done.n_participants} participants, from {kind}.")
    if done.n_unchanged:
        say(f"Read now: {done.n_done}; there already: {done.n_unchanged}.")
    if done.n_not_selected:
        say(f"{done.n_not_selected} recordings belong to participants that were not selected.")
    if done.n_gone:
        say(
            f"{done.n_gone} recordings stay, though {source} has no such runs any more. To leave them out, prepare a "
            "new cohort, or take their participants out of the table."
        )


def default_key(cohort: Path) -> Path:
    """Where the key of a cohort's pseudonyms lies if no other place is named: beside the cohort, never in it."""
    return cohort.absolute().parent / "pseudonyms.key"


def _key(path: Path | None, out: Path) -> Path:
    """Where the key lies: as named, but never in the cohort, which would then tell whose its pseudonyms are."""
    if path is not None and Path(os.path.realpath(out)) in Path(os.path.realpath(path)).parents:
        raise InputError(f"--key {path}: lies in the cohort, and would go wherever that goes. Choose another place.")
    key = path or default_key(out)
    about = out / "cohort.yaml"  # alone: a cohort that lost recordings does not open, and is to be repaired
    if about.is_file() and read_settings(about, About).pseudonyms and not key.is_file():
        raise InputError(
            f"{key}: is not there, and the pseudonyms of {out} were made with a key. Put it back, or name it with "
            "--key; if it is lost, prepare a new cohort in another folder."
        )
    return key


def _say_of_people(people: ParticipantsTable | None, cohort: Cohort) -> None:
    """Say what of the participants table is in the cohort and what is not."""
    kept = [column for column in cohort.participants if column != "participant_id"]
    if people is None:
        missing = "age, sex and every other covariate are unknown" if not kept else "covariates stay as they were"
        say(f"No participants table was given: {missing}.")
        return
    say(f"Kept of the participants table: {', '.join(kept) or 'nothing but the participants'}.")
    if people.left_out:
        say(f"Left out, since they tell who somebody is: {', '.join(people.left_out)}.")
