"""Feature sets on the site's disk: one row a participant; and the tables that analyses are made of."""

import hashlib
import json
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load

from base.files import atomic_path, read_arrays, save_arrays, write_text
from brainlm.embedding import feature_frame
from client.door.disclosure import permit_table, read_design
from client.site import Site
from cohorts.recording import check_identifier
from cohorts.vectors import read_vectors
from exchange.messages import Arrays, TableSpec
from exchange.refusals import Refusal, RefusalCode
from harmonization import Categorical, Continuous, Design, SiteTable
from harmonization.core.declared import Widths
from harmonization.core.protocol import Array

VECTORS = "vectors."
"""How the names of feature sets begin that are a site's own second tables."""
_WIDE = 2048
"""Features above which a set is stored as safetensors: Parquet is slow with so many columns."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of n participants."""

    participants: list[str]
    """The n participants."""
    features: Array
    """[n, p]; NaN where one is missing."""
    about: dict[str, Any] = field(default_factory=dict)
    """Ids of what made them: study, model, recipe, preprocessing and each transform since."""

    def rows(self, participants: list[str]) -> Array:
        """Features of these participants, in their order."""
        place = {participant: row for row, participant in enumerate(self.participants)}
        return self.features[[place[participant] for participant in participants]]

    def require_whole(self, name: str) -> None:
        """Refuse to compute anything from features that somebody lacks.

        Sums over those who have a feature would, beside the sums of other features, tell of the few who lack it, or of
        the one site that does. So coordinators first select what everybody has.
        """
        if np.isnan(self.features).any():
            detail = f"feature set '{name}' was asked for before those that all have."
            raise Refusal(RefusalCode.ANALYSIS_FAILED, detail)  # a code of data: it tells that somebody lacks one


