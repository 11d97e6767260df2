"""`fedbrainlm model`: import, export and info."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from base.errors import InputError
from base.output import PlainConsole, say
from base.plain import printable
from brainlm.architectures import AnyConfig, AnyModel
from brainlm.checkpoints import load_checkpoint, save_checkpoint
from brainlm.model import count_parameters
from brainlm.provenance import Training, trainings_of
from brainlm.released.base import ReleasedConfig, ReleasedModel
from brainlm.released.folders import NOTEBOOK_SCALE, UK_BIOBANK_TR, export_folder, load_model, read_folder
from brainlm.released.padded import PaddedConfig

_UNKNOWN = "not known: the checkpoint does not say"

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _positive(value: float | None) -> float | None:
    """Refuse nan, inf, zero and below, which a range lets through in part."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a number above 0.")
    return value


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder with config.json and model.safetensors or pytorch_model.bin.")],
    out: Annotated[Path, typer.Argument(help="New checkpoint, such as brainlm.safetensors.")],
    tr: Annotated[
        float | None,
        typer.Option(
            callback=_positive, help=f"Seconds a frame of what it was trained on; {UK_BIOBANK_TR} (UK Biobank)."
        ),
    ] = None,
    sort_parcels: Annotated[
        bool | None,
        typer.Option(
            "--sort-parcels/--keep-order",
            help="Feed parcels in ascending order of y, as the original notebooks do; by default for vit_mae only.",
        ),
    ] = None,
    signal_scale: Annotated[
        float | None,
        typer.Option(callback=_positive, help=f"Divide the signal by it; by default {NOTEBOOK_SCALE} for vit_mae."),
    ] = None,
) -> None:
    """Turn a released checkpoint into one that a study can start from."""
    if out.exists():
        raise InputError(f"{out}: exists already. Name a new file.")
    stated = {"t_r": tr, "sort_parcels": sort_parcels, "signal_scale": signal_scale}
    options = {name: value for name, value in stated.items() if value is not None}
    model, about = read_folder(source, options, as_in_notebooks=True)
    save_checkpoint(out, model.state_dict(), model.config, about)
    say(f"{out}: {_architecture(model.config)}, {count_parameters(model):,} parameters")
    if "licence" in about:
        say(f"Licence: {about['licence']}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint (.safetensors) that FedBrainLM wrote.")],
    directory: Annotated[Path, typer.Argument(help="New folder for config.json and model.safetensors.")],
) -> None:
    """Write a checkpoint as a folder; a released architecture gets back the form that its original code reads."""
    model, about = load_checkpoint(checkpoint)
    export_folder(directory, model, about)
    say(f"{directory}: {_architecture(model.config)}, {count_parameters(model):,} parameters")


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a folder with config.json and weights.")],
) -> None:
    """Show what a model is, what it sees, and what it was trained on."""
    model = load_model(path)
    table = Table(title=Text(printable(path.name)), show_header=False, title_justify="left")
    for name, value in (*_facts(model).items(), *_history(model.about)):
        table.add_row(Text(printable(name)), Text(printable(value)))
    PlainConsole().print(table)


def _facts(model: AnyModel) -> dict[str, str]:
    config = model.config
    window = config.window
    return {
        "architecture": _architecture(config),
        "parameters": f"{count_parameters(model):,}",
        "window": f"{window.n_frames} frames of {window.t_r:g} s ({window.seconds:g} s), scaling {window.scaling}",
        "tokens": _tokens(model),
        "mask": _mask(config),
        "settings": _settings(config.model_dump(exclude={"architecture", "window", "mask"})),
    }


def _history(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what the checkpoint says of its training, and then of the checkpoint that this went on from."""
    training = next(iter(trainings_of(about)), None) if "study" in about else None
    if training is None:
        yield "trained on", _UNKNOWN
    else:
        yield "study", f"{training.study}, round {training.round} of {training.rounds}, seed {training.seed}"
        yield "atlases", _atlases(training.atlases)
        yield "recordings' TR", "{:g} to {:g} s allowed".format(*training.t_r) if training.t_r else _UNKNOWN
        yield from _people(training)
        yield "made with", ", ".join(f"{name} {number}" for name, number in training.software.items()) or _UNKNOWN
    if scaling := about.get("scaling"):
        yield "medians and ranges", f"of {', '.join(scaling)}"
    for name, value in about.items():
        if name not in Training.model_fields and name not in ("start", "scaling"):
            yield name, value if isinstance(value, str) else json.dumps(value)
    if isinstance(start := about.get("start"), dict):
        yield "went on from", str(start.get("file", _UNKNOWN))
        yield from _history({name: value for name, value in start.items() if name != "file"})


def _atlases(atlases: dict[str, str] | None) -> str:
    if atlases is None:
        return _UNKNOWN
    return ", ".join(f"{name} (SHA-256 {content_hash[:12]}…)" for name, content_hash in atlases.items())


def _people(training: Training) -> Iterator[tuple[str, str]]:
    """Say on how many a study trained, and of whom each site held out its part."""
    if training.sites is None:
        yield "trained at", _UNKNOWN
        return
    people, recordings = (sum(getattr(s, n) for s in training.sites.values()) for n in ("participants", "recordings"))
    held_out = (
        "" if training.holdout is None else f"; of each site, {training.holdout:.0%} of the participants held out"
    )
    yield "trained at", f"{len(training.sites)} sites, {people} participants, {recordings} recordings{held_out}"
    for name, site in training.sites.items():
        about = f"{site.participants} participants, {site.recordings} recordings, {site.atlas}, {site.preprocessing}"
        yield f"  {name}", about


def _architecture(config: AnyConfig) -> str:
    return f"released BrainLM, {config.architecture}" if isinstance(config, ReleasedConfig) else "FedBrainLM"


def _tokens(model: AnyModel) -> str:
    config = model.config
    if isinstance(model, ReleasedModel):
        size = f"{config.patch_size} x {config.patch_size} pixels" if isinstance(config, PaddedConfig) else None
        return f"{model.n_tokens} of {size or f'{config.window.patch_frames} frames of a parcel'}"
    return f"{config.window.n_patches} a parcel, of {config.window.patch_frames} frames"


def _mask(config: AnyConfig) -> str:
    if isinstance(config, ReleasedConfig):
        mode = config.train_mode if isinstance(config, PaddedConfig) else "auto_encode"
        return f"ratio {config.mask_ratio:g}, {mode}"
    return _settings(config.mask.model_dump())


def _settings(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())
