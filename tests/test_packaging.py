"""A wheel holds all that an installation needs, and an empty environment runs it."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fedbrainlm
from tests.test_layering import MAY_IMPORT

PROJECT = Path(__file__).parents[1]
DATA = ("configs/**/*.yaml", "configs/app.toml", "cohorts/atlases/*.json", "*/*.jinja", "*/report/*.*")
DATA += ("fedbrainlm/py.typed",)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build a wheel of what git has, as pip does: it takes setuptools from a registry."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (PROJECT / name).is_file():  # one that was deleted is listed until it is committed
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((PROJECT / name).read_bytes())
    told = {**os.environ, "SETUPTOOLS_SCM_PRETEND_VERSION": "9.8.7"}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(pip, env=told, check=True)
    (built,) = out.glob("fedbrainlm-9.8.7-*.whl")
    return built


@pytest.mark.slow
def test_a_wheel_holds_every_room_and_what_lies_in_it(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())

    sources = {path for room in MAY_IMPORT for path in (PROJECT / room).rglob("*.py")}
    data = {path for pattern in DATA for path in PROJECT.glob(pattern) if path.is_file() and path.suffix != ".pyc"}
    needed = {str(path.relative_to(PROJECT)) for path in sources | data if ".venv" not in path.parts}
    assert len(needed) > 150
    assert needed - held == set()
    assert not {name for name in held if name.startswith(("tests/", "benchmarks/", "docs/"))}


@pytest.mark.slow
def test_an_empty_environment_in_an_empty_folder_runs_the_demo(wheel, tmp_path):
    environment, folder = tmp_path / "environment", tmp_path / "folder"
    folder.mkdir()

    def run(*command: str | Path) -> str:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

    run(sys.executable, "-m", "venv", environment)
    pip = (environment / "bin" / "pip", "install", "--quiet")
    run(*pip, "torch==2.13.0")
    run(*pip, "--no-deps", "--require-hashes", "-r", PROJECT / "constraints.txt")
    run(*pip, "--no-deps", wheel)
    ours = environment / "bin" / "fedbrainlm"

    assert run(ours, "--version").startswith("fedbrainlm 9.8.7")
    run(ours, "site", "init", "oslo", "--name", "oslo", "--cohort", "data/oslo")
    assert (folder / "oslo" / "site.yaml").is_file()
    shown = run(ours, "demo")
    assert "Masked R² on held-out participants: 0.618" in shown
    assert re.search(r"embedding +│ 0\.747 → 0\.304, by.* │ 0\.568 → 0\.559 +│", shown)  # in 80 columns


def test_every_room_is_packaged():
    find = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]

    assert set(find["include"]) == {f"{room}*" for room in (*MAY_IMPORT, "configs")}


def test_statistics_come_without_torch_and_flower():
    code = "import sys; from fedbrainlm import ComBatHarmonizer; print({'torch', 'flwr', 'pandas'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True).stdout == "set()\n"


def test_type_checkers_see_what_a_notebook_imports():
    told = re.findall(
        r"^    from ([\w.]+) import (.+)$", (PROJECT / "fedbrainlm/__init__.py").read_text(), re.MULTILINE
    )
    modules = {name: module for module, names in told for name in names.split(", ")}

    assert modules.keys() == set(fedbrainlm.__all__)
    for name, module in modules.items():
        assert fedbrainlm._WHERE.get(name, "harmonization") == module
        assert getattr(fedbrainlm, name) is getattr(sys.modules[module], name)


def test_what_a_base_install_lacks_is_said_with_the_remedy():
    code = (
        "import sys; sys.modules['flwr'] = None\n"  # as where it is not installed
        "import base.errors; base.errors.find_spec = lambda name: None\n"
        "from cli.main import run_command; sys.exit(run_command(['site', 'init', 'oslo', '--name', 'oslo']))"
    )

    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)

    assert ended.returncode == 2
    assert "is not installed" in ended.stderr
    assert "pip install 'fedbrainlm[federation]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_pin_has_a_hash_and_torch_alone_is_left_out():
    held = {}
    for name in ("constraints.txt", "constraints-dev.txt"):
        text = (PROJECT / name).read_text()
        pins = re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
        assert len(pins) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE))
        held[name] = {pin.lower() for pin, _ in pins}
    assert not held["constraints.txt"] & held["constraints-dev.txt"]
    assert not held["constraints.txt"] & {"pytest", "ruff", "mypy", "torch"}
