"""What a checkpoint says of its training: which studies, in which atlases, and at which sites on whom.

No participant is named. Who was held out follows from a rule that everybody who has the recordings can repeat: the
study's seed, the name of the site, and the order of the participants (`brainlm.windows.split_participants`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from base.seeding import derive_seed
from brainlm.architectures import AnyModel
from brainlm.config import WindowConfig
from brainlm.errors import CheckpointError
from brainlm.released.base import ReleasedModel
from brainlm.windows import split_participants, usable_recordings
from cohorts import Atlas, Cohort


class TrainedSite(BaseModel):
    """What a site said of itself when a study began."""

    model_config = ConfigDict(frozen=True)

    participants: int
    recordings: int
    atlas: str
    preprocessing: str


class Training(BaseModel):
    """One study that trained a model. What an earlier version did not write down is None."""

    model_config = ConfigDict(frozen=True)

    study: str
    seed: int = 0
    holdout: float | None = None
    """The study, its seed, and the fraction of each site's participants that it held out."""
    round: int = 0
    rounds: int = 0
    """How far it had come, of how many."""
    atlases: dict[str, str] | None = None
    """Those of its sites: name → content hash."""
    sites: dict[str, TrainedSite] | None = None
    """Name → whom it had there."""
    t_r: tuple[float, float] | None = None
    """Repetition times that it took, from and to, in seconds."""
    software: dict[str, str] = {}
    """Versions."""


@dataclass(frozen=True)
class Membership:
    """Which participants of a cohort a model was trained on."""

    trained: list[str]
    held_out: list[str]
    """By the rule of each study whose site the cohort is: trained on in one, or held out in all."""
    others: list[str]
    """Everybody, where the rule cannot tell."""
    said: str
    """How this is known, or why not, in a sentence or two."""
    cannot_be_known: bool = False
    """Whether some of the others were trained on, and nobody can tell who."""


def trainings_of(about: Mapping[str, Any]) -> list[Training]:
    """Read the studies that trained a model, the last one first, from what `load_checkpoint` returns beside it."""
    found: list[Training] = []
    while isinstance(about, Mapping) and "study" in about:
        try:
            found.append(Training.model_validate(dict(about)))
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"]))
            raise CheckpointError(
                f"the checkpoint's header holds another '{field}' than FedBrainLM writes. Restore the file."
            ) from None
        about = about.get("start", {})
    return found


def atlases_of(about: Mapping[str, Any]) -> dict[str, str] | None:
    """Atlases that a model was trained in, name → content hash; None where its checkpoint does not say."""
    atlases = [training.atlases for training in trainings_of(about)]
    if not atlases or None in atlases:
        return None
    return {name: content_hash for named in atlases for name, content_hash in (named or {}).items()}


def check_cohort(model: AnyModel, cohort: Cohort, *, other_atlas: bool, remedy: str) -> None:
    """Refuse recordings that a model cannot be expected to read, as far as its checkpoint says.

    With `other_atlas`, our own model, which knows parcels by their coordinates, may read parcels that it was not
    trained on; `remedy` says how to ask for that. A CheckpointError says that the atlas is none that it was trained in,
    or that the recordings have lost the units that its scaling needs.
    """
    if model.config.window.scaling == "robust" and cohort.scaling != "raw":
        raise CheckpointError(
            f"cohort {cohort.name}: its recordings were stored as {cohort.scaling}, and the model scales by medians in "
            "their own units. Prepare them as they were before z-scoring."
        )
    released = isinstance(model, ReleasedModel)
    if released or not other_atlas:
        check_atlas(model.about, cohort.atlas, f"cohort {cohort.name}", "" if released else remedy)


def check_atlas(about: Mapping[str, Any], atlas: Atlas, source: str, remedy: str = "") -> None:
    """Refuse an atlas that a model was not trained in, as far as its checkpoint says.

    Parameters
    ----------
    source : str
        Begins the message of the CheckpointError, which names both atlases.
    remedy : str
        How to ask for it all the same, if that can be.
    """
    known = atlases_of(about)
    if not known or {atlas.content_hash, atlas.former_hash} & set(known.values()):
        return
    parcels = " with other parcels" if atlas.name in known else ""
    leave = f"; or {remedy}, since it knows places, though it has learned nothing of these" if remedy else ""
    raise CheckpointError(
        f"{source}: has atlas {atlas.name}{parcels}, and the model was trained in {', '.join(sorted(known))}. Use "
        f"recordings in an atlas that it knows{leave}."
    )


def membership_of(
    about: Mapping[str, Any], cohort: Cohort, window: WindowConfig, site: str, holdout: float | None = None
) -> Membership:
    """Tell by rule which of a cohort's participants a model was trained on.

    Parameters
    ----------
    about : mapping
        What `load_checkpoint` returns beside the model.
    site : str
        What the cohort was called in the studies: the site's name, which in a simulation is the cohort's.
    holdout : float, optional
        Fraction that was held out, for a checkpoint that names no sites.
    """
    usable = usable_recordings(cohort, window)
    people, now = list(usable), (len(usable), sum(map(len, usable.values())))
    trainings = trainings_of(about)
    if not trainings or any(training.sites is None for training in trainings):
        return _assumed(trainings, people, site, holdout)
    joined = [(training, training.sites[site]) for training in trainings if training.sites and site in training.sites]
    if not joined:
        return Membership([], [], people, _strangers(trainings, now, site))
    for training, then in joined:
        if (then.participants, then.recordings) != now:
            said = (
                f"{site} had {then.participants} participants and {then.recordings} recordings in study "
                f"'{training.study}', and has {now[0]} and {now[1]} now: who of them was held out cannot be known."
            )
            return Membership([], [], people, said, cannot_be_known=True)
    studies = " and ".join(f"'{training.study}'" for training, _ in joined)
    return _split([training for training, _ in joined], people, site, f"{site} was a site of study {studies}")


def _split(trainings: list[Training], people: list[str], site: str, since: str) -> Membership:
    """Split the people as the studies did: trained on are those whom any of them trained on."""
    trained: set[str] = set()
    for training in trainings:
        trained |= set(split_participants(people, training.holdout or 0.0, derive_seed(training.seed, site))[0])
    held_out = [person for person in people if person not in trained]
    said = f"{since}: of its {len(people)} participants, {len(held_out)} were held out and {len(trained)} trained on."
    return Membership([person for person in people if person in trained], held_out, [], said)


def _assumed(trainings: list[Training], people: list[str], site: str, holdout: float | None) -> Membership:
    """Membership where the checkpoint names no sites: as if this was one, if it tells how they were split."""
    unnamed = "The checkpoint does not say at which sites it was trained"
    if holdout is not None:
        trainings = [training.model_copy(update={"holdout": holdout}) for training in trainings]
    if not trainings or any(training.holdout is None for training in trainings):
        return Membership([], [], people, f"{unnamed}: who of these {len(people)} was trained on is not known.")
    return _split(trainings, people, site, f"{unnamed}. If {site} was one of them")


def _strangers(trainings: list[Training], now: tuple[int, int], site: str) -> str:
    """Say that a cohort is no site of the training, and which one it may be under another name."""
    sites = {name: about for training in trainings for name, about in (training.sites or {}).items()}
    alike = [name for name, about in sites.items() if (about.participants, about.recordings) == now]
    hint = f" {alike[0]} had as many participants and recordings: if it is that one, say so by --site." if alike else ""
    return (
        f"{site} is no site of the training ({', '.join(sorted(sites))}), so its {now[0]} participants are taken for "
        f"people whom the model has not seen.{hint}"
    )
