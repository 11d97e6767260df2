"""`fedbrainlm cohort prepare`: from a scanner's derivatives to a cohort."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from base.errors import InputError
from base.files import require_apart
from base.output import say
from base.settings import read_settings
from cli.display import counter, show_notices, show_quarantine, show_remarks
from cli.options import ATLAS_HELP, Orientation, Scaling, column_range, condition, finite
from cohorts import Cohort, load_atlas
from cohorts.cells import TableRules
from cohorts.cohort import About
from cohorts.identities import KeyedNames, OwnNames
from cohorts.participants import ParticipantsTable, load_participants
from cohorts.persons import PersonPattern
from cohorts.preparation import prepare_cohort
from cohorts.quality import QualityRules
from cohorts.sources.derivatives import kind_of
from cohorts.sources.kinds import Source

_NIFTI, _TREES = ("fmriprep", "nifti"), ("fmriprep", "xcpd")
#: Options that have a meaning for some kinds of sources only.
_KINDS = {
    **dict.fromkeys(("atlas_image", "atlas_labels"), ("fmriprep", "nifti", "xcpd")),
    **dict.fromkeys(("atlas_space", "atlas_folder", "download", "allow_space"), _NIFTI),
    **dict.fromkeys(("detrend", "high_pass", "low_pass"), _NIFTI),
    **dict.fromkeys(("task", "session", "censoring"), _TREES),
    **dict.fromkeys(("space", "min_parcel_coverage"), ("fmriprep", "xcpd", "nifti")),
    **dict.fromkeys(("res", "confounds", "global_signal", "fd_threshold"), ("fmriprep",)),
    **dict.fromkeys(("confounds_suffix", "confound"), ("nifti",)),
    "preprocessing": ("nifti", "matrices"),
    **dict.fromkeys(("orientation", "columns", "variable", "scaling"), ("matrices",)),
    "tree_atlas": ("xcpd",),
}

_OF_THE_TABLE = ("missing_value", "top_coded", "ranges", "participant_column")
"""Options that have a meaning for a participants table only."""


class Kind(StrEnum):
    """What a source is."""

    AUTO = "auto"
    FMRIPREP = "fmriprep"
    XCPD = "xcpd"
    NIFTI = "nifti"
    MATRICES = "matrices"


class Strategy(StrEnum):
    """nilearn's confound strategies."""

    SIMPLE = "simple"
    SCRUBBING = "scrubbing"
    COMPCOR = "compcor"
    ICA_AROMA = "ica_aroma"
    NONE = "none"


class Censoring(StrEnum):
    """What becomes of frames of high motion."""

    AS_IS = "as-is"
    INTERPOLATE = "interpolate"
    DROP = "drop"
    NONE = "none"


class TopCoded(StrEnum):
    """What becomes of numbers of which a bound alone is known."""

    MISSING = "missing"
    BOUND = "bound"


class Ranges(StrEnum):
    """What becomes of numbers of which a range alone is known."""

    MISSING = "missing"
    MIDPOINT = "midpoint"


class Missing(StrEnum):
    """What becomes of participants without a required covariate."""

    QUARANTINE = "quarantine"
    REFUSE = "refuse"
    KEEP = "keep"


