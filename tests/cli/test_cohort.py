import numpy as np
import pytest

from cli.main import run_command
from cohorts import Cohort
from cohorts.vectors import read_vectors


@pytest.fixture
def inputs(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "m.npz", **{f"sub-{n}": rng.normal(size=(60, 100)).astype("f4") for n in range(4)})
    rows = "".join(f"sub-{n}\t{30 + n}\t{'FM'[n % 2]}\t{'AB'[n // 2]}\n" for n in range(4))
    (tmp_path / "p.tsv").write_text("participant_id\tage\tsex\tclinic\n" + rows)
    return tmp_path


def prepare(inputs, *more: str) -> int:
    command = ["cohort", "prepare", str(inputs / "m.npz"), str(inputs / "out"), "--atlas", "schaefer100", "--tr", "2"]
    return run_command([*command, "--participants", str(inputs / "p.tsv"), "--workers", "0", "--no-report", *more])


def test_prepare_then_show(inputs, capsys):
    assert (
        prepare(inputs, "--keep-ids", "--select", "clinic=A", "--preprocessing", "fmriprep-24", "--scaling", "zscore")
        == 0
    )
    said = capsys.readouterr().out
    assert "2 recordings of 2 participants" in said
    assert "2 recordings belong to participants that were not selected" in said

    assert run_command(["cohort", "show", str(inputs / "out"), "--recordings"]) == 0
    said = capsys.readouterr().out
    for fact in ("schaefer100, 100 parcels", "fmriprep-24", "zscore", "30 to 31", "1 F, 1 M", "sub-1"):
        assert fact in said


def test_there_is_one_way_in_and_it_keeps_ids_only_if_told_so(inputs, capsys):
    assert prepare(inputs) == 0
    cohort = Cohort.open(inputs / "out")
    assert not set(cohort.participants["participant_id"]) & {f"sub-{n}" for n in range(4)}
    capsys.readouterr()

    assert run_command(["cohort", "import", str(inputs / "m.npz"), str(inputs / "other")]) == 2
    assert "No such command 'import'" in capsys.readouterr().err
    for command in (["cohort"], ["site", "init"]):
        assert run_command([*command, "--help"]) == 0
        assert "import" not in capsys.readouterr().out


def test_vectors_are_given_under_the_site_s_own_ids(inputs, capsys):
    assert prepare(inputs) == 0
    (inputs / "genes.csv").write_text("participant_id,v0\n" + "".join(f"{n},{n}\n" for n in range(4)))

    assert run_command(["cohort", "vectors", str(inputs / "out"), str(inputs / "genes.csv"), "--name", "genes"]) == 0

    cohort = Cohort.open(inputs / "out")
    found = read_vectors(cohort, "genes")
    ages = dict(cohort.covariates()[["participant_id", "age"]].to_numpy())
    assert [ages[one] - 30 for one in found.participants] == found.matrix[:, 0].tolist()
    (inputs / "genes.csv").write_text("participant_id,v0\n1,1\nsub-01,2\n")
    assert run_command(["cohort", "vectors", str(inputs / "out"), str(inputs / "genes.csv")]) == 2
    assert "'sub-01' stands twice, in two spellings" in " ".join(capsys.readouterr().err.split())


def test_thresholds_are_a_file_s(inputs, capsys):
    (inputs / "strict.yaml").write_text("min_frames: 61\n")
    assert prepare(inputs, "--quality", str(inputs / "strict.yaml")) == 2
    assert "expected at least 61" in capsys.readouterr().err.replace("\n", " ")


def test_debug_shows_the_traceback(inputs, capsys):
    assert run_command(["--debug", "cohort", "show", str(inputs)]) == 2

    assert "Traceback" in capsys.readouterr().err


def test_simulate_makes_cohorts_that_differ(tmp_path, capsys):
    command = ["cohort", "simulate", str(tmp_path / "sim"), "--sites", "2", "--participants", "3", "--minutes", "2"]

    assert run_command([*command, "--atlas", "aal116"]) == 0

    cohorts = [Cohort.open(path) for path in sorted((tmp_path / "sim").iterdir())]
    assert [cohort.atlas.name for cohort in cohorts] == ["aal116", "aal116"]
    assert {float(cohort.recordings["t_r"].iloc[0]) for cohort in cohorts} == {2.0, 1.5}
    assert "4 participants, TR 2 s, 60 frames" in capsys.readouterr().out
    assert run_command(command) == 2  # never over an existing folder
