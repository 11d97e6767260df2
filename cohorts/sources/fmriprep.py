"""An fMRIPrep derivatives tree as a source of recordings."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cohorts.errors import CohortError, RecordingError
from cohorts.sources.bids import BIDSName, Tree, generated_by, run_of
from cohorts.sources.confounds import Confounds, ConfoundStrategy, load_strategy
from cohorts.sources.kinds import Reading, Run, in_order
from cohorts.sources.parcellation import ImageSource
from cohorts.sources.volumes import check_space, same_space

NATIVE = "native"
"""Resolution of images whose name has no ``res-``."""

_IMAGE = ".nii.gz"
_PREPROCESSED = "preproc"
_PART = re.compile(r"_(?:echo|part)-[A-Za-z0-9+]+")
_FATES = {"interpolate": "interpolated", "drop": "censored", "none": "uncensored"}
"""What becomes of censored frames → its word in the id of the preprocessing."""


@dataclass(frozen=True)
class FMRIPrepSource(ImageSource):
    """The runs of an fMRIPrep tree in one space and resolution.

    `root` is the derivatives folder, with ``sub-*`` folders in it.
    """

    strategy: ConfoundStrategy = field(default_factory=ConfoundStrategy)
    """nilearn's confound strategy. ``ica_aroma`` takes the ``desc-smoothAROMAnonaggr`` images, others
    ``desc-preproc``."""
    res: str = ""
    tasks: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    """As of `cohorts.settings.FMRIPrepSettings`; the resolution of images without one is ``native``."""

    @property
    def preprocessing(self) -> str:
        """Such as ``fmriprep-24.1.1_space-MNI152NLin6Asym_confounds-simple_interpolated_highpass-0.008``.

        The word after the confounds says what becomes of censored frames: ``interpolated``, ``censored`` where they are
        dropped, ``uncensored`` where they are treated as the others.
        """
        res, confounds = f"res-{self.res}" if self.res else "", f"confounds-{self.strategy.id}"
        return self._in_words(generated_by(self.root) or "fmriprep", res, confounds, _FATES[self.cleaning.censoring])

    def runs(self) -> list[Run]:
        tree = Tree(self.root)
        images = self._one_resolution(self._one_space(self._selected(tree)))
        return in_order([*(_run(path, name, tree) for path, name in images.items()), *self._lacking(tree, images)])

    def read(self, run: Run) -> Reading:
        """Read one run, unless it has no image like those of the others."""
        if len(run.files) == 1:  # one of those that `_lacking` found: a run has its confounds beside it at least
            raise RecordingError(
                "no-image",
                f"{run.files[0].name}: its run has no image in the space of the others, or none that was cleaned like "
                "theirs; expected all alike. Run fMRIPrep again for it, or leave it out (--task, --session).",
            )
        return super().read(run)

    def _load_confounds(self, bold: Path, table: Path, n_frames: int) -> Confounds:
        return load_strategy(bold, table, self.strategy, n_frames)

    @property
    def _desc(self) -> str:
        return "smoothAROMAnonaggr" if self.strategy.name == "ica_aroma" else _PREPROCESSED

    def _selected(self, tree: Tree) -> dict[Path, BIDSName]:
        """The preprocessed BOLD images of the asked tasks and sessions."""
        selected = {path: tree.files[path] for path in tree.select("bold", _IMAGE, desc=self._desc)}
        images = {path: name for path, name in selected.items() if "sub" in name.entities}
        if not images:
            raise CohortError(f"{self.root}: holds no sub-*_desc-{self._desc}_bold.nii.gz; {self._instead(tree)}")
        for entity, wanted in (("task", self.tasks), ("ses", self.sessions)):
            found = sorted({name.entities.get(entity, "") for name in images.values()})
            if wanted:
                images = {path: name for path, name in images.items() if name.entities.get(entity) in wanted}
            if not images:
                raise CohortError(f"{self.root}: has no {entity}-{wanted[0]} (found: {_listed(found)}). Correct it.")
        return images

    def _lacking(self, tree: Tree, images: dict[Path, BIDSName]) -> list[Run]:
        """Runs of which fMRIPrep left other images, but none like those that are taken, for `read` to say so."""
        if self.space or self.res:  # which leave the others out by name
            return []
        there = {name.run for name in images.values()}
        others = [path for desc in {self._desc, _PREPROCESSED} for path in tree.select("bold", _IMAGE, desc=desc)]
        runs: dict[str, Run] = {}
        for path in sorted(others):
            name = tree.files[path]
            whole = _PART.sub("", name.run)  # of which single echoes may be there besides
            if "sub" in name.entities and name.is_of(self.tasks, self.sessions) and not {name.run, whole} & there:
                runs.setdefault(name.run, run_of(path, name))
        return list(runs.values())

    def _instead(self, tree: Tree) -> str:
        """Say what was expected instead of a tree without the images, and what to do."""
        if self._desc != _PREPROCESSED and tree.select("bold", _IMAGE, desc=_PREPROCESSED):
            return (
                "fMRIPrep has not run ICA-AROMA since 23.1, and before only with --use-aroma. Take --confounds simple, "
                "scrubbing or compcor; or give the images that fMRIPost-AROMA cleaned, in a folder of their own, as "
                "--kind nifti."
            )
        if tree.select("bold", ".dtseries.nii"):
            return (
                "expected images of volumes, and its .dtseries.nii are of surfaces. Run fMRIPrep with "
                f"--output-spaces {self.label_image.space}, or let XCP-D parcellate them."
            )
        return "expected fMRIPrep's derivatives. Name the folder that its sub-* folders lie in."

    def _one_space(self, images: dict[Path, BIDSName]) -> dict[Path, BIDSName]:
        """The images in the space that was asked for, if the label image lies in it, too."""
        wanted = self.space or self.label_image.space
        chosen = {path: name for path, name in images.items() if same_space(_space(name), wanted)}
        if not chosen:
            found = sorted({_space(name) or "none" for name in images.values()})
            whose = "" if self.space else f", that of {self.label_image.path.name}"
            raise CohortError(
                f"{self.root}: has no images in space {wanted}{whose} (found: {_listed(found)}). Name one of these "
                "spaces, and a label image in it."
            )
        try:
            check_space(self.label_image, wanted, self.root.name, allow_space=self.allow_space)
        except RecordingError as error:
            raise CohortError(str(error)) from None
        return chosen

    def _one_resolution(self, images: dict[Path, BIDSName]) -> dict[Path, BIDSName]:
        found = sorted({name.entities.get("res", NATIVE) for name in images.values()})
        if not self.res and len(found) > 1:
            raise CohortError(f"{self.root}: has images of several resolutions (res: {_listed(found)}). Name one.")
        if self.res and self.res not in found:
            raise CohortError(
                f"{self.root}: has no images of resolution {self.res} (found: {_listed(found)}). Correct it."
            )
        return {path: name for path, name in images.items() if self.res in ("", name.entities.get("res", NATIVE))}


def _run(path: Path, name: BIDSName, tree: Tree) -> Run:
    """Describe a run with every file that decides what reading it gives; its confounds even if they are missing."""
    confounds = tree.confounds(path) or path.with_name(f"{name.run}_desc-confounds_timeseries.tsv")
    mask, described = tree.beside(path, "mask", _IMAGE, desc="brain"), confounds.with_suffix(".json")
    files = [confounds, mask, described if described in tree.files else None, *tree.sidecars(path)]
    return run_of(path, name, filter(None, files))


def _space(name: BIDSName) -> str:
    """Space of an image, with the cohort of a template that has several."""
    space, cohort = name.entities.get("space", ""), name.entities.get("cohort", "")
    return f"{space}:cohort-{cohort}" if cohort else space


def _listed(found: Iterable[str]) -> str:
    return ", ".join(name or "none" for name in found)
