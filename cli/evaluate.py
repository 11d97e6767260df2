"""`fedbrainlm evaluate`: a checkpoint beside the baselines, on a local cohort."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from base.errors import InputError
from base.output import PlainConsole, say
from base.seeding import derive_seed
from base.settings import check_settings
from brainlm import BrainLM, load_checkpoint
from brainlm.architectures import AnyModel, mask_conflicts
from brainlm.baselines import make_baselines
from brainlm.config import MaskConfig, WindowConfig
from brainlm.evaluation import SCORES, ReconstructionSums, compare
from brainlm.linear_path import LinearPath
from brainlm.provenance import Membership, check_cohort, membership_of, trainings_of
from brainlm.scaling import Scaling
from brainlm.windows import WindowSet, lengths_of, prepare, split_participants, usable_recordings
from cli.options import finite
from cohorts import Cohort
from harmonization import Moments, SecondMoments, SiteTable, add_sums
from harmonization.core.protocol import Sums


class People(StrEnum):
    """Whom a model is evaluated on."""

    HELD_OUT = "held-out"
    TRAINED = "trained"
    ALL = "all"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A model: checkpoints/round-NNNN.safetensors of a run.")],
    cohort: Annotated[Path, typer.Argument(help="Folder of the cohort to evaluate on.")],
    people: Annotated[
        People, typer.Option(help="Whom to evaluate on: those whom the model was not trained on, those it was, or all.")
    ] = People.HELD_OUT,
    site: Annotated[
        str | None, typer.Option(help="What the cohort was called in the study; its own name if absent.")
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option(
            help="Cohort that gives the baselines' covariance; may be repeated. Else COHORT's other people do."
        ),
    ] = None,
    other_atlas: Annotated[
        bool, typer.Option("--other-atlas", help="Evaluate in an atlas that the model was not trained in.")
    ] = False,
    mask: Annotated[str | None, typer.Option(help="What to hide: random, parcel, …; as in training if absent.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Fraction to hide; as in training if absent.")] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            min=0.01,
            max=0.99,
            help="Fraction to evaluate on, where the checkpoint does not say who was held out.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides what is hidden, and who, with --holdout; the study's if absent.")
    ] = None,
) -> None:
    """Print how a model reconstructs what is hidden, beside predictors that need no training.

    Who was held out of training follows from the study's seed and the site's name, which the checkpoint holds.
    """
    model, about = load_checkpoint(checkpoint)
    evaluated = Cohort.open(cohort)
    check_cohort(model, evaluated, other_atlas=other_atlas, remedy="say --other-atlas")
    others = [_of_the_same_atlas(path, evaluated) for path in train or []]
    _hide(model, mask, ratio, evaluated.atlas.n_parcels)
    window = model.config.window
    WindowSet(evaluated, window)  # refuses a cohort whose recordings are all too short
    if (lengths := lengths_of(evaluated, window)).too_short:
        say(lengths.said)
    members = _members(about, evaluated, window, site, holdout)
    chosen = _choose(members, people)
    say(members.said)
    own_seed = derive_seed(int(about.get("seed", 0)) if seed is None else seed, site or evaluated.name)
    fraction = about.get("holdout") if holdout is None else holdout
    chosen, training = _covariance(evaluated, chosen, members, others, fraction, own_seed)
    windows, sums = _beside_baselines(model, about, evaluated, chosen, training, own_seed)
    who, hidden = _who(members, windows.participants), model.config.mask
    _print(f"{who}, {windows.n_windows} windows; {hidden.kind} mask {hidden.ratio:g}", sums)


def _beside_baselines(
    model: AnyModel,
    about: dict[str, Any],
    evaluated: Cohort,
    people: list[str],
    training: list[tuple[Cohort, list[str]]],
    seed: int,
) -> tuple[WindowSet, dict[str, ReconstructionSums]]:
    """Compare the model with the baselines that these others' covariance gives, on windows of some people."""
    window = model.config.window
    scale = Scaling.from_checkpoint(about, evaluated.atlas.name) if window.scaling == "robust" else None
    windows = WindowSet(evaluated, window, people, scale)
    # As in a study: moments of other TRs do not add.
    moments = measure_moments(window, training, scale) if window.temporal == "resample" else None
    baselines = make_baselines(model.config.mask, evaluated.atlas.n_parcels, moments.to_arrays() if moments else None)
    if moments and isinstance(model, BrainLM) and model.config.residual == "gaussian":
        model.prior = LinearPath(moments.covariance, moments.autocovariance, moments.pairs)
    return windows, compare(model, baselines, windows, seed=seed)


