"""How a cohort is prepared: a model for each kind of source.

Its fields are the options of ``fedbrainlm cohort prepare``, the lines of a file of settings, and arguments in Python;
what is said of a field here is the option's help.
"""

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field

from base.errors import InputError, SettingsError
from base.settings import Settings, check_settings
from base.wording import docstrings_of
from cohorts.atlas import TABLE_SUFFIXES, load_atlas
from cohorts.cells import Ranges, TableRules, TopCoded
from cohorts.cohort import Scale
from cohorts.errors import CohortError
from cohorts.participants import MissingRule, ParticipantsTable, load_participants
from cohorts.persons import PersonPattern
from cohorts.sources.formats import Kind
from cohorts.sources.kinds import Source, check_given_t_r

_OF_THE_TABLE = ("missing_value", "top_coded", "ranges", "participant_column")
"""Fields that have a meaning for a participants table only."""


class Preparation(Settings):
    """How recordings of any source become a cohort."""

    kind: Kind | None = None
    """What the source is; found out if not given."""
    atlas: str = ""
    """Atlas of the columns: a424, aal116, schaefer100, schaefer200, schaefer400, or a table file (.json, .csv,
    .tsv)."""
    participants: Path | None = None
    """Participants table (.tsv, .csv), after BIDS; SOURCE/participants.tsv if there."""
    name: str | None = None
    """Name of the cohort; the folder's name if not given."""
    select: tuple[str, ...] = ()
    """COLUMN=VALUE: only participants that have it."""
    require: tuple[str, ...] = ()
    """Covariate that everybody must have, such as age."""
    missing: MissingRule = "quarantine"
    """What becomes of participants without a required covariate."""
    missing_value: tuple[str, ...] = ()
    """COLUMN=VALUE, or VALUE in any column: it stands for a missing one, as fiq=-9999 may."""
    top_coded: TopCoded | None = None
    """Numbers such as 89+: missing, or their bound. By default missing."""
    ranges: Ranges | None = None
    """Numbers such as 35-40: missing, or their middle. By default missing."""
    participant_pattern: str = ""
    r"""Names hold visits: a regular expression of person and visit, such as '(P\d+)_V(\d+)'."""
    participant_column: str = ""
    """Ids are of visits: column of the participants table that names the person."""
    quality: Path | None = None
    """Thresholds (YAML); else as before, at first those of configs/quality.yaml."""
    tr: float | None = None
    """TR in seconds, where no sidecar or table has it; headers do not count."""

    def conflicts(self) -> Iterator[str]:
        for text in self.select:
            if not all(text.partition("=")):
                yield f"--select {text}: expected COLUMN=VALUE, such as site=PITT. Correct it."
        if self.participant_pattern:
            yield from _faults_of(PersonPattern, self.participant_pattern)
            if self.participant_column:
                yield "--participant-pattern and --participant-column: both say whose an id is. Give one of them."
        yield from _faults_of(check_given_t_r, self.tr)

    @property
    def pattern(self) -> PersonPattern | None:
        """Finds participants, and perhaps sessions, in the names of runs."""
        return PersonPattern(self.participant_pattern) if self.participant_pattern else None

    @property
    def conditions(self) -> list[tuple[str, str]]:
        """Columns and values that participants must have."""
        return [(column, value) for column, _, value in (text.partition("=") for text in self.select)]

    def read_participants(self, source: Path) -> ParticipantsTable | None:
        """Read the table that is named, or lies in the source, where a link to nowhere is not passed over."""
        inside = source / "participants.tsv"
        path = self.participants or (inside if os.path.lexists(inside) else None)
        if path is None:
            useless = next((name for name in _OF_THE_TABLE if getattr(self, name)), None)
            if useless is not None:
                raise InputError(f"{_flag(useless)}: needs a participants table. Give --participants FILE.")
            return None
        values = (text.rpartition("=") if "=" not in text else text.partition("=") for text in self.missing_value)
        missing = tuple((column, value) for column, _, value in values)
        rules = TableRules(missing=missing, top_coded=self.top_coded, ranges=self.ranges)
        return load_participants(path, rules, pattern=self.pattern, person_column=self.participant_column)

    def ids(self, people: ParticipantsTable | None) -> tuple[str, ...] | None:
        """Ids that names of recordings are matched with; None where they are not, or a pattern finds the person."""
        if people is None or self.participant_pattern:
            return None
        return tuple(people.scans or people.participants["participant_id"])


