"""Hospitals whose networks lead to the coordinator through a proxy alone: nobody else knows its name."""

from pathlib import Path

import psutil
import pytest
import yaml

from server.journal import Journal
from tests.support.deployment import Deployment, needs_nginx
from tests.support.programs import processes_of
from tests.support.proxies import Tunnels, proxy

pytestmark = [pytest.mark.slow, needs_nginx]
COORDINATOR = "coordinator.invalid"
PASSWORD = "p%40ss"
NOBODY = "http://127.0.0.1:9"


class BehindProxies(Deployment):
    """A federation in which one site names its proxy in ``site.yaml``, and the others in their environment."""

    def __init__(self, folder: Path, ours: Tunnels, coimbras: Tunnels) -> None:
        named = {"http_proxy": NOBODY, "ALL_PROXY": "socks5://127.0.0.1:9", "HTTPS_PROXY": signed_in(ours)}
        super().__init__(folder, COORDINATOR, **named)
        self._coimbras = coimbras

    def set_up_site(self, name: str, cohort: Path) -> Path:
        path = super().set_up_site(name, cohort)
        path.chmod(0o600)
        if name == "coimbra":
            settings = yaml.safe_load(path.read_text())
            settings["supernode"]["proxy"] = signed_in(self._coimbras)
            path.write_text(yaml.safe_dump(settings))
        return path


def signed_in(way: Tunnels) -> str:
    return way.url.replace("//", f"//anna:{PASSWORD}@")


def test_a_study_runs_through_proxies_to_the_same_weights(tmp_path, small_cohorts, finished_run):
    kind = {"names": {COORDINATOR: "127.0.0.1"}, "sign_in": "anna:p@ss"}
    with (
        proxy(**kind) as ours,
        proxy(**kind) as coimbras,
        BehindProxies(tmp_path, ours, coimbras).running(small_cohorts) as deployment,
    ):
        study = deployment.study("small")
        deployment.approve(study)
        for name, way, named_by in (("aalborg", ours, "HTTPS_PROXY"), ("coimbra", coimbras, "supernode.proxy")):
            said = deployment.command("site", "check", f"{name}/site.yaml", "--study", study)
            assert f"pass proxy {way.url}, as {named_by} says" in said
            assert "All 20 checks passed." in said
            assert f"reached through {way.url}, as {named_by} says" in (tmp_path / f"{name}.log").read_text()
        apps = [
            process for process in map(psutil.Process, processes_of(tmp_path)) if "prefork" in str(process.cmdline())
        ]
        assert len(apps) >= 3
        assert [process for process in apps if PASSWORD in str(process.environ())] == []

        deployment.command("run", study, "--federation", "nordic", "--runs", "runs")

        edge = f"{COORDINATOR}:{deployment.federation.settings.port}"
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert Journal(folder).checkpoint(2).read_bytes() == finished_run.journal.checkpoint(2).read_bytes()
    assert set(ours.asked) == set(coimbras.asked) == {edge}  # and for nothing of this machine
    for log in [*tmp_path.glob("*.log"), *tmp_path.glob("*/state/*.log"), *tmp_path.glob("nordic/logs/*")]:
        assert PASSWORD not in log.read_text(), log