def prepare(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(help="Folder of fMRIPrep, XCP-D, NIfTI images or matrices; or an .npz of matrices."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the cohort: new, or prepared from this source before.")],
    atlas: Annotated[str, typer.Option(help=ATLAS_HELP)] = "",
    participants: Annotated[
        Path | None,
        typer.Option(help="Participants table (.tsv, .csv), after BIDS; SOURCE/participants.tsv if there."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the cohort; the folder's name if not given.")] = None,
    kind: Annotated[Kind, typer.Option(help="What the source is; found out if not given.")] = Kind.AUTO,
    select: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: only participants that have it.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="Covariate that everybody must have, such as age.")] = None,
    missing: Annotated[
        Missing, typer.Option(help="What becomes of participants without a required covariate.")
    ] = Missing.QUARANTINE,
    missing_value: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=VALUE, or VALUE in any column: it stands for a missing one, as fiq=-9999 may."),
    ] = None,
    top_coded: Annotated[
        TopCoded | None, typer.Option(help="Numbers such as 89+: missing, or their bound. By default missing.")
    ] = None,
    ranges: Annotated[
        Ranges | None, typer.Option(help="Numbers such as 35-40: missing, or their middle. By default missing.")
    ] = None,
    participant_pattern: Annotated[
        str | None,
        typer.Option(help=r"Names hold visits: a regular expression of person and visit, such as '(P\d+)_V(\d+)'."),
    ] = None,
    participant_column: Annotated[
        str | None, typer.Option(help="Ids are of visits: column of the participants table that names the person.")
    ] = None,
    quality: Annotated[
        Path | None,
        typer.Option(help="Thresholds (YAML); else as before, at first those of configs/quality.yaml."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Key of the pseudonyms; pseudonyms.key beside OUT if not given. Keep it secret.")
    ] = None,
    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="Keep ids as they are, with no pseudonyms.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes, each of which holds one run; as many as processors.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write the quality report, site-only/quality.html.")] = True,
    task: Annotated[list[str] | None, typer.Option(help="Trees: only runs of this task.")] = None,
    session: Annotated[list[str] | None, typer.Option(help="Trees: only runs of this session.")] = None,
    space: Annotated[str, typer.Option(help="Template space of the images to take.")] = "",
    res: Annotated[str, typer.Option(help="fMRIPrep: resolution of the images to take, as in res-2.")] = "",
    allow_space: Annotated[str, typer.Option(help="NIfTI: accept images in this space, too.")] = "",
    confounds: Annotated[Strategy, typer.Option(help="fMRIPrep: nilearn's confound strategy.")] = Strategy.SIMPLE,
    global_signal: Annotated[
        bool, typer.Option("--global-signal", help="fMRIPrep: regress the global signal.")
    ] = False,
    fd_threshold: Annotated[
        float | None, typer.Option(callback=finite, min=0, help="fMRIPrep, scrubbing: FD of moved frames, mm.")
    ] = None,
    censoring: Annotated[
        Censoring | None,
        typer.Option(help="Trees: moved frames. By default interpolate of fMRIPrep, as-is of XCP-D."),
    ] = None,
    detrend: Annotated[bool, typer.Option("--detrend", help="NIfTI: remove a line over time.")] = False,
    high_pass: Annotated[float | None, typer.Option(callback=finite, help="NIfTI: cutoff in Hz.")] = None,
    low_pass: Annotated[float | None, typer.Option(callback=finite, help="NIfTI: cutoff in Hz.")] = None,
    min_parcel_coverage: Annotated[
        float, typer.Option(callback=finite, min=0, max=1, help="Parcels of which less has signal are missing.")
    ] = 0.5,
    confounds_suffix: Annotated[
        str, typer.Option(help="Plain NIfTI: ending of the confounds' names.")
    ] = "_confounds.tsv",
    confound: Annotated[list[str] | None, typer.Option(help="Plain NIfTI: column to regress; else all.")] = None,
    tree_atlas: Annotated[str, typer.Option(help="XCP-D: the tree's name of the atlas, such as 4S456Parcels.")] = "",
    atlas_image: Annotated[Path | None, typer.Option(help="NIfTI, or for XCP-D: the atlas's label image.")] = None,
    atlas_labels: Annotated[Path | None, typer.Option(help="NIfTI: table of the label image's labels.")] = None,
    atlas_space: Annotated[str, typer.Option(help="NIfTI: template space of the label image.")] = "",
    atlas_folder: Annotated[Path | None, typer.Option(help="NIfTI: nilearn's data, for Schaefer atlases.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="NIfTI: let nilearn download a Schaefer atlas that is not there.")
    ] = False,
    tr: Annotated[
        float | None,
        typer.Option(callback=finite, help="TR in seconds, where no sidecar or table has it; headers do not count."),
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Matrices: FIRST-LAST column to take, from 1.")] = None,
    orientation: Annotated[Orientation, typer.Option(help="Matrices: how they lie.")] = Orientation.AUTO,
    variable: Annotated[str, typer.Option(help="Matrices: name of the variable in .mat and .npz files.")] = "",
    preprocessing: Annotated[
        str, typer.Option(help="NIfTI, matrices: id of what was done to them before.")
    ] = "unspecified",
    scaling: Annotated[
        Scaling, typer.Option(help="Matrices: zscore if they were z-scored by parcel before.")
    ] = Scaling.RAW,
) -> None:
    """Prepare a cohort: parcellate, check, quarantine what is bad, call everybody by pseudonyms.

    Stopped or killed, the same command goes on where it was; of a source that grew, it adds what is new.
    """
    options = {**ctx.params, "confounds": confounds, "censoring": censoring, "orientation": orientation}
    require_apart(source, out)
    found = kind_of(source) if kind is Kind.AUTO else kind.value
    _refuse_others(ctx, found)
    pattern = PersonPattern(participant_pattern) if participant_pattern else None
    people = _people(source, participants, options, pattern)
    rules = read_settings(quality, QualityRules) if quality else None
    opened = _open(found, source, _ids(people, pattern), options)
    names = OwnNames() if keep_ids else KeyedNames(_key(key, out))
    with counter("Preparing recordings") as progress:
        done = prepare_cohort(
            opened,
            out,
            participants=people,
            names=names,
            pattern=pattern,
            name=name,
            select=tuple(condition(text) for text in select or []),
            require=tuple(require or []),
            missing=missing.value,
            rules=rules,
            scaling=scaling.value,
            workers=os.cpu_count() or 1 if workers is None else workers,
            progress=progress,
        )
    say(f"{out}: {done.n_recordings} recordings of {done.n_participants} participants, from {found}.")
    if done.n_unchanged:
        say(f"Read now: {done.n_done}; there already: {done.n_unchanged}.")
    if done.n_not_selected:
        say(f"{done.n_not_selected} recordings belong to participants that were not selected.")
    if done.n_gone:
        say(
            f"{done.n_gone} recordings stay, though {source} has no such runs any more. To leave them out, prepare a "
            "new cohort, or take their participants out of the table."
        )
    cohort = Cohort.open(out)
    _say_of_people(people, cohort)
    show_remarks(cohort)
    show_notices(cohort)
    show_quarantine(cohort)
    if report:
        from cohorts.report import write_quality_report  # with matplotlib and nilearn, which take seconds

        page = write_quality_report(cohort, out / "site-only" / "quality.html", rules=cohort.about.rules)
        say(f"Quality report: {page}")


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


def _refuse_others(ctx: typer.Context, kind: str) -> None:
    """Refuse options that would be of no effect for this kind of source."""
    for option, kinds in _KINDS.items():
        given = ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE
        if given and kind not in kinds:
            flag = "--" + option.replace("_", "-")
            raise InputError(
                f"{flag}: has no meaning for a source of kind {kind}, only for {' and '.join(kinds)}. Leave it out."
            )


def _people(
    source: Path, path: Path | None, options: dict[str, Any], pattern: PersonPattern | None
) -> ParticipantsTable | None:
    """Read the participants table that is named, or lies in the source, where a link to nowhere is not passed over."""
    if pattern is not None and options["participant_column"]:
        raise InputError("--participant-pattern and --participant-column: both say whose an id is. Give one of them.")
    inside = source / "participants.tsv"
    if path is None and os.path.lexists(inside):
        path = inside
    if path is None:
        useless = next((name for name in _OF_THE_TABLE if options[name]), None)
        if useless is not None:
            raise InputError(f"--{useless.replace('_', '-')}: needs a participants table. Give --participants FILE.")
        return None
    rules = TableRules(
        missing=tuple(_missing_value(text) for text in options["missing_value"] or []),
        top_coded=options["top_coded"],
        ranges=options["ranges"],
    )
    return load_participants(path, rules, pattern=pattern, person_column=options["participant_column"] or "")


def _missing_value(text: str) -> tuple[str, str]:
    """Read COLUMN=VALUE, or VALUE, which is of every column."""
    column, equals, value = text.partition("=")
    return (column, value) if equals else ("", text)


def _ids(people: ParticipantsTable | None, pattern: PersonPattern | None) -> tuple[str, ...] | None:
    """Ids that names of recordings are matched with; None where they are not, or a pattern finds the person."""
    if people is None or pattern is not None:
        return None
    return tuple(people.scans or people.participants["participant_id"])


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


def _open(kind: str, path: Path, ids: tuple[str, ...] | None, options: dict[str, Any]) -> Source:
    """Open a source of a kind with the options that concern it."""
    if kind == "matrices":
        return _matrices(path, ids, options)
    if kind == "xcpd":
        return _xcpd(path, options)
    return _images(kind, path, ids, options)


def _matrices(path: Path, ids: tuple[str, ...] | None, options: dict[str, Any]) -> Source:
    from cohorts.sources.matrices import MatrixSource

    return MatrixSource(
        path,
        load_atlas(_required(options, "atlas")),
        preprocessing=options["preprocessing"],
        t_r=options["tr"],
        orientation=options["orientation"].value,
        columns=column_range(options["columns"]) if options["columns"] else None,
        variable=options["variable"],
        participants=ids,
    )


def _xcpd(path: Path, options: dict[str, Any]) -> Source:
    from cohorts.sources.xcpd import XCPDSource

    censoring = options["censoring"] or Censoring.AS_IS
    if censoring is Censoring.NONE:
        raise InputError("--censoring none: of XCP-D's series, say as-is, interpolate or drop.")
    if options["atlas_image"]:  # whose centroids are the places of an atlas of which no table is at hand
        from cohorts.sources.volumes import load_label_image

        labels = options["atlas_labels"]
        atlas = load_label_image(options["atlas"] or None, image=options["atlas_image"], labels=labels).atlas
    else:
        atlas = load_atlas(_required(options, "atlas"))
    return XCPDSource(
        path,
        atlas,
        atlas_name=options["tree_atlas"],
        space=options["space"],
        tasks=tuple(options["task"] or ()),
        sessions=tuple(options["session"] or ()),
        censoring=censoring.value,
        min_parcel_coverage=options["min_parcel_coverage"],
        t_r=options["tr"],
    )


def _images(kind: str, path: Path, ids: tuple[str, ...] | None, options: dict[str, Any]) -> Source:
    """Open images, with what nilearn needs for them and takes a second to import."""
    from cohorts.sources.confounds import ConfoundStrategy
    from cohorts.sources.fmriprep import FMRIPrepSource
    from cohorts.sources.nifti import NiftiSource
    from cohorts.sources.parcellation import Cleaning
    from cohorts.sources.volumes import load_label_image

    if not options["atlas_labels"]:
        _required(options, "atlas")
    label_image = load_label_image(
        options["atlas"] or None,
        image=options["atlas_image"],
        labels=options["atlas_labels"],
        space=options["atlas_space"] or None,
        folder=options["atlas_folder"],
        fetch=options["download"],
    )
    censoring = options["censoring"] or Censoring.INTERPOLATE
    if censoring is Censoring.AS_IS:
        raise InputError("--censoring as-is: of images, say interpolate, drop or none.")
    cleaning = Cleaning(
        detrend=options["detrend"],
        high_pass=options["high_pass"],
        low_pass=options["low_pass"],
        censoring=censoring.value,
        min_parcel_coverage=options["min_parcel_coverage"],
    )
    common = {
        "t_r": options["tr"],
        "label_image": label_image,
        "cleaning": cleaning,
        "space": options["space"],
        "allow_space": options["allow_space"],
    }
    if kind == "nifti":
        return NiftiSource(
            path,
            confounds_suffix=options["confounds_suffix"],
            confound_columns=tuple(options["confound"] or ()),
            participants=frozenset(ids or ()),
            pipeline=options["preprocessing"],
            **common,
        )
    strategy = ConfoundStrategy(
        options["confounds"].value,
        global_signal="basic" if options["global_signal"] else None,
        fd_threshold=options["fd_threshold"],
    )
    return FMRIPrepSource(
        path,
        strategy=strategy,
        res=options["res"],
        tasks=tuple(options["task"] or ()),
        sessions=tuple(options["session"] or ()),
        **common,
    )


def _required(options: dict[str, Any], name: str) -> str:
    if not options[name]:
        raise InputError(f"--{name} is missing. {ATLAS_HELP}")
    return str(options[name])
