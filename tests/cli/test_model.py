from importlib.metadata import version

import pytest
import torch

from brainlm import load_checkpoint, load_model, save_checkpoint
from brainlm.released.folders import NOTEBOOK_SCALE
from cli.main import run_command
from tests.support.released import DENSE, PADDED, write_released


@pytest.fixture
def folder(tmp_path):
    write_released(tmp_path / "released", PADDED)
    return tmp_path


def test_import_then_info_then_export(folder, capsys):
    checkpoint, back = str(folder / "m.safetensors"), str(folder / "back")

    assert run_command(["model", "import", str(folder / "released"), checkpoint]) == 0
    said = capsys.readouterr().out
    assert "released BrainLM, vit_mae" in said
    assert "Licence: If these are weights that the authors of BrainLM released" in said

    assert run_command(["model", "info", checkpoint]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for fact in ("vit_mae", "parameters", "12 frames of 0.735 s", "16 of 4 x 4 pixels", "ratio 0.5", "CC-BY-NC-ND 4.0"):
        assert fact in said

    assert run_command(["model", "export", checkpoint, back]) == 0
    first, last = load_model(folder / "released"), load_model(back)
    assert all(torch.equal(value, last.state_dict()[name]) for name, value in first.state_dict().items())
    assert run_command(["model", "info", back]) == 0
    assert "CC-BY-NC-ND" in capsys.readouterr().out


def test_import_feeds_parcels_as_the_notebooks_do_unless_told_otherwise(folder):
    write_released(folder / "dense", DENSE)
    for name, source, *options in (
        ("usual", "released"),
        ("told", "released", "--keep-order", "--signal-scale", "1", "--tr", "0.72"),
        ("dense", "dense"),
    ):
        target = str(folder / f"{name}.safetensors")
        assert run_command(["model", "import", str(folder / source), target, *options]) == 0

    usual, told, dense = (
        load_checkpoint(folder / f"{name}.safetensors")[0].config for name in ("usual", "told", "dense")
    )
    assert (usual.sort_parcels, usual.signal_scale, usual.window.t_r) == (True, NOTEBOOK_SCALE, 0.735)
    assert (told.sort_parcels, told.signal_scale, told.window.t_r) == (False, 1.0, 0.72)
    assert (dense.sort_parcels, dense.signal_scale) == (False, 1.0)


def test_info_of_our_own_model(folder, finished_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert run_command(["model", "info", str(finished_run.journal.checkpoint(2))]) == 0

    said = " ".join(capsys.readouterr().out.split())
    for fact in ("FedBrainLM", "32 frames of 2 s", "2 a parcel, of 16 frames", "kind random, ratio 0.75"):
        assert fact in said
    for fact in (
        "small, round 2 of 2, seed 5",
        "schaefer100 (SHA-256",
        "0.3 to 5 s allowed",
        "3 sites, 48 participants, 48 recordings; of each site, 20% of the participants held out",
        "21 participants, 21 recordings, schaefer100, simulated",
        f"fedbrainlm {version('fedbrainlm')}",
    ):
        assert fact in said


def test_info_says_what_is_not_known_and_what_a_model_went_on_from(folder, finished_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    model, about = load_checkpoint(finished_run.journal.checkpoint(2))
    old = {name: about[name] for name in ("study", "seed", "round", "rounds", "holdout")}
    later = {**about, "study": "later\x1b[2J", "start": {"file": "round-0002.safetensors", **old}}
    save_checkpoint(folder / "later", model.state_dict(), model.config, later)

    assert run_command(["model", "info", str(folder / "later")]) == 0

    shown = capsys.readouterr().out
    said = " ".join(shown.split())
    assert said.index("later") < said.index("went on from") < said.index("small, round 2 of 2, seed 5")
    assert "trained at │ not known: the checkpoint does not say" in said
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["import", "{}/none", "{}/m.safetensors"], "holds no config.json"),
        (["import", "{}/released", "{}/there"], "there: exists already"),
        (["export", "{}/none.safetensors", "{}/new"], "no such checkpoint"),
        (["export", "{}/there", "{}/released"], "released: exists already"),
        (["info", "{}/none.safetensors"], "no such checkpoint"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(folder, capsys, command, said):
    model = load_model(folder / "released")
    save_checkpoint(folder / "there", model.state_dict(), model.config)

    assert run_command(["model", *(word.format(folder) for word in command)]) == 2

    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert said in error.replace("\n", " ")
    assert not (folder / "new").exists()
