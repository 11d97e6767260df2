"""The app that a run brings to the hospitals: the sources and one study, in a FAB, the bundle that Flower ships."""

import hashlib
import io
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brainlm.architectures import check_model_config
from cli.errors import InputError
from client.audit import app_hash
from client.release import SHIPPED_STUDY
from cohorts import load_atlas
from cohorts.files import atomic_folder
from cohorts.settings import check_settings
from server.study import Study

PROJECT = Path(__file__).parents[1]
"""The source tree: Flower ships an app as its sources."""
_PACKAGES = ("cohorts", "brainlm", "harmonization", "exchange", "client", "server")
_LARGEST = 50_000_000
"""Bytes of the largest FAB that is read, unpacked; Flower's own bound is 10 MB packed."""


def stage_app(folder: Path, study: Study) -> Path:
    """Copy the app's sources to `folder`, with the study, so that neither .venv nor a later edit gets into the run.

    A folder that is there stays: a run that is resumed goes on with the code that it began with.
    """
    if folder.is_dir():
        return folder
    if not (PROJECT / "pyproject.toml").is_file():
        raise InputError(
            "FedBrainLM was not installed from its source tree, which Flower needs to ship the app. "
            "Clone the repository and use 'make install'."
        )
    with atomic_folder(folder) as partial:
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(PROJECT / name, partial / name)
        for package in _PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "report")
            shutil.copytree(PROJECT / package, partial / package, ignore=ignored)
        (partial / SHIPPED_STUDY).write_text(_shipped(study), encoding="utf-8")
    return folder


def build_fab(study: Study) -> bytes:
    """Return the FAB of a study: equal studies and sources give equal bytes."""
    with tempfile.TemporaryDirectory() as folder:
        return pack_fab(stage_app(Path(folder) / "app", study))


def pack_fab(app: Path) -> bytes:
    """Return the FAB that `flwr run` makes of a staged app."""
    from flwr.cli.build import build_fab_from_disk  # takes a second

    return build_fab_from_disk(app)


def describe_fab(content: bytes, source: str) -> str:
    """Print what a FAB holds, and how its code compares with the code that is installed here; return its study's name.

    Raises
    ------
    InputError
        If it is no FAB with a study.
    """
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder)
        _unpack(content, unpacked, source)
        raw = yaml.safe_load((unpacked / SHIPPED_STUDY).read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
            raise InputError(f"{source}: its {SHIPPED_STUDY} is no study. Ask the coordinator for another.")
        raw["model"] = check_model_config(raw["model"], f"{source}: model")
        study = check_settings(raw, Study, source)
        same = app_hash(unpacked) == app_hash(PROJECT)
        typer.echo(f"sha256 of the app: {hashlib.sha256(content).hexdigest()}")
        typer.echo(f"code: {app_hash(unpacked)}, " + ("that of this installation" if same else _OTHER_CODE))
    print_study(study)
    return study.study


_OTHER_CODE = (
    "NOT that of this installation. Install the version that the coordinator names, or read what differs, before you "
    "approve it."
)


def print_study(study: Study) -> None:
    """Print what a study computes, what leaves a hospital for it, and what a policy must allow."""
    table = Table(title=f"Study {study.study}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _summary(study).items():
        table.add_row(name, Text(value))
    Console().print(table)


def _summary(study: Study) -> dict[str, str]:
    privacy = study.training.privacy
    if privacy is None:
        noise = "none: nothing bounds what the results tell of one participant"
    else:
        amount = (
            f"epsilon {privacy.epsilon:g}" if privacy.epsilon is not None else f"noise {privacy.noise_multiplier:g}"
        )
        noise = f"{amount}, delta {privacy.delta:g}, for the training"
    return {
        "title": study.title or "none",
        "computes": f"{study.averaging.rounds} rounds of training a model ({study.recipe}); then sums for "
        + ", ".join(name for name in study.asks_for() if name not in ("pretraining", "embedding")),
        "columns": ", ".join(study.columns) or "none",
        "vectors": study.association.vectors if study.association else "none",
        "leaves": "masked: only sums over three or more hospitals can be read"
        if study.privacy.secure_sums
        else "IN THE CLEAR: this hospital's own model updates and sums",
        "roster": study.privacy.roster or "the one that all hospitals approved",
        "privacy": noise,
        "needs in site.yaml": _needs(study),
    }


def _needs(study: Study) -> str:
    """The policy without which a site refuses the study, for what differs from the defaults."""
    needs = [f"studies: [{study.study}]"]
    named = [name for name in study.asks_for() if name in ("leave_one_site_out", "reference_site")]
    if named:
        needs.append(f'analyses: ["*", {", ".join(named)}]')
    needs.append(f"columns: [{', '.join(study.columns)}]")
    if study.association:
        needs.append(f"vectors: [{study.association.vectors}]")
    if not study.privacy.secure_sums:
        needs.append("secure_sum_required: false")
    needs.append(f"max_rounds: {study.averaging.rounds} or more")
    return "policy: " + "; ".join(needs)


def _shipped(study: Study) -> str:
    """The study as it travels: with hashes in place of this machine's paths."""
    content: dict[str, Any] = study.model_dump(mode="json")
    if study.start:
        content["start"] = f"sha256:{hashlib.sha256(Path(study.start).read_bytes()).hexdigest()}"
    atlases = [load_atlas(atlas) for atlas in study.cohort.atlases]
    content["cohort"]["atlases"] = [f"{atlas.name} {atlas.content_hash}" for atlas in atlases]
    return yaml.safe_dump(content, sort_keys=False)


def _unpack(content: bytes, folder: Path, source: str) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as fab:
            sizes = {entry.filename: entry.file_size for entry in fab.infolist()}
            if SHIPPED_STUDY not in sizes or sum(sizes.values()) > _LARGEST:
                raise InputError(f"{source}: is no app with a study. Ask for what 'fedbrainlm study build' made.")
            fab.extractall(folder)
    except (zipfile.BadZipFile, OSError):
        raise InputError(f"{source}: is no FAB, or is damaged. Ask the coordinator to send it again.") from None
