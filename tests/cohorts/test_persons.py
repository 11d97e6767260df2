import random
from collections.abc import Iterator

import pandas as pd
import pytest

from cohorts import CohortError, ParticipantsError
from cohorts.participants import load_participants
from cohorts.persons import PersonPattern, look_like_visits

VISITS = {
    "sub{n:02}_ses{v}": ("1", "2"),
    "P{n:02}_V{v}": ("1", "2"),
    "P{n:02}V{v}": ("1", "2"),
    "sub-{n:02}{v}": ("pre", "post"),
    "{n:02}_{v}": ("baseline", "followup"),
    "{v}_{n:03}": ("test", "retest"),
    "S{n}-T{v}": ("1", "2", "3"),
    "ses{v}_sub{n:02}": ("1", "2"),
    "OAS1_{n:04}_MR{v}": ("1", "2"),
    "{n:07}_20227_{v}_0": ("2", "3"),
    "{n:03}.{v}": ("1", "2"),
    "{n:03}{v}": ("a", "b"),
    "K{n:02}_{v}": ("W0", "W6", "W12"),
    "sub-{n:02}ses{v}": ("01", "02"),
    "P{n:02}_{v}": ("20190304", "20200511"),
    "Q{n:02}_{v}": ("2019-03-04", "2020-05-11"),
    "site01_{n:03}_{v}": ("V1", "V2"),
    "002_S_{n:04}_{v}": ("bl", "m06", "m12"),
    "R{n:02}_{v}": ("first", "second"),
}


@pytest.mark.parametrize(("form", "names"), VISITS.items(), ids=VISITS)
def test_ids_of_visits_are_noticed_and_a_pattern_that_finds_the_people_is_proposed(form, names):
    ids = [form.format(n=n, v=name) for n in range(1, 9) for name in names]

    visits = look_like_visits(ids)

    assert (visits.n_ids, visits.n_people) == (len(ids), 8)
    found = [PersonPattern(visits.pattern).find(one) for one in ids]
    assert len({person for person, _ in found}) == 8
    assert len(set(found)) == len(ids)
    assert not any(one in str(visits) for one in ids)
    assert "2019" not in str(visits)


@pytest.mark.parametrize("again", ["P{n:02}_retest", "P{n:02}_2", "P{n:02}b", "P{n:02}_ses-2"])
def test_a_first_visit_that_is_not_named_is_noticed(again):
    ids = [f"P{n:02}" for n in range(1, 9)]

    visits = look_like_visits([*ids, again.format(n=3), again.format(n=5)])

    assert (visits.n_ids, visits.n_people) == (4, 2)


@pytest.mark.parametrize(
    ("ids", "again"),
    [
        ([f"P{n:02}_V1" for n in range(40)], ["P03_V2", "P09_V2", "P11_V2"]),
        ([f"P{n:02}_ses-1" for n in range(1, 9)], ["P03_ses-2"]),
        (["P01", "P02", "P03"], ["P03_retest"]),
    ],
)
def test_few_people_who_came_again_are_noticed_where_ids_say_visit(ids, again):
    assert look_like_visits(ids) is None
    assert look_like_visits([*ids, *again]).n_people == len(again)


def real_styles() -> Iterator[tuple[str, list[str]]]:
    """Ids as public data sets have them, each of another person."""
    draw = random.Random(0)
    letters = "0123456789ABCDEFGHJKLMNPRTUVWXYZ"
    yield "ABIDE", [f"sub-{50002 + n}" for n in range(500)]
    yield "ABIDE files", [f"UM_{s}_005{n:04}" for s in (1, 2) for n in range(s * 300, s * 300 + 60)]
    yield "HCP", [str(100307 + 37 * n) for n in range(1000)]
    yield "ABCD", ["sub-NDARINV" + "".join(draw.choices(letters, k=8)) for _ in range(3000)]
    yield "ADNI", [f"{draw.randint(1, 140):03}_S_{draw.randint(1, 6000):04}" for _ in range(800)]
    yield "OASIS-3", [f"OAS3{n:04}" for n in range(1, 1000)]
    yield "NKI", [f"A{n:08}" for n in draw.sample(range(90_000), 500)]
    yield "Cam-CAN", [f"CC{n}" for n in draw.sample(range(110_000, 720_000), 600)]
    yield "sites and numbers", [f"site{s:02}_{n:03}" for s in range(1, 15) for n in range(1, 8)]
    yield "sites and subjects", [f"site{s:02}_s{n:02}" for s in range(1, 15) for n in range(1, 8)]
    yield "clinics", [f"{clinic}_{n:03}" for clinic in ("NYU", "UCLA", "PITT") for n in range(1, 4)]
    yield "groups", [f"{group}_{n:02}" for group in ("con", "pat") for n in range(1, 9)]
    yield "groups, run together", [f"sub-{group}{n:02}" for group in ("con", "pat") for n in range(1, 25)]
    yield "one visit each", [f"P{n:02}_V1" for n in range(40)]
    yield "numbers", [str(n) for n in range(1, 60)]
    yield "many numbers", [f"{n:05}" for n in range(10_000)]
    yield "pseudonyms", [f"sub-{draw.getrandbits(64):016x}" for _ in range(3000)]
    yield "scans as people", [f"oslo_scan{n}" for n in range(30)]
    yield "two", ["ses1", "ses2"]


