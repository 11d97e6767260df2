"""The release ledger: what a site told of whom, so that two answers do not tell by their difference what none tells.

The sums of a site before and after one person joined differ in that person's row; the sums over all sites, and over all
but one, differ in that site's. No single answer shows it, so what was answered before is kept on the site's disk.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b

from client.door.database import SiteDatabase
from client.door.policy import Policy
from exchange.messages import FrameSpec, Job

_BYTES = 16
"""Of a participant's keyed hash."""
_PLAIN = ""
"""Sites of an answer that left on its own."""


@dataclass(frozen=True)
class Question:
    """What was asked, whoever asked it: no study, run, round, seed, parameter or name of a site is a part of it."""

    kind: str
    """Name of an analysis, or of another kind of answer."""
    data: tuple[str, ...]
    """What the answer tells of the participants (`client.features.Table.data`). Answers of any kind over the same data
    have sums in common."""
    details: tuple[str, ...] = ()
    """What tells it from other questions of that kind over the same data."""

    def __str__(self) -> str:
        return json.dumps([self.kind, sorted(self.data), sorted(self.details)])


PRETRAINING = Question("pretraining", ("training",))
"""A model update, of the training participants."""
EVALUATION = Question("evaluation", ("evaluation",))
"""How a model does, in the participants held out of training."""
EMBEDDING = Question("embedding", ("embedding",))
"""How many participants were embedded."""
LACKING = Question("lacking", ("lacking",))
"""Which features somebody among the embedded participants lacks."""


def question_of_job(job: Job, data: Sequence[str] = ()) -> Question:
    """Return what an analysis asks.

    Parameters
    ----------
    data : sequence of str
        What its table of participants holds (`client.features.Table.data`); not needed for frames.
    """
    if isinstance(job.table, FrameSpec):
        return Question(job.analysis, (f"frames/{job.table.atlas}",))
    table = job.table
    # Feature sets go by the data behind them: the coordinator names what is made at the site, as often as it likes.
    details = [f"column/{item.get('name')}" for item in table.covariates]
    details += [f"target/{table.target}"] if table.target else []
    return Question(job.analysis, tuple(sorted(data)), tuple(sorted(details)))


@dataclass(frozen=True)
class Release:
    """One answer that is about to leave."""

    question: Question
    """What it answers."""
    participants: Collection[str]
    """Whom it is about. The ledger keeps keyed hashes of the ids."""
    parts: tuple[str, ...] = ()
    """Names of the parts of the message that it is; each may be masked among other sites."""
    sites: tuple[str, ...] | None = None
    """Names of the sites of the secure sum that it is a part of; None if it leaves on its own, where the coordinator
    reads this site's sums anyway."""
    accounted: bool = False
    """Whether a privacy budget pays for all that it tells, since it carries noise; or it tells only how many there
    are, which is taken to be known."""


