import numpy as np
import pandas as pd
import pytest

from cohorts import Cohort, CohortError, ParticipantsError, load_atlas
from cohorts.participants import load_participants
from cohorts.preparation import PreparationReport, prepare_cohort
from cohorts.quality import QualityRules
from cohorts.settings import Preparation
from cohorts.sources.matrices import MatrixSource

RNG = np.random.default_rng(0)
STRUCTURE = QualityRules()


def matrix(n_frames: int = 80, n_parcels: int = 100) -> np.ndarray:
    return RNG.normal(size=(n_frames, n_parcels)).astype(np.float32)


@pytest.fixture
def source(tmp_path):
    """Folder of the inputs, with a participants table of two people."""
    table = "participant_id\tage\tsex\tsite\tmean_fd\tt_r\n"
    table += "sub-01\t30\tF\tA\t0.1\t2.0\nsub-02\tn/a\tm\tA\tn/a\t2.0\nsub-03\t50\tM\tB\t0.3\t1.5\n"
    (tmp_path / "participants.tsv").write_text(table)
    return tmp_path


def prepared(
    path, out, *, participants=None, atlas="schaefer100", select=(), rules=STRUCTURE, **options
) -> PreparationReport:
    table = load_participants(participants) if participants else None
    ids = None if table is None else tuple(table.participants["participant_id"])
    source = MatrixSource(path, load_atlas(atlas), participants=ids, **options)
    conditions = tuple("=".join(pair) for pair in select)
    return prepare_cohort(source, out, Preparation(select=conditions), participants=table, rules=rules)


def run(source, matrices, *, out="out", participants=True, **options) -> PreparationReport:
    np.savez(source / "matrices.npz", **matrices)
    table = source / "participants.tsv" if participants else None
    return prepared(source / "matrices.npz", source / out, participants=table, **options)


def test_good_matrices_come_in_with_what_the_table_says(source):
    good = {"sub-01": matrix(), "sub-02_ses-1_run-1": matrix(), "sub-02_ses-1_run-2": matrix(), "sub-03": matrix()}

    report = run(source, good)

    cohort = Cohort.open(report.path)
    assert (report.n_recordings, report.n_participants, len(report.quarantined)) == (4, 3, 0)
    assert cohort.recordings["t_r"].tolist() == [2.0, 2.0, 2.0, 1.5]
    assert cohort.covariates()["sex"].tolist() == ["F", "M", "M"]
    np.testing.assert_array_equal(cohort.read("sub-02_ses-1_run-2").signal, good["sub-02_ses-1_run-2"])


def test_select_takes_one_site_and_counts_the_others(source):
    report = run(source, {"sub-01": matrix(), "sub-02": matrix(), "sub-03": matrix()}, select=(("site", "B"),))

    assert (report.n_recordings, report.n_not_selected) == (1, 2)
    assert Cohort.open(report.path).participants["participant_id"].tolist() == ["sub-03"]


def test_missing_parcels_are_kept_as_missing(source):
    partial = matrix() + 100
    partial[:, 3], partial[:, 4], partial[:, 5] = 0, 7, np.nan

    run(source, {"sub-01": partial})

    recording = Cohort.open(source / "out").read("sub-01")
    assert np.flatnonzero(~recording.coverage).tolist() == [3, 4, 5]
    assert (recording.signal[:, 3:6] == 0).all()
    assert recording.tsnr == pytest.approx(100, rel=0.1)


def broken_nan() -> np.ndarray:
    values = matrix()
    values[5, 5] = np.nan
    return values


def broken_infinite() -> np.ndarray:
    values = matrix()
    values[0, 0] = np.inf
    return values


def broken_coverage() -> np.ndarray:
    values = matrix()
    values[:, :30] = 0
    return values


QUARANTINED = {
    "transposed": matrix().T,
    "ambiguous": matrix(100, 100),
    "connectivity": np.corrcoef(matrix().T),
    "wrong-parcels": matrix(80, 116),
    "too-short": matrix(39),
    "nan": broken_nan(),
    "infinite": broken_infinite(),
    "constant": np.ones((80, 100)),
    "low-coverage": broken_coverage(),
    "not-a-matrix": np.zeros((4, 4, 4)),
}


