"""A label image belongs to its atlas: the same labels, in the same places, in the same space."""

import nibabel as nib
import numpy as np
import pytest

from cohorts.atlas import Atlas, load_atlas
from cohorts.errors import AtlasError, RecordingError
from cohorts.sources.volumes import LabelImage, check_space, load_label_image, same_space
from cohorts.tables import read_text_table
from tests.support.volumes import AFFINE, SHAPE, SPACE, block_labels, save_nifti, write_labels


def bricks_table(path, atlas: Atlas):
    """Write an atlas as a table that `load_atlas` reads."""
    rows = [f"{name}\t{x}\t{y}\t{z}" for name, (x, y, z) in zip(atlas.labels, atlas.coordinates, strict=True)]
    path.write_text("\n".join(["name\tx\ty\tz", *rows]) + "\n")
    return path


@pytest.fixture
def bricks(tmp_path) -> LabelImage:
    image, table = write_labels(tmp_path)
    return load_label_image(image=image, labels=table)


def test_an_own_image_gets_its_atlas_from_its_table_and_its_voxels(bricks):
    assert bricks.atlas.name == "bricks"
    assert bricks.atlas.labels[:2] == ("brick-1", "brick-2")
    assert bricks.values == tuple(range(1, 9))
    assert bricks.space == bricks.atlas.space == SPACE
    centre_of_first_brick = AFFINE @ [1, 1, 1, 1]
    assert bricks.atlas.coordinates[0] == pytest.approx(centre_of_first_brick[:3])


@pytest.mark.parametrize(
    "text",
    [
        "index\tname\n0\tbackground\n7\tb\n3\ta\n",
        "Index,Name\r\n7,b\r\n3,a\r\n",
        "value;name\n7;b\n3;a\n",
        "index\tlabel\n7\tb\n3\ta\n",
        "label,name\n7,b\n3,a\n",
        "\ufeffindex\tname\tnetwork\n7\tb\tVis\n3\ta\tDefault\n",
    ],
    ids=["BIDS", "CSV, Windows line ends", "semicolons", "index and label", "label as number", "byte order mark"],
)
def test_tables_of_labels_are_read_in_their_own_order(tmp_path, text):
    labels = np.zeros(SHAPE, np.int16)
    labels[:3], labels[5:8] = 3, 7
    image = save_nifti(tmp_path / "own.nii.gz", labels)
    table = tmp_path / "labels.tsv"
    table.write_bytes(text.encode())
    found = load_label_image(image=image, labels=table, space=SPACE)
    assert (found.atlas.labels, found.values) == (("b", "a"), (7, 3))
    assert found.atlas.networks == (("Vis", "Default") if "network" in text else None)


def test_an_atlas_with_an_image_counts_its_labels_from_one(tmp_path, bricks):
    atlas = bricks_table(tmp_path / "bricks.tsv", bricks.atlas)
    found = load_label_image(atlas, image=bricks.path)
    assert found.values == tuple(range(1, 9))
    assert found.atlas.content_hash == load_atlas(atlas).content_hash


def test_an_atlas_with_image_and_table_finds_its_labels_by_name(tmp_path, bricks):
    atlas = bricks_table(tmp_path / "bricks.tsv", bricks.atlas)
    numbers = np.array([0, 2001, 5, 2002, 9, 40, 30, 20, 10], np.int16)
    image = save_nifti(tmp_path / "other-numbers.nii.gz", numbers[block_labels()])
    rows = [f"{number}\tbrick-{k}" for k, number in reversed(list(enumerate(numbers)))][:-1]
    table = tmp_path / "labels.tsv"
    table.write_text("\n".join(["index\tname", *rows]))
    found = load_label_image(atlas, image=image, labels=table, space=SPACE)
    assert found.values == tuple(numbers[1:])
    assert found.atlas.labels == bricks.atlas.labels


def test_another_order_of_the_same_parcels_is_refused(tmp_path, bricks):
    """What happens with the 17 networks' order of Schaefer's parcels: the numbers fit, the places do not."""
    atlas = bricks_table(tmp_path / "bricks.tsv", bricks.atlas)
    order = np.array([0, 5, 6, 7, 8, 1, 2, 3, 4], np.int16)
    image = save_nifti(tmp_path / "space-X_permuted.nii.gz", order[block_labels()])
    with pytest.raises(AtlasError, match=r"permuted.nii.gz: its parcels lie 27 mm .* another order"):
        load_label_image(atlas, image=image)


