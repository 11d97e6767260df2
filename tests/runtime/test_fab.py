import zipfile
from io import BytesIO

import pytest
import torch
import yaml
from flwr.cli.build import build_fab_from_disk

from base.errors import InputError, SettingsError
from brainlm import save_checkpoint
from brainlm.architectures import build_model
from client.door.describing import without_noise
from runtime.fab import build_fab, describe_fab, stage_app
from study.settings import load_study
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
    assert folders == {"base", "cohorts", "brainlm", "harmonization", "exchange", "study", "client", "server", ".info"}
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
    assert describe_fab(build_fab(study), "small.fab").study.study == "small"

    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "that of this installation" in said
    assert "NOT that" not in said
    assert "a coordinator that follows the protocol reads sums over three or more hospitals; what one that does" in said
    assert "studies: [small]; columns: [age, mean_fd, sex, tsnr]; max_rounds: 2 or more" in said

    plain = {**STUDY, "privacy": {"secure_sums": False}}
    plain["analyses"] = {**STUDY["analyses"], "leave_one_site_out": True}
    describe_fab(build_fab(read(tmp_path, plain)), "plain.fab")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "IN THE CLEAR" in said
    assert "secure_sum_required: false" in said
    assert 'analyses: ["*", leave_one_site_out]' in said


def test_what_leaves_beyond_a_budget_is_listed(tmp_path, capsys):
    private = {**STUDY["training"], "privacy": {"noise_multiplier": 1.0}, "clip_norm": None}
    study = {**STUDY, "training": private, "analyses": {**STUDY["analyses"], "gaussian_baseline": False}}
    offered = describe_fab(build_fab(read(tmp_path, study)), "small.fab")

    said = "".join(capsys.readouterr().out.replace("│", "").split())
    listed = without_noise(offered.study.introduction())
    assert {"evaluation", "lacking", "combat"} < set(listed)
    assert f"outside_epsilon:[{','.join(listed)}]" in said


def test_what_shows_single_hospitals_is_said_by_name(tmp_path, capsys):
    showing = {**STUDY, "analyses": {**STUDY["analyses"], "leave_one_site_out": True}}
    describe_fab(build_fab(read(tmp_path, showing)), "small.fab")

    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "three or more hospitals, and from leave_one_site_out single hospitals';" in said


def test_code_that_is_not_the_installation_s_is_said_file_by_file(tmp_path, study, capsys):
    folder = stage_app(tmp_path / "app", study)
    (folder / "client" / "app.py").write_text("app = None\n")
    (folder / "client" / "more.py").write_text("")
    (folder / "client" / "door" / "ledger.py").unlink()
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("Apache-2.0", "MIT"))

    app = describe_fab(build_fab_from_disk(folder), "other.fab")

    assert app.differences == (
        "added: client/more.py",
        "missing: client/door/ledger.py",
        "changed: client/app.py",
        "changed: pyproject.toml",
    )
    said = capsys.readouterr().out
    assert "code: NOT that of this installation. 4 files are others:\n  added: client/more.py" in said


def test_what_flower_would_run_beside_our_code_is_no_app(tmp_path, study):
    """All that is hashed, compared and reviewed is all that there is."""
    folder = stage_app(tmp_path / "app", study)
    (folder / "evil.py").write_text("app = None\n")
    with pytest.raises(InputError, match=r"x\.fab: the app holds 'evil\.py'"):
        describe_fab(build_fab_from_disk(folder), "x.fab")
    (folder / "evil.py").unlink()
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("client.app:app", "client.evil:app"))
    with pytest.raises(InputError, match=r"tells Flower .*client\.evil:app"):
        describe_fab(build_fab_from_disk(folder), "x.fab")


def test_a_title_does_not_command_the_terminal(tmp_path, capsys):
    """It could write over what was said of the code."""
    title = "harmless\x1b[6A\x1b[2Kcode: that of this installation\x1b[6B\x9b2J\r\u202e"
    describe_fab(build_fab(read(tmp_path, {**STUDY, "title": title})), "small.fab")

    said = capsys.readouterr().out
    assert "harmless\N{REPLACEMENT CHARACTER}[6A" in said
    assert not [letter for letter in said if not letter.isprintable() and letter != "\n"]


def test_what_is_no_app_is_refused(tmp_path, study):
    folder = stage_app(tmp_path / "app", study)
    (folder / "study.yaml").unlink()
    for content in (b"", b"no zip", build_fab_from_disk(folder)):
        with pytest.raises(InputError, match=r"x\.fab"):
            describe_fab(content, "x.fab")
    for text, said in (("[]", "expected 'name: value' lines"), ("study: small", "is no study")):
        (folder / "study.yaml").write_text(text)
        with pytest.raises((InputError, SettingsError), match=rf"x\.fab.*{said}"):
            describe_fab(build_fab_from_disk(folder), "x.fab")
