"""The cohort store: one folder a site, one safetensors file a recording.

::

    <cohort>/
      cohort.yaml          name, atlas and its hash, preprocessing, scaling, TRs, counts, software
      atlas.json           the atlas table itself
      participants.tsv     one row a participant, after BIDS; participants.json describes the columns
      sessions.tsv         one row a participant and session, where the table had several rows a participant
      recordings.parquet   one row a recording; an index, made again from the recordings whenever it is behind
      recordings/          <recording_id>.safetensors: signal [T, P] float32, coverage [P] bool, and what is known of
                           framewise displacement and censoring
      quarantine.jsonl     one line a recording that was refused, with the reason
      quarantine/          the recordings that could be read, but fell short of the rules
      site-only/           what links the cohort's pseudonyms to the site's own names, and the quality report
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import Field

from base.files import atomic_path, write_text
from base.settings import Settings, read_settings
from cohorts.atlas import Atlas, load_atlas
from cohorts.cells import TableRules
from cohorts.errors import CohortError, RecordingError
from cohorts.participants import (
    Descriptions,
    ParticipantsTable,
    load_participants,
    read_participants,
    write_participants,
)
from cohorts.persons import Visits, look_like_visits
from cohorts.quality import QualityRules, measure
from cohorts.quarantine import Quarantine
from cohorts.recording import (
    Quality,
    Recording,
    check_identifier,
    check_recording,
    load_recording,
    read_coverage,
    read_facts,
    save_recording,
)

FORMAT = 2
Scale = Literal["raw", "zscore"]
"""Whether recordings have kept their units, or were z-scored parcel by parcel before they came."""
_INDEX_COLUMNS = {
    "recording_id": "str",
    "participant_id": "str",
    "session": "str",
    "task": "str",
    "run": "str",
    "n_frames": "int64",
    "t_r": "float64",
    "n_missing_parcels": "int64",
    **{measure.name: "int64" if measure.type is int else "float64" for measure in fields(Quality)},
    "notices": "str",
    "digest": "str",
    "source": "str",
}


class About(Settings):
    """Content of ``cohort.yaml``."""

    format: int
    name: str
    atlas: str
    atlas_sha256: str
    preprocessing: str = "unspecified"
    """Id of the preprocessing, recorded with every result."""
    scaling: Scale = "raw"
    options: dict[str, Any] = Field(default_factory=dict)
    """How the recordings were prepared, where one command prepared them."""
    pseudonyms: str = ""
    """What the key of the participants' pseudonyms makes of a known word; empty where ids are the site's own."""
    rules: QualityRules = QualityRules()
    """What the recordings were last judged by."""
    remarks: tuple[str, ...] = ()
    """What of the participants table was not taken as it stood."""
    visits: Visits | None = None
    """What the participants' own ids look like, where they look like visits of the same people."""
    t_r: tuple[float, ...] = ()
    """Repetition times in seconds."""
    n_participants: int = 0
    n_recordings: int = 0
    n_quarantined: int = 0
    software: dict[str, str]