BAD_IMAGES = {
    "holds NaN": np.where(block_labels() == 1, np.nan, block_labels()).astype(np.float32),
    "negative": block_labels() - 1,
    "has 1 that its table does not know": np.where(block_labels() == 8, 9, block_labels()),
}


@pytest.mark.parametrize("reason", BAD_IMAGES)
def test_what_is_no_label_image_of_the_table_is_refused(tmp_path, reason):
    _, table = write_labels(tmp_path)
    image = save_nifti(tmp_path / "bad.nii.gz", BAD_IMAGES[reason])
    with pytest.raises(AtlasError, match=rf"^bad.nii.gz: .*{reason}"):
        load_label_image(image=image, labels=table, space=SPACE)


BAD_TABLES = {
    "no whole number": "index\tname\none\ta\n",
    "stands twice in column index": "index\tname\n1\ta\n1\tb\n",
    "names no parcels": "index\tname\n0\tbackground\n",
    "is empty": "",
    "rows of different lengths": "index\tname\n1\ta\n2\tb\tc\td\n",
    "x, y or z": "index\tname\tx\ty\tz\n" + "".join(f"{n}\t{n}\t1\tfar\t3\n" for n in range(1, 9)),
}


@pytest.mark.parametrize("reason", BAD_TABLES)
def test_a_broken_table_of_labels_is_refused(tmp_path, reason):
    image, _ = write_labels(tmp_path)
    table = tmp_path / "bad.tsv"
    table.write_text(BAD_TABLES[reason])
    with pytest.raises(AtlasError, match=reason):
        load_label_image(image=image, labels=table)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "comes without a label image"),
        ({"atlas": "schaefer400"}, r"Schaefer2018_400Parcels_7Networks_order.txt and .* Copy .* or allow"),
        ({"atlas": "a424"}, "Atlas 'a424' comes without a label image"),
        ({"atlas": "schaefer450"}, "Atlas 'schaefer450' is not known; Schaefer has 100 to 1000 parcels"),
        ({"atlas": "schaefer-1100"}, "Atlas 'schaefer-1100' is not known"),
        ({"image": "bad.nii.gz"}, "what are its parcels"),
        ({"image": "missing.nii.gz", "labels": "missing.tsv"}, "no such table of labels"),
        ({"atlas": "nonsense", "image": "missing.nii.gz"}, "Atlas 'nonsense' is not known"),
        ({"atlas": "schaefer100", "image": "missing.nii.gz"}, "missing.nii.gz: is not there"),
    ],
)
def test_an_atlas_without_what_it_takes_is_refused(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AtlasError, match=says):
        load_label_image(**arguments, folder=tmp_path)
    assert not any(tmp_path.iterdir())  # nothing is downloaded unasked


def test_an_image_of_unknown_space_is_refused(tmp_path):
    image, table = write_labels(tmp_path)
    unnamed = image.rename(tmp_path / "bricks.nii.gz")
    with pytest.raises(AtlasError, match="which template space"):
        load_label_image(image=unnamed, labels=table)


def schaefer_folder(folder, size: int, networks: int, image: np.ndarray, affine: np.ndarray, labels):
    """Lay out files as nilearn keeps them."""
    stem = folder / "schaefer_2018" / f"Schaefer2018_{size}Parcels_{networks}Networks_order"
    save_nifti(stem.with_name(f"{stem.name}_FSLMNI152_2mm.nii.gz"), image, affine)
    rows = [f"{n}\t{label}\t120\t18\t{n % 256}\t0" for n, label in enumerate(labels, start=1)]
    stem.with_suffix(".txt").write_text("\n".join(rows) + "\n")


