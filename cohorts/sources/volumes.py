"""Label images: where the parcels of an atlas lie in a template's space, voxel by voxel."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from nilearn.datasets import fetch_atlas_schaefer_2018
from nilearn.datasets.utils import get_data_dirs
from scipy import ndimage

from cohorts.atlas import Atlas, load_atlas
from cohorts.columns import generation, plain_name
from cohorts.errors import AtlasError, RecordingError
from cohorts.sources.images import affine_of, read_header, read_volume
from cohorts.tables import read_text_table

MAX_CENTROID_DISTANCE = 8.0
"""Largest median distance, mm, between an atlas's coordinates and its label image's centroids. A424's coordinates lie
3 mm from its own image's; parcels in another order or of another atlas lie tens of millimetres away."""

MAX_LABEL = 2**31 - 1
_ALIASES = {"fslmni152": "mni152nlin6asym", "mni152": "mni152nlin6asym"}
"""Names of spaces that mean the same: FSL's MNI152 is TemplateFlow's MNI152NLin6Asym."""

_SCHAEFER = re.compile(r"schaefer(\d+)(?:-(7|17)(?:networks)?)?")
_INDEX_COLUMNS = ("index", "value", "number", "id")
_NAME_COLUMNS = ("name", "label", "region")


@dataclass(frozen=True)
class LabelImage:
    """An image whose voxels hold the labels of an atlas's parcels."""

    path: Path
    """A 3D NIfTI file of whole numbers; 0 is background."""
    atlas: Atlas
    """What the parcels are, in the order of a recording's columns."""
    values: tuple[int, ...]
    """The label in the image of each parcel [P], in the atlas's order."""
    space: str
    """Template space in the words of BIDS, such as ``MNI152NLin6Asym``."""


def load_label_image(
    atlas: str | Path | None = None,
    *,
    image: str | Path | None = None,
    labels: str | Path | None = None,
    space: str | None = None,
    folder: str | Path | None = None,
    fetch: bool = False,
) -> LabelImage:
    """Load a label image by the name of its atlas, or from files.

    Parameters
    ----------
    atlas : str or path, optional
        ``schaefer100`` to ``schaefer1000`` (in steps of 100; ``schaefer400-17`` for the 17 networks' names and order)
        needs no image: nilearn's copy is taken. For any other known atlas, or the table of one, give `image`; its
        labels are then 1 to P in the atlas's order, unless `labels` says otherwise. Without an atlas, `labels` names
        the parcels.
    image : path, optional
        The label image, if not nilearn's.
    labels : path, optional
        Table (.tsv or .csv) of the image's labels, one row each: ``index`` (or ``value``, ``number``, ``label``),
        ``name`` (or ``label``) and, if wanted, ``network`` and ``x``, ``y``, ``z`` in millimetres; without them the
        coordinates are the centroids of the image. Label 0 is background.
    space : str, optional
        The image's template space, where its name (``space-`` or ``tpl-``) and the atlas's table do not say it.
    folder : path, optional
        nilearn's data folder with ``schaefer_2018/`` in it; where nilearn looks by itself, if not given.
    fetch : bool
        Whether what is missing may be downloaded.

    Raises
    ------
    AtlasError
        If the atlas is unknown, a file is missing or broken, or image, table and atlas do not belong together.
    """
    if image is None:
        return _schaefer(atlas, folder, fetch)
    path = Path(image)
    table = None if labels is None else _read_labels_table(Path(labels))
    own = None if atlas is None else load_atlas(atlas)
    named = re.search(r"(?:^|_)(?:space|tpl)-([A-Za-z0-9]+)", path.name)
    return _assemble(path, own, table, space or (named.group(1) if named else ""))


def check_space(label_image: LabelImage, bold_space: str, name: str, *, allow_space: str = "") -> None:
    """Refuse a run that does not lie in the label image's template space.

    Parameters
    ----------
    bold_space : str
        The run's space; empty if nothing says it.
    name : str
        The run's file name, for the message.
    allow_space : str
        One more space that is accepted, on the responsibility of who names it: labels are looked up by their
        millimetres, and two MNI templates differ by a few of them.
    """
    if not bold_space:
        raise RecordingError(
            "no-space",
            f"{name}: nothing says which template space it lies in; expected {label_image.space}, that of "
            f"{label_image.path.name}. Name its space.",
        )
    if same_space(bold_space, label_image.space) or (allow_space and same_space(bold_space, allow_space)):
        return
    raise RecordingError(
        "wrong-space",
        f"{name}: lies in space {bold_space}, but {label_image.path.name} in {label_image.space}. Take the run's "
        f"{label_image.space} image, or a label image in {bold_space}; or allow the space by its name (--allow-space).",
    )


