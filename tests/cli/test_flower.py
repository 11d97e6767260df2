import zipfile
from io import BytesIO

from flwr.cli.build import build_fab_from_disk

from cli.flower import connections, stage_app


def test_the_app_carries_what_runs_at_a_site_and_nothing_else(tmp_path):
    fab = build_fab_from_disk(stage_app(tmp_path / "app"))

    names = set(zipfile.ZipFile(BytesIO(fab)).namelist())

    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {"cohorts", "brainlm", "harmonization", "exchange", "client", "server", ".info"}
    assert {"client/app.py", "server/app.py", "cohorts/atlases/schaefer400.json"} <= names
    assert len(fab) < 2_000_000  # Flower takes 10 MB


def test_the_same_sources_give_the_same_app(tmp_path):
    assert build_fab_from_disk(stage_app(tmp_path / "a")) == build_fab_from_disk(stage_app(tmp_path / "b"))


def test_connections_come_from_flower_s_configuration(tmp_path):
    assert connections(tmp_path) == []
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "prod"\n[superlink.prod]\naddress = "a:1"\n[superlink.test]\naddress = "b:1"\n'
    )
    assert connections(tmp_path) == ["prod", "test"]