def voxels_at(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label image with one voxel of 2 mm for each place [P, 3], counted from 1."""
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    image = np.zeros((91, 109, 91), np.int16)
    where = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), places)).astype(int)
    image[tuple(where.T)] = np.arange(1, len(places) + 1)
    return image, affine


def test_schaefer_comes_from_a_folder_without_a_network(tmp_path):
    atlas = load_atlas("schaefer100")
    schaefer_folder(tmp_path, 100, 7, *voxels_at(atlas.coordinates), atlas.labels)
    for name in ("schaefer100", "Schaefer-100", "schaefer_100"):
        found = load_label_image(name, folder=tmp_path)
        assert found.atlas.content_hash == atlas.content_hash
        assert (found.space, found.values) == (SPACE, tuple(range(1, 101)))


@pytest.mark.parametrize(("size", "networks"), [(400, 7), (200, 17)])
def test_nilearn_s_files_of_today_and_of_before_2019_are_the_atlas(real_data, tmp_path, size, networks):
    """The names are those of PennLINC's AtlasPack, which are those of the release that nilearn downloads."""
    table = read_text_table(real_data / "atlases" / "tables" / f"atlas-4S{size + 56}Parcels_dseg.tsv")[:size]
    image = nib.load(real_data / "atlases" / f"neuroparc_Schaefer{size}_res-2mm.nii.gz")
    numbers, atlas = np.asarray(image.dataobj).astype(np.int16), load_atlas(f"schaefer{size}")
    if networks == 7:
        for labels in (table["label_7network"], atlas.former_labels):
            schaefer_folder(tmp_path, size, networks, numbers, image.affine, labels)
            found = load_label_image(f"schaefer{size}", folder=tmp_path)
            assert (found.atlas.labels, found.values) == (atlas.labels, tuple(range(1, size + 1)))
        return
    in_order = np.r_[0, table["index_17network"].astype(int)].astype(np.int16)[numbers]
    labels = table.sort_values("index_17network")["label_17network"]
    schaefer_folder(tmp_path, size, 17, in_order, image.affine, labels)
    assert load_label_image(f"schaefer{size}-17", folder=tmp_path).atlas.labels == tuple(labels)
    own = next((tmp_path / "schaefer_2018").glob("*.nii.gz"))
    with pytest.raises(AtlasError, match="17 networks"):
        load_label_image(f"schaefer{size}", image=own, space=SPACE)


@pytest.mark.parametrize(("name", "size", "networks"), [("schaefer300", 300, 7), ("schaefer100-17", 100, 17)])
def test_schaefer_without_a_table_of_ours_is_made_from_nilearn_s_files(tmp_path, name, size, networks):
    grid = np.stack(np.meshgrid(range(-60, 60, 10), range(-90, 60, 10), [0, 20], indexing="ij"), -1).reshape(-1, 3)
    labels = [f"{networks}Networks_LH_Vis_{n}" for n in range(1, size + 1)]
    schaefer_folder(tmp_path, size, networks, *voxels_at(grid[:size]), labels)
    found = load_label_image(name, folder=tmp_path)
    assert found.atlas.name == name
    assert found.atlas.n_parcels == size
    assert set(found.atlas.networks) == {"Vis"}
    assert found.atlas.coordinates == pytest.approx(grid[:size].astype(float))


def test_the_real_label_images_are_their_atlases(real_data):
    for name, file in [
        ("a424", "A424_res-2mm.nii.gz"),
        ("schaefer200", "neuroparc_Schaefer200_res-2mm.nii.gz"),
        ("schaefer200", "neuroparc_Schaefer200_res-4mm.nii.gz"),
        ("schaefer400", "neuroparc_Schaefer400_res-2mm.nii.gz"),
    ]:
        found = load_label_image(name, image=real_data / "atlases" / file)
        assert found.values == tuple(range(1, found.atlas.n_parcels + 1))
        assert found.atlas.content_hash == load_atlas(name).content_hash
    with pytest.raises(AtlasError, match="has 200 that schaefer200 does not know"):
        load_label_image("schaefer200", image=real_data / "atlases" / "neuroparc_Schaefer400_res-4mm.nii.gz")


def test_spaces_are_compared_by_what_they_mean(bricks):
    for name in ("MNI152NLin6Asym", "MNI152NLin6ASym", "FSLMNI152", "MNI152"):
        assert same_space(name, SPACE)
        check_space(bricks, name, "run")
    with pytest.raises(
        RecordingError, match=r"^run: lies in space MNI152NLin2009cAsym, but .* in MNI152NLin6Asym"
    ) as e:
        check_space(bricks, "MNI152NLin2009cAsym", "run")
    assert e.value.code == "wrong-space"
    check_space(bricks, "MNI152NLin2009cAsym", "run", allow_space="MNI152NLin2009cAsym")
    with pytest.raises(RecordingError, check=lambda fault: fault.code == "no-space"):
        check_space(bricks, "", "run", allow_space="MNI152NLin2009cAsym")