class SourceSettings(Preparation):
    """How recordings of one kind of source become a cohort."""

    parcels: ClassVar[str] = ""
    """Field that says what the columns are where `atlas` does not."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not (self.atlas or getattr(self, self.parcels, None)):
            yield f"--atlas is missing. {docstrings_of(Preparation)['atlas']}"

    @abstractmethod
    def open(self, path: Path, people: ParticipantsTable | None = None) -> Source:
        """Open a source of this kind."""

    def to_yaml(self) -> str:
        """Return what differs from the defaults as a file of settings, with whole paths."""
        kind = next(kind for kind, model in KINDS.items() if isinstance(self, model))
        given = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(with_paths({"kind": kind, **given}, Path.cwd()), sort_keys=False)


class _InImages(SourceSettings):
    """Parcels of a label image."""

    space: str = ""
    """Template space of the images to take."""
    min_parcel_coverage: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Parcels of which less has signal are missing."""
    atlas_image: Path | None = None
    """NIfTI, or for XCP-D: the atlas's label image."""
    atlas_labels: Path | None = None
    """NIfTI: table of the label image's labels."""


class _OfTrees(SourceSettings):
    """Part of a tree of derivatives."""

    task: tuple[str, ...] = ()
    """Trees: only runs of this task."""
    session: tuple[str, ...] = ()
    """Trees: only runs of this session."""


class _Described(SourceSettings):
    """Files that do not say how they came to be."""

    preprocessing: str = "unspecified"
    """NIfTI, matrices: id of what was done to them before."""


class _Images(_InImages):
    """Images that are parcellated here."""

    parcels = "atlas_labels"
    atlas_space: str = ""
    """NIfTI: template space of the label image."""
    atlas_folder: Path | None = None
    """NIfTI: nilearn's data, for Schaefer atlases."""
    download: bool = False
    """NIfTI: let nilearn download a Schaefer atlas that is not there."""
    allow_space: str = ""
    """NIfTI: accept images in this space, too."""
    detrend: bool = False
    """NIfTI: remove a line over time."""
    high_pass: float | None = None
    """NIfTI: cutoff in Hz."""
    low_pass: float | None = None
    """NIfTI: cutoff in Hz."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        yield from _faults_of(self._cleaning)

    def _cleaning(self) -> Any:
        from cohorts.sources.parcellation import Cleaning  # with nilearn, which takes a second

        return Cleaning(**self.model_dump(include={option.name for option in fields(Cleaning)}))

    def _common(self) -> dict[str, Any]:
        """Arguments of a source of images."""
        from cohorts.sources.volumes import load_label_image

        label_image = load_label_image(
            self.atlas or None,
            image=self.atlas_image,
            labels=self.atlas_labels,
            space=self.atlas_space or None,
            folder=self.atlas_folder,
            fetch=self.download,
        )
        common = {"label_image": label_image, "space": self.space, "allow_space": self.allow_space, "t_r": self.tr}
        return common | {"cleaning": self._cleaning()}


class FMRIPrepSettings(_OfTrees, _Images):
    """An fMRIPrep tree."""

    res: str = ""
    """fMRIPrep: resolution of the images to take, as in res-2."""
    confounds: Literal["simple", "scrubbing", "compcor", "ica_aroma", "none"] = "simple"
    """fMRIPrep: nilearn's confound strategy."""
    global_signal: bool = False
    """fMRIPrep: regress the global signal."""
    fd_threshold: Annotated[float | None, Field(ge=0)] = None
    """fMRIPrep, scrubbing: FD of moved frames, mm."""
    censoring: Literal["interpolate", "drop", "none"] = "interpolate"
    """Trees: moved frames. By default interpolate of fMRIPrep, as-is of XCP-D."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        yield from _faults_of(self._strategy)

    def _strategy(self) -> Any:
        from cohorts.sources.confounds import ConfoundStrategy

        signal = "basic" if self.global_signal else None
        return ConfoundStrategy(self.confounds, global_signal=signal, fd_threshold=self.fd_threshold)

    def open(self, path: Path, people: ParticipantsTable | None = None) -> Source:
        from cohorts.sources.fmriprep import FMRIPrepSource

        return FMRIPrepSource(
            path, strategy=self._strategy(), res=self.res, tasks=self.task, sessions=self.session, **self._common()
        )


class XCPDSettings(_OfTrees, _InImages):
    """A tree of XCP-D."""

    parcels = "atlas_image"
    tree_atlas: str = ""
    """XCP-D: the tree's name of the atlas, such as 4S456Parcels."""
    censoring: Literal["as-is", "interpolate", "drop"] = "as-is"
    """XCP-D: moved frames, as it left them, filled or dropped."""

    def open(self, path: Path, people: ParticipantsTable | None = None) -> Source:
        from cohorts.sources.xcpd import XCPDSource

        if self.atlas_image:  # whose centroids are the places of an atlas of which no table is at hand
            from cohorts.sources.volumes import load_label_image

            atlas = load_label_image(self.atlas or None, image=self.atlas_image, labels=self.atlas_labels).atlas
        else:
            atlas = load_atlas(self.atlas)
        return XCPDSource(
            path,
            atlas,
            atlas_name=self.tree_atlas,
            space=self.space,
            tasks=self.task,
            sessions=self.session,
            censoring=self.censoring,
            min_parcel_coverage=self.min_parcel_coverage,
            t_r=self.tr,
        )


