import numpy as np
import pytest

from cohorts.atlas import load_atlas
from cohorts.columns import match_columns
from cohorts.errors import RecordingError

SUBCORTICAL = ["LH-Pu", "RH-Pu", "LH_Thalamus_1", "Cerebellar_Region1", "Cerebellar_Region10"]


@pytest.fixture(scope="module")
def atlas():
    return load_atlas("schaefer100")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.removeprefix("7Networks_"),
        str.upper,
        lambda name: name.replace("_", "-"),
        lambda name: f"{name}_hash-1f3c9a",
    ],
)
def test_parcels_are_found_by_name_in_any_order(atlas, rename):
    names = [rename(label) for label in atlas.labels] + SUBCORTICAL
    order = np.random.default_rng(0).permutation(len(names))
    columns = match_columns([names[place] for place in order], atlas, "x.tsv")
    np.testing.assert_array_equal(order[columns], np.arange(100))


@pytest.mark.parametrize("finer", ["schaefer200", "schaefer400"])
def test_equal_names_of_another_resolution_are_refused(atlas, finer):
    names = load_atlas(finer).labels
    with pytest.raises(RecordingError, match=r"^x\.tsv: ") as caught:
        match_columns(names, atlas, "x.tsv")
    assert caught.value.code == "wrong-atlas"
    # Even where every parcel of the coarser one is among the names of the finer one.
    with pytest.raises(RecordingError, match="of another resolution"):
        match_columns([*atlas.labels, *sorted(set(names) - set(atlas.labels))], atlas, "x.tsv")


def test_the_17_network_order_is_told_from_the_7_network_order(atlas):
    names = ["LH_VisCent_ExStr_1", "RH_ContA_IPS_1", *atlas.labels[:98]]
    for prefix in ("", "17Networks_"):
        with pytest.raises(RecordingError, match=r"^x\.tsv: .*17-network") as caught:
            match_columns([prefix + name.removeprefix("7Networks_") for name in names], atlas, "x.tsv")
        assert caught.value.code == "wrong-atlas"


def test_a_missing_parcel_is_named(atlas):
    with pytest.raises(RecordingError, match=r"1 of the 100 parcels of schaefer100 .* '7Networks_LH_Vis_5'") as caught:
        match_columns([label for label in atlas.labels if label != "7Networks_LH_Vis_5"], atlas, "x.tsv")
    assert caught.value.code == "wrong-atlas"


def test_a_parcel_that_stands_twice_is_named(atlas):
    with pytest.raises(RecordingError, match="names 'lh-vis-1' twice") as caught:
        match_columns(["lh-vis-1", *atlas.labels], atlas, "x.tsv")
    assert caught.value.code == "repeated-parcel"
