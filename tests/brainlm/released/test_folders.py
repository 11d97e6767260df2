import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from base.errors import FileError
from brainlm import TrainingConfig, load_model
from brainlm.checkpoints import load_checkpoint, save_checkpoint
from brainlm.errors import CheckpointError, ShapeError
from brainlm.evaluation import evaluate
from brainlm.pretraining import initial_model, train_round
from brainlm.released.dense import ConvolvedAttention
from brainlm.released.folders import export_folder, read_folder
from brainlm.windows import WindowSet
from tests.conftest import SHARED
from tests.support.released import DENSE, PADDED, make_released, write_released

KINDS = pytest.mark.parametrize("content", [DENSE, PADDED], ids=["dense", "padded"])


@pytest.fixture
def reference():
    """Folder of outputs of the original code, where it is at hand."""
    if not (SHARED / "reference" / "brainlm").is_dir():
        pytest.skip("outputs of the original code are not here")
    return SHARED / "reference" / "brainlm"


def inputs(content: dict, n_windows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    n_parcels, n_frames = content["num_brain_voxels"], content["num_timepoints_per_voxel"]
    signal = torch.randn(n_windows, n_parcels, n_frames, generator=generator)
    return signal, 40 * torch.randn(1, n_parcels, 3, generator=generator).expand(n_windows, -1, -1)


@pytest.mark.parametrize("name", ["dense", "vitmae"])
def test_the_original_s_outputs_and_gradients_are_reproduced(reference, name):
    expected = np.load(reference / name / "io.npz")
    signal = torch.from_numpy(expected["in_signal"])
    coordinates = torch.from_numpy(expected["in_xyz"]) if name == "dense" else torch.zeros(2, 424, 3)
    model = load_model(reference / name)

    output = model(signal, coordinates, torch.from_numpy(expected["in_noise"]))
    output.loss.mean().backward()

    mask = expected["out_mask"].repeat(20, axis=2) if name == "dense" else expected["out_mask"]
    assert abs(output.loss.mean().item() - float(expected["out_loss"])) < 1e-6
    np.testing.assert_allclose(
        output.reconstruction.detach(), expected["out_logits"].reshape(signal.shape), rtol=0, atol=2e-5
    )
    np.testing.assert_array_equal(output.mask, mask)
    np.testing.assert_allclose(output.latent.detach(), expected["out_latent"], rtol=0, atol=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == set(expected["grad_names"])
    norms = [gradients[name].double().norm().item() for name in expected["grad_names"]]
    # A key's bias shifts all scores of a query alike, so its gradient is rounding error and nothing else.
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-4, atol=1e-8)


def test_the_original_s_forecast_is_reproduced(reference, tmp_path):
    content = json.loads((reference / "vitmae" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "train_mode": "predict_last", "mask_ratio": 0.2}))
    (tmp_path / "model.safetensors").symlink_to((reference / "vitmae" / "model.safetensors").resolve())
    expected = np.load(reference / "vitmae" / "predict_last_io.npz")
    signal = torch.from_numpy(np.load(reference / "vitmae" / "io.npz")["in_signal"])

    with torch.no_grad():
        output = load_model(tmp_path)(signal, torch.zeros(2, 424, 3))

    assert abs(output.loss.mean().item() - float(expected["out_loss"])) < 1e-6
    np.testing.assert_allclose(output.reconstruction, expected["out_logits"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(output.mask, expected["out_mask"])


def test_attention_and_convolution_are_those_of_the_definition():
    torch.manual_seed(0)
    width, heads, kernel, n = 6, 2, 3, 5
    attention = ConvolvedAttention(width, heads, kernel).double()
    x = torch.randn(1, n, width, dtype=torch.float64)
    q, k, v = (layer(x)[0] for layer in (attention.query, attention.key, attention.value))
    expected = torch.zeros(n, width, dtype=torch.float64)
    for head in range(heads):
        part = slice(head * 3, head * 3 + 3)
        for i in range(n):
            scores = torch.tensor([(q[i, part] @ k[j, part]).item() / math.sqrt(3) for j in range(n)])
            weights = (scores - scores.max()).double().exp()
            mixed = sum(weights[j] / weights.sum() * v[j, part] for j in range(n))
            for offset in range(kernel):  # the kernel is centred on the token; outside is zero
                if 0 <= (j := i + offset - 1) < n:
                    mixed = mixed + attention.conv.weight[head, 0, offset, 0] * v[j, part]
            expected[i, part] = mixed

    torch.testing.assert_close(attention(x)[0], expected, atol=1e-6, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    content=st.sampled_from([DENSE, {**DENSE, "loss_fn": "mae", "use_tanh_decoder": True}, PADDED]),
    ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 100),
    missing=st.integers(0, 3),
)
def test_hidden_values_are_unseen_and_the_loss_is_their_mean_error(content, ratio, seed, missing):
    model = make_released({**content, "mask_ratio": ratio})
    signal, coordinates = inputs(content)
    noise = torch.rand(3, model.n_tokens, generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(3, content["num_brain_voxels"], dtype=torch.bool)
    valid[1, :missing] = False

    with torch.no_grad():
        output = model(signal, coordinates, noise, valid)
        whole = model(signal, coordinates, noise).mask
        unseen = (whole > 0) | ~valid[..., None]
        changed = model(torch.where(unseen, torch.full_like(signal, 9.0), signal), coordinates, noise, valid)

    torch.testing.assert_close(output.mask, whole * valid[..., None])
    torch.testing.assert_close(changed.reconstruction, output.reconstruction)
    difference = output.reconstruction - signal
    error = difference.abs() if content.get("loss_fn") == "mae" else difference.square()
    total = output.mask.sum().clamp(min=1)
    torch.testing.assert_close(output.loss.mean(), (error * output.mask).sum() / total)
    torch.testing.assert_close(output.loss, (error * output.mask).sum((1, 2)) * 3 / total)
    assert output.latent.shape == (3, int(model.n_tokens * (1 - ratio)) + 1, 16)


def test_the_padded_window_lies_in_the_middle_of_the_image():
    model = make_released(PADDED)
    signal, coordinates = inputs(PADDED)
    noise = torch.arange(16.0).expand(3, -1)  # the first two of four rows of patches stay visible

    mask = model(signal, coordinates, noise).mask

    # 10 parcels in 16 rows begin at row 3: rows 3 to 7, five parcels, lie in the visible half.
    assert (mask[:, :5] == 0).all()
    assert (mask[:, 5:] == 1).all()


@pytest.mark.parametrize(
    ("mode", "ratio", "n_frames", "scored", "columns"),
    [
        # 12 frames lie in columns 2 to 13 of 16; patches of 4 end at 4, 8, 12 and 16.
        ("predict_last", 0.5, 12, 6, {2, 3}),  # from column 8: whole patches
        ("predict_last", 0.34, 12, 6, {2, 3}),  # 4 frames from column 10: the patch from 8 is hidden and scored whole
        ("predict_last_pixel", 0.34, 12, 4, {3}),  # its two frames enter as zeros instead
        ("predict_last_pixel", 0.1, 12, 1, set()),
    ],
)
def test_forecasting_hides_the_last_frames(mode, ratio, n_frames, scored, columns):
    model = make_released({**PADDED, "train_mode": mode, "mask_ratio": ratio, "num_timepoints_per_voxel": n_frames})
    signal, coordinates = inputs(PADDED)
    changed = signal.clone()
    changed[:, :, n_frames - scored :] = 5.0

    with torch.no_grad():
        output, other = model(signal, coordinates), model(changed, coordinates)

    assert (output.mask[:, :, : n_frames - scored] == 0).all()
    assert (output.mask[:, :, n_frames - scored :] == 1).all()
    torch.testing.assert_close(other.reconstruction, output.reconstruction)
    assert set((model.draw_noise(model.config.mask, 1, 10)[0].reshape(4, 4).nonzero()[:, 1]).tolist()) == columns


@KINDS
def test_encoding_is_the_latent_with_nothing_hidden(content):
    model = make_released({**content, "mask_ratio": 0.0})
    signal, coordinates = inputs(content)
    noise = torch.arange(float(model.n_tokens)).expand(3, -1)

    latent = model(signal, coordinates, noise).latent

    torch.testing.assert_close(model.encode(signal, coordinates), latent[:, 1:].mean(dim=1))


@KINDS
def test_sorting_and_scaling_are_done_inside(content):
    plain, inside = make_released(content), make_released(content, sort_parcels=True, signal_scale=2.5)
    signal, coordinates = inputs(content)
    noise = torch.rand(3, plain.n_tokens)
    order = coordinates[0, :, 1].argsort()

    sorted_by_hand = plain(signal[:, order] / 2.5, coordinates[:, order], noise)
    output = inside(signal, coordinates, noise)

    torch.testing.assert_close(output.loss, sorted_by_hand.loss)
    torch.testing.assert_close(output.reconstruction[:, order], 2.5 * sorted_by_hand.reconstruction)
    torch.testing.assert_close(output.mask[:, order], sorted_by_hand.mask)
    torch.testing.assert_close(
        inside.encode(signal, coordinates), plain.encode(signal[:, order] / 2.5, coordinates[:, order])
    )


@KINDS
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"signal": torch.zeros(3, 9, 24)}, r"signal has shape \[3, 9, 24\]; expected \[windows, 10 parcels"),
        ({"coordinates": torch.zeros(3, 8, 3)}, r"coordinates have shape \[3, 8, 3\]"),
        ({"noise": torch.zeros(3, 7)}, r"noise has shape \[3, 7\]"),
        ({"valid": torch.ones(3, 10)}, r"valid is torch\.float32"),
    ],
)
def test_wrong_shapes_are_refused(content, change, said):
    signal, coordinates = inputs(content)

    with pytest.raises(ShapeError, match=said):
        make_released(content)(**{"signal": signal, "coordinates": coordinates, **change})


