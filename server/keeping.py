"""What a run needs, kept in its folder: the resolved study, and copies of the files that it names.

Under ``inputs/`` lie the checkpoint that training goes on from, in ``start/``, and in ``atlas-0/`` and so on the tables
of atlases that do not come with FedBrainLM.
"""

import shutil
from pathlib import Path

from base.files import atomic_path, write_text
from server.errors import ServerError
from server.journal import Journal
from study.settings import Study


def keep_study(study: Study, folder: Path) -> None:
    """Write a study into a run's folder, so that `study.settings.load_study` needs nothing from outside of it.

    Models are in it already; where the study names files, it names their copies from now on.
    """
    start = None if study.start is None else _kept(Path(study.start), folder, "start")
    atlases = tuple(
        _kept(Path(atlas), folder, f"atlas-{number}") if Path(atlas).is_absolute() else atlas
        for number, atlas in enumerate(study.cohort.atlases)
    )
    cohort = study.cohort.model_copy(update={"atlases": atlases})
    write_text(folder / "study.yaml", study.model_copy(update={"start": start, "cohort": cohort}).to_yaml())


def hold_study(journal: Journal) -> None:
    """Note what a run's study is when it begins, so that it is one study from its first question to its last.

    Raises
    ------
    ServerError
        If it was changed since: rounds of two studies are no training of either.
    """
    folder, sealed = journal.folder, journal.files()
    needed = (folder / "study.yaml", *sorted((folder / "inputs").rglob("*")))
    for path in filter(Path.is_file, needed):  # one that is gone is missed where it is read
        if path.relative_to(folder).as_posix() not in sealed:
            journal.seal(path)
        elif not journal.is_whole(path):
            raise ServerError(
                f"{path}: is another than when the run began. Restore it, or begin another run with the changed study."
            )


def _kept(source: Path, folder: Path, kind: str) -> str:
    """Copy a file, under its own name, by which checkpoints and atlases are known; return its path in the folder."""
    target = folder / "inputs" / kind / source.name
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return target.relative_to(folder).as_posix()
