"""How well hidden values are reconstructed, from sums that add over windows, participants and sites."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brainlm.architectures import AnyModel
from brainlm.model import MAEOutput
from brainlm.windows import Batch, WindowSet
from cohorts.seeding import derive_seed


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over the hidden values of each parcel, all [P] float64. Sums of the same atlas add.

    Attributes
    ----------
    count : numpy.ndarray
        Hidden values.
    total, squares : numpy.ndarray
        Their sum and the sum of their squares.
    errors : numpy.ndarray
        Sum of the squared errors of the reconstruction.
    """

    count: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    errors: np.ndarray

    @classmethod
    def zeros(cls, n_parcels: int) -> "ReconstructionSums":
        """Sums over nothing."""
        return cls(*(np.zeros(n_parcels) for _ in range(4)))

    def __add__(self, other: "ReconstructionSums") -> "ReconstructionSums":
        return ReconstructionSums(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.errors + other.errors,
        )

    @property
    def masked_r2(self) -> float:
        """1 - errors / spread about the mean, over all hidden values; below 0 if worse than the mean."""
        return float(_r2(self.count.sum(), self.total.sum(), self.squares.sum(), self.errors.sum()))

    @property
    def masked_r2_by_parcel(self) -> np.ndarray:
        """The same for each parcel [P]; NaN where a parcel was never hidden."""
        return _r2(self.count, self.total, self.squares, self.errors)

    @property
    def mean_squared_error(self) -> float:
        count = self.count.sum()
        return float(self.errors.sum() / count) if count else math.nan


def _r2(count: np.ndarray, total: np.ndarray, squares: np.ndarray, errors: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = squares - total**2 / count
        return np.where(spread > 0, 1 - errors / spread, np.nan)


@torch.no_grad()
def evaluate(
    model: AnyModel, windows: WindowSet, *, seed: int, batch_size: int = 16, device: torch.device | str = "cpu"
) -> ReconstructionSums:
    """Reconstruct every non-overlapping window under masks that depend on the seed alone.

    Parameters
    ----------
    windows : WindowSet
        Windows of participants that were held out.
    seed : int
        The same seed gives the same masks, so that rounds can be compared.
    """
    device = torch.device(device)
    model.to(device).eval()
    generator = torch.Generator().manual_seed(derive_seed(seed, "evaluation"))
    sums = ReconstructionSums.zeros(windows.cohort.atlas.n_parcels)
    for batch in windows.segments(batch_size):
        signal, output = _reconstruct(model, batch.to(device), generator)
        hidden = output.mask.double()
        error = (output.reconstruction.double() - signal.double()).square()
        sums += ReconstructionSums(
            *(
                values.sum(dim=(0, 2)).cpu().numpy()
                for values in (hidden, signal.double() * hidden, signal.double().square() * hidden, error * hidden)
            )
        )
    return sums


@torch.no_grad()
def reconstruct_example(
    model: AnyModel, windows: WindowSet, *, seed: int, device: torch.device | str = "cpu"
) -> dict[str, np.ndarray]:
    """Reconstruct the first window, for a figure.

    Returns
    -------
    dict
        signal, reconstruction and mask, [P, T] float32 each. They show one participant and stay where they were made.
    """
    model.to(torch.device(device)).eval()
    generator = torch.Generator().manual_seed(derive_seed(seed, "evaluation"))
    signal, output = _reconstruct(model, next(windows.segments(1)).to(torch.device(device)), generator)
    shown = {"signal": signal, "reconstruction": output.reconstruction, "mask": output.mask}
    return {name: values[0].float().cpu().numpy() for name, values in shown.items()}


def _reconstruct(model: AnyModel, batch: Batch, generator: torch.Generator) -> tuple[Tensor, MAEOutput]:
    noise = model.draw_noise(*batch.signal.shape[:2], generator).to(batch.signal.device)
    return batch.signal, model(batch.signal, batch.coordinates, noise, batch.valid)
