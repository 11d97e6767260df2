"""A run's folder holds all that the run needs of its study."""

import json
import shutil

import pytest
import yaml
from flwr.app import Message

from base.errors import InputError
from base.settings import check_settings
from brainlm import ModelConfig
from brainlm.checkpoints import load_settings, save_checkpoint
from brainlm.pretraining import initial_model
from cli.run import _new_run, _resume
from cohorts import load_atlas
from runtime.fab import build_fab
from server.errors import QuorumError, ServerError
from server.journal import Journal
from server.keeping import hold_study
from study.settings import load_study
from tests.support.federation import STUDY, run_study, write_sites
from tests.support.local_grid import LocalGrid


@pytest.fixture
def outside(tmp_path):
    """A folder of the user's: a study that names a checkpoint, two tables of atlases, and a model's file."""
    folder = tmp_path / "outside"
    for number, name in enumerate(("first", "second")):
        (folder / name).mkdir(parents=True)
        table = json.loads(load_atlas("schaefer100").to_json())
        parcels = [[label, x + number, *rest] for label, x, *rest in table["parcels"]]
        (folder / name / "atlas.json").write_text(json.dumps({**table, "name": name, "parcels": parcels}))
    (folder / "model.yaml").write_text(yaml.safe_dump(STUDY["model"]))
    config = check_settings(STUDY["model"], ModelConfig, "model")
    save_checkpoint(folder / "begun.safetensors", dict(initial_model(config, 7).state_dict()), config)
    study = {
        **STUDY,
        "start": "begun.safetensors",
        "model": "model.yaml",
        "cohort": {"atlases": ["first/atlas.json", "schaefer100", "second/atlas.json"]},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


def test_nothing_outside_is_needed_once_a_run_has_begun(tmp_path, outside):
    """Not the files that its study named, nor the place where the run's folder was."""
    given = load_study(outside / "study.yaml")
    before = build_fab(given), given.contract(), load_settings(given.start)

    with _new_run(tmp_path / "runs", given, "simulation") as folder:
        pass
    shutil.rmtree(outside)
    moved = folder.rename(tmp_path / "elsewhere")
    kept = load_study(moved / "study.yaml")

    assert kept.start == str(moved / "inputs" / "start" / "begun.safetensors")
    assert (build_fab(kept), kept.contract(), load_settings(kept.start)) == before
    assert kept.model_dump(exclude={"start", "cohort"}) == given.model_dump(exclude={"start", "cohort"})
    assert list(kept.contract().atlases) == ["first", "schaefer100", "second"]


def test_a_run_that_could_not_be_begun_leaves_nothing(tmp_path, outside):
    study = load_study(outside / "study.yaml")
    shutil.rmtree(outside)

    with pytest.raises(OSError, match="begun"), _new_run(tmp_path / "runs", study, "simulation"):
        pass

    assert not list((tmp_path / "runs").glob("*/*"))


def test_recordings_that_a_simulation_goes_on_with_are_missed_at_once(tmp_path, small_cohorts):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    with _new_run(tmp_path / "runs", load_study(tmp_path / "study.yaml"), "simulation") as folder:
        for name, cohort in (("aalborg", small_cohorts[0]), ("bergen", tmp_path / "gone"), ("dalarna", "gone, too")):
            (folder / "sites" / name).mkdir(parents=True)
            (folder / "sites" / name / "site.yaml").write_text(
                yaml.safe_dump({"name": name, "cohort": str(cohort), "state": "state"})
            )
        Journal(folder).leave_out("dalarna", "describe", "policy.small-group")
        Journal(folder).note(status="stopped", reason="stopped by the user")

    with pytest.raises(InputError, match=f"recordings of site bergen cannot be read.*{tmp_path / 'gone'}"):
        _resume(folder, as_json=False, at_once=None)
    assert Journal(folder).progress().status == "stopped"


def test_a_run_goes_on_with_the_study_that_it_began_with_alone(tmp_path, outside):
    with _new_run(tmp_path / "runs", load_study(outside / "study.yaml"), "federation:nordic") as folder:
        hold_study(journal := Journal(folder))
        journal.note(status="stopped", reason="stopped by the user")

    kept = ("study.yaml", "inputs/start/begun.safetensors", "inputs/atlas-0/atlas.json")
    for path in (folder / name for name in kept):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(ServerError, match=f"{path}: is another than when the run began"):
            _resume(folder, as_json=False, at_once=None)
        path.write_bytes(before)
    hold_study(journal)
    assert journal.progress().status == "stopped"


@pytest.mark.parametrize("change", [{"optimizer": "fedadam"}, {"rounds": 1}, {"deadline_s": 61}])
def test_the_server_goes_on_with_no_other_study(tmp_path, small_cohorts, change):
    """Which would be refused by some optimizers, go on mixed with others, and begin anew with the rest."""
    sites = write_sites(tmp_path / "s", small_cohorts)

    def silent_once_described(_: int, asked: Message) -> bool | None:
        return None if asked.metadata.message_type.endswith("describe") else False

    with pytest.raises(QuorumError):
        run_study(tmp_path / "run", LocalGrid(sites, silent_once_described))

    grid = LocalGrid(sites)
    with pytest.raises(ServerError, match="begin another run with the changed study"):
        run_study(tmp_path / "run", grid, {**STUDY, "averaging": {**STUDY["averaging"], **change}})

    assert not grid.sent
    assert "is another than when the run began" in Journal(tmp_path / "run").facts()["reason"]