@pytest.mark.parametrize(("code", "values"), QUARANTINED.items())
def test_a_bad_recording_is_quarantined_and_stops_nothing(source, code, values):
    report = run(source, {"sub-01": matrix(), "sub-02": values})

    assert report.n_recordings == 1
    assert report.quarantined["code"].tolist() == [code]
    message = report.quarantined["message"].iloc[0]
    assert message.startswith("sub-02: ")
    assert Cohort.open(report.path).quarantined["message"].tolist() == [message]


@pytest.mark.parametrize(("code", "values"), QUARANTINED.items())
def test_nothing_is_left_behind_when_no_recording_is_usable(source, code, values):
    with pytest.raises(CohortError, match="none of its 1 recordings is usable"):
        run(source, {"sub-02": values})

    assert sorted(path.name for path in source.iterdir()) == ["matrices.npz", "participants.tsv"]


def test_orientation_settles_what_is_ambiguous(source):
    square, wide = matrix(100, 100), matrix().T

    run(source, {"sub-01": square}, orientation="frames-first", out="a")
    run(source, {"sub-01": square, "sub-02": wide}, orientation="parcels-first", out="b")

    np.testing.assert_array_equal(Cohort.open(source / "a").read("sub-01").signal, square)
    np.testing.assert_array_equal(Cohort.open(source / "b").read("sub-01").signal, square.T)
    np.testing.assert_array_equal(Cohort.open(source / "b").read("sub-02").signal, wide.T)


def test_columns_pick_the_atlas_out_of_wider_matrices(source):
    wide = matrix(80, 119)

    run(source, {"sub-01": wide}, columns=(1, 100))

    np.testing.assert_array_equal(Cohort.open(source / "out").read("sub-01").signal, wide[:, :100])


def test_unknown_participants_and_unsafe_names_are_quarantined(source):
    report = run(source, {"sub-01": matrix(), "sub-99": matrix(), "../sub-02": matrix()})

    assert dict(zip(report.quarantined["recording_id"], report.quarantined["code"], strict=True)) == {
        "sub-99": "unknown-participant",
        "../sub-02": "unknown-participant",
    }
    report = run(source, {"sub-01": matrix(), "../sub-02": matrix()}, participants=False, t_r=2.0, out="other")
    assert report.quarantined["code"].tolist() == ["bad-id"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"participants": False}, "repetition time is unknown"),
        ({"t_r": 2000.0}, r"If it is in milliseconds, give 2\."),
        ({"t_r": -1.0}, "above 0"),
        ({"t_r": 3.0}, "is 3 s, and 2 s in the participants table"),
        ({"select": (("clinic", "A"),)}, "no column 'clinic'"),
        ({"select": (("site", "C"),)}, r"no participant has it \(found: A, B\)"),
        ({"atlas": "brodmann"}, "'brodmann' is not known"),
    ],
)
def test_what_is_unclear_about_the_whole_is_refused(source, options, said):
    from cohorts import AtlasError

    with pytest.raises((CohortError, AtlasError), match=said):
        run(source, {"sub-01": matrix()}, **options)

    assert not (source / "out").exists()


def test_an_existing_folder_is_never_touched(source):
    (source / "out").mkdir()
    (source / "out" / "mine.txt").write_text("keep")

    with pytest.raises(CohortError, match="exists already"):
        run(source, {"sub-01": matrix()})

    assert [path.name for path in (source / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".npy"])
