import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainlm.config import ModelConfig, WindowConfig
from brainlm.errors import ShapeError
from brainlm.patches import cut, group_parcels, resizing


def config(n_members: int = 1, temporal: str = "resample") -> ModelConfig:
    window = WindowConfig(n_frames=40, patch_frames=10, temporal=temporal)
    return ModelConfig(window=window, parcels_per_token=n_members)


def brain(n_parcels: int, n_windows: int = 2, n_frames: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_parcels)
    coordinates = 40 * torch.randn(1, n_parcels, 3, generator=generator)
    return torch.randn(n_windows, n_parcels, n_frames, generator=generator), coordinates.expand(n_windows, -1, -1)


@settings(max_examples=30, deadline=None)
@given(n_parcels=st.integers(1, 40), n_members=st.integers(1, 9))
def test_every_parcel_is_in_one_group_and_joins_to_what_it_was(n_parcels, n_members):
    signal, coordinates = brain(n_parcels)
    patches = cut(signal, coordinates, None, config(n_members))

    assert patches.inputs.shape == (2, patches.n_tokens, n_members * 10)
    assert patches.grid == (-(-n_parcels // n_members), 4)
    torch.testing.assert_close(patches.join(patches.inputs.unflatten(1, patches.grid)), signal)
    assert patches.on_frames(patches.everything()).all()


def test_tokens_count_parcel_by_parcel():
    signal, coordinates = brain(3)
    patches = cut(signal, coordinates, None, config())

    torch.testing.assert_close(patches.inputs[0, 1 * 4 + 2], signal[0, 1, 20:30])


def test_a_group_lies_together():
    """On a 4 x 4 x 4 lattice, groups of eight are its eight corners."""
    lattice = torch.tensor(np.argwhere(np.ones((4, 4, 4))), dtype=torch.float32)
    lattice = lattice[torch.randperm(64, generator=torch.Generator().manual_seed(0))]

    groups = lattice[group_parcels(lattice, 8)].unflatten(0, (8, 8))

    assert (groups.amax(dim=1) - groups.amin(dim=1) == 1).all()


def test_a_group_lies_where_its_parcels_do():
    signal, coordinates = brain(10)
    patches = cut(signal, coordinates, None, config(4))

    members = patches.order.unflatten(0, (3, 4))
    for group, parcels in enumerate(members):
        there = parcels[parcels < 10]
        torch.testing.assert_close(patches.coordinates[0, group], coordinates[0, there].mean(dim=0))


def test_a_group_is_there_while_one_of_its_parcels_is():
    signal, coordinates = brain(8)
    order = group_parcels(coordinates[0], 4)
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[0, order[:4]] = False
    valid[1, order[:3]] = False
    patches = cut(signal, coordinates, valid, config(4))

    assert patches.tokens_valid().tolist() == [[False, True], [True, True]]
    shown = patches.on_frames(torch.ones(2, 2, 4, dtype=torch.bool))
    torch.testing.assert_close(shown, valid[..., None].expand(-1, -1, 40))


@pytest.mark.parametrize("n_frames", [4, 7, 10, 13, 28])
def test_a_patch_of_another_tr_is_read_as_the_same_signal(n_frames):
    """A slow wave sampled at another TR gives nearly the inputs of the reference TR, and returns as it was."""

    def wave(n: int) -> torch.Tensor:
        seconds = (torch.arange(4 * n) + 0.5) / n
        return torch.sin(2 * torch.pi * 0.35 * seconds).expand(1, 1, -1)

    patches = cut(wave(n_frames), torch.zeros(1, 1, 3), None, config(temporal="adaptive"))
    reference = cut(wave(10), torch.zeros(1, 1, 3), None, config(temporal="adaptive"))

    assert patches.inputs.shape == reference.inputs.shape
    assert (patches.inputs - reference.inputs).square().mean() < 0.1 * reference.inputs.square().mean()
    back = patches.join(patches.inputs.unflatten(1, patches.grid))
    assert (back - patches.signal).square().mean() < 0.02 * patches.signal.square().mean()


def test_resizing_the_patch_equals_resizing_the_embedding():
    """For longer patches the token of a resized patch is the token of the patch (FlexiViT, equation 4)."""
    weights = torch.randn(5, 10, dtype=torch.float64)
    patch = torch.randn(10, dtype=torch.float64)
    matrix = resizing(10, 25)

    resized_weights = weights @ torch.linalg.pinv(matrix)

    torch.testing.assert_close(resized_weights @ (matrix @ patch), weights @ patch)


def test_constant_signals_keep_their_value():
    for n_frames in (3, 10, 17):
        torch.testing.assert_close(resizing(10, n_frames).sum(dim=1), torch.ones(n_frames, dtype=torch.float64))


def test_wrong_lengths_are_refused():
    signal, coordinates = brain(3, n_frames=42)
    with pytest.raises(ShapeError, match=r"expected \[windows, parcels, a multiple of 4 frames\]"):
        cut(signal, coordinates, None, config(temporal="adaptive"))
    with pytest.raises(ShapeError, match=r"expected \[windows, parcels, 40 frames\]"):
        cut(signal, coordinates, None, config())


def test_groups_need_one_atlas_a_batch():
    signal, coordinates = brain(6)
    with pytest.raises(ShapeError, match="one atlas a batch"):
        cut(signal, coordinates + torch.arange(2)[:, None, None], None, config(2))
