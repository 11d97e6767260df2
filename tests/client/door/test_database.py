"""One database of a site: whole or not used, and what older versions kept in files of their own is taken in."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from base.files import save_arrays
from client.door.database import SiteDatabase
from client.door.kept_answers import KeptAnswers
from client.door.ledger import Question, Release, ReleaseLedger
from client.door.older_files import take_in
from client.door.policy import Policy
from client.door.spending import PrivacyLedger, Spend, Spent
from exchange.messages import EmbedRequest, SecureSum
from exchange.refusals import Refusal, RefusalCode

PEOPLE = [f"sub-{number:02d}" for number in range(20)]
SECRET = b"a site's secret"
PAID, OWED = Spend(2.0, 0.5, 4), Spend(3.0, 1.0, 1)
REQUEST = EmbedRequest(
    study="private",
    secure=SecureSum(roster="00", step=3, sites=["a", "b", "c"]),
    model={},
    recipe="r",
    holdout=0,
    seed=0,
)


def enter(database: SiteDatabase, people: list[str] = PEOPLE) -> None:
    release = Release(Question("combat", ("features/embedding",)), people, sites=("a", "b", "c"))
    ReleaseLedger(database).enter(study="s", run="1", releases=[release], policy=Policy(), rounds=1)


@pytest.fixture
def database(tmp_path) -> SiteDatabase:
    made = SiteDatabase(tmp_path / "state", SECRET)
    enter(made)
    return made


def test_a_transaction_within_another_is_a_part_of_it(database):
    def note_and_fail() -> None:
        with database.transaction():
            ReleaseLedger(database).note_refusal("s")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        note_and_fail()
    assert ReleaseLedger(database).refusals("s") == 0


def test_the_file_holds_no_ids_and_is_the_user_s_alone(database):
    assert not any(one.encode() in database.path.read_bytes() for one in PEOPLE)
    assert os.stat(database.path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"not a database" * 500),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 4096 + path.read_bytes()[8192:]),
        lambda path: sqlite3.connect(path).execute("DROP TABLE contexts").connection.close(),
        lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 0").connection.close(),
    ],
    ids=["other bytes", "cut off", "overwritten", "a table", "no version"],
)
def test_a_damaged_database_lets_nothing_out(database, damage):
    damage(database.path)

    with pytest.raises(Refusal, match="restore it from a backup") as refused:
        enter(database)
    assert refused.value.code is RefusalCode.SETUP


def test_a_newer_version_s_database_is_not_touched(database):
    with closing(sqlite3.connect(database.path)) as newer:
        newer.execute("PRAGMA user_version = 9")
    before = database.path.read_bytes()

    with pytest.raises(Refusal, match=r"of version 9, .* a newer one made it") as refused:
        enter(database)
    assert refused.value.code is RefusalCode.SETUP
    assert database.path.read_bytes() == before


def test_another_key_would_know_nobody_again(database):
    with pytest.raises(Refusal, match="private_seed") as refused:
        enter(SiteDatabase(database.path.parent, b"another"), PEOPLE[1:])
    assert refused.value.code is RefusalCode.SETUP


# --- older files ------------------------------------------------------------------------------------------------------

OLDER_LEDGER = """
CREATE TABLE key (digest BLOB NOT NULL);
CREATE TABLE studies (
    study TEXT PRIMARY KEY, rounds INTEGER NOT NULL, releases INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE people (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, members BLOB NOT NULL);
CREATE TABLE questions (id INTEGER PRIMARY KEY, question TEXT NOT NULL UNIQUE);
CREATE TABLE told (data TEXT, people INTEGER REFERENCES people, PRIMARY KEY (data, people)) WITHOUT ROWID;
CREATE TABLE answers (
    question INTEGER REFERENCES questions, people INTEGER REFERENCES people, sites TEXT, study TEXT, run TEXT,
    times INTEGER NOT NULL, last TEXT NOT NULL, PRIMARY KEY (question, people, sites, study, run)
) WITHOUT ROWID;
CREATE TABLE trained (study TEXT, run TEXT, question TEXT, answered INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (study, run, question));
PRAGMA user_version = 1;
"""
OLDER_CONTEXTS = """
CREATE TABLE contexts (
    run TEXT NOT NULL, step INTEGER NOT NULL, question TEXT NOT NULL, attempt INTEGER NOT NULL, among TEXT NOT NULL,
    PRIMARY KEY (run, step));
CREATE TABLE overflows (study TEXT PRIMARY KEY, times INTEGER NOT NULL);
INSERT INTO overflows VALUES ('greedy', 3);
"""


def short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def spending_file(path: Path, **ledger: object) -> None:
    content = {"history": [], "noise_multipliers": {}, "last": "", "epsilons": {}, **ledger}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"ledger": content, "sha256": digest}))


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """A state folder of the version before: one answer is kept and not paid for, since the site was killed then."""
    state = tmp_path_factory.mktemp("older") / "state"
    current = SiteDatabase(state.with_name("current"), SECRET)
    enter(current)
    (state / "sums" / short("private")).mkdir(parents=True)
    (state / "privacy").mkdir()
    with closing(sqlite3.connect(state / "ledger.sqlite")) as ledger, ledger:
        ledger.executescript(OLDER_LEDGER)
        ledger.execute("ATTACH ? AS current", (str(current.path),))
        for table in ("key", "studies", "people", "questions", "told", "answers"):
            ledger.execute(f"INSERT INTO {table} SELECT * FROM current.{table}")
    among = {
        "sites": REQUEST.secure.sites,
        "groups": [],
        "same": ["EmbedRequest", "private", "00", REQUEST.secure.bound],
    }
    contexts = [("77", 2, "before", 1, json.dumps(among, sort_keys=True))]
    contexts += [("77", 3, REQUEST.question, 1, json.dumps(among, sort_keys=True))]
    with closing(sqlite3.connect(state / "sums" / "contexts.sqlite")) as sums, sums:
        sums.executescript(OLDER_CONTEXTS)
        sums.executemany("INSERT INTO contexts VALUES (?, ?, ?, ?, ?)", contexts)
    header = {"kind": "EmbedReply", "reply": {}, "about": {"n": 7, "spends": [OWED]}, "question": REQUEST.question}
    path = state / "sums" / short("private") / f"{short('77')}-3.safetensors"
    save_arrays(path, {"tally/n": np.array(7), "evaluation/x": np.arange(6.0).reshape(2, 3)}, header)
    spending_file(state / "privacy" / "private.json", history=[PAID], last="77/2", epsilons={"1e-05": 2.0})
    spending_file(state / "privacy" / "other.json", history=[PAID], epsilons={"1e-05": 1.0})
    (state / "privacy" / "damaged.json").write_text("half")
    (state / "privacy" / "private.lock").touch()
    return state


def history(database: SiteDatabase, study: str) -> list[tuple[float, float, int]]:
    with database.transaction() as connection:
        (text,) = connection.execute("SELECT content FROM spending WHERE study = ?", (study,)).fetchone()
    return list(Spent.from_text(text).history)


def require_all(state: Path) -> None:
    """All that the older files told is known, once."""
    database = SiteDatabase(state, SECRET, take_in)
    with pytest.raises(Refusal) as refused:
        enter(database, PEOPLE[1:])
    assert refused.value.code is RefusalCode.REPEAT
    assert ReleaseLedger(database).rounds("s") == 1
    kept = KeptAnswers(database, Policy())
    found = kept.find("77", REQUEST)
    assert (found.about, found.question) == ({"n": 7}, REQUEST.question)
    np.testing.assert_array_equal(found.reply.arrays["evaluation/x"], np.arange(6.0).reshape(2, 3), strict=True)
    for used in (1, 2):
        with pytest.raises(Refusal) as refused:
            kept.find("77", REQUEST.model_copy(update={"secure": REQUEST.secure.model_copy(update={"step": used})}))
        assert refused.value.code is RefusalCode.CONTEXT
    with pytest.raises(Refusal, match="3 answers"):
        kept.permit_overflow("greedy")
    assert history(database, "private") == [PAID, OWED]
    assert PrivacyLedger(database, "other", delta=1e-5).epsilon == 1.0
    with pytest.raises(Refusal, match="'damaged' has spent is damaged"):
        PrivacyLedger(database, "damaged", delta=1e-5).permit()
    assert {path.name for path in state.iterdir()} == {"ledger.sqlite"}


def test_an_answer_that_was_paid_for_costs_nothing_again(older, tmp_path):
    state = shutil.copytree(older, tmp_path / "state")
    spending_file(state / "privacy" / "private.json", history=[PAID, OWED], last="77/3")

    assert history(SiteDatabase(state, SECRET, take_in), "private") == [PAID, OWED]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database" * 500),
        lambda path: path.unlink(),
        lambda path: sqlite3.connect(path, isolation_level=None).execute("UPDATE contexts SET among = '{}'"),
    ],
    ids=["other bytes", "missing", "no sites"],
)
def test_files_that_cannot_be_taken_in_stay(older, tmp_path, damage):
    state = shutil.copytree(older, tmp_path / "state")
    damage(state / "sums" / "contexts.sqlite")
    before = (state / "ledger.sqlite").read_bytes()

    for _ in range(2):
        with pytest.raises(Refusal, match=r"ledger\.sqlite cannot be used.*contexts\.sqlite") as refused:
            enter(SiteDatabase(state, SECRET, take_in))
        assert refused.value.code is RefusalCode.SETUP
    assert (state / "ledger.sqlite").read_bytes() == before
    assert (state / "privacy" / "private.json").is_file()


@pytest.mark.parametrize("folder", ["sums", "privacy"])
def test_older_files_that_are_put_back_later_are_refused_and_stay(older, tmp_path, folder):
    """What they say was spent is in no database."""
    state = shutil.copytree(older, tmp_path / "state")
    require_all(state)
    shutil.copytree(older / folder, state / folder)

    for _ in range(2):
        with pytest.raises(Refusal, match=f"{folder} is of an earlier version.*remove this folder"):
            enter(SiteDatabase(state, SECRET, take_in))
    assert len(list((state / folder).iterdir())) > 1
    shutil.rmtree(state / folder)
    require_all(state)


def open_twice_and_die(state: Path, moment: int) -> None:
    """Take in the older files, and remove them; die, as by SIGKILL, before some statement that writes, or a removal."""
    moments = 0

    def one_more(statement: str = "") -> None:
        nonlocal moments
        moments += not statement.startswith(("BEGIN", "CREATE", "PRAGMA quick_check", "SELECT"))
        if moments > moment:
            os.kill(os.getpid(), signal.SIGKILL)

    connect, unlink, rmdir = sqlite3.connect, os.unlink, os.rmdir

    def watched(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(one_more)
        return connection

    sqlite3.connect = watched
    os.unlink = lambda *arguments, **options: (one_more(), unlink(*arguments, **options))
    os.rmdir = lambda *arguments, **options: (one_more(), rmdir(*arguments, **options))
    for _ in range(2):
        with SiteDatabase(state, SECRET, take_in).transaction():
            pass


def test_a_kill_at_any_moment_of_it_loses_nothing_and_counts_nothing_twice(older, tmp_path):
    """Whoever is killed begins again, also where the files are half removed."""
    fork, ends = multiprocessing.get_context("fork"), []
    for moment in range(200):
        state = shutil.copytree(older, tmp_path / f"{moment}" / "state")
        process = fork.Process(target=open_twice_and_die, args=(state, moment))
        process.start()
        process.join()
        ends.append(process.exitcode)
        require_all(state)
        if process.exitcode == 0:
            break

    assert ends[-1] == 0
    assert len(ends) > 20
    assert set(ends[:-1]) == {-signal.SIGKILL}


def test_what_was_spent_and_cannot_be_listed_is_refused_and_not_forgotten(tmp_path):
    (tmp_path / "privacy").write_text("not a folder")
    for _ in range(2):
        with pytest.raises(Refusal, match="cannot be used"), SiteDatabase(tmp_path, b"seed", take_in).transaction():
            pass
        assert (tmp_path / "ledger.sqlite").stat().st_size == 0