def test_folders_of_matrices(source, suffix):
    folder, atlas = source / "folder", load_atlas("schaefer100")
    folder.mkdir()
    values = matrix()
    table = pd.DataFrame(values, columns=atlas.labels)
    separator = "\t" if suffix == ".tsv" else ","
    if suffix == ".npy":
        np.save(folder / "sub-01.npy", values)
        np.save(folder / "sub-02.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        table[table.columns[::-1]].to_csv(folder / f"sub-01{suffix}", sep=separator, index=False)  # other order
        (folder / f"sub-02{suffix}").write_text(f"a{separator}b\n1{separator}left\n")
        np.savetxt(folder / f"sub-03{suffix}", values, delimiter=separator)

    report = prepared(folder, source / "out", participants=source / "participants.tsv")

    np.testing.assert_allclose(Cohort.open(report.path).read("sub-01").signal, values, rtol=1e-6)
    assert report.quarantined["recording_id"].tolist() == ["sub-02"]
    assert report.quarantined["code"].iloc[0] in {"unreadable", "text"}


def test_a_header_of_another_atlas_is_refused_and_one_that_counts_is_taken(source):
    folder = source / "folder"
    folder.mkdir()
    values = matrix()
    labels = [label.replace("7Networks", "17Networks") for label in load_atlas("schaefer100").labels]
    pd.DataFrame(values, columns=labels).to_csv(folder / "sub-01.tsv", sep="\t", index=False)
    pd.DataFrame(values, columns=[f"ROI_{n + 1}" for n in range(100)]).to_csv(
        folder / "sub-02.tsv", sep="\t", index=False
    )

    report = prepared(folder, source / "out", participants=source / "participants.tsv")

    assert report.quarantined["code"].tolist() == ["wrong-atlas"]
    np.testing.assert_allclose(Cohort.open(report.path).read("sub-02").signal, values, rtol=1e-6)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("id\tage\nsub-01\t3\n", "no column participant_id"),
        ("participant_id\tage\nsub-01\t30\nsub-01\t31\n", "'sub-01' stands twice"),
        ("participant_id\tage\nsub-01\tthirty\n", "row 2 has age 'thirty'"),
        ("participant_id\tage\nsub-01\t360\n", "a number in years"),
        ("participant_id\tsex\nsub-01\t1\n", "cannot be guessed"),
        ("participant_id\tt_r\nsub-01\t2000\n", "a number in seconds"),
        ("participant_id\tage\n\t3\n", "row 2 has no participant_id"),
        ("", "cannot be read as a table"),
    ],
)
def test_broken_participants_tables_are_refused(source, table, said):
    (source / "participants.tsv").write_text(table)

    with pytest.raises(ParticipantsError, match=said):
        run(source, {"sub-01": matrix()}, t_r=2.0)


def test_tables_with_windows_line_ends_and_marks_are_read(source):
    (source / "participants.tsv").write_bytes("\ufeffparticipant_id\tage\r\nsub-01\t30\r\n".encode())

    run(source, {"sub-01": matrix()}, t_r=2.0)

    assert Cohort.open(source / "out").covariates()["age"].tolist() == [30.0]


@pytest.mark.parametrize(("content", "said"), [(b"", "not a readable"), (b"PK\x03\x04 junk", "not a readable")])
def test_damaged_archives_are_refused(source, content, said):
    (source / "bad.npz").write_bytes(content)

    with pytest.raises(CohortError, match=said):
        prepared(source / "bad.npz", source / "out", t_r=2.0)


def test_real_recordings_come_in(real_data, tmp_path):
    """Three ABIDE sites: 36 all-zero parcels, and one of millionths, in 13 people, who all stay."""
    totals = []
    for site in ("PITT", "OLIN", "OHSU"):
        report = prepared(
            real_data / "real" / "abide_pitt_olin_ohsu_aal116.npz",
            tmp_path / site,
            atlas="aal116",
            participants=real_data / "real" / "abide_pitt_olin_ohsu_participants.tsv",
            select=(("site", site),),
        )
        recordings = Cohort.open(report.path).recordings
        missing = recordings["n_missing_parcels"]
        totals.append((len(recordings), int(missing.sum()), int((missing > 0).sum()), len(report.quarantined)))

    assert np.sum(totals, axis=0).tolist() == [100, 37, 13, 0]


def test_rules_can_be_loosened(source):
    report = run(source, {"sub-01": matrix(30)}, rules=QualityRules(min_frames=20))

    assert report.n_recordings == 1