class Cohort:
    """A site's recordings on disk. Make one with `create` or `open`; iterate over it to read them one by one."""

    def __init__(self, path: Path, about: About, atlas: Atlas) -> None:
        self.path = path
        self.atlas = atlas
        self.about = about
        self._rows: dict[str, dict[str, Any]] = {}
        self._quarantine = Quarantine(path)
        self._participants = pd.DataFrame({"participant_id": pd.Series(dtype="str")})
        self._sessions = self._participants.assign(session_id=pd.Series(dtype="str"))
        self._descriptions: Descriptions | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        atlas: Atlas | str,
        name: str | None = None,
        participants: pd.DataFrame | None = None,
        **about: Any,
    ) -> "Cohort":
        """Make an empty cohort in a folder that is new or empty; a CohortError says if it is not.

        Parameters
        ----------
        atlas : Atlas or str
            The atlas of every recording, or its name.
        name : str, optional
            Name of the site's cohort; the folder's name if not given.
        participants : pandas.DataFrame, optional
            As `cohorts.participants.read_participants` returns it.
        **about
            Further fields of `About`: preprocessing, scaling, options, pseudonyms, rules.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CohortError(f"{path}: exists already; expected a new or empty folder. Choose another.")
        atlas = load_atlas(atlas) if isinstance(atlas, str) else atlas
        (path / "recordings").mkdir(parents=True, exist_ok=True)
        write_text(path / "atlas.json", atlas.to_json())
        content = About(
            format=FORMAT,
            name=check_identifier(name or path.absolute().name, "cohort name"),
            atlas=atlas.name,
            atlas_sha256=atlas.content_hash,
            software={library: version(library) for library in ("fedbrainlm", "nilearn", "numpy")},
            **about,
        )
        cohort = cls(path, content, atlas)
        if participants is not None:
            cohort._participants = participants.reset_index(drop=True)
        cohort.save()
        return cohort

    @classmethod
    def open(cls, path: str | Path, *, repair: bool = False) -> "Cohort":
        """Open a cohort, bringing its index up to date with its recordings.

        With `repair`, recordings whose files are gone are forgotten, for whoever makes them again. A CohortError says
        that the folder is no cohort, or lost a recording that its index names.
        """
        path = Path(path)
        if not path.exists() and path.with_name(f".{path.name}.partial").is_dir():
            raise CohortError(
                f"{path}: is in the making, or a command that made it was stopped. Give that command again: it goes on."
            )
        if not (path / "cohort.yaml").is_file():
            raise CohortError(_no_cohort(path))
        about = read_settings(path / "cohort.yaml", About)
        if about.format != FORMAT:
            raise CohortError(
                f"{path}: has format {about.format}, this version reads format {FORMAT}. Prepare it anew."
            )
        atlas = load_atlas(path / "atlas.json")
        # One that was made when the parcels had their former names holds the same columns.
        if about.atlas_sha256 not in (atlas.content_hash, atlas.former_hash):
            raise CohortError(f"{path}/atlas.json: differs from cohort.yaml. Restore it, or prepare the cohort again.")
        cohort = cls(path, about, atlas)
        if (path / "participants.tsv").is_file():
            cohort._participants = read_participants(path / "participants.tsv")
        if (path / "sessions.tsv").is_file():
            cohort._sessions = load_participants(path / "sessions.tsv", TableRules(judge=False)).sessions
        cohort._quarantine.load()
        cohort._load_index(repair)
        return cohort

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def preprocessing(self) -> str:
        return self.about.preprocessing

    @property
    def scaling(self) -> Scale:
        return self.about.scaling

    @property
    def recordings(self) -> pd.DataFrame:
        """One row a recording, in order of recording_id.

        Columns recording_id, participant_id, session, task, run, n_frames, t_r (s), n_missing_parcels, and every
        measure of `cohorts.quality.Quality`.
        """
        rows = [self._rows[key] for key in sorted(self._rows)]
        return pd.DataFrame(rows, columns=list(_INDEX_COLUMNS)).astype(_INDEX_COLUMNS)

    @property
    def participants(self) -> pd.DataFrame:
        """One row a participant: participant_id and whatever ``participants.tsv`` holds, n/a for who is not in it."""
        known = set(self._participants["participant_id"])
        others = sorted({row["participant_id"] for row in self._rows.values()} - known)
        rows = pd.DataFrame({"participant_id": pd.Series(others, dtype="str")})
        return pd.concat([self._participants, rows], ignore_index=True)

    @property
    def sessions(self) -> pd.DataFrame:
        """As `ParticipantsTable.sessions`."""
        return self._sessions.copy()

    @property
    def visits(self) -> Visits | None:
        """Participants who may be visits of the same people, as their own ids look; None if they do not."""
        if self.about.pseudonyms:
            return self.about.visits
        return look_like_visits({row["participant_id"] for row in self._rows.values()})

    @property
    def remarks(self) -> list[str]:
        """What is to be known of the participants: what of their table was not taken as it stood, who is not here."""
        here = {row["participant_id"] for row in self._rows.values()}
        remarks = [*self.about.remarks, *([str(self.visits)] if self.visits else [])]
        if without := set(self._participants["participant_id"]) - here:
            aside = len(without & set(self.held().values()))
            remarks.append(
                f"{len(without)} of {len(self.participants)} participants have no recording that can be used ({aside} "
                "of them have one in quarantine), and take part in no study."
            )
        return remarks

    @property
    def quarantined(self) -> pd.DataFrame:
        """One row a refused recording: recording_id, code, message."""
        return pd.DataFrame(self._quarantine.without(self._rows), columns=["recording_id", "code", "message"])

    @property
    def notices(self) -> dict[str, int]:
        """Codes of `cohorts.notices`, and of how many recordings each is said; the most frequent first."""
        codes = Counter(sorted(code for row in self._rows.values() for code in row["notices"].split()))
        return dict(codes.most_common())

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Recording]:
        for recording_id in sorted(self._rows):
            yield self.read(recording_id)

    def __repr__(self) -> str:
        people = len({row["participant_id"] for row in self._rows.values()})
        return f"<Cohort {self.name}: {len(self)} recordings of {people} participants, atlas {self.atlas.name}>"

    def covariates(self) -> pd.DataFrame:
        """One row for each participant with a recording, in order of participant_id.

        The columns of ``participants.tsv``, with mean_fd and tsnr averaged over the participant's recordings
        where those know them.
        """
        measured = self.recordings.groupby("participant_id")[["mean_fd", "tsnr"]].mean()
        table = self.participants.set_index("participant_id").reindex(measured.index)
        for column in measured:
            table[column] = measured[column].fillna(table.get(column, math.nan))
        return table.reset_index()

    def recording_covariates(self) -> pd.DataFrame:
        """One row a recording, in order of recording_id: what is known of the participant at that visit.

        The columns of ``participants.tsv``, those of ``sessions.tsv`` instead where they know the visit, and the
        recording's own mean_fd and tsnr.
        """
        index = self.recordings.rename(columns={"session": "session_id"})
        table = index[["recording_id", "participant_id", "session_id", "mean_fd", "tsnr"]]
        people = table[["participant_id"]].merge(self.participants, how="left", on="participant_id")
        visits = table[["participant_id", "session_id"]].merge(
            self._sessions, how="left", on=["participant_id", "session_id"]
        )
        known = visits.combine_first(people)
        for column in known.columns.difference(table.columns):
            table[column] = known[column]
        for column in ("mean_fd", "tsnr"):
            table[column] = table[column].fillna(known.get(column, math.nan))
        return table

    def add(self, recording: Recording, source: str = "") -> None:
        """Store a recording, made from files of fingerprint `source`.

        It survives a crash from here on, with or without `save`. Raises as `check_recording`, and a RecordingError with
        code ``duplicate``.
        """
        check_recording(recording, self.atlas.n_parcels, self.atlas.name)
        if recording.recording_id in self._rows:
            raise RecordingError(
                "duplicate", f"{recording.recording_id}: is in the cohort already. Give each run its own id."
            )
        quality = measure(recording, self.atlas, self.about.rules)
        self.enter(save_recording(self._file(recording.recording_id), recording, quality, source))

    def enter(self, facts: dict[str, Any]) -> None:
        """Enter a recording, whose file is in place, into the index."""
        self._rows[facts["recording_id"]] = facts
        self._quarantine.remove_file(facts["recording_id"])

    def quarantine(
        self, recording_id: str, code: str, message: str, source: str = "", *, set_aside: bool = False
    ) -> None:
        """Note that a recording was refused, and why.

        If it is `set_aside`, its signal could be read and lies in ``quarantine/``, from where `judge` can take it back.
        """
        self._quarantine.note(recording_id, code, message, source)
        if self._rows.pop(recording_id, None):  # what its source held before
            self._file(recording_id).unlink(missing_ok=True)
        if not set_aside:
            self._quarantine.remove_file(recording_id)

    def begin_changes(self) -> None:
        """Take the index away while recordings change in place, for `save` to write it anew.

        Whoever opens the cohort in between, or after a kill, makes it from the recordings.
        """
        (self.path / "recordings.parquet").unlink(missing_ok=True)

    def held(self) -> dict[str, str]:
        """Recordings whose signals are here, set aside or not: recording_id → participant_id."""
        aside = {path.stem: str(read_facts(path)["participant_id"]) for path in self._quarantine.files()}
        return aside | {recording_id: row["participant_id"] for recording_id, row in self._rows.items()}

    def forget(self, recording_id: str) -> None:
        """Remove a recording, its signal and what the quarantine's list says of it, for `save` to write."""
        self._quarantine.refusals.pop(recording_id, None)
        self._quarantine.remove_file(recording_id)
        if self._rows.pop(recording_id, None):
            self._file(recording_id).unlink(missing_ok=True)

    def describe_participants(self, table: ParticipantsTable) -> None:
        """Replace what is known of the participants, for `save` to write."""
        self._participants, self._sessions = table.participants, table.sessions
        self._descriptions = table.descriptions

    def remark(self, remarks: Iterable[str], visits: Visits | None) -> None:
        """Keep `About.remarks` and `About.visits`, in place of what they were, for `save` to write."""
        self.about = self.about.model_copy(update={"remarks": tuple(remarks), "visits": visits})

    def fingerprint_of(self, recording_id: str) -> str | None:
        """Fingerprint of what a recording was made from or refused for; None if it is not known here."""
        entry = self._rows.get(recording_id) or self._quarantine.refusals.get(recording_id)
        return entry["source"] if entry else None

    def judge(self, rules: QualityRules) -> tuple[list[str], list[str]]:
        """Judge every recording by `rules`: quarantine what falls short of them, take back what no longer does.

        Signals are kept, in ``quarantine/``. Recordings that could not be read at all stay refused. Returns the ids of
        those that were quarantined, and of those that were taken back.
        """
        aside = self._measured_by(rules)
        quarantined, taken_back = [], []
        for recording_id, facts in sorted((self._rows | aside).items()):
            fault, is_aside = self._fault(facts, rules), recording_id in aside
            if fault is None:
                if is_aside:
                    os.replace(self._quarantine.file(recording_id), self._file(recording_id))
                    self.enter(facts)
                    taken_back.append(recording_id)
                continue
            said = self._quarantine.refusals.get(recording_id, {})
            if not is_aside or (said.get("code"), said.get("message")) != (fault.code, str(fault)):  # of other rules
                # The line comes first: of a recording that moves, the reason is known whatever happens.
                self._quarantine.note(recording_id, fault.code, str(fault), facts["source"])
            if not is_aside:
                self._quarantine.take_in(recording_id, self._file(recording_id))
                del self._rows[recording_id]
                quarantined.append(recording_id)
        self.about = self.about.model_copy(update={"rules": rules})
        self.save()
        return quarantined, taken_back

    def read(self, recording_id: str) -> Recording:
        """Read one recording; a CohortError if the cohort has none of that id, or its file is damaged."""
        return load_recording(self._known(recording_id))

    def read_coverage(self, recording_id: str) -> np.ndarray:
        """Read which parcels [P] a recording has, without its signal; raises as `read`."""
        return read_coverage(self._known(recording_id))

    def save(self) -> None:
        """Write the index, the participants table and the counts."""
        index = self.recordings
        with atomic_path(self.path / "recordings.parquet") as temporary:
            index.to_parquet(temporary, index=False)
        write_participants(self.participants, self.path, self._descriptions)
        if len(self._sessions):
            with atomic_path(self.path / "sessions.tsv") as temporary:
                self._sessions.to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        else:
            (self.path / "sessions.tsv").unlink(missing_ok=True)
        self._quarantine.save(self._rows)
        self.about = self.about.model_copy(
            update={
                "t_r": tuple(sorted(index["t_r"].unique().tolist())),
                "n_participants": int(index["participant_id"].nunique()),
                "n_recordings": len(index),
                "n_quarantined": len(self._quarantine.refusals),
            }
        )
        write_text(self.path / "cohort.yaml", yaml.safe_dump(self.about.model_dump(mode="json"), sort_keys=False))

    def _known(self, recording_id: str) -> Path:
        if recording_id not in self._rows:
            raise CohortError(f"{self.path}: has no recording '{recording_id}'. See 'fedbrainlm cohort show'.")
        return self._file(recording_id)

    def _file(self, recording_id: str) -> Path:
        return self.path / "recordings" / f"{recording_id}.safetensors"

    def _fault(self, facts: dict[str, Any], rules: QualityRules) -> RecordingError | None:
        """First fault that the rules find with a stored recording."""
        quality = Quality(**{measure.name: facts[measure.name] for measure in fields(Quality)})
        covered = 1 - facts["n_missing_parcels"] / self.atlas.n_parcels
        faults = rules.faults(quality, facts["n_frames"], facts["t_r"], covered, facts["recording_id"])
        return faults[0] if faults else None

    def _measured_by(self, rules: QualityRules) -> dict[str, dict[str, Any]]:
        """Measure every recording by the thresholds of `rules` that was by others; return the facts of those aside."""
        for path in self._quarantine.files():
            if path.stem in self._rows:  # a command that was killed put its successor in place, or the other way round
                path.unlink()
        aside = {path.stem: read_facts(path) for path in self._quarantine.files()}
        for known, place in ((self._rows, self._file), (aside, self._quarantine.file)):
            for recording_id, facts in known.items():
                if (facts["fd_threshold"], facts["dvars_threshold"]) != (rules.fd_threshold, rules.dvars_threshold):
                    self.begin_changes()
                    path = place(recording_id)
                    recording = load_recording(path)
                    quality = measure(recording, self.atlas, rules)
                    known[recording_id] = save_recording(path, recording, quality, facts["source"])
        return aside

    def _load_index(self, repair: bool) -> None:
        stored = {path.stem for path in (self.path / "recordings").glob("*.safetensors")}
        index = self.path / "recordings.parquet"
        if index.is_file():
            self._rows = {str(row["recording_id"]): row for row in _read_index(index)}
        moved = {path.stem for path in self._quarantine.files()}  # some by a command that did not come to its end
        lost = sorted(self._rows.keys() - stored - moved)
        if lost and not repair:
            raise CohortError(
                f"{self._file(lost[0])}: is gone ({len(lost)} such). Restore it, or prepare the cohort again: what is "
                "missing is read again."
            )
        self._rows = {
            recording_id: self._rows.get(recording_id) or read_facts(self._file(recording_id))
            for recording_id in sorted(stored)
        }


def _read_index(path: Path) -> list[dict[str, Any]]:
    """Rows of ``recordings.parquet``."""
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError):  # ArrowInvalid is a ValueError
        table = pd.DataFrame()
    table = table if "notices" in table else table.assign(notices="")  # which earlier versions did not know
    if not set(_INDEX_COLUMNS) <= set(table):
        raise CohortError(f"{path}: cannot be read. Delete it: it is made again from the recordings.")
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _no_cohort(path: Path) -> str:
    """Say what is in the place of a cohort: where a disk is not mounted, an empty folder or none."""
    if path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None):
        return (
            f"{path}: is not a cohort; expected a folder with cohort.yaml. "
            "Make one with 'fedbrainlm cohort prepare' or 'simulate'."
        )
    found = "is empty" if path.exists() else "is not there"
    return (
        f"{path}: {found}; expected a cohort's folder. Check the path, and whether its disk is mounted; a new cohort "
        "is made with 'fedbrainlm cohort prepare'."
    )
