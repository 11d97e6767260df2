import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brainlm.config import MaskConfig, ModelConfig, WindowConfig
from brainlm.errors import ShapeError
from brainlm.masking import draw_noise
from brainlm.model import BrainLM
from brainlm.patches import group_parcels
from brainlm.pretraining import initial_model

DEFAULT = MaskConfig()


def make(mask: MaskConfig = DEFAULT, n_frames: int = 40) -> BrainLM:
    window = WindowConfig(n_frames=n_frames, patch_frames=10)
    config = ModelConfig(window=window, mask=mask, width=32, depth=2, heads=2, decoder_width=16, decoder_heads=2)
    return initial_model(config, 0).eval()


def inputs(n_windows: int = 3, n_parcels: int = 9, n_frames: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(n_windows, n_parcels, n_frames, generator=generator)
    return signal, 40 * torch.randn(n_windows, n_parcels, 3, generator=generator)


@settings(max_examples=30, deadline=None)
@example(
    kind="random", ratio=0.9, n_parcels=10, n_patches=2, missing=1, seed=0
)  # 20 x (1 - 0.9) is below 2 by rounding
@given(
    kind=st.sampled_from(["random", "parcel", "time", "future"]),
    ratio=st.floats(0, 0.95),
    n_parcels=st.integers(1, 12),
    n_patches=st.integers(1, 5),
    missing=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_every_value_is_seen_or_scored_or_missing(kind, ratio, n_parcels, n_patches, missing, seed):
    model = make(MaskConfig(kind=kind, ratio=ratio), n_frames=10 * n_patches)
    signal, coordinates = inputs(2, n_parcels, 10 * n_patches)
    valid = torch.ones(2, n_parcels, dtype=torch.bool)
    valid[0, torch.randperm(n_parcels)[: min(missing, n_parcels - 1)]] = False
    mask = MaskConfig(kind=kind, ratio=ratio)
    noise = draw_noise(mask, (2, n_parcels, n_patches), torch.Generator().manual_seed(seed))

    with torch.no_grad():
        output = model(signal, coordinates, noise, valid)

    assert set(output.mask.unique().tolist()) <= {0.0, 1.0}
    tokens = output.mask.unflatten(2, (n_patches, 10))
    assert (tokens.amin(-1) == tokens.amax(-1)).all()  # whole tokens
    assert (output.mask[~valid] == 0).all()  # missing parcels are never scored
    expected = []
    for window in range(2):
        n_there = int(valid[window].sum())
        unit = {"random": 1, "parcel": n_patches}.get(kind, n_there)
        expected.append(max(1, int(n_there * n_patches // unit * (1 - ratio) + 1e-6)) * unit)
        assert int(output.mask[window].sum()) == (n_there * n_patches - expected[-1]) * 10
    assert output.latent.shape == (2, max(expected), 32)
    kept = output.mask == 0
    torch.testing.assert_close(output.reconstruction[kept], signal[kept])
    squares = (output.reconstruction - signal).square() * output.mask
    expected = squares.sum((1, 2)) / output.mask.sum((1, 2)).clamp(min=1)
    torch.testing.assert_close(output.loss, expected)


def test_tokens_of_least_noise_stay_visible():
    model = make(MaskConfig(ratio=0.75))
    signal, coordinates = inputs()
    noise = torch.rand(3, 36)

    mask = model(signal, coordinates, noise).mask.unflatten(2, (4, 10)).amax(-1).flatten(1)

    for window in range(3):
        assert noise[window][mask[window] == 0].max() < noise[window][mask[window] == 1].min()
        assert int((mask[window] == 0).sum()) == 9


def test_hidden_values_cannot_be_seen():
    model = make()
    signal, coordinates = inputs()
    noise = torch.rand(3, 36)
    first = model(signal, coordinates, noise)
    changed = torch.where(first.mask > 0, torch.randn_like(signal), signal)

    second = model(changed, coordinates, noise)

    hidden = first.mask > 0
    torch.testing.assert_close(second.reconstruction[hidden], first.reconstruction[hidden])
    torch.testing.assert_close(second.latent, first.latent)


def test_missing_parcels_cannot_be_seen_and_are_as_if_they_were_not_in_the_atlas():
    model = make()
    signal, coordinates = inputs()
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[:, 8] = False
    without = model.encode(signal[:, :8], coordinates[:, :8])
    torch.testing.assert_close(model.encode(signal, coordinates, valid), without)

    valid[1, 5] = False
    noise = torch.rand(3, 36)
    changed = signal.masked_fill(~valid[..., None], 99.0)

    first, second = (model(values, coordinates, noise, valid) for values in (signal, changed))

    torch.testing.assert_close(second.loss, first.loss)
    torch.testing.assert_close(model.encode(changed, coordinates, valid), model.encode(signal, coordinates, valid))


def test_windows_of_a_batch_do_not_mix():
    model = make()
    signal, coordinates = inputs()
    noise = torch.rand(3, 36)
    together = model(signal, coordinates, noise)

    for window in range(3):
        alone = model(signal[[window]], coordinates[[window]], noise[[window]])
        torch.testing.assert_close(alone.loss[0], together.loss[window])


def test_the_order_of_parcels_does_not_matter():
    model = make()
    signal, coordinates = inputs()
    noise = torch.rand(3, 9, 4)
    order = torch.randperm(9)

    straight = model(signal, coordinates, noise.flatten(1)).reconstruction
    shuffled = model(signal[:, order], coordinates[:, order], noise[:, order].flatten(1)).reconstruction

    torch.testing.assert_close(shuffled, straight[:, order], atol=1e-5, rtol=1e-4)


def test_where_a_parcel_lies_matters():
    model = make()
    signal, coordinates = inputs()
    noise = torch.rand(3, 36)

    assert not torch.allclose(
        model(signal, coordinates, noise).loss, model(signal, coordinates + 10, noise).loss, atol=1e-4
    )


def test_noise_is_drawn_when_not_given():
    model = make()
    signal, coordinates = inputs()
    torch.manual_seed(0)
    first, second = model(signal, coordinates).mask, model(signal, coordinates).mask

    assert not torch.equal(first, second)
    assert first.sum() == second.sum()


def test_a_window_without_any_parcel_has_no_embedding():
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[1] = False
    with pytest.raises(ShapeError, match="no parcel that is there"):
        make().encode(*inputs(), valid)


def test_other_precisions_are_read():
    model = make()
    signal, coordinates = inputs()
    noise = torch.rand(3, 36)
    expected = model(signal, coordinates, noise).loss
    torch.testing.assert_close(model(signal.double(), coordinates, noise).loss, expected)
    torch.testing.assert_close(model(signal.half(), coordinates, noise).loss, expected, atol=1e-2, rtol=1e-2)


def test_learns_one_batch_by_heart():
    model = make(MaskConfig(ratio=0.3)).train()
    signal, coordinates = inputs(2, 5)
    noise = torch.rand(2, 20)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = model(signal, coordinates, noise).loss.mean().item()
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(signal, coordinates, noise).loss.mean()
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.05 * first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"signal": torch.zeros(3, 9, 39)}, r"signal has shape \[3, 9, 39\]"),
        ({"signal": torch.zeros(9, 40)}, r"signal has shape \[9, 40\]"),
        ({"coordinates": torch.zeros(3, 8, 3)}, r"coordinates have shape \[3, 8, 3\]"),
        ({"noise": torch.zeros(3, 35)}, r"noise has shape \[3, 35\]; expected \[3, 36\]"),
        ({"valid": torch.ones(3, 8, dtype=torch.bool)}, r"expected torch.bool \[3, 9\]"),
        ({"valid": torch.ones(3, 9)}, "valid is torch.float32"),
        ({"signal": torch.zeros(0, 9, 40)}, "holds no window"),
    ],
)
def test_wrong_shapes_are_refused(change, said):
    signal, coordinates = inputs()

    with pytest.raises(ShapeError, match=said):
        make()(**{"signal": signal, "coordinates": coordinates, **change})


def test_only_every_nth_hidden_token_is_predicted_in_training():
    config = make(MaskConfig(ratio=0.75)).config.model_copy(update={"decode_every": 3})
    model = initial_model(config, 0)
    signal, coordinates = inputs()
    noise = torch.rand(3, 36)

    whole = model.eval()(signal, coordinates, noise)
    part = model.train()(signal, coordinates, noise)

    assert (whole.mask.sum(dim=(1, 2)) == 27 * 10).all()
    assert (part.mask.sum(dim=(1, 2)) == 9 * 10).all()
    assert (part.mask <= whole.mask).all()
    chosen = part.mask > 0
    torch.testing.assert_close(part.reconstruction[chosen], whole.reconstruction[chosen])


class Constant:
    """Predicts one number."""

    def predict(self, signal, visible, valid):
        return torch.full_like(signal, 0.7)


def test_the_linear_path_begins_as_the_prediction_that_it_is_given():
    config = make().config.model_copy(update={"residual": "gaussian"})
    model = initial_model(config, 0).eval()
    signal, coordinates = inputs()
    model.prior = Constant()

    output = model(signal, coordinates, torch.rand(3, 36))

    hidden = output.mask > 0
    torch.testing.assert_close(output.reconstruction[hidden], torch.full_like(signal, 0.7)[hidden])
    assert not any("prior" in name and "decoder" not in name for name in model.state_dict())
    output.loss.sum().backward()
    assert model.predict.weight.grad.abs().sum() > 0


def test_groups_of_parcels_are_hidden_together():
    window = WindowConfig(n_frames=40, patch_frames=10)
    config = ModelConfig(window=window, width=32, depth=1, heads=2, decoder_width=16, parcels_per_token=4)
    model = initial_model(config, 0).eval()
    signal, coordinates = inputs()
    coordinates = coordinates[:1].expand(3, -1, -1)
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[0, 2] = False

    output = model(signal, coordinates, None, valid)

    order = group_parcels(coordinates[0], 4).unflatten(0, (3, 4))
    for group in order:
        members = group[group < 9]
        there = valid[0, members]
        assert (output.mask[0, members[there]] == output.mask[0, members[there]][:1]).all()
    assert output.mask[0, 2].sum() == 0
    assert output.latent.shape[1] == 3


def test_windows_of_another_tr_are_read_and_written():
    window = WindowConfig(n_frames=40, patch_frames=10, temporal="adaptive")
    model = initial_model(ModelConfig(window=window, width=32, depth=1, heads=2, decoder_width=16), 0)
    for n_frames in (12, 40, 100):
        signal, coordinates = inputs(n_frames=n_frames)
        output = model(signal, coordinates)
        assert output.reconstruction.shape == signal.shape
        assert model.encode(signal, coordinates).shape == (3, 32)


@pytest.mark.parametrize("kind", ["parcel", "time", "future"])
def test_whole_parcels_and_spans_are_all_predicted_in_training(kind):
    config = make(MaskConfig(kind=kind, ratio=0.5)).config.model_copy(update={"decode_every": 2})
    model = initial_model(config, 0)
    noise = draw_noise(config.mask, (3, 9, 4), torch.Generator().manual_seed(0))

    assert torch.equal(model.train()(*inputs(), noise).mask, model.eval()(*inputs(), noise).mask)


@pytest.mark.parametrize("kind", ["random", "parcel", "time", "future"])
@pytest.mark.parametrize("objective", ["reconstruction", "latent"])
def test_bfloat16_trains_every_weight(kind, objective):
    config = make(MaskConfig(kind=kind, ratio=0.5)).config.model_copy(update={"objective": objective})
    model = initial_model(config, 0).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(*inputs()).loss
    loss.sum().backward()

    assert loss.dtype == torch.float32
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_places_are_as_exact_in_bfloat16():
    model = make()
    _, coordinates = inputs()
    exact = model.encoder.place.waves
    with torch.autocast("cpu", dtype=torch.bfloat16):
        code = model.encoder.place(coordinates)
    phase = coordinates @ exact
    expected = model.encoder.place.mix(torch.cat([phase.sin(), phase.cos()], dim=-1))
    assert (code.float() - expected).abs().max() < 0.02 * expected.abs().max()