@pytest.mark.parametrize("ids", [pytest.param(ids, id=style) for style, ids in real_styles()])
def test_ids_that_only_share_letters_are_left_alone(ids):
    assert look_like_visits(ids) is None


def test_real_ids_are_left_alone(real_data):
    for name in ("abide_dev_participants.tsv", "abide_pitt_olin_ohsu_participants.tsv"):
        assert look_like_visits(pd.read_csv(real_data / "real" / name, sep="\t", dtype="str")["participant_id"]) is None


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        (r"(P\d+)_V(\d+)", "P01_V2_rois_aal", ("P01", "2")),
        (r"^(P\d+)", "sub-P01V2_task-rest", ("sub-P01", "")),
        (r"(?P<session>ses\d)_(?P<person>.+)", "ses1_sub01", ("sub01", "ses1")),
        (r"^(\w+?)(?:_V(\d))?$", "P01", ("P01", "")),
        (r"(P\d+)_V(\d+)", "Q01_V2", None),
        (r"(P\d*)?", "nobody", None),
    ],
)
def test_a_pattern_finds_person_and_session(pattern, name, found):
    assert PersonPattern(pattern).find(name) == found


@pytest.mark.parametrize(("pattern", "said"), [("(P", "is no regular expression"), ("P.*", "has no group")])
def test_a_pattern_that_finds_nobody_is_refused(pattern, said):
    with pytest.raises(CohortError, match=f"--participant-pattern .*{said}"):
        PersonPattern(pattern)


TABLE = "participant_id\tperson\tage\nP1_V1\tA\t30\nP1_V2\tA\t32\nP2_V1\tB\t50\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text(TABLE)
    return path


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [({"pattern": PersonPattern(r"(P\d)_V(\d)")}, "P1", "P2"), ({"person_column": "person"}, "A", "B")],
)
def test_a_table_of_visits_becomes_one_of_people(path, options, first, second):
    loaded = load_participants(path, **options)

    assert loaded.participants[["participant_id", "age"]].to_numpy().tolist() == [[first, 30], [second, 50]]
    visits = [[first, "1", 30], [first, "2", 32], [second, "1", 50]]
    assert loaded.sessions[["participant_id", "session_id", "age"]].to_numpy().tolist() == visits
    assert loaded.scans == {"P1_V1": (first, "1"), "P1_V2": (first, "2"), "P2_V1": (second, "1")}
    assert ("person" in loaded.sessions) == ("pattern" in options)  # a column that names people is dropped


def test_a_table_of_people_stays_one_where_the_pattern_is_of_recordings(path):
    path.write_text("participant_id\tage\nP1\t30\nP2\t50\n")

    loaded = load_participants(path, pattern=PersonPattern(r"(P\d)_V(\d)"))

    assert loaded.participants["participant_id"].tolist() == ["P1", "P2"]
    assert loaded.scans == {}


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        (TABLE, {"pattern": PersonPattern(r"(P\d)")}, "'P1' stands twice.*second group of --participant-pattern"),
        (TABLE + "Q7\tC\t1\n", {"pattern": PersonPattern(r"(P\d)_V(\d)")}, "row 5 has the id 'Q7', which"),
        (TABLE, {"person_column": "who"}, "--participant-column who: is no column"),
        (TABLE.replace("B", "n/a"), {"person_column": "person"}, "row 4 has no person"),
    ],
)
def test_rows_of_nobody_are_named(path, table, options, said):
    path.write_text(table)

    with pytest.raises(ParticipantsError, match=said):
        load_participants(path, **options)
