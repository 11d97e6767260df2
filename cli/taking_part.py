"""`fedbrainlm site init`, `join`, `check`, `start` and `execute`: how a hospital takes part."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from base.errors import InputError
from base.files import write_text
from base.output import say
from base.proxies import proxy_to
from base.settings import check_settings, read_settings
from cli.display import show_roster
from cli.writing import write_once
from client.keys.joining import join as keep_package
from client.keys.joining import joined
from client.settings import SiteSettings
from deployment import probes
from deployment.checks import STRICT, report, versions
from deployment.site_checks import checks
from deployment.site_files import By, SettingsFile, at_work, login, open_site
from exchange.bundle import JoinPackage
from runtime.fab import PROJECT
from runtime.flower import environment_of


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the hospital's settings and state.")],
    name: Annotated[str, typer.Option(help="Name of the hospital in studies and reports.")],
    cohort: Annotated[Path, typer.Option(help="Folder of its cohort, made by 'fedbrainlm cohort prepare'.")],
) -> None:
    """Make a hospital's settings and keys. What is there already stays. Prints what goes to the coordinator."""
    settings = folder / "site.yaml"
    check_settings({"name": name, "cohort": str(cohort), "state": "state"}, SiteSettings, "site init")
    if not settings.is_file():
        write_text(settings, _settings(name, cohort))
    elif (there := read_settings(settings, SiteSettings)).name != name:
        raise InputError(
            f"{settings}: is of the site {there.name}, not {name}. Correct the name, or choose another folder."
        )
    elif (kept := folder.resolve() / there.cohort).resolve() != cohort.resolve():
        say(f"Note: {settings} keeps its cohort, {kept}. If {cohort} is meant, write that there.")
    bundle = open_site(settings).keys.public_bundle()
    out = folder / f"{name}.bundle.json"
    write_once(out, (json.dumps(bundle, indent=2) + "\n").encode())
    say(f"fingerprint: {bundle['fingerprint']}")
    say(f"supernode fingerprint: {bundle['supernode_fingerprint']}")
    say(f"Settings: {settings}. Send the coordinator {out}: it holds public keys alone.")


def join(
    settings: SettingsFile,
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="What the coordinator sent.")],
    by: By = None,
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprints were compared; do not ask.")] = False,
) -> None:
    """Join a federation: how the coordinator is reached, and whose sums this site's are added to."""
    site, given = open_site(settings), JoinPackage.read(package)
    say(f"Federation {given.federation} at {given.address}")
    say(f"fingerprint of its authority: {given.fingerprint}")
    if given.roster:
        site.keys.check(given.roster)
        show_roster(given.roster)
    question = "Did you compare the authority's fingerprint with the coordinator, by telephone"
    question += ", and each site's with that site?" if given.roster else "?"
    if not yes and not typer.confirm(question):
        raise InputError(
            "the site has not joined. Call the coordinator and the sites, compare, and repeat the command."
        )
    by = by or login()
    keep_package(site.state, site.audit, given, by)
    if given.roster and given.roster.hash not in site.keys.usable():
        site.keys.approve(given.roster, by)
    say(f"{site.name} has joined {given.federation}.")


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


def _settings(name: str, cohort: Path) -> str:
    """The example of a hospital's settings, with its comments and its safe defaults."""
    text = (PROJECT / "configs" / "sites" / "hospital.yaml").read_text(encoding="utf-8")
    for field, value in (("name", name), ("cohort", str(cohort.resolve()))):
        line = f"{field}: {json.dumps(value, ensure_ascii=False)}".replace("\\", r"\\")
        text = re.sub(rf"^{field}: \S+", line, text, count=1, flags=re.M)
    return text


def _become(module: str, settings: Path) -> None:
    """Go on as another program, under the same process number: that is what systemd and containers watch."""
    command = [sys.executable, "-P", "-m", module, str(settings.resolve())]
    sys.stdout.flush()
    os.execve(command[0], command, environment_of(None, {}))
