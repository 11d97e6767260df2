"""A cohort from a source: every run is read in a process of its own, checked, and stored or quarantined.

The work can be killed at any moment and started again: what is stored stays, what is missing is done, and the cohort
that comes of it is the same to the byte. A cohort appears under its name when it is whole; recordings that a source
gains later are added to it by the same command.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from base.errors import FedBrainLMError
from base.files import locked, open_regular, sync, write_text
from base.settings import read_settings
from cohorts.atlas import Atlas
from cohorts.cohort import About, Cohort
from cohorts.errors import CohortError, NoRecordingsError, RecordingError
from cohorts.identities import Identity, Linkage, Names, OwnNames
from cohorts.participants import ParticipantsTable
from cohorts.persons import look_like_visits
from cohorts.processes import in_processes
from cohorts.quality import QualityRules, check_signal, measure
from cohorts.recording import Recording, check_identifier, check_recording, save_recording
from cohorts.selection import Selection
from cohorts.settings import Preparation, SourceSettings
from cohorts.sources.kinds import Reading, Run, Source

_HEAD = 65_536
"""Bytes at each end of a file that tell whether it changed; a .gz ends with a checksum of the whole."""
_NO_OPTIONS = ("participants", "values", "scaling")
"""Fields of sources that say who or where: ids that names are matched with, labels of an atlas. Scaling is said beside
the options."""
_STRUCTURE = QualityRules(min_frames=2, min_coverage=0.0)
"""What no rule of a site can waive."""


@dataclass(frozen=True)
class PreparationReport:
    """What `prepare_cohort` did."""

    path: Path
    """The cohort."""
    n_recordings: int
    n_participants: int
    """What the cohort holds now."""
    n_done: int
    n_unchanged: int
    n_not_selected: int
    n_gone: int
    """Runs read now, runs that were there already, runs of participants that were not selected, and recordings that
    stay though the source has no such run any more."""
    quarantined: pd.DataFrame
    """recording_id, code, message."""


@dataclass(frozen=True)
class _Job:
    """One run to read, with what the participants table says of it."""

    run: Run
    identity: Identity
    fingerprint: str
    stated: dict[str, float]
    fault: RecordingError | None = None


_Common = tuple[Source, Path, QualityRules]
"""What every process needs for its jobs, with the cohort's folder."""


@dataclass(frozen=True)
class _Outcome:
    """What became of a run: facts of the stored recording, a fault, or both of one that the rules set aside."""

    job: _Job
    facts: dict[str, Any]
    fault: RecordingError | None = None


