"""`fedbrainlm site init` and `join`: a hospital's keys and settings, and the way to the coordinator."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from base.errors import InputError
from base.files import write_text
from base.output import say
from base.settings import check_settings, read_settings
from cli.display import show_roster
from cli.writing import write_once
from client.keys.joining import join as keep_package
from client.settings import SiteSettings
from deployment.site_files import By, SettingsFile, login, open_site
from exchange.bundle import JoinPackage
from runtime.fab import PROJECT


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


def _settings(name: str, cohort: Path) -> str:
    """The example of a hospital's settings, with its comments and its safe defaults."""
    text = (PROJECT / "configs" / "sites" / "hospital.yaml").read_text(encoding="utf-8")
    for field, value in (("name", name), ("cohort", str(cohort.resolve()))):
        line = f"{field}: {json.dumps(value, ensure_ascii=False)}".replace("\\", r"\\")
        text = re.sub(rf"^{field}: \S+", line, text, count=1, flags=re.M)
    return text
