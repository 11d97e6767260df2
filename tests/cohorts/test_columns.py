import numpy as np
import pandas as pd
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
    np.testing.assert_array_equal(order[columns.places], np.arange(100))
    assert columns.notices == ("further-columns",)


@pytest.mark.parametrize("size", [100, 200, 400])
def test_parcels_are_found_under_their_former_names(size):
    atlas = load_atlas(f"schaefer{size}")
    for labels, notices in ((atlas.labels, ()), (atlas.former_labels, ("former-names",))):
        order = np.random.default_rng(0).permutation(size)
        columns = match_columns([labels[place] for place in order], atlas, "x.tsv")
        np.testing.assert_array_equal(order[columns.places], np.arange(size))
        assert columns.notices == notices


def test_names_of_two_generations_in_one_file_are_refused():
    """LH_Cont_PFCl_1 was one parcel and is another now, so nothing says which of them a file means that mixes them."""
    atlas = load_atlas("schaefer400")
    names = [*atlas.labels[:200], *atlas.former_labels[200:]]
    with pytest.raises(RecordingError, match=r"parcels of schaefer400 are not among them") as caught:
        match_columns(names, atlas, "x.tsv")
    assert caught.value.code == "wrong-atlas"


@pytest.mark.parametrize("size", [100, 200, 400])
def test_xcpd_s_headers_are_read(real_data, size):
    tables = real_data / "atlases" / "tables"
    table = pd.read_csv(tables / f"atlas-4S{size + 56}Parcels_dseg.tsv", sep="\t")
    atlas = load_atlas(f"schaefer{size}")

    columns = match_columns(table["label"].tolist(), atlas, "x.tsv")
    np.testing.assert_array_equal(columns.places, np.arange(size))
    assert columns.notices == ("further-columns",)
    with pytest.raises(RecordingError, match="17-network order"):
        match_columns(table["label_17network"][:size].tolist(), atlas, "x.tsv")


@pytest.mark.parametrize("finer", ["schaefer200", "schaefer400"])
@pytest.mark.parametrize("generation", ["labels", "former_labels"])
def test_equal_names_of_another_resolution_are_refused(atlas, finer, generation):
    names = getattr(load_atlas(finer), generation)
    with pytest.raises(RecordingError, match=r"^x\.tsv: ") as caught:
        match_columns(names, atlas, "x.tsv")
    assert caught.value.code == "wrong-atlas"
    # Even where every parcel of the coarser one is among the names of the finer one.
    own = getattr(atlas, generation)
    with pytest.raises(RecordingError, match="of another resolution"):
        match_columns([*own, *sorted(set(names) - set(own))], atlas, "x.tsv")


def test_the_17_network_order_is_told_from_the_7_network_order(atlas):
    names = ["LH_VisCent_ExStr_1", "RH_ContA_IPS_1", *atlas.labels[:98]]
    for prefix in ("", "17Networks_"):
        with pytest.raises(RecordingError, match=r"^x\.tsv: .*17-network") as caught:
            match_columns([prefix + name.removeprefix("7Networks_") for name in names], atlas, "x.tsv")
        assert caught.value.code == "wrong-atlas"


def test_a_parcel_that_is_missing_or_stands_twice_is_named(atlas):
    named = r"1 of the 100 parcels of schaefer100 .* '7Networks_LH_Vis_5'"
    without = [label for label in atlas.labels if label != "7Networks_LH_Vis_5"]
    twice = ["lh-vis-1", *atlas.labels]
    for names, said, code in (
        (without, named, "wrong-atlas"),
        (twice, "names 'lh-vis-1' twice", "repeated-parcel"),
    ):
        with pytest.raises(RecordingError, match=said) as caught:
            match_columns(names, atlas, "x.tsv")
        assert caught.value.code == code
