"""`fedbrainlm site start` and `check`: a hospital's SuperNode, and what it needs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.checks import report
from cli.flower import environment_of
from cli.site_checks import checks
from cli.site_files import SettingsFile, open_site
from client.joining import joined


def start(settings: SettingsFile) -> None:
    """Start the SuperNode, in the foreground: it runs the apps that this site approved, and no others."""
    site = open_site(settings)
    _ = joined(site.state), site.keys.public_bundle()  # what is missing is said here, before Flower starts
    command = [sys.executable, "-P", "-m", "client.supernode", str(settings.resolve())]
    sys.stdout.flush()
    os.execve(command[0], command, environment_of(None, {}))


def check(
    settings: SettingsFile,
    study: Annotated[
        Path | None, typer.Option(metavar="STUDY.yaml", help="A study that the cohort and policy must fit.")
    ] = None,
) -> None:
    """Check everything that the site needs to take part. Exit code 0 if nothing fails."""
    report(checks(settings, study))
