"""How well the final model and the baselines reconstruct, over all sites: one table of scores.

``reconstruction.parquet`` has one row a predictor and group of hidden values: ``group`` is ``all``, ``network`` or
``horizon``, and ``name`` the network's name or the frames to the nearest visible one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from base.files import atomic_path
from brainlm.evaluation import MODEL, SCORES, ReconstructionSums, scores
from cohorts import load_atlas
from exchange.messages import Arrays, part_of
from study.settings import Study

OTHERS = ""
"""Stands for all atlases that too few sites share to sum by parcel: their sums are over all parcels together."""

SumsByAtlas = Mapping[str, ReconstructionSums]


def sums_of(arrays: Arrays) -> dict[str, dict[str, ReconstructionSums]]:
    """Read what was summed, or what one site sent: predictor → atlas → sums; `OTHERS` last."""
    found: dict[str, dict[str, ReconstructionSums]] = {}
    for key in sorted({name.rpartition("/")[0] for name in arrays}):
        part, _, rest = key.partition("/")
        atlas, _, predictor = rest.partition("/")
        places = {"evaluation": (MODEL, rest), "baselines": (predictor, atlas), "overall": (rest, OTHERS)}
        if part in places:
            predictor, atlas = places[part]
            found.setdefault(predictor, {})[atlas] = ReconstructionSums(**part_of(arrays, key))
    return found


def write_reconstruction(study: Study, folder: Path, by_predictor: Mapping[str, SumsByAtlas]) -> None:
    """Write ``reconstruction.parquet`` into the run's folder: of each predictor, by atlas, the sums over its sites."""
    networks = {atlas.name: atlas.networks for atlas in map(load_atlas, study.cohort.atlases)}
    rows = []
    for predictor, by_atlas in by_predictor.items():
        groups = _groups(by_atlas, networks)
        if study.model.window.temporal == "adaptive":
            del groups["horizon"]  # frames that do not last as long everywhere
        for group, named in groups.items():
            for name, sums in named.items():
                values = {score: float(value) for score, value in scores(sums).items()}
                rows.append({"predictor": predictor, "group": group, "name": name, "count": sums[0], **values})
    with atomic_path(folder / "reconstruction.parquet") as temporary:
        pd.DataFrame(rows).to_parquet(temporary, index=False)


def read_table(path: Path) -> pd.DataFrame | None:
    """Read a table of a run's folder; None if the run did not come so far."""
    return pd.read_parquet(path) if path.is_file() else None


def summarize_reconstruction(table: pd.DataFrame) -> dict[str, Any]:
    """Nest the scores of the model by network and by horizon, and those of every baseline over all values."""
    overall = table[table["group"] == "all"].set_index("predictor")
    of_model = table[table["predictor"] == MODEL]

    def nested(group: str) -> dict[str, dict[str, float]]:
        rows = of_model[of_model["group"] == group].set_index("name")
        return {str(name): row.to_dict() for name, row in rows[list(SCORES)].iterrows()}

    return {
        "baselines": {str(name): row.to_dict() for name, row in overall.drop(MODEL)[list(SCORES)].iterrows()},
        "by_network": nested("network"),
        "by_horizon": nested("horizon"),
    }


def _groups(by_atlas: SumsByAtlas, networks: Mapping[str, tuple[str, ...] | None]) -> dict[str, dict[str, np.ndarray]]:
    """Sums of every group of hidden values; networks of the same name in several atlases are one."""
    first, *others = (sums.over_parcels() for sums in by_atlas.values())
    everything = sum(others, first)
    by_network: dict[str, np.ndarray] = {}
    for atlas, sums in by_atlas.items():
        for name, of_network in sums.by_network(networks.get(atlas) or ()).items():
            by_network[name] = by_network.get(name, 0) + of_network
    return {
        "all": {"": everything.parcels[:, 0]},
        "network": dict(sorted(by_network.items())),
        "horizon": {str(frames): sums for frames, sums in everything.by_horizon().items()},
    }
