"""`fedbrainlm site start`, `execute` and `check`: a hospital's SuperNode, its apps, and what both need."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from base.errors import InputError
from base.proxies import proxy_to
from base.settings import read_settings
from client.keys.joining import joined
from client.settings import SiteSettings
from deployment import probes
from deployment.checks import STRICT, report, versions
from deployment.site_checks import checks
from deployment.site_files import SettingsFile, at_work
from runtime.flower import environment_of


def start(settings: SettingsFile) -> None:
    """Start the SuperNode, in the foreground: it runs the apps that this site approved, and no others."""
    verdict, said = versions()
    if verdict == "fail":  # another Flower might pass the guard by
        raise InputError(said)
    site = at_work(settings)
    if probes.listens(port := site.settings.supernode.port):
        raise InputError(
            f"{settings}: supernode.port {port} is taken. If this site's SuperNode runs already, nothing is to be "
            "done; otherwise choose another port."
        )
    # What is missing or wrong is said here, before Flower starts.
    _ = proxy_to(joined(site.state).address, site.settings.supernode.proxy), site.keys.public_bundle()
    _become("runtime.supernode", settings)


def execute(settings: SettingsFile) -> None:
    """Start the apps of a SuperNode that runs in another container, in the foreground; see supernode.executor."""
    if read_settings(settings, SiteSettings).supernode.executor == "here":
        raise InputError(
            f"{settings}: supernode.executor is here, so that 'fedbrainlm site start' starts the apps itself. "
            "Set it to elsewhere, or leave this command out."
        )
    at_work(settings)
    _become("runtime.executor", settings)


def check(
    settings: SettingsFile,
    study: Annotated[
        Path | None, typer.Option(metavar="STUDY.yaml", help="A study that the cohort and policy must fit.")
    ] = None,
    strict: STRICT = False,
) -> None:
    """Check everything that the site needs to take part. Exit code 0 if nothing fails."""
    report(checks(settings, study), strict=strict)


def _become(module: str, settings: Path) -> None:
    """Go on as another program, under the same process number: that is what systemd and containers watch."""
    command = [sys.executable, "-P", "-m", module, str(settings.resolve())]
    sys.stdout.flush()
    os.execve(command[0], command, environment_of(None, {}))