class FeatureStore:
    """The feature sets of one study at one site: ``<name>.parquet`` (or, when wide, ``.safetensors``) and ``.json``.

    Parameters
    ----------
    folder : Path
        The study's folder in the site's state.
    run : str, optional
        The run that asks: feature sets of others are not mixed with its own.
    """

    def __init__(self, folder: Path, run: str = "") -> None:
        self.folder = folder
        self._run = run
        self._read: dict[str, FeatureSet] = {}

    def write(self, name: str, features: FeatureSet) -> None:
        """Store a feature set, replacing one of the same name."""
        self._read.pop(name, None)
        path, wide = self._path(name), features.features.shape[1] > _WIDE
        data = _data(path, wide)
        if wide:
            save_arrays(data, {"features": features.features})
        else:
            with atomic_path(data) as temporary:
                feature_frame(features.features, features.participants).to_parquet(temporary, index=False)
        about = {
            "participants": features.participants,
            "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
            "wide": wide,
            "run": self._run,
            "about": features.about,
        }
        write_text(path, json.dumps(about, indent=1) + "\n")

    def read(self, name: str) -> FeatureSet:
        """Read a feature set, from the disk the first time.

        Raises
        ------
        Refusal
            If it was never made (the coordinator asked out of order), another run made it, or a kill left it half
            written.
        """
        if name in self._read:
            return self._read[name]
        path = self._path(name)
        if not path.is_file():
            raise Refusal(RefusalCode.PROTOCOL, f"feature set '{name}' was not made yet.")
        about = json.loads(path.read_text(encoding="utf-8"))
        if self._run and about.get("run") not in (None, "", self._run):
            raise Refusal(
                RefusalCode.PROTOCOL, f"feature set '{name}' was made by another run of the study. Run the study again."
            )
        data = _data(path, about["wide"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != about["sha256"]:  # killed between the two files
            raise Refusal(RefusalCode.PROTOCOL, f"feature set '{name}' was half written. Run the study again.")
        if about["wide"]:
            features = load(data)["features"]
        else:
            features = pd.read_parquet(BytesIO(data)).drop(columns="participant_id").to_numpy(np.float64)
        self._read[name] = FeatureSet(about["participants"], features, about["about"])
        return self._read[name]

    def write_model(self, name: str, model: Arrays) -> None:
        """Keep the solved model that made a feature set."""
        save_arrays(self._path(name).with_name(f"{name}.model.safetensors"), model)

    def read_model(self, name: str) -> Arrays:
        """Read the solved model that made a feature set."""
        path = self._path(name).with_name(f"{name}.model.safetensors")
        if not path.is_file():
            raise Refusal(RefusalCode.PROTOCOL, f"feature set '{name}' was not made yet.")
        return read_arrays(path)[0]

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_identifier(name, 'feature set')}.json"


def _data(path: Path, wide: bool) -> Path:
    """Where the rows lie that belong to a header."""
    return path.with_name(f"{path.stem}{'.safetensors' if wide else '.parquet'}")


def read_features(site: Site, store: FeatureStore, name: str) -> FeatureSet:
    """Read a feature set that the study made, or ``vectors.<name>``, which the site brought along."""
    brought = name.removeprefix(VECTORS)
    if brought != name and "." not in brought:
        site.policy.permit_vectors(brought)
        vectors = read_vectors(site.cohort, brought)
        return FeatureSet(vectors.participants, vectors.matrix, {"features": name})
    return store.read(name)


def complete_rows(site: Site, participants: list[str], design: Design) -> tuple[list[int], Array]:
    """Find the participants whose covariates are all known, and code those.

    Returns
    -------
    rows : list of int
        Their places in `participants`.
    matrix : numpy.ndarray
        Design matrix [len(rows), q].

    Raises
    ------
    Refusal
        If the policy does not let studies use a column, or nobody has them all.
    """
    site.policy.permit_columns(design.names, site.covariates.columns)
    columns = site.covariates_of(participants)
    rows = np.flatnonzero(design.complete(columns, len(participants))).tolist()
    if not rows:
        raise Refusal(RefusalCode.COVARIATES, f"no participant has all of {', '.join(design.names)}.")
    complete = {name: [values[row] for row in rows] for name, values in columns.items()}
    return rows, design.encode(complete, len(rows))


@dataclass(frozen=True)
class Table:
    """The table of one analysis, with what the release ledger must know of it."""

    rows: SiteTable
    """What the analysis sees: n rows, and no ids."""
    participants: list[str]
    """Whose the n rows are."""
    data: tuple[str, ...]
    """What sums over the rows tell of the participants: ``features/<name>`` of each view, by the name of what was made
    at the site before any transform, and ``column/<name>`` of each covariate and target."""

    @property
    def widths(self) -> Widths:
        """Columns of the rows."""
        return self.rows.widths


def find_table(site: Site, study: str, spec: TableSpec, store: FeatureStore | None = None) -> Table:
    """Make the table of one analysis: participants for whom everything it needs is known.

    Parameters
    ----------
    store : FeatureStore, optional
        The study's, which reads each feature set once, however many tables are made of it.

    Raises
    ------
    Refusal
        If nobody is left, a site of the spec is unknown, or the policy does not allow the covariates: their names, how
        many there are, or how few have a level of one.
    """
    store = store or FeatureStore(site.folder_of(study))
    features = read_features(site, store, spec.features)
    second = read_features(site, store, spec.second) if spec.second else None
    design, predicted = read_design(spec.covariates), _predicted(spec)
    for name, view in ((spec.features, features), (spec.second, second)):
        if view is not None:
            view.require_whole(str(name))
    needed = Design((*design.covariates, *predicted.covariates, *read_design(spec.complete).covariates))
    shared, q = _shared(features, second), len(design.columns)
    rows, matrix = complete_rows(site, shared, needed)
    people = [shared[row] for row in rows]
    permit_table(site, people, design, predicted)
    table = SiteTable(
        features.rows(people),
        matrix[:, :q] if spec.covariates else None,
        _target(site, spec, matrix[:, q : q + len(predicted.columns)]),
        second=second.rows(people) if second else None,
        loadings=store.read_model(spec.through)["components"][: spec.n_loadings].T if spec.through else None,
        site=site.name,
        seed=site.private_seed(study, "folds"),
        min_group=site.policy.min_group,
    )
    views = [_origin(spec.features, features)] + ([_origin(str(spec.second), second)] if second else [])
    columns = {f"column/{name}" for name in (*design.names, *predicted.names)}
    return Table(table, people, tuple(sorted({*views, *columns})))


def _origin(name: str, features: FeatureSet) -> str:
    """Name of the data behind a feature set: a transform makes others of the same people's, but no other people's."""
    return f"features/{features.about.get('features', name)}"


def _shared(features: FeatureSet, second: FeatureSet | None) -> list[str]:
    """Participants of the features who are in the second view, too, if there is one."""
    if second is None:
        return features.participants
    known = set(second.participants)
    return [participant for participant in features.participants if participant in known]


def _predicted(spec: TableSpec) -> Design:
    """Coding of the target: one is needed as a covariate is, and so drops the participants who lack it."""
    if spec.target in (None, "site"):
        return Design()
    name = str(spec.target)
    return Design((Categorical(name, tuple(spec.levels)) if spec.levels else Continuous(name),))


def _target(site: Site, spec: TableSpec, coded: Array) -> Array | None:
    """Target of a table: numbers [n], or one-hot levels [n, C]."""
    if spec.target is None:
        return None
    if spec.target == "site":
        if site.name not in spec.levels:
            raise Refusal(RefusalCode.PROTOCOL, "this site is not in the list of sites.")
        return np.tile(np.eye(len(spec.levels))[spec.levels.index(site.name)], (len(coded), 1))
    if spec.levels:
        return np.column_stack([1 - coded.sum(axis=1), coded])  # a design has no column for the first level
    return coded[:, 0]
