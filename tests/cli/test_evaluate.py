import re
import shutil

import numpy as np
import pytest

from base.seeding import derive_seed
from brainlm import load_checkpoint
from brainlm.windows import split_participants, usable_recordings
from cli.main import run_command
from cohorts import Cohort
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from tests.support.cohorts import with_gaps


@pytest.fixture
def checkpoint(finished_run) -> str:
    return str(finished_run.journal.checkpoint(2))


def scores(said: str) -> dict[str, list[float]]:
    """Predictor → the numbers of its row."""
    rows = re.findall(r"│ (\w+) +│(.*)│", said)
    return {name: [float(cell) for cell in cells.split("│")] for name, cells in rows}


def test_a_checkpoint_is_shown_beside_the_baselines(checkpoint, small_cohorts, capsys):
    assert run_command(["evaluate", checkpoint, str(small_cohorts[0])]) == 0

    said = capsys.readouterr().out
    found = scores(said)
    assert list(found) == ["model", "parcel_mean", "time_interpolation", "gaussian", "gaussian_space_time"]
    assert found["gaussian_space_time"][0] > found["time_interpolation"][0]
    model, about = load_checkpoint(checkpoint)
    cohort = Cohort.open(small_cohorts[0])
    people = list(usable_recordings(cohort, model.config.window))
    _, held_out = split_participants(people, 0.2, derive_seed(about["seed"], cohort.name))
    assert f"{len(held_out)} participants" in said
    assert "random mask 0.75" in said


def test_recordings_below_the_window_are_counted(checkpoint, small_cohorts, tmp_path, capsys):
    cohort = with_gaps(small_cohorts[0], tmp_path / "c", short=4)

    command = ["evaluate", checkpoint, str(cohort), "--train", str(small_cohorts[1]), "--people", "all"]
    assert run_command(command) == 0

    said = capsys.readouterr().out
    assert "4 of 21 recordings are shorter than the window of 64 s (they have 60 s); 17 of 21 participants" in said
    assert "17 participants" in said


def test_nobody_whom_the_model_was_trained_on_counts_as_held_out(checkpoint, small_cohorts, capsys):
    """Naming the cohorts of the training does not make their participants new to the model."""
    first, *others = map(str, small_cohorts)
    command = ["evaluate", checkpoint, first, *(word for path in (first, *others) for word in ("--train", path))]

    for people, counted in {
        "held-out": "4 participants (4 held out)",
        "trained": "17 participants (17 TRAINED ON)",
        "all": "21 participants (4 held out, 17 TRAINED ON)",
    }.items():
        assert run_command([*command, "--people", people]) == 0
        said = capsys.readouterr().out
        assert "aalborg was a site of study 'small': of its 21 participants, 4 were held out and 17 trained on." in said
        assert counted in said

    assert run_command(command) == 0
    assert "4 participants (4 held out)" in capsys.readouterr().out


def test_another_cohort_is_new_to_the_model_unless_it_is_one_of_the_sites(checkpoint, small_cohorts, tmp_path, capsys):
    moved = shutil.copytree(small_cohorts[0], tmp_path / "northshire")
    about = moved / "cohort.yaml"
    about.write_text(about.read_text().replace("name: aalborg", "name: northshire"))

    assert run_command(["evaluate", checkpoint, str(moved), "--train", str(small_cohorts[1])]) == 0
    said = capsys.readouterr().out
    assert "21 participants (21 not known to the model)" in said
    assert "if it is that one, say so by --site" in said
    assert run_command(["evaluate", checkpoint, str(moved)]) == 0
    said = capsys.readouterr().out
    assert "17 of them give the baselines' covariance, and are not evaluated" in said
    assert "4 participants (4 not known to the model)" in said
    assert run_command(["evaluate", checkpoint, str(moved), "--site", "aalborg"]) == 0
    assert "4 participants (4 held out)" in capsys.readouterr().out


def test_a_cohort_that_changed_is_not_evaluated_on_as_if_one_knew(checkpoint, small_cohorts, tmp_path, capsys):
    path = shutil.copytree(small_cohorts[0], tmp_path / "aalborg")
    cohort = Cohort.open(path)
    cohort.forget(cohort.recordings["recording_id"].iloc[0])
    cohort.save()
    command = ["evaluate", checkpoint, str(path), "--train", str(small_cohorts[1])]

    assert run_command(command) == 2
    assert "who of them was held out cannot be known" in " ".join(capsys.readouterr().err.split())
    assert run_command([*command, "--people", "all"]) == 0
    assert "20 participants (20 perhaps trained on)" in capsys.readouterr().out


def test_other_masks(checkpoint, small_cohorts, capsys):
    command = ["evaluate", checkpoint, str(small_cohorts[0])]

    assert run_command([*command, "--mask", "parcel", "--ratio", "0.5"]) == 0

    said = capsys.readouterr().out
    assert "parcel mask 0.5" in said
    assert np.isnan(scores(said)["parcel_mean"][3])  # nothing of a hidden parcel is visible: all predictions are 0


def test_bad_input_is_one_sentence_and_exit_code_2(checkpoint, small_cohorts, tmp_path, capsys):
    (other,) = simulate_cohorts(tmp_path / "c", simulated_hospitals(1, 4, minutes=2.2), atlas="aal116", seed=3)

    assert run_command(["evaluate", checkpoint, str(small_cohorts[0]), "--mask", "everything"]) == 2
    assert "--mask and --ratio" in capsys.readouterr().err
    assert run_command(["evaluate", checkpoint, str(small_cohorts[0]), "--ratio", "0"]) == 2
    assert "mask 'random' of ratio 0 hides nothing of a window" in capsys.readouterr().err.replace("\n", " ")
    assert run_command(["evaluate", checkpoint, str(small_cohorts[0]), "--holdout", "nan"]) == 2
    assert "is not a number that can be used" in capsys.readouterr().err
    assert run_command(["evaluate", checkpoint, str(small_cohorts[0]), "--train", str(other)]) == 2
    assert "has atlas aal116" in capsys.readouterr().err.replace("\n", " ")
    for option, said in {
        ("--site", "atlantis"): "--site atlantis: the model was trained at aalborg, bergen, coimbra",
        ("--holdout", "0.5"): "--holdout 0.5: the checkpoint says who of aalborg was held out",
    }.items():
        assert run_command(["evaluate", checkpoint, str(small_cohorts[0]), *option]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert run_command(["evaluate", checkpoint, str(other)]) == 2
    assert "the model was trained in schaefer100" in " ".join(capsys.readouterr().err.split())
    assert run_command(["evaluate", checkpoint, str(other), "--other-atlas", "--people", "all"]) == 0
    assert run_command(["evaluate", str(tmp_path / "none"), str(small_cohorts[0])]) == 2
