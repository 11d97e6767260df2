import zipfile
from io import BytesIO

import pytest
import torch
import yaml
from flwr.cli.build import build_fab_from_disk

from brainlm import save_checkpoint
from brainlm.architectures import build_model
from cli.errors import InputError
from cli.fab import build_fab, describe_fab, stage_app
from server.study import load_study
from tests.support.federation import STUDY


@pytest.fixture
def study(tmp_path):
    return read(tmp_path, STUDY)


def read(tmp_path, content):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return load_study(tmp_path / "study.yaml")


def test_the_app_carries_what_runs_at_a_site_its_study_and_nothing_else(study):
    fab = build_fab(study)

    names = set(zipfile.ZipFile(BytesIO(fab)).namelist())

    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {"cohorts", "brainlm", "harmonization", "exchange", "client", "server", ".info"}
    assert {"client/app.py", "server/app.py", "cohorts/atlases/schaefer400.json", "study.yaml"} <= names
    assert len(fab) < 2_000_000  # Flower takes 10 MB


def test_equal_studies_and_sources_give_the_same_app(tmp_path, study):
    fab = build_fab(study)

    assert build_fab(read(tmp_path, STUDY)) == fab
    assert build_fab_from_disk(stage_app(tmp_path / "staged", study)) == fab  # as `flwr run` makes it
    assert build_fab(read(tmp_path, {**STUDY, "seed": 6})) != fab


def test_the_app_is_the_same_wherever_the_study_s_files_lie(tmp_path):
    fabs, content = [], {**STUDY, "start": "weights.safetensors"}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        model = build_model(read(tmp_path / name, STUDY).model)
        save_checkpoint(tmp_path / name / "weights.safetensors", model.state_dict(), model.config)
        fabs.append(build_fab(read(tmp_path / name, content)))

    assert fabs[0] == fabs[1]
    assert str(tmp_path).encode() not in zipfile.ZipFile(BytesIO(fabs[0])).read("study.yaml")


def test_an_app_says_what_it_computes_what_leaves_and_what_it_needs(tmp_path, study, capsys):
    assert describe_fab(build_fab(study), "small.fab") == "small"

    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "that of this installation" in said
    assert "NOT that" not in said
    assert "only sums over three or more hospitals can be read" in said
    assert "studies: [small]; columns: [age, mean_fd, sex, tsnr]; max_rounds: 2 or more" in said

    plain = {**STUDY, "privacy": {"secure_sums": False}}
    plain["analyses"] = {**STUDY["analyses"], "leave_one_site_out": True}
    describe_fab(build_fab(read(tmp_path, plain)), "plain.fab")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "IN THE CLEAR" in said
    assert "secure_sum_required: false" in said
    assert 'analyses: ["*", leave_one_site_out]' in said


def test_code_that_is_not_the_installation_s_is_said(tmp_path, study, capsys):
    folder = stage_app(tmp_path / "app", study)
    (folder / "client" / "app.py").write_text("app = None\n")

    describe_fab(build_fab_from_disk(folder), "other.fab")

    assert "NOT that of this installation" in capsys.readouterr().out


def test_what_is_no_app_is_refused(tmp_path, study):
    folder = stage_app(tmp_path / "app", study)
    (folder / "study.yaml").unlink()
    for content in (b"", b"no zip", build_fab_from_disk(folder)):
        with pytest.raises(InputError, match=r"x\.fab"):
            describe_fab(content, "x.fab")
    (folder / "study.yaml").write_text("[]")
    with pytest.raises(InputError, match="is no study"):
        describe_fab(build_fab_from_disk(folder), "x.fab")