def same_space(first: str, second: str) -> bool:
    """Whether two names of template spaces mean the same one."""
    keys = [_ALIASES.get(name.lower(), name.lower()) for name in (first, second)]
    return keys[0] == keys[1]


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a label image as whole numbers [X, Y, Z] int32 and its affine [4, 4]."""
    try:
        header = read_header(path)
        numbers, affine = read_volume(path, header), affine_of(header, path)
    except RecordingError as error:
        raise AtlasError(str(error)) from None
    if not np.isfinite(numbers).all():
        raise AtlasError(f"{path.name}: holds NaN or infinite values; expected whole numbers. Export it again.")
    if numbers.min() < 0 or numbers.max() > MAX_LABEL or (numbers != np.rint(numbers)).any():
        raise AtlasError(
            f"{path.name}: holds values that are no labels (fractions or negative numbers); expected whole numbers. "
            "Resample label images with nearest neighbours."
        )
    return numbers.astype(np.int32), affine


def _schaefer(atlas: str | Path | None, folder: str | Path | None, fetch: bool) -> LabelImage:
    """Take nilearn's files of the Schaefer atlas, downloading them only if `fetch`."""
    match = _SCHAEFER.fullmatch(re.sub(r"[_ ]", "", str(atlas).lower()).replace("schaefer-", "schaefer"))
    if match is None:
        raise AtlasError(
            f"Atlas '{atlas}' comes without a label image; expected schaefer100 to schaefer1000 there. "
            "Give the image's file."
        )
    size, networks = int(match.group(1)), int(match.group(2) or 7)
    if size not in range(100, 1100, 100):
        raise AtlasError(f"Atlas '{atlas}' is not known; Schaefer has 100 to 1000 parcels in steps of 100.")
    stem = f"Schaefer2018_{size}Parcels_{networks}Networks_order"
    files = (f"{stem}.txt", f"{stem}_FSLMNI152_2mm.nii.gz")
    places = [Path(place) for place in get_data_dirs(None if folder is None else str(folder))]
    seeded = [place for place in places if all((place / "schaefer_2018" / name).is_file() for name in files)]
    if not seeded and not fetch:
        raise AtlasError(
            f"Atlas '{atlas}': {' and '.join(files)} are not in {places[0] / 'schaefer_2018'}. "
            "Copy them there, or allow nilearn to download them (--download)."
        )
    place = str(seeded[0]) if seeded else folder
    try:
        found = fetch_atlas_schaefer_2018(size, networks, 2, data_dir=place, verbose=0)
    except OSError as error:
        raise AtlasError(
            f"Atlas '{atlas}' cannot be downloaded ({type(error).__name__}). "
            f"Copy {' and '.join(files)} into {places[0] / 'schaefer_2018'}."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AtlasError(f"{files[0]}: is not the table that comes with Schaefer's atlas. Download it again.") from None
    table = found.lut.loc[found.lut["index"] != 0, ["index", "name"]].reset_index(drop=True)
    table = _checked_labels(table, files[0])
    table["network"] = [str(name).split("_")[2] if str(name).count("_") > 2 else "" for name in table["name"]]
    own = load_atlas(f"schaefer{size}") if networks == 7 and size in (100, 200, 400) else None
    label_image = _assemble(Path(found.maps), own, table, found.template)
    if own is not None:
        return label_image
    described = replace(
        label_image.atlas,
        name=f"schaefer{size}" + ("-17" if networks == 17 else ""),
        title=f"Schaefer 2018, {size} parcels, {networks}-network order",
        license="MIT (CBIG)",
        reference="https://doi.org/10.1093/cercor/bhx179",
    )
    return replace(label_image, atlas=described)


def _assemble(path: Path, atlas: Atlas | None, table: pd.DataFrame | None, space: str) -> LabelImage:
    """Unite image, atlas and table of labels, one of which may be missing, and check that they belong together."""
    if table is not None:
        values = table["index"].to_numpy() if atlas is None else _values_by_name(path, atlas, table)
    elif atlas is not None:
        values = np.arange(1, atlas.n_parcels + 1)
    else:
        raise AtlasError(f"{path.name}: what are its parcels? Name its atlas, or give a table of its labels.")
    numbers, affine = read_labels(path)
    present = np.unique(numbers)
    present = present[present > 0]
    if set(values) != set(present):
        raise AtlasError(_difference(path, values, present, "its table" if atlas is None else atlas.name))
    places = apply_affine(affine, ndimage.center_of_mass(numbers > 0, numbers, values))
    if atlas is None:
        atlas = _own_atlas(path, table, places)
    else:
        distance = float(np.median(np.linalg.norm(places - atlas.coordinates, axis=1)))
        if distance > MAX_CENTROID_DISTANCE:
            raise AtlasError(
                f"{path.name}: its parcels lie {distance:.0f} mm (median) from those of {atlas.name}; expected less "
                f"than {MAX_CENTROID_DISTANCE:.0f} mm. It is another atlas or another order, such as that of the 17 "
                "networks: name its atlas, or give a table of its labels."
            )
    space = space or atlas.space
    if not space:
        raise AtlasError(f"{path.name}: nothing says which template space it lies in. Name it, as MNI152NLin6Asym.")
    atlas = atlas if atlas.space else replace(atlas, space=space)
    return LabelImage(path=path, atlas=atlas, values=tuple(map(int, values)), space=space)


def _difference(path: Path, values: np.ndarray, present: np.ndarray, of: str) -> str:
    lacking, strange = np.setdiff1d(values, present), np.setdiff1d(present, values)
    parts = []
    if lacking.size:
        parts.append(f"lacks {lacking.size} of the {len(values)} labels of {of} (such as {lacking[0]})")
    if strange.size:
        parts.append(f"has {strange.size} that {of} does not know (such as {strange[0]})")
    return f"{path.name}: {' and '.join(parts)}. Give the image and the table that belong to this atlas."


def _values_by_name(path: Path, atlas: Atlas, table: pd.DataFrame) -> np.ndarray:
    by_name = {plain_name(name): number for name, number in zip(table["name"], table["index"], strict=True)}
    labels = generation(atlas, by_name)
    lacking = [label for label in labels if plain_name(label) not in by_name]
    if lacking or len(table) != atlas.n_parcels:
        known = set(map(plain_name, labels))
        strange = next((name for name in table["name"] if plain_name(name) not in known), None)
        what = f"does not name {lacking[0]}" if lacking else f"names {strange}, which is no parcel of it"
        raise AtlasError(
            f"{path.name}: its table of labels is not that of {atlas.name}; it {what}. "
            "Give the table of this atlas, or leave the atlas's name out to take the table's own parcels."
        )
    return np.array([by_name[plain_name(label)] for label in labels])


def _own_atlas(path: Path, table: pd.DataFrame, places: np.ndarray) -> Atlas:
    """Make an atlas from a table of labels, with the image's centroids where it has no coordinates."""
    if {"x", "y", "z"} <= set(table):
        places = table[["x", "y", "z"]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
        if not np.isfinite(places).all():
            raise AtlasError(f"{path.name}: its table of labels has x, y or z that are no numbers. Correct the table.")
    coordinates = np.round(places, 2)
    coordinates.setflags(write=False)
    named = re.search(r"(?:^|_)(?:atlas|seg)-([A-Za-z0-9]+)", path.name)
    networks = tuple(map(str, table["network"])) if "network" in table else ()
    return Atlas(
        name=(named.group(1) if named else path.name.partition(".")[0]).lower(),
        labels=tuple(table["name"]),
        coordinates=coordinates,
        networks=networks if any(networks) else None,
        title=f"Label image {path.name}",
    )


def _read_labels_table(path: Path) -> pd.DataFrame:
    """Read a table of labels as columns index, name and what else it has, without its background."""
    try:
        table = read_text_table(path)
    except FileNotFoundError:
        raise AtlasError(f"{path.name}: no such table of labels. Check the path.") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise AtlasError(f"{path.name}: cannot be read as a table of labels ({why}). Export it again.") from None
    table.columns = [column.lower() for column in table.columns]
    name = next((column for column in _NAME_COLUMNS if column in table), None)
    index = next((column for column in (*_INDEX_COLUMNS, "label") if column in table and column != name), None)
    if name is None or index is None:
        raise AtlasError(
            f"{path.name}: has columns {', '.join(table.columns)}; expected index (the label's number) and name. "
            "Name the columns so, and separate them by tabs in .tsv and by commas in .csv files."
        )
    return _checked_labels(table.rename(columns={index: "index", name: "name"}), path.name)


def _checked_labels(table: pd.DataFrame, file_name: str) -> pd.DataFrame:
    numbers = pd.to_numeric(table["index"], errors="coerce")
    if numbers.isna().any() or (numbers != numbers.round()).any() or not numbers.between(0, MAX_LABEL).all():
        raise AtlasError(f"{file_name}: its column of label numbers holds what is no whole number. Correct the table.")
    table = table.assign(index=numbers.astype(np.int64), name=table["name"].astype("str").str.strip())
    table = table[table["index"] != 0].reset_index(drop=True)
    for column in ("index", "name"):
        repeated = table[column].duplicated()
        if repeated.any():
            raise AtlasError(
                f"{file_name}: '{table.loc[repeated, column].iloc[0]}' stands twice in column {column}; "
                "expected one row a parcel. Correct the table."
            )
    if table.empty:
        raise AtlasError(f"{file_name}: names no parcels. Give the table of the image's labels.")
    return table
