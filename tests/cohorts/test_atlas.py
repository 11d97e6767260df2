import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cohorts import AtlasError, atlas_names, load_atlas

SIZES = {"schaefer100": 100, "schaefer200": 200, "schaefer400": 400, "a424": 424, "aal116": 116}


@pytest.mark.parametrize(("name", "n_parcels"), SIZES.items())
def test_known_atlases_lie_in_the_head(name, n_parcels):
    atlas = load_atlas(name)

    assert atlas.n_parcels == len(set(atlas.labels)) == n_parcels
    assert atlas.coordinates.shape == (n_parcels, 3)
    assert (np.abs(atlas.coordinates) < 115).all()  # MNI millimetres, not voxels or metres
    assert np.ptp(atlas.coordinates, axis=0).min() > 80


@pytest.mark.parametrize("spelling", ["AAL-116", "aal_116", "AAL116"])
def test_spelling_of_names_is_forgiven(spelling):
    assert load_atlas(spelling).name == "aal116"


def test_hashes_tell_atlases_and_orders_apart(tmp_path):
    atlas = load_atlas("schaefer100")
    rows = [[label, *place] for label, place in zip(atlas.labels, atlas.coordinates.tolist(), strict=True)]
    table = tmp_path / "mine.csv"

    def hash_of(some_rows: list[list[object]]) -> str:
        table.write_text("name,x,y,z\n" + "\n".join(",".join(map(str, row)) for row in some_rows))
        return load_atlas(table).content_hash

    assert hash_of(rows) == atlas.content_hash
    assert hash_of(rows[::-1]) != atlas.content_hash
    assert atlas_names() == sorted(SIZES)  # all of which are tried here
    assert len({load_atlas(name).content_hash for name in SIZES}) == len(SIZES)


def test_json_comes_back_the_same(tmp_path):
    atlas = load_atlas("schaefer200")
    (tmp_path / "copy.json").write_text(atlas.to_json())
    copy = load_atlas(tmp_path / "copy.json")

    assert (copy.content_hash, copy.former_hash) == (atlas.content_hash, atlas.former_hash)
    assert (copy.networks, copy.license, copy.name) == (atlas.networks, atlas.license, atlas.name)


@pytest.mark.parametrize(("size", "with_subcortex"), [(100, 156), (200, 256), (400, 456)])
def test_schaefer_s_names_are_those_that_xcpd_and_nilearn_have(real_data, size, with_subcortex):
    """Of PennLINC's AtlasPack, whose column label_7network holds the names of the release that nilearn downloads."""
    path = real_data / "atlases" / "tables" / f"atlas-4S{with_subcortex}Parcels_dseg.tsv"
    table = pd.read_csv(path, sep="\t")[:size]
    atlas = load_atlas(f"schaefer{size}")

    assert list(atlas.labels) == table["label_7network"].tolist()
    assert [label.removeprefix("7Networks_") for label in atlas.labels] == table["label"].tolist()
    assert list(atlas.networks) == table["network_label"].tolist()


@pytest.mark.parametrize(
    ("size", "components", "numbers", "known"),
    [
        (100, 16, 3, {22: ("LH_DorsAttn_PrCv_1", "LH_DorsAttn_FEF_1"), 23: ("LH_DorsAttn_FEF_1", "LH_DorsAttn_FEF_2")}),
        (200, 29, 7, {65: ("LH_Cont_OFC_1", "LH_Cont_PFCl_1"), 180: ("RH_Cont_PFCmp_1", "RH_Cont_PFCmp_3")}),
        (400, 58, 8, {134: ("LH_Cont_OFC_1", "LH_Cont_PFCl_1"), 135: ("LH_Cont_PFCl_1", "LH_Cont_PFCl_2")}),
    ],
)
def test_former_names_are_those_that_the_authors_list(size, components, numbers, known):
    """Counts and examples of CBIG's Update_20190916_README.md and the lists beside it."""
    atlas = load_atlas(f"schaefer{size}")
    renamed = [
        (label.rpartition("_")[0] == former.rpartition("_")[0])
        for label, former in zip(atlas.labels, atlas.former_labels, strict=True)
        if label != former
    ]

    assert (renamed.count(False), renamed.count(True)) == (components, numbers)
    assert len(set(atlas.former_labels)) == size
    for index, names in known.items():
        found = (atlas.labels[index - 1], atlas.former_labels[index - 1])
        assert found == tuple(f"7Networks_{name}" for name in names)


def test_a_table_from_before_the_parcels_were_renamed_is_the_atlas_of_today(tmp_path):
    atlas = load_atlas("schaefer400")
    before = replace(atlas, labels=atlas.former_labels, former_labels=None)
    # What cohorts and studies were made with until then.
    assert before.content_hash == "4293406761c40eabd63aacc41021838c1dd686b1a0db9726392560e0be527dd9"

    (tmp_path / "atlas.json").write_text(before.to_json())
    assert load_atlas(tmp_path / "atlas.json") is not before
    assert load_atlas(tmp_path / "atlas.json").labels == atlas.labels
    (tmp_path / "atlas.json").write_text(replace(before, coordinates=before.coordinates + 1).to_json())
    assert load_atlas(tmp_path / "atlas.json").labels == atlas.former_labels


def test_unknown_names_and_files_are_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"parcels": 3}))
    with pytest.raises(AtlasError, match="is not an atlas table"):
        load_atlas(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["a/b", "../../x", "", "two\nlines", 3, "a" * 201])
def test_a_name_that_is_no_part_of_a_path_is_refused(tmp_path, name):
    table = json.loads(load_atlas("schaefer100").to_json())
    (tmp_path / "x.json").write_text(json.dumps({**table, "name": name}))
    with pytest.raises(AtlasError, match="expected 1 to 200 signs, none of them '/'"):
        load_atlas(tmp_path / "x.json")
