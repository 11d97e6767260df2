"""Plain 4D NIfTI files as a source of recordings: a flat folder, folders a participant, or a tree after BIDS."""

from dataclasses import dataclass
from pathlib import Path

from cohorts.errors import CohortError
from cohorts.sources.bids import RUN_LABELS, Tree, parse_name
from cohorts.sources.confounds import Confounds, load_table
from cohorts.sources.formats import CIFTI, IMAGES, suffix_of
from cohorts.sources.kinds import Reading, Run, in_order
from cohorts.sources.parcellation import ImageSource
from cohorts.sources.volumes import check_space

_OTHER_FOLDERS = {"derivatives", "code"}


@dataclass(frozen=True)
class NiftiSource(ImageSource):
    """The 4D NIfTI files below a folder.

    Of names after BIDS those with suffix ``bold`` are taken; of other names every image but masks. What lies beside an
    image ``X.nii.gz`` (or ``X_bold.nii.gz``) belongs to it: ``X_confounds.tsv`` or ``X_desc-confounds_timeseries.tsv``,
    ``X_mask.nii.gz`` and ``X.json``. If one run has confounds, every run must.

    ``derivatives``, ``sourcedata``, ``code`` and hidden folders in `root` are left out.
    """

    confounds_suffix: str = "_confounds.tsv"
    mask_suffix: str = "_mask.nii.gz"
    """What follows X in the names of its confounds and its brain mask."""
    confound_columns: tuple[str, ...] = ()
    """Columns of the confounds to regress; all that are numbers, if empty."""
    participants: frozenset[str] = frozenset()
    """Ids of the participants table, to know a participant by the name of a file or folder that has no ``sub-``."""
    pipeline: str = "nifti"
    """A short id of what was done to the images before."""

    @property
    def preprocessing(self) -> str:
        """Such as ``nifti_space-MNI152NLin6Asym_confounds-6_highpass-0.01``; ``own`` if no confounds are named."""
        return self._in_words(self.pipeline, f"confounds-{len(self.confound_columns) or 'own'}")

    def runs(self) -> list[Run]:
        tree = Tree(self.root)
        images = [path for path in tree.paths if self._is_run(path)]
        if not images:
            raise CohortError(f"{self.root}: holds no .nii or .nii.gz runs. Name the folder of the images.")
        tables = {path: self._confounds(path, tree) for path in images}
        if any(tables.values()):  # those that are missing are named as such
            tables = {
                path: table or path.with_name(_label(path) + self.confounds_suffix) for path, table in tables.items()
            }
        return in_order(self._run(path, table, tree) for path, table in tables.items())

    def read(self, run: Run) -> Reading:
        """Read one run, if it lies in the space of the label image."""
        name = parse_name(run.files[0])
        space = (name.entities.get("space") if name else None) or self.space
        check_space(self.label_image, space, run.files[0].name, allow_space=self.allow_space)
        return super().read(run)

    def _load_confounds(self, bold: Path, table: Path, n_frames: int) -> Confounds:
        return load_table(table, n_frames, self.confound_columns)

    def _is_run(self, path: Path) -> bool:
        if not path.name.endswith(IMAGES) or suffix_of(path, CIFTI) or path == self.label_image.path:
            return False
        if _OTHER_FOLDERS & set(path.relative_to(self.root).parts[:-1]):
            return False
        name = parse_name(path)
        if name is not None and "sub" in name.entities:
            return name.suffix == "bold"
        return not path.name.endswith((self.mask_suffix, "_mask.nii.gz", "_mask.nii", "_dseg.nii.gz", "_dseg.nii"))

    def _confounds(self, path: Path, tree: Tree) -> Path | None:
        return _beside(path, self.confounds_suffix) or (tree.confounds(path) if path in tree.files else None)

    def _run(self, path: Path, table: Path | None, tree: Tree) -> Run:
        name = tree.files.get(path)
        entities = name.entities if name else {}
        own = path.with_name(_stem(path) + ".json")
        sidecars = tree.sidecars(path) if name else [own] * own.is_file()
        files = [path, table, _beside(path, self.mask_suffix), *sidecars]
        folders = path.relative_to(self.root).parts[:-1]
        label = _label(path) if "sub" in entities else "_".join([*folders, _label(path)])
        whose = self._participant(entities.get("sub"), [_label(path), *reversed(folders)]) or label
        labels = {key: entities.get(entity, "") for key, entity in RUN_LABELS.items()}
        return Run(label, whose, **labels, files=tuple(filter(None, files)))

    def _participant(self, sub: str | None, names: list[str]) -> str | None:
        """Whom the name of a file or of a folder around it names."""
        if sub is not None:
            return f"sub-{sub}"
        known = (name for plain in names for name in (plain, f"sub-{plain}") if name in self.participants)
        return next(known, None)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _beside(path: Path, suffix: str) -> Path | None:
    """File of an image's name with another ending, with ``_bold`` before it or without."""
    others = (path.with_name(stem + suffix) for stem in (_stem(path), _label(path)))
    return next((other for other in others if other.is_file()), None)


def _label(path: Path) -> str:
    """Stem of a run's name, without the suffix that BIDS ends it with."""
    return _stem(path).removesuffix("_bold")
