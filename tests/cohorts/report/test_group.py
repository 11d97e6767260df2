from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cohorts.report.group import FEWEST_FOR_QC_FC, MEASURES, read_group, with_lengths, worth_a_look

UPPER = np.triu_indices(100, 1)


def z_of(recording) -> np.ndarray:
    return np.arctanh(np.corrcoef(recording.signal.T.astype(float))[UPPER])


def test_every_participant_counts_once_in_the_mean(shelf, recorded):
    runs = [recorded("a", recording_id="a_run-1"), recorded("a", common=0.9, recording_id="a_run-2"), recorded("b")]
    shelf = shelf(runs)

    group = read_group(shelf.recordings, shelf.read, shelf.atlas)

    expected = np.tanh(((z_of(runs[0]) + z_of(runs[1])) / 2 + z_of(runs[2])) / 2)
    np.testing.assert_allclose(group.connectivity[UPPER], expected, atol=1e-9)
    np.testing.assert_array_equal(group.connectivity, group.connectivity.T)
    assert (group.n_recordings, group.n_participants) == (3, 2)
    i, j = UPPER[0][500], UPPER[1][500]
    assert group.distance[500] == pytest.approx(np.linalg.norm(shelf.atlas.coordinates[i] - shelf.atlas.coordinates[j]))


def test_a_missing_parcel_counts_where_it_was_seen(shelf, recorded):
    covered = np.arange(100) != 7
    seen, unseen = recorded("a"), recorded("b", coverage=covered)
    unseen.signal[:, 7] = 0
    gone = np.arange(100) != 9
    shelf = shelf([replace(seen, coverage=gone), replace(unseen, coverage=covered & gone)])

    group = read_group(shelf.recordings, shelf.read, shelf.atlas)

    assert group.coverage[[6, 7, 9]].tolist() == [1.0, 0.5, 0.0]
    np.testing.assert_allclose(group.connectivity[6, 7], np.corrcoef(seen.signal.T.astype(float))[6, 7], atol=1e-9)
    assert np.isnan(group.connectivity[9, :9]).all()


def test_qc_fc_is_the_correlation_over_participants(shelf, recorded):
    motion = np.random.default_rng(0).gamma(2, 0.1, size=14)
    runs = [recorded(f"p{n:02d}", common=3 * fd, mean_fd=float(fd)) for n, fd in enumerate(motion)]
    runs[3] = replace(runs[3], coverage=np.arange(100) > 0)
    shelf = shelf(runs)

    group = read_group(shelf.recordings, shelf.read, shelf.atlas)

    z = np.stack([z_of(run) for run in runs])
    pairs = np.column_stack([z, motion])
    everyone = np.corrcoef(pairs, rowvar=False)[-1, :-1]
    others = np.corrcoef(np.delete(pairs, 3, axis=0), rowvar=False)[-1, :-1]
    np.testing.assert_allclose(group.qc_fc, np.where(UPPER[0] == 0, others, everyone), atol=1e-8)
    assert group.n_qc_fc == 14
    assert np.median(group.qc_fc) > 0.3


def test_qc_fc_needs_enough_participants_whose_motion_is_known(shelf, recorded):
    known = FEWEST_FOR_QC_FC - 1
    shelf = shelf([recorded(f"p{n}", mean_fd=0.1 * n if n < known else np.nan) for n in range(known + 3)])

    group = read_group(shelf.recordings, shelf.read, shelf.atlas)

    assert (group.qc_fc.size, group.n_qc_fc) == (0, known)


def test_of_a_large_cohort_whole_participants_are_read_up_to_the_limit(shelf, recorded):
    shelf = shelf([recorded(f"p{n // 2}", recording_id=f"p{n // 2}_run-{n % 2}") for n in range(40)])
    opened = []

    group = read_group(shelf.recordings, lambda name: opened.append(name) or shelf.read(name), shelf.atlas, most=7)

    assert group.n_recordings == len(opened) == len(set(opened)) == 8
    assert group.n_participants == 4
    assert len({name.partition("_")[0] for name in opened}) == 4


def measured(**columns: list[float]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    table = pd.DataFrame({"recording_id": [f"r{i}" for i in range(n)]})
    return table.assign(**{measure.column: np.nan for measure in MEASURES}).assign(**columns)


def test_the_worst_of_every_measure_comes_before_the_second_worst():
    table = measured(mean_fd=[0.1, 0.9, 0.8, 0.2, 0.1], tsnr=[90, 80, 70, 20, 90], coverage=[1.0] * 5)

    assert worth_a_look(table, 3) == {
        "r1": ["highest mean FD"],
        "r3": ["lowest temporal SNR"],
        "r2": ["second highest mean FD", "second lowest temporal SNR"],
    }
    assert list(worth_a_look(table, 1)) == ["r1"]
    assert worth_a_look(measured(mean_fd=[0.1, 0.1], dvars=[1.0, 1.0]), 5) == {}


def test_length_counts_what_was_neither_dropped_nor_interpolated():
    dropped = {"n_frames": 90, "n_acquired": 100, "n_censored": 10, "t_r": 2.0, "n_missing_parcels": 5}
    interpolated = {**dropped, "n_frames": 100}
    table = with_lengths(pd.DataFrame([dropped, interpolated]), 100)

    assert table["minutes"].tolist() == [3.0, 3.0]
    assert table["coverage"].tolist() == [0.95, 0.95]


def test_measures_in_words():
    texts = {measure.column: measure.text for measure in MEASURES}

    assert texts["fd_over"](0.217) == "21.7%"
    assert texts["mean_fd"](0.123) == "0.12 mm"
    assert texts["fc_distance_slope"](-0.381) == "−0.38 z / 100 mm"
    assert texts["tsnr"](np.nan) == "not known"
