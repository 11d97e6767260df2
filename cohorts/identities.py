"""What runs and participants are called in a cohort: by the site's own names, or by pseudonyms."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from base.files import atomic_path
from cohorts.errors import CohortError
from cohorts.participants import bare_id
from cohorts.pseudonyms import Pseudonyms
from cohorts.sources.kinds import Run

_DATE = re.compile(r"\d{6,}|\d(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\d\d", re.IGNORECASE)
_SIGNS = re.compile(r"[^A-Za-z0-9]")
_ENTITIES = re.compile(r"(?:_|^)(ses|task|acq|ce|rec|dir|run|echo|part|chunk)-([A-Za-z0-9]+)")
_LINKAGE_COLUMNS = ["recording_id", "name", "participant"]


@dataclass(frozen=True)
class Identity:
    """What the cohort calls one run."""

    recording_id: str
    participant_id: str
    session: str
    task: str
    run: str


class OwnNames:
    """Names as the source has them."""

    check_word = ""

    def participant(self, participant: str) -> str:
        return participant

    def label(self, label: str) -> str:
        return label

    def of(self, run: Run) -> Identity:
        return Identity(run.name, run.participant, run.session, run.task, run.run)

    def redact(self, text: str, run: Run) -> str:
        return text


class KeyedNames:
    """Pseudonyms from a key that stays at the site: ``sub-`` and 16 hexadecimal digits.

    Labels of sessions, tasks and runs stay, but for those that look like dates. A name that is not after BIDS is
    replaced as a whole. The key is as of `Pseudonyms`.
    """

    def __init__(self, key_file: Path) -> None:
        self._pseudonyms = Pseudonyms(key_file)

    @property
    def check_word(self) -> str:
        """What the key makes of a known word: it tells two keys apart, and nothing of either."""
        return self._pseudonyms.pseudonym("fedbrainlm")

    def participant(self, participant: str) -> str:
        """Return the pseudonym of a participant, who is the same with ``sub-`` and leading zeros and without."""
        return "sub-" + self._pseudonyms.pseudonym(bare_id(participant))

    def label(self, label: str) -> str:
        """Return a label as it is, or the pseudonym of what looks like a date, however it is written."""
        return "x" + self._pseudonyms.pseudonym(label, 8) if _DATE.search(_SIGNS.sub("", label)) else label

    def of(self, run: Run) -> Identity:
        participant = self.participant(run.participant)
        rest = run.name.removeprefix(run.participant).removeprefix("sub-" + run.participant)
        entities = _ENTITIES.findall(rest)
        if "_" + "_".join(f"{key}-{value}" for key, value in entities) == rest:
            recording_id = "_".join([participant, *(f"{key}-{self.label(value)}" for key, value in entities)])
        elif run.name.removeprefix("sub-") == run.participant.removeprefix("sub-"):
            recording_id = participant
        else:
            recording_id = f"{participant}_rec-{self._pseudonyms.pseudonym(run.name, 8)}"
        return Identity(recording_id, participant, self.label(run.session), self.label(run.task), self.label(run.run))

    def redact(self, text: str, run: Run) -> str:
        """Put pseudonyms where a message, which begins with the run's file, names the run or its participant."""
        identity = self.of(run)
        text = re.sub(f"^{re.escape(run.name)}", identity.recording_id, text)
        told = {re.escape(run.name): identity.recording_id}
        told[re.escape(repr(run.name)[1:-1])] = identity.recording_id  # in which a line break is \n
        for label in _own_labels(run):
            pattern = f"0*{bare_id(label)}" if label.isdecimal() else re.escape(label)
            told[f"sub-{pattern}"] = identity.participant_id
            if len(label) > 3:  # a shorter one may be any number of the sentence
                told[pattern if len(bare_id(label)) > 3 else re.escape(label)] = identity.participant_id
        told |= {re.escape(own): self.label(own) for own in (run.session, run.task, run.run) if self.label(own) != own}
        for pattern, pseudonym in told.items():
            text = re.sub(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])", pseudonym, text)
        return text


Names = OwnNames | KeyedNames


def _own_labels(run: Run) -> list[str]:
    """What a run's participant is called, without ``sub-``: by the participants table, and by the run's own name."""
    entity = re.match(r"sub-([A-Za-z0-9]+)", run.name)
    labels = [run.participant.removeprefix("sub-"), entity.group(1) if entity else ""]
    return [label for label in dict.fromkeys(labels) if label]


@dataclass(frozen=True)
class Linkage:
    """What links a cohort's pseudonyms to the site's own names. It stays at the site, in ``site-only/linkage.tsv``."""

    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    """recording_id → name of the run and of its participant at the site."""

    @classmethod
    def read(cls, cohort: Path) -> "Linkage":
        """Read the linkage of a cohort; empty where its names are the site's own."""
        path = cohort / "site-only" / "linkage.tsv"
        if not path.is_file():
            return cls()
        try:
            table = pd.read_csv(path, sep="\t", dtype="str", keep_default_na=False)
        except (OSError, ValueError):  # of which pandas' errors are kinds
            table = pd.DataFrame()
        if list(table) != _LINKAGE_COLUMNS:
            raise CohortError(
                f"{path}: cannot be read; expected columns {', '.join(_LINKAGE_COLUMNS)}. Restore it, or delete it and "
                "prepare the cohort again."
            )
        return cls({row.recording_id: (row.name, row.participant) for row in table.itertuples(name="Row", index=False)})

    def extended(self, names: Names, runs: Iterable[Run]) -> "Linkage":
        """Add runs to it."""
        return Linkage(self.names | {names.of(run).recording_id: (run.name, run.participant) for run in runs})

    def only(self, recording_ids: set[str]) -> "Linkage":
        """Leave all others out of it."""
        return Linkage({one: names for one, names in self.names.items() if one in recording_ids})

    def write(self, cohort: Path) -> None:
        """Write it into a cohort's folder, for its owner's eyes."""
        rows = [(recording_id, *names) for recording_id, names in sorted(self.names.items())]
        table = pd.DataFrame(rows, columns=_LINKAGE_COLUMNS)
        folder = cohort / "site-only"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)  # a report may have made it
        with atomic_path(folder / "linkage.tsv") as temporary:
            temporary.touch(mode=0o600)
            # In quotes, names keep line breaks of every kind.
            table.to_csv(temporary, sep="\t", index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def name(self, recording_id: str) -> str:
        """Return the site's own name of a recording."""
        return self.names.get(recording_id, (recording_id, ""))[0]

    def told(self, recording_id: str, message: str) -> str:
        """Say a message of the quarantine in the site's own names."""
        name, participant = self.names.get(recording_id, (recording_id, ""))
        message = message.replace(recording_id, name)
        own = dict(_ENTITIES.findall(name))
        for key, label in _ENTITIES.findall(recording_id):
            message = message.replace(f"{key}-{label}", f"{key}-{own.get(key, label)}")
        return message.replace(recording_id.partition("_")[0], participant) if participant else message
