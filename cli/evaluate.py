"""`fedbrainlm evaluate`: a checkpoint beside the baselines, on a local cohort."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from brainlm import BrainLM, load_checkpoint
from brainlm.architectures import AnyModel, mask_conflicts
from brainlm.baselines import make_baselines
from brainlm.config import MaskConfig, WindowConfig
from brainlm.evaluation import SCORES, ReconstructionSums, compare
from brainlm.linear_path import LinearPath
from brainlm.scaling import Scaling
from brainlm.windows import WindowSet, lengths_of, prepare, split_participants, usable_recordings
from cli.errors import InputError
from cli.options import finite
from cohorts import Cohort
from cohorts.seeding import derive_seed
from cohorts.settings import check_settings
from harmonization import Moments, SecondMoments, SiteTable, add_sums
from harmonization.protocol import Sums


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A model: checkpoints/round-NNNN.safetensors of a run.")],
    cohort: Annotated[Path, typer.Argument(help="Folder of the cohort to evaluate on.")],
    train: Annotated[
        list[Path] | None,
        typer.Option(
            help="Cohort that gives the baselines' covariance; may be repeated. Then all of COHORT is held out."
        ),
    ] = None,
    mask: Annotated[str | None, typer.Option(help="What to hide: random, parcel, …; as in training if absent.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Fraction to hide; as in training if absent.")] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            callback=finite, min=0.01, max=0.99, help="Without --train: fraction to evaluate on; the study's if absent."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides who is held out and what is hidden; the study's if absent.")
    ] = None,
) -> None:
    """Print how a model reconstructs what is hidden, beside predictors that need no training.

    Without --train, the cohort is split as its site split it in the study, if it bears the site's name.
    """
    model, about = load_checkpoint(checkpoint)
    evaluated = Cohort.open(cohort)
    _hide(model, mask, ratio, evaluated.atlas.n_parcels)
    own_seed = derive_seed(int(about.get("seed", 0)) if seed is None else seed, evaluated.name)
    lengths = lengths_of(evaluated, model.config.window)
    people = list(lengths.usable)
    if lengths.too_short:
        typer.echo(lengths.said)
    training: list[tuple[Cohort, list[str] | None]] = [(Cohort.open(other), None) for other in train or []]
    held_out = people
    _check_atlases(evaluated, train or [])
    if not training:
        own, held_out = split_participants(people, _holdout(about, holdout), own_seed)
        training = [(evaluated, own)]
    scaled = model.config.window.scaling == "robust"
    scale = Scaling.from_checkpoint(about, evaluated.atlas.name) if scaled else None
    windows = WindowSet(evaluated, model.config.window, held_out, scale)
    # As in a study: moments of other TRs do not add.
    resampled = model.config.window.temporal == "resample"
    moments = measure_moments(model.config.window, training, scale) if resampled else None
    baselines = make_baselines(model.config.mask, evaluated.atlas.n_parcels, moments.to_arrays() if moments else None)
    if moments and isinstance(model, BrainLM) and model.config.residual == "gaussian":
        model.prior = LinearPath(moments.covariance, moments.autocovariance, moments.pairs)
    sums = compare(model, baselines, windows, seed=own_seed)
    chosen = model.config.mask
    title = (
        f"{len(windows.participants)} participants, {windows.n_windows} windows; {chosen.kind} mask {chosen.ratio:g}"
    )
    _print(title, sums)


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


def _holdout(about: dict[str, Any], stated: float | None) -> float:
    """Fraction that was held out: as stated, or as the checkpoint says."""
    known = about.get("holdout") if stated is None else stated
    if not known:
        raise InputError(
            "the checkpoint does not say whom it was not trained on. State --holdout, or --train with its cohorts."
        )
    return float(known)


def measure_moments(
    window: WindowConfig, training: list[tuple[Cohort, list[str] | None]], scale: Scaling | None = None
) -> Moments:
    """Second moments of the scaled frames of some participants of each cohort, or of everybody where none are named."""
    analysis = SecondMoments(window.n_frames)

    def sums() -> Iterator[Sums]:
        for cohort, people in training:
            usable = usable_recordings(cohort, window)
            for name in (name for person in usable if people is None or person in people for name in usable[person]):
                recording = cohort.read(name)
                frames = np.where(recording.coverage, prepare(recording, window, scale).T.astype(np.float64), np.nan)
                yield analysis.summarize(SiteTable(frames, frames=True), None)

    moments = analysis.solve(add_sums(sums()), None)
    assert isinstance(moments, Moments)
    return moments


def _check_atlases(evaluated: Cohort, training: list[Path]) -> None:
    for path in training:
        atlas = Cohort.open(path).atlas
        if atlas.content_hash != evaluated.atlas.content_hash:
            raise InputError(
                f"--train {path}: has atlas {atlas.name}, {evaluated.path} has {evaluated.atlas.name}. "
                "A covariance needs the same parcels: name cohorts of that atlas."
            )


def _print(title: str, sums: dict[str, ReconstructionSums]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("predictor")
    for name in SCORES:
        table.add_column(name, justify="right")
    for predictor, of_predictor in sums.items():
        table.add_row(predictor, *(f"{of_predictor.overall[name]:.4f}" for name in SCORES))
    Console().print(table)
