"""Confounds of a run: fMRIPrep's by the name of a strategy, or a plain table; which frames they censor; and motion."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nilearn.interfaces.fmriprep import load_confounds_strategy

from base.files import open_regular
from cohorts.errors import CohortError, RecordingError
from cohorts.tables import read_text_table

MODELS = ("basic", "power2", "derivatives", "full")
"""How far a kind of confound is expanded: as it is; with squares; with derivatives; with both, and squared ones."""

_OPTIONS = {
    "none": frozenset(),
    "simple": frozenset({"motion", "wm_csf", "global_signal"}),
    "scrubbing": frozenset({"motion", "wm_csf", "global_signal", "scrub", "fd_threshold", "std_dvars_threshold"}),
    "compcor": frozenset({"motion", "global_signal"}),
    "ica_aroma": frozenset({"wm_csf", "global_signal"}),
}
"""Name of a strategy → what can be set of it."""

STRATEGIES = tuple(_OPTIONS)

_NILEARN_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError)
"""What nilearn raises on a confounds file that lacks columns, is no table, or has text between its numbers."""


@dataclass(frozen=True)
class ConfoundStrategy:
    """One of nilearn's strategies, and what differs from its defaults; None keeps nilearn's.

    A strategy that is unknown, or has no such option, is refused as a `CohortError`.
    """

    name: str = "simple"
    """``simple``: 24 motion parameters, white matter and CSF, high-pass cosines (Fox et al. 2005). ``scrubbing``: the
    same with 8 parameters of white matter and CSF, and frames of high motion censored (Power et al. 2012). ``compcor``:
    motion and the components of white matter and CSF (Behzadi et al. 2007). ``ica_aroma``: white matter and CSF, on
    images that ICA-AROMA cleaned (Pruim et al. 2015). ``none``: nothing is regressed. All but ``none`` censor the
    volumes before the scanner's steady state."""
    motion: str | None = None
    """One of `MODELS`: 6, 12, 12 or 24 parameters."""
    wm_csf: str | None = None
    """One of `MODELS`: 2, 4, 4 or 8 parameters."""
    global_signal: str | None = None
    """Regress the global signal, too: 1, 2, 2 or 4 parameters. No strategy does by default."""
    fd_threshold: float | None = None
    """Censor frames whose framewise displacement is above it, mm; nilearn's default is 0.5."""
    std_dvars_threshold: float | None = None
    """Censor frames whose standardized DVARS is above it; nilearn's default is 1.5."""
    scrub: int | None = None
    """Censor what is left between censored frames, too, where it is shorter than this; nilearn's default is 5."""

    def __post_init__(self) -> None:
        if self.name not in _OPTIONS:
            raise CohortError(f"Confound strategy '{self.name}' is not known; expected one of {', '.join(STRATEGIES)}.")
        strange = set(self.options) - _OPTIONS[self.name]
        if strange:
            known = ", ".join(sorted(_OPTIONS[self.name])) or "none"
            raise CohortError(
                f"Confound strategy '{self.name}' has no option {sorted(strange)[0]} (its options: {known}). "
                "Leave it out."
            )
        for option in ("motion", "wm_csf", "global_signal"):
            if self.options.get(option, "full") not in MODELS:
                raise CohortError(
                    f"{option} '{self.options[option]}' is not known; expected one of {', '.join(MODELS)}."
                )
        for option in ("fd_threshold", "std_dvars_threshold", "scrub"):
            if not self.options.get(option, 1) >= 0:
                raise CohortError(f"{option} of {self.options[option]}: expected a number from 0 on.")

    @property
    def options(self) -> dict[str, Any]:
        """What differs from nilearn's defaults."""
        given = {name: getattr(self, name) for name in sorted(_OPTIONS["scrubbing"])}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def id(self) -> str:
        """A short name of the strategy with its options, such as ``scrubbing_fd-0.2_wmcsf-basic``."""
        short = {name: name.removesuffix("_threshold").replace("_", "") for name in self.options}
        options = (f"{short[name]}-{value}" for name, value in self.options.items())
        return "_".join([self.name.replace("_", ""), *options])


@dataclass(frozen=True)
class Confounds:
    """What a confounds file says of a run of A frames."""

    regressors: np.ndarray
    """[A, C] float64, finite; C may be 0."""
    censored: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    """[A] bool; empty if no frames were judged."""
    framewise_displacement: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """[A] float32 in mm, the first NaN; empty if the file does not have it."""


