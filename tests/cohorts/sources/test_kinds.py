"""What every source refuses, also of a script that makes it without settings."""

from pathlib import Path

import pytest

from cohorts import CohortError, load_atlas
from cohorts.sources.fmriprep import FMRIPrepSource
from cohorts.sources.matrices import MatrixSource
from cohorts.sources.nifti import NiftiSource
from cohorts.sources.volumes import LabelImage
from cohorts.sources.xcpd import XCPDSource

ATLAS = load_atlas("schaefer100")
PARCELS = LabelImage(Path("image.nii.gz"), ATLAS, tuple(range(1, 101)), "MNI152NLin6Asym")
SOURCES = {FMRIPrepSource: PARCELS, NiftiSource: PARCELS, XCPDSource: ATLAS, MatrixSource: ATLAS}


@pytest.mark.parametrize("t_r", [2000.0, 0.0, -2.0, float("nan")])
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_no_repetition_time_in_seconds_is_refused(source, t_r):
    with pytest.raises(CohortError, match=r"expected seconds, above 0 and at most 20\. "):
        source(Path("nowhere"), SOURCES[source], t_r=t_r)


@pytest.mark.parametrize("columns", [(0, 100), (-99, 200), (9, 3)])
def test_columns_that_are_not_counted_from_1_are_refused(columns):
    with pytest.raises(CohortError, match=r"expected the first and the last one, counted from 1\. "):
        MatrixSource(Path("nowhere"), ATLAS, columns=columns)