@KINDS
def test_files_go_in_and_out_unchanged(content, tmp_path):
    model = write_released(tmp_path / "in", content)
    loaded, about = read_folder(tmp_path / "in", {"t_r": 0.72, "sort_parcels": True})
    save_checkpoint(tmp_path / "c.safetensors", loaded.state_dict(), loaded.config, about)
    kept, noted = load_checkpoint(tmp_path / "c.safetensors")
    export_folder(tmp_path / "out", kept, noted)
    again, said = read_folder(tmp_path / "out")

    assert kept.config == loaded.config == again.config
    assert (again.config.window.t_r, again.config.sort_parcels) == (0.72, True)
    assert "CC-BY-NC-ND" in said["licence"]
    assert said == noted == about
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert first.keys() == last.keys()
    assert all(torch.equal(values, last[name]) for name, values in first.items())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content.items() <= written.items()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_our_own_model_goes_out_and_in(config, tmp_path):
    model = initial_model(config, 2)

    for name, about in (("out", {"round": 3}), ("bare", {})):
        export_folder(tmp_path / name, model, about)
        loaded, said = read_folder(tmp_path / name)
        assert (loaded.config, said) == (config, about)
    with pytest.raises(FileError, match="exists already"):
        export_folder(tmp_path / "out", model, {})


