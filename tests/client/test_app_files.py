import io
import zipfile

import pytest
import yaml

from client.app_files import PROJECT_FILE, STUDY, may_hold, read_fab
from client.errors import AppError
from runtime.fab import build_fab
from study.settings import load_study
from tests.support.apps import app_of
from tests.support.federation import STUDY as SMALL


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """What an app of ours holds."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "study.yaml").write_text(yaml.safe_dump(SMALL))
    with zipfile.ZipFile(io.BytesIO(build_fab(load_study(folder / "study.yaml")))) as fab:
        return {name: fab.read(name) for name in fab.namelist()}


def fab_of(files: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as fab:
        for name, content in files.items():
            fab.writestr(name, content)
    return buffer.getvalue()


def refused(content: bytes) -> str:
    with pytest.raises(AppError) as error:
        read_fab(content)
    return str(error.value)


def test_an_app_of_ours_is_read_as_it_is(files):
    assert read_fab(fab_of(files)) == files


@pytest.mark.parametrize(
    "name",
    [
        "evil.py",
        "sitecustomize.py",
        "numpy/__init__.py",
        "flwr/app.py",
        "client.py",
        "client/app.so",
        "client/__pycache__/app.cpython-311.pyc",
        "client/app.pyc",
        "server/report/page.py",
        "cohorts/report/spec.yaml",
        "harmonization/../evil.py",
        "/client/app.py",
        "client//app.py",
        "client/app.py\n",
        "client\\app.py",
        "client/App.py",
        "client/",
        ".env",
        "study.yml",
        "client/pyproject.toml",
    ],
)
def test_what_no_app_of_ours_has_is_refused_by_its_name(files, name):
    assert not may_hold(name)
    said = refused(fab_of({**files, name: b"x"}))
    assert said.startswith(f"the app holds '{zipfile.ZipInfo(name).filename}', which no app of ours does")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_file_of_one_name_is_refused(files):
    buffer = io.BytesIO(fab_of(files))
    with zipfile.ZipFile(buffer, "a") as fab:
        fab.writestr("client/app.py", b"app = None\n")

    assert "'client/app.py' more than once" in refused(buffer.getvalue())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('clientapp = "client.app:app"', 'clientapp = "evil:app"'),
        ('serverapp = "server.app:app"', 'serverapp = "client.app:app"'),
        ('publisher = "fedbrainlm"', 'publisher = "others"'),
        ('run-directory = ""', 'run-directory = ""\nsite-config = "/tmp/site.yaml"'),
        ("[tool.flwr.app.components]", "[tool.flwr.federations]\na = 1\n\n[tool.flwr.app.components]"),
        ('name = "fedbrainlm"', 'name = "other"'),
    ],
)
def test_flower_is_told_to_run_our_two_objects_and_nothing_else(files, old, new):
    project = files[PROJECT_FILE].decode()
    assert old in project

    said = refused(fab_of({**files, PROJECT_FILE: project.replace(old, new, 1).encode()}))

    assert f"the app's {PROJECT_FILE} tells Flower" in said


@pytest.mark.parametrize("missing", [PROJECT_FILE, STUDY])
def test_an_app_has_a_study_and_a_project_file(files, missing):
    assert f"no '{missing}'" in refused(fab_of({name: files[name] for name in files if name != missing}))


def test_what_is_no_zip_or_too_large_is_refused(files):
    good = fab_of(files)
    for content in (b"", b"no zip", good[: len(good) // 2], good.replace(b"PK\x05\x06", b"PK\x05\x07")):
        assert "is no FAB, or is damaged" in refused(content)
    assert "expected at most" in refused(bytes(10 * 2**20 + 1))
    bomb = fab_of({**files, "client/zeros.py": bytes(60 * 2**20)})
    assert len(bomb) < 2_000_000
    assert "unpacks to more" in refused(bomb)


@pytest.mark.parametrize("packed", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_what_is_packed_otherwise_than_by_flower_is_refused_before_it_is_unpacked(files, packed):
    assert "packed as Flower packs nothing" in refused(fab_of(files, packed))


def test_what_is_encrypted_is_refused():
    fab = bytearray(app_of("app = None\n"))
    fab[fab.index(b"PK\x01\x02") + 8] |= 1  # flags of the first entry of the list at the end

    assert "packed as Flower packs nothing" in refused(bytes(fab))


def test_whatever_became_of_an_app_on_its_way_is_read_or_refused():
    """Bytes that changed where it says what lies where, and how it is called, give all kinds of errors in zipfile."""
    good = app_of("app = None\n")
    listed = good.index(b"PK\x01\x02")
    said = set()
    for place in (*range(30), *range(listed, len(good))):
        for byte in (0x00, 0x8C, 0xFF):
            changed = good[:place] + bytes([byte]) + good[place + 1 :]
            try:
                read_fab(changed)
            except AppError as error:
                said.add(str(error))
    assert "the app is no FAB, or is damaged. Ask the coordinator to send it again." in said
