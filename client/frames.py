"""Frames of the site's recordings as tables: what is measured before any model is trained."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from base.seeding import derive_seed
from base.settings import check_settings
from brainlm.config import WindowConfig
from brainlm.scaling import Scaling
from brainlm.windows import prepare, split_participants, usable_recordings
from client.site import Site
from exchange.messages import FrameSpec, Payload
from harmonization import Moments, SiteTable
from harmonization.core.declared import Widths


@dataclass(frozen=True)
class Frames:
    """The training participants' frames."""

    participants: list[str]
    """Whose they are."""
    tables: Iterator[list[SiteTable]]
    """For each participant one a recording, [T, P]; read and prepared one participant after the other."""
    widths: Widths
    """P columns, and nothing beside them."""
    data: tuple[str, ...] = ()
    """As of a table of participants (`client.features.Table.data`): nothing, since the atlas says it."""


def split_site(site: Site, window: WindowConfig, holdout: float, seed: int) -> tuple[list[str], list[str]]:
    """Split the site's participants into training and held-out ones, as every stage of a study does.

    Parameters
    ----------
    holdout : float
        Fraction to hold out.
    seed : int
        The study's.
    """
    return split_participants(list(usable_recordings(site.cohort, window)), holdout, derive_seed(seed, site.name))


def scaling_of(site: Site, request: Payload) -> Scaling | None:
    """Read the scaling of the site's atlas from a request; None if it brings none."""
    arrays = request.part(f"scaling/{site.cohort.atlas.name}")
    return Scaling.from_arrays(arrays) if arrays else None


def moments_of(site: Site, request: Payload) -> Moments | None:
    """Read the second moments of the site's atlas from a request; None if it brings none."""
    arrays = request.part(f"moments/{site.cohort.atlas.name}")
    return Moments.from_arrays(arrays) if arrays else None


def read_frames(site: Site, spec: FrameSpec, scale: Scaling | None) -> Frames:
    """Make the tables of a spec.

    Parcels that few of the participants have are missing to all: sums over them would stand for those few.
    """
    window = check_settings(spec.window, WindowConfig, "the study's window")
    people, _ = split_site(site, window, spec.holdout, spec.seed)
    usable = usable_recordings(site.cohort, window)
    shown = counted_parcels(site, window, people)

    def table_of(recording_id: str) -> SiteTable:
        recording = site.cohort.read(recording_id)
        frames = prepare(recording, window, scale).T.astype(np.float64)
        return SiteTable(np.where(recording.coverage & shown, frames, np.nan), frames=True)

    tables = ([table_of(recording_id) for recording_id in usable[person]] for person in people)
    return Frames(people, tables, Widths.of_frames(site.cohort.atlas.n_parcels))


def counted_parcels(site: Site, window: WindowConfig, participants: list[str]) -> np.ndarray:
    """Parcels [P] that the site's sums over frames count.

    Those of which no sum, over one of them or a pair, stands for fewer of the participants than the policy's min_group.
    """
    usable = usable_recordings(site.cohort, window)
    n_parcels, least = site.cohort.atlas.n_parcels, site.policy.min_group
    missing = site.cohort.recordings.set_index("recording_id")["n_missing_parcels"]
    together = np.zeros((n_parcels, n_parcels), dtype=np.int64)
    for ids in (usable[person] for person in participants):
        if any(missing[recording_id] == 0 for recording_id in ids):
            together += 1
            continue
        coverage = np.stack([site.cohort.read_coverage(recording_id) for recording_id in ids]).astype(np.int64)
        together += coverage.T @ coverage > 0
    shown = np.ones(n_parcels, dtype=bool)
    while (few := (together > 0) & (together < least) & shown & shown[:, None]).any():
        shown[few.sum(axis=0).argmax()] = False
    return shown
