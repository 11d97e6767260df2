"""What the report is made from: the run's folder, read once."""

import json
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from base.errors import FedBrainLMError
from base.files import read_arrays
from base.settings import read_yaml
from cohorts import Atlas, Cohort, load_atlas
from server.absences import absences_of
from server.journal import Journal
from server.reconstruction import read_table
from study.settings import load_study


class Example(NamedTuple):
    """A held-out recording of a simulated site: signal, reconstruction and mask, [P, T] each."""

    site: str
    signal: np.ndarray
    reconstruction: np.ndarray
    mask: np.ndarray


class RunData:
    """A run's folder: its summary, study and tables, and the SHA-256 of its files by name.

    In a simulation the sites' own folders lie in it, and what stays at a site can be drawn. Of a deployed federation
    the coordinator has nothing of the kind, and the report says so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.study: dict[str, Any] = read_yaml(folder / "study.yaml")
        self.sites = list(self.summary["sites"])
        self.is_simulation = (folder / "sites").is_dir()
        journal = Journal(folder)
        self.metrics, self.exchanges = journal.table("metrics"), journal.table("exchanges")
        self.outcomes = journal.table("outcomes")
        self.absences = absences_of(journal)
        self.files = journal.files()
        self.parcels = read_table(folder / "parcels.parquet")
        self.reconstruction = read_table(folder / "reconstruction.parquet")

    def atlas(self, name: str) -> Atlas:
        """One of the study's atlases, by name."""
        atlases = map(load_atlas, load_study(self.folder / "study.yaml").cohort.atlases)
        return next(atlas for atlas in atlases if atlas.name == name)

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """When the first question went out, and when the last was answered; None before that."""
        known = self.exchanges.dropna(subset="ended")
        if known.empty:
            return None
        begun, ended = float(known["started"].min()), float(known["ended"].max())
        return datetime.fromtimestamp(begun, UTC), datetime.fromtimestamp(ended, UTC)

    @cached_property
    def cohorts(self) -> dict[str, Cohort]:
        """The simulated sites' cohorts; empty if they are not at hand."""
        try:
            return {site: self._cohort(site) for site in self.sites} if self.is_simulation else {}
        except FedBrainLMError:  # deleted or moved since
            return {}

    @cached_property
    def residualization(self) -> tuple[dict[str, np.ndarray] | None, list[dict[str, Any]]]:
        """The model that takes the covariates' effects out at the end, with its design, if it was estimated apart."""
        path = self.folder / "harmonization" / "embedding.residualized.safetensors"
        if not path.is_file() or self.study["harmonization"]["order"] != "separate":
            return None, []
        arrays, about = read_arrays(path)
        return arrays, about["covariates"]

    def vectors(self, name: str) -> pd.DataFrame | None:
        """Vectors of all simulated participants in a feature set, with their site and age; None if not at hand."""
        tables = []
        for site in self.sites:
            path = self._state(site) / f"{name}.parquet"
            if not path.is_file() or site not in self.cohorts:
                return None
            table = pd.read_parquet(path)
            people = self.cohorts[site].covariates().set_index("participant_id").reindex(table["participant_id"])
            table.insert(1, "site", site)
            table.insert(2, "age", people["age"].to_numpy() if "age" in people else np.nan)
            tables.append(table)
        return pd.concat(tables, ignore_index=True) if tables else None

    @cached_property
    def example(self) -> Example | None:
        """The first simulated site's held-out recording; None if not at hand."""
        for site in self.sites:
            path = self._state(site) / "reconstruction.safetensors"
            if path.is_file():
                return Example(site, **read_arrays(path)[0])
        return None

    def _state(self, site: str) -> Path:
        return self.folder / "sites" / site / "state" / "studies" / self.summary["study"]

    def _cohort(self, site: str) -> Cohort:
        settings = read_yaml(self.folder / "sites" / site / "site.yaml")
        return Cohort.open(self.folder / "sites" / site / settings["cohort"])
