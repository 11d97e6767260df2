"""Whose the runs of a source are, who of these people is in a cohort, and what is known of them beforehand."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from cohorts.errors import CohortError, ParticipantsError, RecordingError
from cohorts.identities import Names, OwnNames
from cohorts.participants import ParticipantsTable, apply_missing_rule, bare_id
from cohorts.settings import Preparation
from cohorts.sources.kinds import Run, Source


class Selection:
    """The people of a participants table and those who are selected of it; without a table, whoever comes.

    A selection of nobody, or by a table or a column that is not there, is refused as a `CohortError`.

    Attributes
    ----------
    ids : set of str or None
        Who is selected; None without a table.
    """

    def __init__(self, table: ParticipantsTable | None, settings: Preparation) -> None:
        self._table, self._pattern = table, settings.pattern
        self._selected = _select(table, settings.conditions)
        self._lacking: dict[str, str] = {}
        if require := settings.require:
            if self._selected is None:
                raise CohortError(
                    f"--require {', '.join(require)}: needs a participants table. Give --participants FILE."
                )
            self._lacking = apply_missing_rule(self._selected.participants, require, settings.missing)
        self.ids = None if self._selected is None else set(self._selected.participants["participant_id"])
        self._stated = {} if self._selected is None else _stated(self._selected)

    @property
    def options(self) -> dict[str, str]:
        """How people were told, where ids name visits, too."""
        column = self._table.person_column if self._table else ""
        stated = {"participant_pattern": self._pattern.text if self._pattern else "", "participant_column": column}
        return {name: value for name, value in stated.items() if value}

    def runs(self, source: Source) -> tuple[list[Run], int]:
        """Runs of a source, everybody called as in the table, and how many of people not selected were left out."""
        runs = self._by_person(_with_names(source.runs()))
        if self._table is None or self.ids is None:
            return runs, 0
        everybody = self._table.participants["participant_id"].tolist()
        spelled, left_out = _spellings(everybody), set(everybody) - self.ids
        named = [replace(run, participant=spelled(run.participant)) for run in runs]
        kept = [run for run in named if run.participant not in left_out]
        return kept, len(runs) - len(kept)

    def stated(self, run: Run) -> dict[str, float]:
        """What the table says of a run: TR, mean FD and tSNR, as far as they are known."""
        return self._stated.get((run.participant, run.session)) or self._stated.get((run.participant, ""), {})

    def fault(self, run: Run) -> RecordingError | None:
        """What is wrong with a run before it is read, as to whose it is."""
        if self._pattern is not None and not run.participant:
            return RecordingError(
                "participant-pattern",
                f"{run.name}: does not fit --participant-pattern; expected a name that tells the person. Rename it, or "
                "widen the pattern.",
            )
        if self.ids is not None and run.participant and run.participant not in self.ids:
            return RecordingError(
                "unknown-participant",
                f"{run.name}: no participant of that name is in the participants table. Add the row, or rename it.",
            )
        if run.participant in self._lacking:
            why = f"{run.name}: its participant {self._lacking[run.participant]}"
            return RecordingError("missing-covariate", why)
        return None

    def renamed(self, names: Names) -> ParticipantsTable | None:
        """Call who is selected as a cohort does. Pseudonyms come in an order of their own, which tells nothing."""
        table = self._selected
        if table is None or isinstance(names, OwnNames):
            return table
        people, visits = (
            rows.assign(participant_id=rows["participant_id"].map(names.participant).astype("str"))
            for rows in (table.participants, table.sessions)
        )
        visits["session_id"] = [names.label(label) for label in visits["session_id"]]
        return replace(
            table,
            participants=people.sort_values("participant_id", ignore_index=True),
            sessions=visits.sort_values(["participant_id", "session_id"], ignore_index=True),
        )

    def _by_person(self, runs: list[Run]) -> list[Run]:
        """Give runs to the people and sessions of whose visits they are; to nobody where the pattern does not fit."""
        if self._pattern is not None:
            found = [self._pattern.find(run.name) or ("", "") for run in runs]
            return [
                replace(run, participant=person, session=session or run.session)
                for run, (person, session) in zip(runs, found, strict=True)
            ]
        scans = self._table.scans if self._table else {}
        spelled = _spellings(scans)
        whose = [(run, scans.get(spelled(run.participant))) for run in runs]
        return [
            replace(run, participant=scan[0], session=run.session or scan[1].removeprefix("ses-")) if scan else run
            for run, scan in whose
        ]


def _with_names(runs: list[Run]) -> list[Run]:
    """Refuse runs whose names are no text, since no table could hold them."""
    for run in runs:
        try:
            run.name.encode()
        except UnicodeEncodeError:
            raise CohortError(f"{run.name!a}: is no name in UTF-8; expected one. Rename the file.") from None
    return runs


def _spellings(ids: Iterable[str]) -> Callable[[str], str]:
    """Make a function that spells a participant as the table does: with ``sub-`` and leading zeros or without."""
    exact = {one.removeprefix("sub-"): one for one in ids}
    times = Counter(map(bare_id, exact))
    # Where 1 and 01 are two people, neither.
    loose = {bare_id(one): one for one in exact.values() if times[bare_id(one)] == 1}
    return lambda one: exact.get(one.removeprefix("sub-")) or loose.get(bare_id(one)) or one


def _select(table: ParticipantsTable | None, conditions: list[tuple[str, str]]) -> ParticipantsTable | None:
    """Participants that meet every condition."""
    if table is None:
        if conditions:
            raise CohortError("--select needs a participants table. Give --participants FILE.")
        return None
    people = table.participants
    for column, value in conditions:
        if column not in people:
            raise ParticipantsError(
                f"--select {column}={value}: the participants table has no column '{column}' "
                f"(columns: {', '.join(people.columns)}). Correct the name."
            )
        kept = people[people[column].astype("str") == value]
        if kept.empty:
            found = ", ".join(sorted(people[column].dropna().astype("str").unique())[:8])
            raise ParticipantsError(f"--select {column}={value}: no participant has it (found: {found}). Correct it.")
        people = kept
    visits = table.sessions[table.sessions["participant_id"].isin(people["participant_id"])]
    return replace(table, participants=people.reset_index(drop=True), sessions=visits.reset_index(drop=True))


def _stated(table: ParticipantsTable) -> dict[tuple[str, str], dict[str, float]]:
    """What a table says of recordings: (participant, session, or empty for all) → TR, mean FD, tSNR."""
    stated: dict[tuple[str, str], dict[str, float]] = {}
    for rows in (table.participants.assign(session_id=""), table.sessions):
        columns = [column for column in ("t_r", "mean_fd", "tsnr") if column in rows]
        for key, row in rows.set_index(["participant_id", "session_id"])[columns].to_dict("index").items():
            stated[key] = {str(name): float(value) for name, value in row.items() if np.isfinite(value)}
    return stated
