import numpy as np
import pytest
from scipy.interpolate import BSpline

from harmonization import DesignError, HarmonizationError
from harmonization.core.splines import SmoothDesign, spline_basis

RNG = np.random.default_rng(0)


def test_basis_is_scipys_between_the_bounds():
    values = np.r_[-1.6, RNG.uniform(-1.6, 2.0, 50), 1.9999]
    knots = -1.6 + 3.6 / 7 * np.arange(-3, 11)

    basis = spline_basis(values, -1.6, 2.0, 10)

    np.testing.assert_allclose(basis, BSpline.design_matrix(values, knots, 3).toarray(), atol=1e-13)


@pytest.mark.parametrize(("edge", "outwards"), [(0.0, -1), (20.0, 1)])
def test_every_curve_goes_on_as_its_tangent_beyond_the_bounds(edge, outwards):
    steps = np.array([-1e-5, 0.0, 5.0, 30.0])

    curves = spline_basis(edge + outwards * steps, 0.0, 20.0, 8)

    slopes = np.diff(curves, axis=0) / np.diff(steps)[:, None]
    np.testing.assert_allclose(slopes[2], slopes[1], atol=1e-12)
    np.testing.assert_allclose(slopes[1], slopes[0], atol=1e-5)


@pytest.mark.parametrize("n_splines", [4, 5, 10, 23])
def test_straight_lines_are_free_and_nothing_else(n_splines):
    design = SmoothDesign(((1, -1.0, 2.0), (3, 10.0, 90.0)), n_splines)
    covariates = np.column_stack([RNG.normal(size=(60, 3)), RNG.uniform(0, 100, 60)])
    lines, penalty = design.lines(4), design.penalty(4)

    along_lines = design.expand(covariates) @ lines  # each is its column, up to a factor and a constant

    correlations = np.corrcoef(along_lines.T, covariates.T)[:4, 4:]
    np.testing.assert_allclose(np.diag(correlations), 1, atol=1e-12)
    np.testing.assert_allclose(penalty @ lines, 0, atol=1e-12)
    assert np.linalg.matrix_rank(penalty) == design.width(4) - 4


def test_the_missing_spline_takes_no_curve_away():
    values = RNG.uniform(0, 1, 80)
    every = spline_basis(values, 0.0, 1.0, 9)
    kept = np.column_stack([np.ones(80), SmoothDesign(((0, 0.0, 1.0),), 9).expand(values[:, None])])

    projection = kept @ np.linalg.lstsq(kept, every, rcond=None)[0]

    np.testing.assert_allclose(projection, every, atol=1e-12)


@pytest.mark.parametrize("min_group", [2, 3, 5, 10])
def test_rows_under_a_spline_have_company(min_group):
    ages, motion = RNG.normal(40, 12, 60), RNG.exponential(0.2, 60)
    covariates = np.column_stack([ages, motion])
    design = SmoothDesign(((0, 18.0, 90.0), (1, 0.0, 1.0)), 10)

    shared = covariates[design.shared(covariates, min_group)]

    under = np.column_stack([spline_basis(shared[:, 0], 18, 90, 10), spline_basis(shared[:, 1], 0, 1, 10)]) != 0
    rows = under.sum(axis=0)
    assert rows[rows > 0].min() >= min_group
    assert len(shared) > 20
    assert design.shared(covariates, 1).all()


@pytest.mark.parametrize(
    ("smooth", "n_splines", "kind", "message"),
    [
        (((0, 2.0, -1.6),), 10, DesignError, "bounds of column 0 are 2.0 and -1.6"),
        (((0, 1.0, 1.0),), 10, DesignError, "expected a lower and an upper"),
        (((0, -np.inf, 1.0),), 10, DesignError, "expected a lower and an upper"),
        (((0, -1.6, 2.0), (0, -1.0, 1.0)), 10, DesignError, "expected different ones"),
        (((-1, -1.6, 2.0),), 10, DesignError, "counted from 0"),
        ((), 10, DesignError, "no covariate is smooth"),
        (((0, -1.6),), 10, DesignError, "a column, a lower and an upper bound"),
        (((0.5, -1.6, 2.0),), 10, DesignError, "a column, a lower and an upper bound"),
        ("age", 10, DesignError, "a column, a lower and an upper bound"),
        (((0, -1.6, 2.0),), 3, HarmonizationError, "need at least 4"),
    ],
)
def test_refuses_what_is_no_smooth_column(smooth, n_splines, kind, message):
    with pytest.raises(kind, match=message):
        SmoothDesign.read(smooth, n_splines)