@KINDS
def test_fixed_codes_and_places_in_a_sequence_may_be_in_a_file_or_not(content, tmp_path):
    model = write_released(tmp_path, content)
    state = load_file(tmp_path / "model.safetensors")
    if content is DENSE:
        state |= {f"{part}.pos_embedding.pe": torch.zeros(5000, 16) for part in ("vit.embeddings", "decoder")}
    else:
        state = {name: v for name, v in state.items() if not name.endswith(("position_embeddings", "pos_embed"))}
    state["vit.embeddings.position_ids"] = torch.arange(9)[None]
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")

    loaded = load_model(tmp_path)

    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


class Harmful:
    def __reduce__(self):
        return (eval, ("open('was-run', 'w')",))


def test_a_file_that_would_run_code_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_released(tmp_path, DENSE)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Harmful()}, tmp_path / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: .* was not opened"):
        load_model(tmp_path)

    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        (DENSE, {"model_type": "bert"}, "model_type is 'bert'; expected one of brainlm_mae, vit_mae"),
        (DENSE, {"model_type": None}, "model_type is None"),
        (DENSE, {"hidden_size": None}, r"config\.json: 'hidden_size' is null; expected a whole number of at least 1"),
        (DENSE, {"num_landmarks": 32}, "Nystrom attention is not supported"),
        (DENSE, {"conv_kernel_size": 4}, "conv_kernel_size 4 is even"),
        (DENSE, {"num_attention_heads": 3}, "hidden_size 16 is no multiple of 2 and of num_attention_heads 3"),
        (DENSE, {"decoder_hidden_size": 20}, "differs from hidden_size 16"),
        (DENSE, {"loss_fn": "huber"}, "'loss_fn' is 'huber'"),
        (DENSE, {"hidden_act": "swish"}, "'hidden_act' is 'swish'"),
        (DENSE, {"timepoint_patching_size": 5}, "is no multiple of patch_frames"),
        (DENSE, {"num_hidden_layers": 3}, r"lacks vit\.encoder\.layer\.2\S* .* and 12 more"),
        (DENSE, {"num_hidden_layers": 1}, r"has unknown vit\.encoder\.layer\.1"),
        (DENSE, {"intermediate_size": 28}, r"has another shape for vit\.encoder\.layer\.0"),
        *(
            (DENSE, {field: ...}, rf"config\.json: '{field}' is missing")
            for field in ("hidden_size", "mask_ratio", "num_brain_voxels", "num_timepoints_per_voxel")
        ),
        (PADDED, {"norm_pix_loss": True}, "'norm_pix_loss'"),
        (PADDED, {"patch_size": 5}, "image_size 16 is no multiple of patch_size 5"),
        (PADDED, {"image_size": [16, 32]}, "'image_size'"),
        (PADDED, {"image_size": 8}, "do not fit into image_size 8"),
        (PADDED, {"train_mode": "causal"}, "'train_mode' is 'causal'"),
        (PADDED, {"patch_size": 8}, "has another shape for"),
    ],
)
def test_faults_of_a_folder_are_named(tmp_path, content, changes, said):
    """What is `...` is left out."""
    write_released(tmp_path, content)
    changed = {name: value for name, value in {**content, **changes}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(changed))

    with pytest.raises(CheckpointError, match=said):
        load_model(tmp_path)


