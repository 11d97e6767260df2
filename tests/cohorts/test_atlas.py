import json

import numpy as np
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


def test_every_table_is_tried_here():
    assert atlas_names() == sorted(SIZES)


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
    assert len({load_atlas(name).content_hash for name in SIZES}) == len(SIZES)


def test_json_comes_back_the_same(tmp_path):
    atlas = load_atlas("schaefer200")
    (tmp_path / "copy.json").write_text(atlas.to_json())
    copy = load_atlas(tmp_path / "copy.json")

    assert copy.content_hash == atlas.content_hash
    assert (copy.networks, copy.license, copy.name) == (atlas.networks, atlas.license, atlas.name)


@pytest.mark.parametrize(
    "content",
    ["", "name,x,y\na,1,2\n", "name,x,y,z\na,1,2,3\na,4,5,6\n", "name,x,y,z\na,1,2,nan\n", "name,x,y,z\na,left,2,3\n"],
)
def test_broken_tables_are_refused(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)

    with pytest.raises(AtlasError, match=r"t\.csv: is not an atlas table"):
        load_atlas(tmp_path / "t.csv")


def test_unknown_names_and_files_are_refused(tmp_path):
    with pytest.raises(AtlasError, match="'power264' is not known"):
        load_atlas("power264")
    with pytest.raises(AtlasError, match="no such atlas table"):
        load_atlas(tmp_path / "none.json")
    (tmp_path / "x.json").write_text(json.dumps({"parcels": 3}))
    with pytest.raises(AtlasError, match="is not an atlas table"):
        load_atlas(tmp_path / "x.json")
