"""The app that a run brings to the hospitals: the sources and one study, in a FAB, the bundle that Flower ships."""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from base.errors import InputError
from base.files import atomic_folder
from base.output import PlainConsole, say
from base.settings import check_settings, parse_yaml
from brainlm.architectures import check_model_config
from client.app_files import MANIFEST, NOT_SHIPPED, PACKAGES, PROJECT_FILE, STUDY, read_fab
from client.door.describing import without_noise
from client.door.policy import SHOWS_ONE_SITE, must_be_named
from client.errors import AppError
from cohorts import load_atlas
from study.settings import Study

PROJECT = Path(__file__).parents[1]
"""Where the packages lie, in a source tree or as pip installed them: Flower ships an app as its sources."""
_APP = PROJECT / "configs" / "app.toml"
"""What Flower is told of the app."""
_MOST_SHOWN = 20
"""Differing files that are listed."""


@dataclass(frozen=True)
class OfferedApp:
    """An app that somebody offers a hospital."""

    hash: str
    """SHA-256 of its bytes, by which it is approved."""
    study: Study
    """What it was built for."""
    differences: tuple[str, ...]
    """Files that are not what this installation would ship for this study, each with how it differs; none where the
    code is that of this installation."""


def stage_app(folder: Path, study: Study) -> Path:
    """Copy the app's sources to `folder`, with the study, so that neither .venv nor a later edit gets into the run.

    A folder that is there stays: a run that is resumed goes on with the code that it began with.
    """
    return folder if folder.is_dir() else _stage(folder, _shipped(study).encode())


def build_fab(study: Study) -> bytes:
    """Return the FAB of a study: equal studies and sources give equal bytes."""
    return _build(_shipped(study).encode())


def pack_fab(app: Path) -> bytes:
    """Return the FAB that `flwr run` makes of a staged app."""
    from flwr.cli.build import build_fab_from_disk  # takes a second

    return build_fab_from_disk(app)


def describe_fab(content: bytes, source: str) -> OfferedApp:
    """Print what an app computes, and how its code compares with what this installation would ship for its study.

    Nothing of it is written to the disk or run.

    Raises
    ------
    InputError
        If it is no app of ours, or its study is none.
    """
    app = _open(content, source)
    say(f"sha256 of the app: {app.hash}")
    if app.differences:
        say(f"code: NOT that of this installation. {len(app.differences)} files are others:")
        for difference in app.differences[:_MOST_SHOWN]:
            say(f"  {difference}")
        if len(app.differences) > _MOST_SHOWN:
            say(f"  … and {len(app.differences) - _MOST_SHOWN} more")
        say("Install the version that the coordinator names, or read what differs, before you approve it.")
    else:
        say("code: that of this installation, file by file")
    print_study(app.study)
    return app


def _open(content: bytes, source: str) -> OfferedApp:
    try:
        files = read_fab(content)
    except AppError as error:
        raise InputError(f"{source}: {error}") from None
    raw = parse_yaml(files[STUDY], f"{source}: {STUDY}")
    if not isinstance(raw.get("model"), dict):
        raise InputError(f"{source}: its {STUDY} is no study. Ask the coordinator for another.")
    raw["model"] = check_model_config(raw["model"], f"{source}: model")
    study = check_settings(raw, Study, source)
    rebuilt = _build(files[STUDY])
    differences = () if rebuilt == content else tuple(_differences(read_fab(rebuilt), files))
    return OfferedApp(hashlib.sha256(content).hexdigest(), study, differences)


def _stage(folder: Path, shipped: bytes) -> Path:
    with atomic_folder(folder) as partial:
        shutil.copy(_APP, partial / PROJECT_FILE)
        for package in PACKAGES:
            shutil.copytree(PROJECT / package, partial / package, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
        (partial / STUDY).write_bytes(shipped)
    return folder


def _build(shipped: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return pack_fab(_stage(Path(folder) / "app", shipped))


def _differences(expected: dict[str, bytes], files: dict[str, bytes]) -> list[str]:
    """Files that are added, missing or changed; the list of them that Flower keeps beside them says no more."""
    named = sorted((expected.keys() | files.keys()) - {MANIFEST})
    kinds = {
        "added": [name for name in named if name not in expected],
        "missing": [name for name in named if name not in files],
        "changed": [name for name in named if name in expected and name in files and expected[name] != files[name]],
    }
    found = [f"{kind}: {name}" for kind, names in kinds.items() for name in names]
    if not found and expected.get(MANIFEST) != files.get(MANIFEST):
        return [f"changed: {MANIFEST}"]
    return found


def print_study(study: Study) -> None:
    """Print what a study computes, what leaves a hospital for it, and what a policy must allow."""
    table = Table(title=f"Study {study.study}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _summary(study).items():
        table.add_row(name, Text(value))
    PlainConsole().print(table)


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
        "leaves": _leaves(study),
        "roster": study.privacy.roster or "the one that all hospitals approved",
        "privacy": noise,
        "needs in site.yaml": _needs(study),
    }


def _leaves(study: Study) -> str:
    """What of a hospital's numbers the coordinator reads, if it follows the protocol and if not."""
    if not study.privacy.secure_sums:
        return "IN THE CLEAR: this hospital's own model updates and sums"
    showing = [name for name in study.asks_for() if name in SHOWS_ONE_SITE]
    but = f", and from {', '.join(showing)} single hospitals'" if showing else ""
    return (
        f"masked: a coordinator that follows the protocol reads sums over three or more hospitals{but}; what one that "
        "does not could learn is in docs/privacy.md"
    )


def _needs(study: Study) -> str:
    """The policy without which a site refuses the study, for what differs from the defaults."""
    needs = [f"studies: [{study.study}]"]
    named = [name for name in study.asks_for() if must_be_named(name)]
    if named:
        needs.append(f'analyses: ["*", {", ".join(named)}]')
    needs.append(f"columns: [{', '.join(study.columns)}]")
    if study.association:
        needs.append(f"vectors: [{study.association.vectors}]")
    if not study.privacy.secure_sums:
        needs.append("secure_sum_required: false")
    if study.training.privacy:
        needs.append(f"outside_epsilon: [{', '.join(without_noise(study.introduction()))}] if it sets epsilon")
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
