import pytest
import torch
from safetensors.torch import save_file

from base.errors import SettingsError
from brainlm.checkpoints import check_checkpoint, load_checkpoint, load_weights, save_checkpoint
from brainlm.errors import CheckpointError
from brainlm.pretraining import initial_model
from brainlm.released.folders import export_folder
from tests.support.disks import small_disk


def test_what_is_saved_is_loaded(config, tmp_path):
    model = initial_model(config, 3)
    save_checkpoint(tmp_path / "m.safetensors", model.state_dict(), config, {"round": 7})

    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded, about = load_checkpoint(tmp_path / "m.safetensors")

    assert about == {"round": 7}
    assert loaded.config == config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(before, torch.get_rng_state())


def test_damaged_and_foreign_files_are_refused(config, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"junk" * 10)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="holds no BrainLM settings"):
        load_checkpoint(path)


def test_weights_must_fit(config, tmp_path):
    model, path = initial_model(config, 0), tmp_path / "m"
    state = model.state_dict()
    without = {name: value for name, value in state.items() if name != "predict.bias"}

    for wrong, said in (
        (without, r"given: lacks predict\.bias"),
        ({**state, "extra": torch.zeros(1)}, "has unknown extra"),
        ({**state, "encoder.embed.weight": torch.zeros(1)}, r"another shape for encoder\.embed\.weight"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_weights(model, wrong, "given")
    save_checkpoint(path, without, config)
    with pytest.raises(CheckpointError, match=r"lacks predict\.bias"):  # without making the model
        check_checkpoint(path)
    save_checkpoint(path, state, config.model_copy(update={"width": 31}))
    with pytest.raises(SettingsError, match="does not divide"):
        load_checkpoint(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_where_they_are_read(config, tmp_path, number):
    path = tmp_path / "m.safetensors"
    state = initial_model(config, 0).state_dict()
    save_checkpoint(path, state, config)
    check_checkpoint(path)
    state["predict.bias"][0] = number
    save_checkpoint(path, state, config)

    for read in (load_checkpoint, check_checkpoint):
        with pytest.raises(CheckpointError, match=r"m\.safetensors: holds NaN or infinite numbers in predict\.bias"):
            read(path)


def test_a_full_disk_is_said_with_the_file_and_leaves_nothing(config, tmp_path):
    model = initial_model(config, 0)
    with small_disk(tmp_path / "disk", "8k") as disk:
        for path, write in (
            (disk / "m.safetensors", lambda path: save_checkpoint(path, model.state_dict(), config)),
            (disk / "exported", lambda path: export_folder(path, model, {})),
        ):
            with pytest.raises(OSError, match="No space left on device") as full:
                write(path)
            assert full.value.filename == str(path)
            assert list(disk.iterdir()) == []