def test_absent_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path / "none")
    write_released(tmp_path, DENSE)
    (tmp_path / "model.safetensors").write_bytes(b"junk" * 9)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"junk" * 9)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is damaged"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    torch.save({"model": {"x": torch.zeros(2)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="other things than weights"):
        load_model(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json: "):
            load_model(tmp_path)


def shard(folder, kind: str = "safetensors", **changes: str) -> None:
    """Cut a folder's weights into two files and an index; `changes` are other files for some of the weights."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    names = [f"{stem}-0000{number}-of-00002.{kind}" for number in (1, 2)]
    places = {name: names[number % 2] for number, name in enumerate(sorted(state))}
    for file in names:
        held = {name: values for name, values in state.items() if places[name] == file}
        save_file(held, folder / file) if kind == "safetensors" else torch.save(held, folder / file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": {**places, **changes}}))


@KINDS
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_shards_are_those_in_one_file(tmp_path, content, kind):
    whole = write_released(tmp_path, content).state_dict()
    shard(tmp_path, kind)

    model, about = read_folder(tmp_path)

    assert all(torch.equal(values, whole[name]) for name, values in model.state_dict().items())
    assert len(about["origin"]["weights_sha256"]) == 64


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd", "sub/x.safetensors", "config.json", 3, ""])
def test_an_index_names_files_of_its_own_folder_alone(tmp_path, file):
    write_released(tmp_path / "folder", DENSE)
    save_file({"decoder.mask_token": torch.zeros(1, 1, 16)}, tmp_path / "elsewhere.safetensors")
    shard(tmp_path / "folder", **{"decoder.mask_token": file})

    with pytest.raises(CheckpointError, match=r"index\.json: says that weights lie in .*; expected the name of a"):
        load_model(tmp_path / "folder")


def test_shards_that_are_not_there_or_hold_others_are_named(tmp_path):
    write_released(tmp_path, DENSE)
    shard(tmp_path, **{"decoder.other": "model-00002-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"00002\.safetensors: lacks decoder\.other, which the index"):
        load_model(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: no such file\. Download the rest"):
        load_model(tmp_path)


def test_weights_that_are_no_numbers_to_go_on_from_are_named(tmp_path):
    state = write_released(tmp_path, DENSE).state_dict()
    for broken, said in (
        ((state["decoder.mask_token"] + 1e5).half(), "holds NaN or infinite numbers in decoder.mask_token: .*65504"),
        (torch.full((1, 1, 16), 1e300, dtype=torch.float64), "holds NaN or infinite numbers in decoder.mask_token"),
        (torch.zeros(1, 1, 16, dtype=torch.int8), "holds no floating-point numbers for decoder.mask_token"),
    ):
        save_file({**state, "decoder.mask_token": broken}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=said):
            load_model(tmp_path)


@KINDS
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_released_models_train_and_are_evaluated_like_ours(cohort, content, precision):
    sizes = {"num_brain_voxels": 100, "num_timepoints_per_voxel": 24, "image_size": 112, "patch_size": 8}
    model, twin = make_released({**content, **sizes}), make_released({**content, **sizes})
    windows = WindowSet(cohort, model.config.window)
    training = TrainingConfig(steps_per_round=6, warmup_steps=1, learning_rate=3e-3, precision=precision, batch_size=4)
    before = evaluate(model, windows, seed=1)

    outcomes = [train_round(made, windows, training, round_number=1, rounds=2, seed=1) for made in (model, twin)]

    assert outcomes[0] == outcomes[1]  # dropout depends on the seed alone, too
    after = evaluate(model, windows, seed=1)
    assert after.overall["mse"] < before.overall["mse"]
    np.testing.assert_array_equal(after.parcels[0], before.parcels[0])  # the same hidden values
