"""How well hidden values are reconstructed, from sums that add over windows, participants and sites."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from base.seeding import derive_seed
from brainlm.architectures import AnyModel
from brainlm.errors import BrainLMError
from brainlm.masking import choose_mask
from brainlm.model import BrainLM, MAEOutput, Predictor
from brainlm.windows import Batch, WindowSet

MODEL = "model"
"""Name of the model among predictors."""
SUMS = ("count", "total", "squares", "predicted", "predicted_squares", "products", "errors", "absolute_errors")
"""What is summed over hidden values x and their predictions y: 1, x, x², y, y², xy, (x - y)², |x - y|."""
SCORES = ("masked_r2", "mse", "mae", "pearson_r")
MAX_HORIZON = 40
"""Longer distances to the nearest visible frame count as this one."""


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over hidden values. Those of the same atlas add; horizons add over atlases, too."""

    parcels: np.ndarray
    """[len(SUMS), P] float64, over the hidden values of each parcel."""
    horizons: np.ndarray
    """[len(SUMS), MAX_HORIZON + 1] float64, over the values as many frames from the nearest visible frame of the same
    parcel; at 0 those of parcels of which nothing was visible. When the future is hidden, that is the number of frames
    since the last visible one."""

    @classmethod
    def zeros(cls, n_parcels: int) -> "ReconstructionSums":
        """Sums over nothing."""
        return cls(np.zeros((len(SUMS), n_parcels)), np.zeros((len(SUMS), MAX_HORIZON + 1)))

    @classmethod
    def of(cls, signal: Tensor, prediction: Tensor, hidden: Tensor, visible: Tensor) -> "ReconstructionSums":
        """Sums of one batch.

        Parameters
        ----------
        signal, prediction : torch.Tensor
            [B, P, T].
        hidden, visible : torch.Tensor
            [B, P, T] bool. Values of missing parcels are neither.
        """
        places = frames_to_visible(visible).clamp(max=MAX_HORIZON)[hidden]
        x, y = signal.double(), prediction.double()
        error = x - y
        parcels, horizons = [], []
        for term in (torch.ones_like(x), x, x * x, y, y * y, x * y, error * error, error.abs()):
            parcels.append(term.masked_fill(~hidden, 0).sum(dim=(0, 2)))
            horizons.append(torch.bincount(places, weights=term[hidden], minlength=MAX_HORIZON + 1))
        return cls(torch.stack(parcels).cpu().numpy(), torch.stack(horizons).cpu().numpy())

    def __add__(self, other: "ReconstructionSums") -> "ReconstructionSums":
        return ReconstructionSums(self.parcels + other.parcels, self.horizons + other.horizons)

    def only(self, enough: np.ndarray) -> "ReconstructionSums":
        """Keep the parcels and horizons that are True in `enough` [P + MAX_HORIZON + 1]; zeros elsewhere."""
        parcels, horizons = np.split(enough, [self.parcels.shape[1]])
        return ReconstructionSums(self.parcels * parcels, self.horizons * horizons)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, as the class takes them."""
        return {"parcels": self.parcels, "horizons": self.horizons}

    def over_parcels(self) -> "ReconstructionSums":
        """Return the sums over all parcels as those of one, so that sums of other atlases can be added."""
        return ReconstructionSums(self.parcels.sum(axis=1, keepdims=True), self.horizons)

    @property
    def overall(self) -> dict[str, float]:
        """Scores over all hidden values."""
        return {name: float(value) for name, value in scores(self.parcels.sum(axis=1)).items()}

    @property
    def masked_r2(self) -> float:
        """1 - errors / spread about the mean, over all hidden values; below 0 if worse than the mean."""
        return self.overall["masked_r2"]

    @property
    def masked_r2_by_parcel(self) -> np.ndarray:
        """The same for each parcel [P]; NaN where a parcel was never hidden."""
        return scores(self.parcels)["masked_r2"]

    def by_network(self, networks: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Sums [len(SUMS)] of each network, in order of names; one is named a parcel (`cohorts.Atlas.networks`)."""
        of_parcel = np.array(networks)
        return {name: self.parcels[:, of_parcel == name].sum(axis=1) for name in sorted(set(networks))}

    def by_horizon(self) -> dict[int, np.ndarray]:
        """Sums [len(SUMS)] at each distance in frames that occurred; see `horizons`."""
        return {frames: self.horizons[:, frames] for frames in np.flatnonzero(self.horizons[0]).tolist()}


def scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Scores from sums [len(SUMS), ...], each group of hidden values for itself.

    Returns masked_r2 (1 - errors / spread about the group's mean), mse, mae, and pearson_r, Pearson's correlation of
    values and predictions; NaN where they are not defined: for no values, equal values, or equal predictions.
    """
    count, total, squares, predicted, predicted_squares, products, errors, absolute = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = squares - total**2 / count
        predicted_spread = predicted_squares - predicted**2 / count
        together = products - total * predicted / count
        varies = (spread > 1e-12 * squares) & (predicted_spread > 1e-12 * predicted_squares)  # beyond rounding
        return {
            "masked_r2": np.where(spread > 0, 1 - errors / spread, np.nan),
            "mse": errors / count,
            "mae": absolute / count,
            "pearson_r": np.where(varies, together / np.sqrt(spread * predicted_spread), np.nan),
        }


def visible_neighbours(visible: Tensor) -> tuple[Tensor, Tensor]:
    """Find the last visible frame up to each frame, and the next one from it on, of the same parcel.

    Of `visible` [B, P, T] bool, the frames [B, P, T] of both; -1 where none is before, and T where none is after.
    """
    n_frames = visible.shape[2]
    frame = torch.arange(n_frames, device=visible.device)
    before = torch.where(visible, frame, -1).cummax(dim=2).values
    after = torch.where(visible, frame, n_frames).flip(2).cummin(dim=2).values.flip(2)
    return before, after


def frames_to_visible(visible: Tensor) -> Tensor:
    """Count frames from each frame to the nearest visible one of the same parcel, [B, P, T]; 0 where there is none."""
    before, after = visible_neighbours(visible)
    n_frames = visible.shape[2]
    frame = torch.arange(n_frames, device=visible.device)
    since = torch.where(before >= 0, frame - before, n_frames)
    until = torch.where(after < n_frames, after - frame, n_frames)
    nearest = since.minimum(until)
    return nearest.masked_fill(nearest == n_frames, 0)


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
    return compare(model, {}, windows, seed=seed, batch_size=batch_size, device=device)[MODEL]


@torch.no_grad()
def compare(
    model: AnyModel,
    baselines: Mapping[str, Predictor],
    windows: WindowSet,
    *,
    seed: int,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    least: int = 1,
) -> dict[str, ReconstructionSums]:
    """Evaluate a model and other predictors on the same hidden values; arguments as of `evaluate`.

    Parameters
    ----------
    baselines : mapping
        Name → predictor (`brainlm.baselines.make_baselines`). They are given zeros for what is hidden.
    least : int
        Fewest participants whose values a parcel's or a horizon's sums hold; those of fewer are zero.

    Returns
    -------
    dict
        Sums of the model, as ``model``, and of each baseline.
    """
    device = torch.device(device)
    model.to(device).eval()
    generator = torch.Generator().manual_seed(derive_seed(seed, "evaluation"))
    if isinstance(model, BrainLM) and model.config.residual == "gaussian" and model.prior is None:
        raise BrainLMError("the model starts from a linear prediction, and has none. Set its 'prior'.")
    sums = {name: ReconstructionSums.zeros(windows.cohort.atlas.n_parcels) for name in (MODEL, *baselines)}
    behind: dict[str, np.ndarray] = {}  # participant → where their values were hidden: parcels, then horizons
    for batch in windows.segments(batch_size):
        moved = batch.to(device)
        signal, output = moved.signal, _reconstruct(model, moved, generator)
        hidden = output.mask.bool()
        visible = ~hidden & moved.valid[..., None]
        sums[MODEL] += ReconstructionSums.of(signal, output.reconstruction, hidden, visible)
        for name, values in score_baselines(baselines, signal, hidden, moved.valid).items():
            sums[name] += values
        for number, participant in enumerate(batch.participants):
            mine = _where(hidden[[number]], visible[[number]])
            behind[participant] = behind.get(participant, False) | mine
    enough = np.sum(list(behind.values()), axis=0) >= least
    return {name: of_predictor.only(enough) for name, of_predictor in sums.items()}


def _where(hidden: Tensor, visible: Tensor) -> np.ndarray:
    """Parcels and horizons [P + MAX_HORIZON + 1] bool that have hidden values in a window."""
    places = frames_to_visible(visible).clamp(max=MAX_HORIZON)[hidden]
    horizons = torch.bincount(places, minlength=MAX_HORIZON + 1) > 0
    return torch.cat([hidden.any(dim=2)[0], horizons]).cpu().numpy()


def score_baselines(
    baselines: Mapping[str, Predictor], signal: Tensor, hidden: Tensor, valid: Tensor
) -> dict[str, ReconstructionSums]:
    """Sums of each predictor over the values `hidden` [B, P, T] of one batch, which it is not shown."""
    visible = ~hidden & valid[..., None]
    shown = signal.masked_fill(~visible, 0)
    return {
        name: ReconstructionSums.of(signal, baseline.predict(shown, visible, valid), hidden, visible)
        for name, baseline in baselines.items()
    }


@torch.no_grad()
def reconstruct_example(
    model: AnyModel, windows: WindowSet, *, seed: int, device: torch.device | str = "cpu"
) -> dict[str, np.ndarray]:
    """Reconstruct the first window, for a figure.

    Returns signal, reconstruction and mask, [P, T] float32 each. They show one participant and stay where they were
    made.
    """
    model.to(torch.device(device)).eval()
    generator = torch.Generator().manual_seed(derive_seed(seed, "evaluation"))
    batch = next(windows.segments(1)).to(torch.device(device))
    output = _reconstruct(model, batch, generator)
    shown = {"signal": batch.signal, "reconstruction": output.reconstruction, "mask": output.mask}
    return {name: values[0].float().cpu().numpy() for name, values in shown.items()}


def _reconstruct(model: AnyModel, batch: Batch, generator: torch.Generator) -> MAEOutput:
    mask = choose_mask(model.config.mask, generator=generator)
    n_windows, n_parcels, _ = batch.signal.shape
    noise = model.draw_noise(mask, n_windows, n_parcels, generator).to(batch.signal.device)
    return model(batch.signal, batch.coordinates, noise, batch.valid, mask=mask)
