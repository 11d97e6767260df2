"""Atlases: the names, places and networks of the parcels of a recording's columns."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cohorts.errors import AtlasError

TABLE_SUFFIXES = (".json", ".csv", ".tsv")
"""Endings of the names of atlases' tables."""
_TABLES = Path(__file__).parent / "atlases"


@dataclass(frozen=True)
class Atlas:
    """A parcellation, in the column order of the recordings made with it."""

    name: str
    """Short name, such as ``schaefer400``."""
    labels: tuple[str, ...]
    """One name a parcel, unique."""
    coordinates: np.ndarray
    """Centroids [P, 3] in millimetres, MNI space."""
    networks: tuple[str, ...] | None = None
    """One functional network a parcel, where the atlas defines them."""
    former_labels: tuple[str, ...] | None = None
    """What the parcels were called before their authors gave them these names, in the same order. A name may have gone
    from one parcel to another, so names are of one generation together, never one by one."""
    title: str = ""
    space: str = ""
    license: str = ""
    reference: str = ""
    """Where the table comes from and on what terms, with the three before."""

    @property
    def n_parcels(self) -> int:
        return len(self.labels)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over labels, order and coordinates (to 0.01 mm): equal hashes mean interchangeable columns."""
        return self._hash_with(self.labels)

    @property
    def former_hash(self) -> str | None:
        """What `content_hash` was under the former labels; None if there are none."""
        return self._hash_with(self.former_labels) if self.former_labels else None

    def _hash_with(self, labels: tuple[str, ...]) -> str:
        parcels = [
            [label, *(f"{value:.2f}" for value in place)] for label, place in zip(labels, self.coordinates, strict=True)
        ]
        return hashlib.sha256(json.dumps(parcels, ensure_ascii=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the table as JSON text that `load_atlas` reads back."""
        networks = self.networks or ("",) * self.n_parcels
        rows = [
            json.dumps([label, *(round(float(value), 2) for value in place), *([network] if network else [])])
            for label, place, network in zip(self.labels, self.coordinates, networks, strict=True)
        ]
        fields = ("name", "title", "space", "license", "reference")
        head = [f" {json.dumps(field)}: {json.dumps(getattr(self, field))}," for field in fields]
        pairs = zip(self.labels, self.former_labels or self.labels, strict=True)
        renamed = [f"  {json.dumps(label)}: {json.dumps(former)}" for label, former in pairs if former != label]
        if renamed:
            head += [' "former_names": {', ",\n".join(renamed), " },"]
        return "\n".join(["{", *head, ' "parcels": [', ",\n".join(f"  {row}" for row in rows), " ]", "}", ""])


def atlas_names() -> list[str]:
    """Names of the atlases that come with FedBrainLM."""
    return sorted(path.stem for path in _TABLES.glob("*.json"))


def load_atlas(name_or_file: str | Path) -> Atlas:
    """Load an atlas by name, or from a table file (``.json`` as shipped, or ``.csv``/``.tsv``).

    A table has one row a parcel, in column order, with columns ``name`` (or ``label``), ``x``, ``y``, ``z``
    in millimetres and, if wanted, ``network``. Names of atlases are read without regard to case, ``-`` and ``_``. A
    ``.json`` that was written when a known atlas had its former labels is that atlas, with the labels of today. An
    AtlasError says that the name is unknown or the table broken.
    """
    text = str(name_or_file)
    if "/" not in text and not text.lower().endswith(TABLE_SUFFIXES):
        known = _TABLES / f"{re.sub('[-_ ]', '', text.lower())}.json"
        if known.is_file():
            return _from_json(known)
        raise AtlasError(
            f"Atlas '{text}' is not known. Name one of {', '.join(atlas_names())}, or a table file "
            "(.json, .csv or .tsv with name, x, y, z)."
        )
    path = Path(text)
    if not path.is_file():
        raise AtlasError(f"{path}: no such atlas table. Check the path, or name one of {', '.join(atlas_names())}.")
    try:
        return _renewed(_from_json(path)) if path.suffix.lower() == ".json" else _from_table(path)
    except (KeyError, IndexError, OSError, RecursionError, TypeError, ValueError):
        raise AtlasError(
            f"{path}: is not an atlas table. Expected one row a parcel with columns name, x, y, z "
            "(millimetres) and unique names. Correct the table."
        ) from None


def _from_json(path: Path) -> Atlas:
    content = json.loads(path.read_text(encoding="utf-8"))
    parcels = content["parcels"]
    has_networks = len(parcels[0]) > 4
    atlas = _checked(
        {key: content[key] for key in ("name", "title", "space", "license", "reference")},
        [row[0] for row in parcels],
        [row[1:4] for row in parcels],
        [row[4] for row in parcels] if has_networks else None,
    )
    former = content.get("former_names", {})
    labels = tuple(former.get(label, label) for label in atlas.labels)
    if not former.keys() <= set(atlas.labels) or len(set(labels)) != len(labels):
        raise ValueError
    return replace(atlas, former_labels=labels) if former else atlas


def _renewed(atlas: Atlas) -> Atlas:
    """Return the known atlas, if this is it under its former labels."""
    known = load_atlas(atlas.name) if atlas.name in atlas_names() else atlas
    return known if known.former_hash == atlas.content_hash else atlas


def _from_table(path: Path) -> Atlas:
    table = pd.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",")
    table.columns = [str(column).strip().lower() for column in table.columns]
    labels = table["name"] if "name" in table else table["label"]
    return _checked(
        {"name": path.stem.lower(), "title": f"Table {path.name}"},
        [str(label) for label in labels],
        table[["x", "y", "z"]].to_numpy(float).tolist(),
        [str(network) for network in table["network"]] if "network" in table else None,
    )


def _checked(
    about: dict[str, Any], labels: list[str], coordinates: list[list[float]], networks: list[str] | None
) -> Atlas:
    name, places = about["name"], np.asarray(coordinates, dtype=np.float64)
    if not isinstance(name, str) or not 0 < len(name) <= 200 or "/" in name or not name.isprintable():
        raise AtlasError(f"atlas name {str(name)[:60]!r}: expected 1 to 200 signs, none of them '/'. Rename it.")
    if len(set(labels)) != len(labels) or places.shape != (len(labels), 3) or not np.isfinite(places).all():
        raise ValueError
    places.setflags(write=False)
    return Atlas(labels=tuple(labels), coordinates=places, networks=tuple(networks) if networks else None, **about)