def prepare_cohort(
    source: Source,
    out: str | Path,
    settings: Preparation | None = None,
    *,
    participants: ParticipantsTable | None = None,
    names: Names | None = None,
    rules: QualityRules | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PreparationReport:
    """Prepare a cohort from a source, or bring one up to date that was prepared from it before.

    A recording that is not usable is quarantined with its reason; the others go in.

    Parameters
    ----------
    out : path
        Folder of the cohort; new, or a cohort prepared from this source in the same way.
    settings : Preparation, optional
        Who is taken, and what is wanted of them. Those of the source's kind are kept with the cohort.
    participants : ParticipantsTable, optional
        As `cohorts.participants.load_participants` returns it. A run of nobody in it is quarantined.
    names : KeyedNames or OwnNames, optional
        What runs and participants are called in the cohort; their own names if not given.
    rules : QualityRules, optional
        Thresholds of the quarantine, in place of those that the settings name; if neither is given, those that the
        cohort was last judged by, of a new one those of `QualityRules.published`.
    workers : int
        Processes that read at a time; 0 to read in this one.
    progress : callable
        Called with the runs done and their total.

    Raises
    ------
    CohortError
        If the source, the table or an option is unusable, if no recording is left, or if nothing can be written.
    """
    names, out, settings = names or OwnNames(), Path(out), settings or Preparation()
    _require_possible(out)
    selection = Selection(participants, settings)
    runs, n_not_selected = selection.runs(source)
    there = read_settings(out / "cohort.yaml", About) if (out / "cohort.yaml").is_file() else None
    asked = read_settings(settings.quality, QualityRules) if settings.quality else None
    rules = rules or asked or (there.rules if there else QualityRules.published())
    about = {  # what a cohort says of itself, and must go on to say when it is prepared again
        "name": check_identifier(settings.name or (there.name if there else out.absolute().name), "cohort name"),
        "preprocessing": source.preprocessing,
        "scaling": source.scaling,
        "options": _options(source, names) | selection.options,
        "pseudonyms": names.check_word,
    }
    try:
        with _workplace(out, source, about, rules) as cohort:
            jobs = _jobs(runs, selection, names)
            n_done = _read_new(cohort, jobs, (source, cohort.path, rules), names, workers, progress)
            linkage = Linkage.read(cohort.path).extended(names, (job.run for job in jobs))
            offered = {job.identity.recording_id for job in jobs}
            gone = _forget(cohort, offered, selection, names)
            _require_some(cohort, linkage, n_not_selected)
            if table := selection.renamed(names):
                cohort.describe_participants(table)
            said = participants.notices if participants else cohort.about.remarks
            cohort.remark(said, look_like_visits(run.participant for run in runs))
            if not isinstance(names, OwnNames):
                linkage.only(offered | gone).write(cohort.path)
            if isinstance(settings, SourceSettings):
                write_text(cohort.path / "site-only" / "prepare.yaml", settings.to_yaml())
            cohort.judge(rules)
    except OSError as error:
        raise CohortError(
            f"{out}: cannot be written ({error.strerror}). Make room or choose another place, and repeat the command: "
            "it goes on where it stopped."
        ) from error
    cohort = Cohort.open(out)
    n_participants = cohort.recordings["participant_id"].nunique()
    n_unchanged = len(jobs) - n_done
    return PreparationReport(
        out, len(cohort), n_participants, n_done, n_unchanged, n_not_selected, len(gone), cohort.quarantined
    )


def _require_possible(out: Path) -> None:
    """Refuse a place below a file before anything, such as a key, is made beside it."""
    above = next((folder for folder in out.absolute().parents if os.path.lexists(folder)), None)
    if above is not None and not above.is_dir():
        raise CohortError(f"{out}: cannot be made, since {above} is no folder. Choose another place.")


def _options(source: Any, names: Names) -> dict[str, Any]:
    """How a source reads, from its plain fields: what changes in them makes another cohort. No paths, ids or dates."""
    found: dict[str, Any] = {}
    for option in fields(source):
        value = getattr(source, option.name)
        if is_dataclass(value) and not isinstance(value, Atlas):
            found[option.name] = _options(value, names)
        elif option.name in _NO_OPTIONS:
            continue
        elif isinstance(value, str | int | float | bool | None):
            found[option.name] = value
        elif option.name in ("sessions", "tasks"):
            found[option.name] = [names.label(label) for label in value]
        elif isinstance(value, tuple):
            found[option.name] = list(value)
    return found


@contextmanager
def _workplace(out: Path, source: Source, about: dict[str, Any], rules: QualityRules) -> Iterator[Cohort]:
    """Yield the cohort to fill: that at `out`, or one in the making beside it that gets its name when it is whole."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        if not (out / "cohort.yaml").is_file():
            raise CohortError(f"{out}: exists already, and is no cohort; expected a new folder. Choose another.")
        with locked(out):
            cohort = Cohort.open(out, repair=True)
            _require_same(cohort, source, about)
            _clear_temporary(out)
            yield cohort
        return
    if not out.name:  # "." would lose its place under whoever stands in it
        raise CohortError(f"{out}: is where the command stands; expected a new folder. Name it from outside of it.")
    partial = out.with_name(f".{out.name}.partial")
    if partial.is_symlink():  # what it leads to would be emptied
        raise CohortError(f"{partial}: is a link; expected a folder that this command makes itself. Remove it.")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial):
        _clear_temporary(partial)
        try:
            cohort = Cohort.open(partial)
            _require_same(cohort, source, about)
        except FedBrainLMError:  # nothing in it yet, or begun in another way
            for path in partial.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            cohort = Cohort.create(partial, atlas=source.atlas, rules=rules, **about)
        try:
            yield cohort
        except NoRecordingsError:
            shutil.rmtree(partial)
            raise
        sync(partial)
        os.rename(partial, out)
        sync(out.parent)


def _require_same(cohort: Cohort, source: Source, about: dict[str, Any]) -> None:
    """Refuse to mix recordings that were prepared in different ways, or named with different keys."""
    theirs = {**cohort.about.model_dump(), "atlas_sha256": cohort.atlas.content_hash}
    ours = {**about, "atlas_sha256": source.atlas.content_hash}
    different = [key for key, value in ours.items() if _given(theirs[key]) != _given(json.loads(json.dumps(value)))]
    if "pseudonyms" in different:
        had, has = bool(theirs["pseudonyms"]), bool(ours["pseudonyms"])
        what = "its pseudonyms are of another key" if had and has else f"has {'' if had else 'no '}pseudonyms"
        remedy = "Give the key that it was prepared with (--key)" if had and has else "Prepare it as before"
        raise CohortError(f"{cohort.path}: {what}. {remedy}, or choose a new folder.")
    if different:
        # The id of the preprocessing says again what the options say.
        told = dict.fromkeys(change for key in different for change in _changes(key, theirs[key], ours[key]))
        changes = "; ".join(told)
        raise CohortError(
            f"{cohort.path}: was prepared in another way ({changes}). Choose a new folder, or prepare it as before."
        )


def _given(options: Any) -> Any:
    """Options without those that are None, as are all that there were not when a cohort was prepared."""
    if not isinstance(options, dict):
        return options
    return {name: _given(value) for name, value in options.items() if value is not None}


def _changes(name: str, before: Any, now: Any) -> list[str]:
    """Say what differs, down to the single option."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(key, before.get(key), now.get(key)) for key in {**before, **now}]
        return [change for key, old, new in pairs if old != new for change in _changes(key, old, new)]
    return [f"{name} was {before or 'none'}, and is {now or 'none'}"]


def _clear_temporary(folder: Path) -> None:
    """Remove what a killed command was writing."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)  # a process of it may just be coming to its end


def _jobs(runs: list[Run], selection: Selection, names: Names) -> list[_Job]:
    """What is to be done for each run: its identity, its fingerprint, and what is known of it before reading."""
    identities = [names.of(run) for run in runs]
    _require_apart(runs, identities)
    times = Counter(identity.recording_id for identity in identities)
    fingerprint_of_file = lru_cache(maxsize=64)(_file_fingerprint)  # many runs may lie in one file
    jobs: dict[str, _Job] = {}
    for run, identity in zip(runs, identities, strict=True):
        if identity.recording_id in jobs:  # said of the first
            continue
        stated, fault = selection.stated(run), selection.fault(run)
        if times[identity.recording_id] > 1:
            message = f"{run.name}: is there more than once; expected one file a run. Leave one of them."
            fault = RecordingError("duplicate", message)
        files = [fingerprint_of_file(path) for path in run.files]
        fingerprint = _fingerprint(files, identity, run, stated, fault)
        jobs[identity.recording_id] = _Job(run, identity, fingerprint, stated, fault)
    return list(jobs.values())


def _require_apart(runs: list[Run], identities: list[Identity]) -> None:
    """Refuse two participants of one pseudonym, whose recordings would become one person's."""
    whose: dict[str, str] = {}
    for run, identity in zip(runs, identities, strict=True):
        label = run.participant.removeprefix("sub-")
        other = whose.setdefault(identity.participant_id, label)
        if other != label:
            raise CohortError(
                f"participants '{other}' and '{label}': differ in leading zeros alone; expected one spelling of one "
                "person. Rename one of them, or keep the ids as they are (--keep-ids)."
            )


def _fingerprint(
    files: list[str], identity: Identity, run: Run, stated: dict[str, float], fault: RecordingError | None
) -> str:
    """Tell whether anything changed that a recording was made from, or whose it is. Says nothing of names or places."""
    known = {key: repr(value) for key, value in sorted(stated.items())}
    faulty = (fault.code, str(fault).removeprefix(run.name)) if fault else ()
    said = json.dumps([files, identity.participant_id, run.part, known, faulty])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def _file_fingerprint(path: Path) -> str:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(f"{size}:".encode() + file.read(_HEAD), digest_size=16)
            file.seek(max(_HEAD, size - _HEAD))
            digest.update(file.read(_HEAD))
    except OSError as error:
        return f"unreadable:{error.errno}"
    return digest.hexdigest()


def _read_new(
    cohort: Cohort, jobs: list[_Job], common: _Common, names: Names, workers: int, progress: Callable[[int, int], None]
) -> int:
    """Read the runs that are new or changed into the cohort; return how many these were."""
    pending = [job for job in jobs if cohort.fingerprint_of(job.identity.recording_id) != job.fingerprint]
    if pending:
        cohort.begin_changes()
    refused = (_Outcome(job, {}, job.fault) for job in pending if job.fault)
    sound = (job for job in pending if not job.fault)
    outcomes = chain(refused, in_processes(_prepare, common, sound, workers=workers, died=_died))
    for done, outcome in enumerate(outcomes, start=len(jobs) - len(pending) + 1):
        _record(cohort, outcome, names)
        progress(done, len(jobs))
    return len(pending)


def _prepare(common: _Common, job: _Job) -> _Outcome:
    """Read, check, measure and store one run. Only writing may raise: that is no fault of the recording."""
    source, folder, rules = common
    try:
        # One thread, since sums over several come out differently in their last digits.
        with threadpool_limits(1):
            recording = _recording(source, job)
        quality = measure(recording, source.atlas, rules)
    except RecordingError as fault:
        return _Outcome(job, {}, fault)
    except FedBrainLMError:  # the atlas's image is gone, say: no recording's fault
        raise
    except MemoryError:
        return _died(job)
    except Exception as error:
        said = f"could not be read ({type(error).__name__}); expected a whole file of its kind. Export it again."
        return _Outcome(job, {}, RecordingError("unreadable", f"{job.run.name}: {said}"))
    faults = rules.faults(quality, recording.signal.shape[0], recording.t_r, recording.coverage, job.run.name)
    path = folder / ("quarantine" if faults else "recordings") / f"{recording.recording_id}.safetensors"
    return _Outcome(job, save_recording(path, recording, quality, job.fingerprint), faults[0] if faults else None)


def _recording(source: Source, job: _Job) -> Recording:
    """Read and check one run, with what the participants table says of it."""
    run, atlas = job.run, source.atlas
    reading = source.read(run)
    coverage = check_signal(reading.signal, run.name, atlas, _STRUCTURE)
    recording = Recording(
        **asdict(job.identity),
        signal=np.where(coverage, reading.signal, np.float32(0)),
        coverage=coverage,
        t_r=_t_r(reading, job),
        mean_fd=job.stated.get("mean_fd", np.nan),
        tsnr=reading.tsnr if np.isfinite(reading.tsnr) else job.stated.get("tsnr", np.nan),
        framewise_displacement=reading.framewise_displacement,
        censored=reading.censored,
        notices=reading.notices,
    )
    check_recording(recording, atlas.n_parcels, atlas.name)
    return recording


def _t_r(reading: Reading, job: _Job) -> float:
    stated = job.stated.get("t_r", np.nan)
    if not reading.t_r > 0 and not stated > 0:
        raise RecordingError(
            "no-tr",
            f"{job.run.name}: its repetition time is unknown; it is never guessed. Give --tr SECONDS, or fill in "
            "column t_r of the participants table.",
        )
    if reading.t_r > 0 and stated > 0 and abs(reading.t_r - stated) > 0.01 * stated:
        raise RecordingError(
            "tr-contradicts",
            f"{job.run.name}: its repetition time is {reading.t_r:g} s, and {stated:g} s in the participants table; "
            "expected one. Correct the table.",
        )
    return reading.t_r if reading.t_r > 0 else stated


def _died(job: _Job) -> _Outcome:
    said = (
        f"{job.run.name}: the process that read it ran out of memory or was killed; expected a run that fits. Give "
        "more memory or fewer --workers, or check the file."
    )
    return _Outcome(job, {}, RecordingError("died", said))


def _record(cohort: Cohort, outcome: _Outcome, names: Names) -> None:
    """Enter what became of a run. What it was before, stored or quarantined, it is no more."""
    job, fault = outcome.job, outcome.fault
    if fault is None:
        cohort.enter(outcome.facts)
        return
    message, set_aside = names.redact(str(fault), job.run), bool(outcome.facts)
    cohort.quarantine(job.identity.recording_id, fault.code, message, job.fingerprint, set_aside=set_aside)


def _forget(cohort: Cohort, offered: set[str], selection: Selection, names: Names) -> set[str]:
    """Forget recordings that the source does not offer now, of people who are not, or no longer, to be in the cohort.

    So is what was refused and holds no signal: its file was corrected under another name, or left out. Recordings of
    other people that the source offers no more stay, since a disk may be missing; returns their ids.
    """
    gone = {one: whose for one, whose in cohort.held().items() if one not in offered}
    wanted = None if selection.ids is None else set(map(names.participant, selection.ids))
    staying = {one for one, whose in gone.items() if wanted is None or whose in wanted}
    forgotten = (gone.keys() | set(cohort.quarantined["recording_id"])) - offered - staying
    if forgotten:
        cohort.begin_changes()
    for recording_id in sorted(forgotten):
        cohort.forget(recording_id)
    return staying


def _require_some(cohort: Cohort, linkage: Linkage, n_not_selected: int) -> None:
    """Refuse a cohort without recordings, saying why there are none."""
    if len(cohort):
        return
    refused = cohort.quarantined.sort_values("recording_id", key=lambda ids: ids.map(linkage.name))
    if refused.empty and n_not_selected:
        raise NoRecordingsError(
            f"{cohort.name}: none of its {n_not_selected} recordings belongs to a selected participant. Correct "
            "--select."
        )
    if refused.empty:
        raise NoRecordingsError(f"{cohort.name}: its source offers no recordings. Name another file or folder.")
    codes = ", ".join(f"{count} {code}" for code, count in refused["code"].value_counts().sort_index().items())
    raise NoRecordingsError(
        f"{cohort.name}: none of its {len(refused)} recordings is usable ({codes}). The first: "
        f"{linkage.told(*refused[['recording_id', 'message']].iloc[0])}"
    )