def _members(
    about: dict[str, Any], cohort: Cohort, window: WindowConfig, site: str | None, holdout: float | None
) -> Membership:
    """Tell whom of the cohort the model was trained on, and refuse options that would say it otherwise."""
    sites = sorted({name for training in trainings_of(about) for name in training.sites or {}})
    if site is not None and sites and site not in sites:
        raise InputError(
            f"--site {site}: the model was trained at {', '.join(sites)}. Name one of them, or leave --site out if the "
            "cohort is none."
        )
    if holdout is not None and (site or cohort.name) in sites:
        raise InputError(
            f"--holdout {holdout:g}: the checkpoint says who of {site or cohort.name} was held out. Leave it out, or "
            "choose with --people."
        )
    return membership_of(about, cohort, window, site or cohort.name, holdout)


def _choose(members: Membership, people: People) -> list[str]:
    """Take the participants that were asked for."""
    if members.cannot_be_known and people is not People.ALL:
        raise InputError(
            f"{members.said} Use the cohort as it was then; or say --people all, and read the scores as those of "
            "people of whom many were trained on."
        )
    chosen = {
        People.HELD_OUT: [*members.held_out, *members.others],
        People.TRAINED: members.trained,
        People.ALL: sorted([*members.trained, *members.held_out, *members.others]),
    }[people]
    if not chosen:
        raise InputError(f"--people {people}: {members.said} Choose others.")
    return chosen


def _who(members: Membership, evaluated: list[str]) -> str:
    """Say how many were evaluated, and how many of them are which."""
    kinds = {
        "held out": members.held_out,
        "TRAINED ON": members.trained,
        "perhaps trained on" if members.cannot_be_known else "not known to the model": members.others,
    }
    counts = {kind: len(set(those) & set(evaluated)) for kind, those in kinds.items()}
    return f"{len(evaluated)} participants ({', '.join(f'{n} {kind}' for kind, n in counts.items() if n)})"


def _covariance(
    evaluated: Cohort, chosen: list[str], members: Membership, others: list[Cohort], holdout: float | None, seed: int
) -> tuple[list[str], list[tuple[Cohort, list[str]]]]:
    """Choose who gives the baselines' covariance, which nobody does who is evaluated on.

    Of a cohort at which the model was not trained, some give it, and the fraction `holdout` is left to evaluate on.
    """
    if others:
        out = {evaluated.path.resolve(): set(chosen)}
        people = [(other, set(other.recordings["participant_id"])) for other in others]
        return chosen, [(other, sorted(them - out.get(other.path.resolve(), set()))) for other, them in people]
    if members.trained:
        return chosen, [(evaluated, members.trained)]
    if not holdout:
        raise InputError(
            "the checkpoint does not say whom it was not trained on. State --holdout, or --train with its cohorts."
        )
    own, rest = split_participants(chosen, holdout, seed)
    say(f"{len(own)} of them give the baselines' covariance, and are not evaluated; --train names others.")
    return rest, [(evaluated, own)]


def _hide(model: AnyModel, kind: str | None, ratio: float | None, n_parcels: int) -> None:
    """Let the model hide something else than in training, of windows of so many parcels."""
    if kind is None and ratio is None:
        return
    if not isinstance(model, BrainLM):
        raise InputError("--mask and --ratio: a released model hides what it was trained to. Leave them out.")
    trained = model.config.mask.model_dump(exclude={"initial_ratio"})
    if kind not in (None, trained["kind"]):
        trained |= {"kind": kind, "weights": {}}
    if ratio is not None:
        trained["ratio"] = ratio
    mask = check_settings(trained, MaskConfig, "--mask and --ratio")
    model.config = model.config.model_copy(update={"mask": mask})
    for said in mask_conflicts(model.config.model_copy(update={"decode_every": 1}), n_parcels):
        raise InputError(f"--mask and --ratio: {said}")


def measure_moments(
    window: WindowConfig, training: list[tuple[Cohort, list[str]]], scale: Scaling | None = None
) -> Moments:
    """Second moments of the scaled frames of some participants of each cohort."""
    analysis = SecondMoments(window.n_frames)

    def sums() -> Iterator[Sums]:
        for cohort, people in training:
            usable = usable_recordings(cohort, window)
            for name in (name for person in people if person in usable for name in usable[person]):
                recording = cohort.read(name)
                frames = np.where(recording.coverage, prepare(recording, window, scale).T.astype(np.float64), np.nan)
                yield analysis.summarize(SiteTable(frames, frames=True), None)

    moments = analysis.solve(add_sums(sums()), None)
    assert isinstance(moments, Moments)
    return moments


def _of_the_same_atlas(path: Path, evaluated: Cohort) -> Cohort:
    cohort = Cohort.open(path)
    if cohort.atlas.content_hash != evaluated.atlas.content_hash:
        raise InputError(
            f"--train {path}: has atlas {cohort.atlas.name}, {evaluated.path} has {evaluated.atlas.name}. "
            "A covariance needs the same parcels: name cohorts of that atlas."
        )
    return cohort


def _print(title: str, sums: dict[str, ReconstructionSums]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("predictor")
    for name in SCORES:
        table.add_column(name, justify="right")
    for predictor, of_predictor in sums.items():
        table.add_row(predictor, *(f"{of_predictor.overall[name]:.4f}" for name in SCORES))
    PlainConsole().print(table)
