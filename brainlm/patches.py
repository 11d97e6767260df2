"""From windows to patches and back: spans of time of a parcel, or of a few neighbouring ones.

Shapes: B windows, P parcels, T frames; G groups of M parcels, S spans of F frames, N = G * S tokens.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brainlm.config import ModelConfig, WindowConfig
from brainlm.errors import ShapeError


@dataclass(frozen=True)
class Patches:
    """A batch of windows, cut."""

    signal: Tensor
    """[B, P, T], as given."""
    inputs: Tensor
    """[B, N, M * patch_frames], what the encoder reads."""
    coordinates: Tensor
    """[B, G, 3], the mean place of every group's parcels, in millimetres."""
    valid: Tensor | None
    """[B, P] bool, False for missing parcels; None if none is missing."""
    order: Tensor | None
    """[G * M], the parcels group by group, and P where the last group is not full; None if tokens hold one parcel."""
    n_members: int
    n_spans: int
    """M and S."""
    resize: Tensor | None
    """[F, patch_frames], from a patch as the model writes it to the window's own frames; None if they are the same."""

    @property
    def grid(self) -> tuple[int, int]:
        """Groups and spans."""
        return self.coordinates.shape[1], self.n_spans

    @property
    def n_tokens(self) -> int:
        return self.coordinates.shape[1] * self.n_spans

    def tokens_valid(self) -> Tensor | None:
        """Which groups have a parcel that is there, [B, G] bool; None if all have."""
        if self.valid is None or self.order is None:
            return self.valid
        return F.pad(self.valid, (0, 1))[:, self.order].unflatten(1, (-1, self.n_members)).any(dim=2)

    def parcels_valid(self) -> Tensor:
        """Which parcels are there, [B, P] bool."""
        if self.valid is None:
            return torch.ones(self.signal.shape[:2], dtype=torch.bool, device=self.signal.device)
        return self.valid

    def everything(self) -> Tensor:
        """Every token that can be seen, [B, G, S] bool."""
        valid = self.tokens_valid()
        if valid is None:
            return torch.ones(len(self.signal), *self.grid, dtype=torch.bool, device=self.signal.device)
        return valid[..., None].expand(-1, -1, self.n_spans)

    def recut(self, signal: Tensor) -> Tensor:
        """Cut another signal [B, P, T] of the same windows as `inputs` is cut → [B, N, M * patch_frames]."""
        return _cut(signal, self.order, self.n_members, self.n_spans, self.resize)

    def join(self, patches: Tensor) -> Tensor:
        """Undo `recut`: [B, G, S, M * patch_frames] → [B, P, T]."""
        patches = patches.unflatten(3, (self.n_members, -1))
        if self.resize is not None:
            with torch.autocast(patches.device.type, enabled=False):
                patches = patches @ self.resize.T.to(patches)
        return self._by_parcel(patches.transpose(2, 3).flatten(3).flatten(1, 2))

    def on_frames(self, tokens: Tensor) -> Tensor:
        """Which values belong to the tokens that are True in [B, G, S] → [B, P, T] bool, never a missing parcel's."""
        rows = self._by_parcel(tokens.repeat_interleave(self.n_members, dim=1))
        if self.valid is not None:
            rows = rows & self.valid[..., None]
        return rows.repeat_interleave(self.signal.shape[2] // self.n_spans, dim=2)

    def _by_parcel(self, rows: Tensor) -> Tensor:
        """Rows [B, G * M, ...] in the order of groups → [B, P, ...] in the order of the atlas."""
        return rows if self.order is None else rows[:, self.order.argsort()[: self.signal.shape[1]]]


def cut(signal: Tensor, coordinates: Tensor, valid: Tensor | None, config: ModelConfig) -> Patches:
    """Cut windows into patches, after checking all shapes.

    Parameters
    ----------
    signal : torch.Tensor
        [B, P, T]; missing parcels count as zero.
    coordinates : torch.Tensor
        [B, P, 3].
    valid : torch.Tensor or None
        [B, P] bool.

    Raises
    ------
    ShapeError
        If a shape does not fit the window, or groups of parcels differ between windows.
    """
    window, n_members = config.window, config.parcels_per_token
    _check_shapes(signal, coordinates, valid, window)
    if valid is not None and bool(valid.all()):
        valid = None
    if valid is not None:
        signal = signal.masked_fill(~valid[..., None], 0.0)
    order, centres = None, coordinates
    if n_members > 1:
        if not bool((coordinates == coordinates[:1]).all()):
            raise ShapeError("windows of one batch have other coordinates; groups of parcels need one atlas a batch.")
        order = group_parcels(coordinates[0], n_members)
        there = (order < signal.shape[1]).unflatten(0, (-1, n_members))
        centres = F.pad(coordinates, (0, 0, 0, 1))[:, order].unflatten(1, (-1, n_members)).sum(dim=2)
        centres = centres / there.sum(dim=1)[:, None]
    n_frames = signal.shape[2] // window.n_patches
    resize = None if n_frames == window.patch_frames else resizing(window.patch_frames, n_frames).to(signal.device)
    inputs = _cut(signal, order, n_members, window.n_patches, resize)
    return Patches(signal, inputs, centres, valid, order, n_members, window.n_patches, resize)


@lru_cache(maxsize=64)
def resizing(n_frames: int, new_frames: int) -> Tensor:
    """Make the matrix [new_frames, n_frames] that resizes a patch: linear, and averaging where it gets shorter.

    A patch of other frames is read through its pseudo-inverse, which equals resizing the embedding's weights so that
    a patch and its resized self give the same token, and is written through the matrix itself (Beyer et al., FlexiViT,
    CVPR 2023; for recordings of other TRs, Dong et al., Brain Harmony, NeurIPS 2025).
    """
    identity = torch.eye(n_frames, dtype=torch.float64)[None, None]
    return F.interpolate(identity, size=(new_frames, n_frames), mode="bilinear", antialias=True)[0, 0]


@lru_cache(maxsize=64)
def reading(n_frames: int, new_frames: int) -> Tensor:
    """Make the pseudo-inverse [n_frames, new_frames] of `resizing`."""
    return torch.linalg.pinv(resizing(n_frames, new_frames))


def group_parcels(coordinates: Tensor, n_members: int) -> Tensor:
    """Group parcels [P, 3] with their neighbours, M each: halve the set along its longest axis until groups are full.

    Indices of the parcels come group by group, [G * M]; P where the last group is not full.
    """
    points = coordinates.double().cpu().numpy()
    order = _halve(points, np.arange(len(points)), n_members)
    rest = [len(points)] * (-len(points) % n_members)
    return torch.tensor([*order, *rest], device=coordinates.device)


def _halve(points: np.ndarray, members: np.ndarray, n_members: int) -> list[int]:
    """Order `members` so that every run of `n_members` lies together."""
    if len(members) <= n_members:
        return members.tolist()
    axis = np.ptp(points[members], axis=0).argmax()
    ordered = members[np.argsort(points[members, axis], kind="stable")]
    middle = math.ceil(len(ordered) / n_members / 2) * n_members  # whole groups on the first side
    return _halve(points, ordered[:middle], n_members) + _halve(points, ordered[middle:], n_members)


def _cut(signal: Tensor, order: Tensor | None, n_members: int, n_spans: int, resize: Tensor | None) -> Tensor:
    """[B, P, T] → [B, N, M * patch_frames]."""
    rows = signal if order is None else F.pad(signal, (0, 0, 0, 1))[:, order]
    patches = rows.unflatten(1, (-1, n_members)).unflatten(3, (n_spans, -1)).transpose(2, 3)  # [B, G, S, M, F]
    if resize is not None:
        with torch.autocast(patches.device.type, enabled=False):
            patches = patches @ reading(resize.shape[1], resize.shape[0]).T.to(patches)
    return patches.flatten(3).flatten(1, 2)


def _check_shapes(signal: Tensor, coordinates: Tensor, valid: Tensor | None, window: WindowConfig) -> None:
    if len(signal) == 0:
        raise ShapeError("signal holds no window; expected one at least.")
    if signal.ndim == 3 and window.temporal == "adaptive":
        fits = signal.shape[2] > 0 and signal.shape[2] % window.n_patches == 0
        frames = f"a multiple of {window.n_patches}"
    else:
        fits = signal.ndim == 3 and signal.shape[2] == window.n_frames
        frames = f"{window.n_frames}"
    if not fits:
        raise ShapeError(f"signal has shape {list(signal.shape)}; expected [windows, parcels, {frames} frames].")
    check_parcels(signal, coordinates, valid)


def check_parcels(signal: Tensor, coordinates: Tensor, valid: Tensor | None) -> None:
    """Raise ShapeError unless `coordinates` are [B, P, 3] and `valid`, if it is given, [B, P] bool."""
    if coordinates.shape != (*signal.shape[:2], 3):
        raise ShapeError(f"coordinates have shape {list(coordinates.shape)}; expected {[*signal.shape[:2], 3]}.")
    if valid is not None and (valid.shape != signal.shape[:2] or valid.dtype != torch.bool):
        raise ShapeError(f"valid is {valid.dtype} {list(valid.shape)}; expected torch.bool {list(signal.shape[:2])}.")


def check_noise(noise: Tensor, n_windows: int, n_tokens: int) -> None:
    """Raise ShapeError unless `noise` is [B, N]."""
    if noise.shape != (n_windows, n_tokens):
        raise ShapeError(f"noise has shape {list(noise.shape)}; expected {[n_windows, n_tokens]}.")