def load_strategy(image: Path, confounds_file: Path, strategy: ConfoundStrategy, n_frames: int) -> Confounds:
    """Load the confounds of fMRIPrep's BOLD image of so many volumes by nilearn, which finds the file beside it."""
    table = _read(confounds_file, n_frames)
    displacement = _framewise_displacement(table)
    if strategy.name == "none":
        return Confounds(np.empty((n_frames, 0)), framewise_displacement=displacement)
    _require_fmriprep_text(confounds_file)
    try:
        with warnings.catch_warnings(action="ignore"):
            frame, kept = load_confounds_strategy(str(image), denoise_strategy=strategy.name, **strategy.options)
    except _NILEARN_ERRORS as error:
        raise RecordingError(
            "confounds-missing",
            f"{confounds_file.name}: cannot be used for strategy '{strategy.name}': {_first_sentence(error, image)}. "
            "Expected fMRIPrep's confounds from version 1.4 on, tab-separated UTF-8. Take another strategy, or run "
            "fMRIPrep again.",
        ) from None
    censored = np.full(n_frames, kept is not None)
    if kept is not None:
        censored[kept] = False
    regressors = np.asarray(frame, np.float64).reshape(n_frames, -1)
    _require_finite(regressors, list(frame.columns), confounds_file, ~censored)
    return Confounds(np.nan_to_num(regressors), censored, displacement)


def load_table(path: Path, n_frames: int, columns: tuple[str, ...] = ()) -> Confounds:
    """Load regressors from a plain table with a header, one row a frame.

    Parameters
    ----------
    columns : tuple of str
        The columns to take; all that are numbers, if empty.

    Returns
    -------
    Confounds
        Nothing is censored. A value missing in the first row, as of a derivative, is taken from the second, as
        nilearn does.
    """
    table = _read(path, n_frames)
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise RecordingError(
            "confounds-missing",
            f"{path.name}: has no column '{lacking[0]}' (columns: {', '.join(list(table)[:8])}). Correct the name.",
        )
    chosen = table[list(columns)] if columns else table.select_dtypes("number")
    text = [column for column in chosen if not pd.api.types.is_numeric_dtype(chosen[column])]
    if text or chosen.shape[1] == 0:
        raise RecordingError(
            "confounds-missing",
            f"{path.name}: {f'column {text[0]!r} holds text' if text else 'has no column of numbers'}; expected a "
            "header and numbers, one row a volume. Export it again.",
        )
    regressors = chosen.to_numpy(np.float64, copy=True)
    regressors[0] = np.where(np.isnan(regressors[0]), regressors[1], regressors[0])
    _require_finite(regressors, list(chosen), path, np.ones(n_frames, bool))
    return Confounds(regressors, framewise_displacement=_framewise_displacement(table))


def _read(path: Path, n_frames: int) -> pd.DataFrame:
    try:
        table = read_text_table(path)
    except FileNotFoundError:
        raise RecordingError(
            "confounds-missing", f"{path.name}: is not there; expected the run's confounds. Restore it."
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RecordingError(
            "confounds-unreadable",
            f"{path.name}: cannot be read as a table of confounds ({why}). Export it as tab-separated UTF-8 text.",
        ) from None
    if len(table) != n_frames:
        raise RecordingError(
            "confounds-length",
            f"{path.name}: has {len(table)} rows, but the run has {n_frames} volumes; expected one row a volume. "
            "Find the confounds of this run.",
        )
    return table


def _require_fmriprep_text(path: Path) -> None:
    """Refuse what nilearn does not read, although `read_text_table` does: commas, and UTF-16."""
    with open_regular(path) as stream:
        header = stream.readline()
    if b"\t" not in header or b"\0" in header:
        raise RecordingError(
            "confounds-unreadable",
            f"{path.name}: is not tab-separated UTF-8 text, as fMRIPrep writes it; some program has saved it anew. "
            "Take fMRIPrep's own file.",
        )


def _framewise_displacement(table: pd.DataFrame) -> np.ndarray:
    """Framewise displacement of a table that has it as numbers, in mm; the first frame has none."""
    if "framewise_displacement" not in table:
        return np.empty(0, np.float32)
    displacement = pd.to_numeric(table["framewise_displacement"], errors="coerce").to_numpy(np.float32, copy=True)
    displacement[0] = np.nan
    return displacement


def _require_finite(regressors: np.ndarray, names: list[str], path: Path, used: np.ndarray) -> None:
    broken = ~np.isfinite(regressors) & used[:, None]
    if broken.any():
        row, column = np.argwhere(broken)[0]
        raise RecordingError(
            "confounds-nan",
            f"{path.name}: column '{names[column]}' has no number for volume {row + 1}; expected n/a in the first row "
            "alone. Take another strategy, or run the step that made it again.",
        )


def _first_sentence(error: Exception, image: Path) -> str:
    """First line of what a library said, without folders."""
    text = str(error).strip().replace(f"{image.parent}/", "").split("\n")[0].split(". ")[0].rstrip(". :")
    return " ".join(text.split())[:200] or type(error).__name__