class ReleaseLedger:
    """What was released, on the disk before an answer leaves.

    An answer is refused if

    - anything was told of the same data before, by whatever analysis, for participants who differ in a few
      (``min_change``): all analyses of a feature set have sums in common, its sum to begin with;
    - its question was answered for the same participants among other sites, as often as ``max_attempts``;
    - the study has had its rounds of training (``max_rounds``) or its answers (``max_releases``).

    Refusals that depend on the participants are counted, too (``max_refusals``, `client.door.release`).

    The same question about the same participants among the same sites may be asked again, in the next round, run or
    study: about people it adds nothing but what another model sees in them.

    What the ledger does not see: differences of more than two answers (each pair may differ in enough people, and a
    combination of four in one); another analysis of the same data among other sites; the same question over the
    embeddings of other models, which it takes for the same, so that it refuses more than it must; people who are one
    under two ids; and what was told before the file was deleted or emptied.

    Parameters
    ----------
    database : SiteDatabase
        Its key is the ids' hash's.
    """

    def __init__(self, database: SiteDatabase) -> None:
        self._database = database

    def enter(
        self,
        *,
        study: str,
        run: str,
        releases: Sequence[Release],
        policy: Policy,
        rounds: int = 0,
    ) -> None:
        """Check all answers of a message, of so many rounds of training, by what was told before; enter all or none.

        One transaction: two processes cannot pass each other's check. A `Refusal` names the rule.
        """
        with self._database.transaction() as database:
            self._count(database, study, rounds, len(releases), policy)
            entry = _Entry(database, self._database.key, policy)
            for release in releases:
                entry.add(release, study, run)

    def refusals(self, study: str) -> int:
        """Count how often a study was refused for reasons that lie in the participants' data."""
        with self._database.transaction() as database:
            row = database.execute("SELECT times FROM refused WHERE study = ?", (study,)).fetchone()
        return int(row[0]) if row else 0

    def note_refusal(self, study: str) -> None:
        """Count such a refusal, before its code leaves."""
        with self._database.transaction() as database:
            database.execute("INSERT INTO refused VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (study,))

    def rounds(self, study: str) -> int:
        """Count the rounds of training that a study has had."""
        with self._database.transaction() as database:
            row = database.execute("SELECT rounds FROM studies WHERE study = ?", (study,)).fetchone()
        return int(row[0]) if row else 0

    def _count(self, database: sqlite3.Connection, study: str, rounds: int, releases: int, policy: Policy) -> None:
        """Count what the study has had, this message with it."""
        had = database.execute("SELECT rounds, releases FROM studies WHERE study = ?", (study,)).fetchone() or (0, 0)
        total = (had[0] + rounds, had[1] + releases)
        if rounds:
            policy.permit_rounds(total[0])
        if releases:
            policy.permit_releases(total[1])
        database.execute("INSERT OR REPLACE INTO studies VALUES (?, ?, ?)", (study, *total))


class _Entry:
    """The answers of one message, on their way into the ledger."""

    def __init__(self, database: sqlite3.Connection, key: bytes, policy: Policy) -> None:
        self._database = database
        self._key = key
        self._policy = policy
        self._now = datetime.now(UTC).isoformat(timespec="seconds")
        self._ids: dict[frozenset[str], int] = {}  # a message has hundreds of answers about the same people
        self._members: dict[int, frozenset[bytes]] = {}

    def add(self, release: Release, study: str, run: str) -> None:
        """Check one answer, and enter it."""
        people = self._people(frozenset(release.participants))
        for data in release.question.data:
            self._tell(data, people)
        question = self._id_of("questions", "question", str(release.question))
        sites = _PLAIN if release.sites is None else json.dumps(sorted(set(release.sites)))
        if sites != _PLAIN:
            self._permit_sites(question, people, sites)
        self._database.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET times = times + 1, last = ?",
            (question, people, sites, study, run, self._now, self._now),
        )

    def _tell(self, data: str, people: int) -> None:
        """Refuse to tell the same data of nearly the same people. Whom it was told of already, it may be told of."""
        others = [other for (other,) in self._database.execute("SELECT people FROM told WHERE data = ?", (data,))]
        if people in others:
            return
        for other in others:
            self._policy.permit_change(len(self._members_of(people) ^ self._members_of(other)))
        self._database.execute("INSERT INTO told VALUES (?, ?)", (data, people))

    def _permit_sites(self, question: int, people: int, sites: str) -> None:
        rows = self._database.execute(
            "SELECT DISTINCT sites FROM answers WHERE question = ? AND people = ? AND sites != ?",
            (question, people, _PLAIN),
        )
        before = {among for (among,) in rows}
        if sites not in before:
            self._policy.permit_site_sets(len(before) + 1)

    def _people(self, participants: frozenset[str]) -> int:
        """Id of a set of participants, whose hashes are stored once."""
        if participants not in self._ids:
            hashed = sorted(blake2b(one.encode(), key=self._key, digest_size=_BYTES).digest() for one in participants)
            members = b"".join(hashed)
            self._ids[participants] = self._id_of("people", "digest", blake2b(members).digest(), members)
        return self._ids[participants]

    def _id_of(self, table: str, column: str, value: object, *further: object) -> int:
        """Id of a row, which is made if it is not there."""
        found = self._database.execute(f"SELECT id FROM {table} WHERE {column} = ?", (value,)).fetchone()
        if found is None:
            values = ", ".join("?" * (1 + len(further)))
            made = self._database.execute(f"INSERT INTO {table} VALUES (NULL, {values})", (value, *further))
            assert made.lastrowid is not None, "a row was inserted"
            return made.lastrowid
        return int(found[0])

    def _members_of(self, people: int) -> frozenset[bytes]:
        if people not in self._members:
            (blob,) = self._database.execute("SELECT members FROM people WHERE id = ?", (people,)).fetchone()
            self._members[people] = frozenset(blob[at : at + _BYTES] for at in range(0, len(blob), _BYTES))
        return self._members[people]