class NiftiSettings(_Described, _Images):
    """Plain 4D images."""

    confounds_suffix: str = "_confounds.tsv"
    """Plain NIfTI: ending of the confounds' names."""
    confound: tuple[str, ...] = ()
    """Plain NIfTI: column to regress; else all."""

    def open(self, path: Path, people: ParticipantsTable | None = None) -> Source:
        from cohorts.sources.nifti import NiftiSource

        return NiftiSource(
            path,
            confounds_suffix=self.confounds_suffix,
            confound_columns=self.confound,
            participants=frozenset(self.ids(people) or ()),
            pipeline=self.preprocessing,
            **self._common(),
        )


class MatrixSettings(_Described):
    """Ready matrices."""

    columns: str = ""
    """Matrices: FIRST-LAST column to take, from 1."""
    orientation: Literal["auto", "frames-first", "parcels-first"] = "auto"
    """Matrices: how they lie."""
    variable: str = ""
    """Matrices: name of the variable in .mat and .npz files."""
    scaling: Scale = "raw"
    """Matrices: zscore if they were z-scored by parcel before."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        ends = re.fullmatch("([0-9]+)-([0-9]+)", self.columns)
        if self.columns and not (ends and 1 <= int(ends[1]) <= int(ends[2])):
            yield f"--columns {self.columns}: expected FIRST-LAST counted from 1, such as 1-400. Correct it."

    def open(self, path: Path, people: ParticipantsTable | None = None) -> Source:
        from cohorts.sources.matrices import MatrixSource

        first, _, last = self.columns.partition("-")
        return MatrixSource(
            path,
            load_atlas(self.atlas),
            preprocessing=self.preprocessing,
            t_r=self.tr,
            orientation=self.orientation,
            columns=(int(first), int(last)) if self.columns else None,
            variable=self.variable,
            participants=self.ids(people),
            scaling=self.scaling,
        )


KINDS: dict[Kind, type[SourceSettings]] = {
    "fmriprep": FMRIPrepSettings,
    "nifti": NiftiSettings,
    "xcpd": XCPDSettings,
    "matrices": MatrixSettings,
}
"""Kind of a source → its settings."""


def check_preparation(content: dict[str, Any], kind: Kind, source: str = "") -> SourceSettings:
    """Check the settings of a source of a kind, values by the names of fields.

    A SettingsError says all that is wrong, a line each, after `source`: what they stand in, empty for the options of a
    command.
    """
    meant = {name: [kind for kind, model in KINDS.items() if name in model.model_fields] for name in content}
    useless = [name for name, kinds in meant.items() if kinds and kind not in kinds]
    said = [
        f"{_flag(name)}: has no meaning for a source of kind {kind}, only for {' and '.join(meant[name])}. Leave it "
        "out."
        for name in useless
    ]
    rest = {name: value for name, value in content.items() if name not in useless}
    faults: list[str] = []
    try:
        settings = check_settings(rest, KINDS[kind], source)
    except SettingsError as error:
        faults = str(error).splitlines()
    if not said and not faults:
        return settings
    if source:
        raise SettingsError("\n".join([*(f"{source}: {one}" for one in said), *faults]))
    raise SettingsError("\n".join(re.sub(r"^'(\w+)'", lambda name: _flag(name[1]), line) for line in said + faults))


def with_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return values with paths that are relative to a folder."""

    def place(name: str, value: Any) -> Any:
        is_path = name in _PATHS or (name == "atlas" and str(value).lower().endswith(TABLE_SUFFIXES))
        return str(folder / value) if is_path and isinstance(value, str | Path) else value

    return {name: place(name, value) for name, value in content.items()}


_PATHS = {
    name for model in KINDS.values() for name, field in model.model_fields.items() if field.annotation == Path | None
}


def _flag(name: str) -> str:
    """Option of the command for a field."""
    return "--" + name.replace("_", "-")


def _faults_of(check: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    """What a check of the package says against its arguments."""
    try:
        check(*arguments)
    except CohortError as error:
        yield str(error)
