import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from cohorts import Recording, load_atlas
from cohorts.quality import QualityRules
from cohorts.report import figures
from cohorts.report.group import MEASURES
from cohorts.report.style import COLOURS

RULES = QualityRules.published()


def drawn(signal, coverage=None, displacement=(), censored=(), networks=None):
    """Axes of motion, DVARS, carpet and connectivity."""
    traces = {"framewise_displacement": np.asarray(displacement, float), "censored": np.asarray(censored, bool)}
    coverage = np.ones(signal.shape[1], bool) if coverage is None else coverage
    figure = figures.recording(Recording("x", signal, 2.0, coverage=coverage, **traces), networks, RULES)
    return [figure.axes[index] for index in range(4)]


def test_dropped_frames_are_gaps_at_the_time_when_they_were_acquired():
    signal = np.random.default_rng(0).normal(size=(57, 12))
    censored = np.zeros(60, bool)
    censored[[20, 21, 40]] = True
    coverage = np.arange(12) != 3

    _, dvars, carpet, _ = drawn(signal, coverage, np.full(60, 0.1), censored)

    image = np.ma.filled(carpet.images[0].get_array(), np.nan)
    assert image.shape == (12, 60)
    assert np.flatnonzero(np.isnan(image[0])).tolist() == [20, 21, 40]
    assert np.isnan(image[3]).all()
    assert np.flatnonzero(np.isnan(dvars.lines[0].get_ydata())).tolist() == [0, 20, 21, 40]
    assert carpet.get_xlim() == (0, 120)


def test_interpolated_frames_stay_and_are_marked_above_the_motion_trace():
    signal = np.random.default_rng(0).normal(size=(60, 12))
    censored = np.arange(60) == 30
    trace = np.full(60, 0.1)
    trace[30] = 50

    motion, _, carpet, _ = drawn(signal, None, trace, censored)

    assert np.isfinite(np.ma.filled(carpet.images[0].get_array(), np.nan)).all()
    assert [line.get_xdata().tolist() for line in motion.lines if line.get_marker() in ("|", "^")] == [[60.0], [60.0]]
    assert motion.get_ylim()[1] < 5  # one jump does not flatten the rest
    assert motion.get_title(loc="right") == "1 of 60 frames censored"


def test_parcels_are_drawn_in_order_of_their_networks():
    signal = np.random.default_rng(0).normal(size=(50, 6))
    networks = ("Vis", "Default", "Vis", "Default", "Vis", "Default")

    _, _, carpet, matrix = drawn(signal, networks=networks)

    order = [0, 2, 4, 1, 3, 5]
    scaled = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    np.testing.assert_allclose(carpet.images[0].get_array(), scaled.T[order])
    np.testing.assert_allclose(matrix.images[0].get_array(), np.corrcoef(signal.T)[np.ix_(order, order)])
    assert [label.get_text() for label in carpet.get_yticklabels()] == ["Vis", "Default"]
    assert carpet.get_yticks().tolist() == [1.5, 4.5]


def test_unknown_motion_is_said():
    motion, *_ = drawn(np.random.default_rng(0).normal(size=(50, 6)))

    assert [text.get_text() for text in motion.texts] == ["motion over time not known"]


def table(**columns: object) -> pd.DataFrame:
    known = dict.fromkeys((measure.column for measure in MEASURES), np.nan)
    return pd.DataFrame({**known, **columns}, index=range(40))


def test_a_histogram_shows_its_threshold_and_what_is_beyond_it():
    figure = figures.distributions(table(mean_fd=np.linspace(0.05, 0.8, 40), coverage=1.0), RULES)
    motion, censored = figure.axes[0], figure.axes[1]

    assert motion.lines[-1].get_xdata() == [0.55, 0.55]
    beyond = [bar for bar in motion.patches if bar.get_x() + bar.get_width() / 2 > 0.55]
    assert beyond
    for bar in motion.patches:
        assert (bar.get_facecolor()[:3] == to_rgb(COLOURS[5])) == (bar in beyond)
    assert sum(bar.get_height() for bar in motion.patches) == 40
    assert [text.get_text() for text in censored.texts] == ["not known"]
    coverage = figure.axes[6]
    assert [text.get_text() for text in coverage.texts] == ["← at least 80%"]
    assert coverage.get_xlim()[1] < 100.1


def test_qc_fc_numbers_of_nothing_and_of_distance_alone():
    rng = np.random.default_rng(0)
    distance = rng.uniform(5, 150, size=20_000)
    motion = rng.normal(size=30)
    features = rng.normal(size=(30, 20_000))
    scaled = [(x - x.mean(axis=0)) / np.linalg.norm(x - x.mean(axis=0), axis=0) for x in (motion, features)]
    nothing = figures.qc_fc_numbers(scaled[0] @ scaled[1], distance, 30)

    assert nothing["significant"] == pytest.approx(0.05, abs=0.006)
    assert nothing["distance"] == pytest.approx(0, abs=0.02)
    assert nothing["median"] == pytest.approx(0.6745 / np.sqrt(29), rel=0.05)
    falls = figures.qc_fc_numbers(np.append(0.4 - distance / 400, np.nan), np.append(distance, 10), 30)
    assert falls["distance"] == pytest.approx(-1)


def test_nothing_is_drawn_of_nothing():
    distance = np.arange(6.0)

    assert figures.distributions(table().iloc[:0], RULES) is None
    assert figures.mean_connectivity(np.full((4, 4), np.nan), distance, None) is None
    assert figures.qc_fc(np.full(6, np.nan), distance, 20) is None


def test_the_least_covered_parcels_lie_in_front():
    atlas = load_atlas("schaefer100")
    coverage = np.linspace(0.55, 1, 100)
    points = figures.coverage_map(atlas.coordinates, coverage).axes[0].collections[0]

    np.testing.assert_allclose(points.get_array(), 100 * coverage[::-1])
    np.testing.assert_allclose(points.get_offsets(), atlas.coordinates[::-1, :2])
    assert points.get_clim() == (50, 100)
