"""A hospital's settings on the command line, and who is at the keyboard."""

import getpass
from pathlib import Path
from typing import Annotated

import typer

from base.errors import InputError
from base.settings import read_settings
from client.settings import SiteSettings
from client.site import Site

SettingsFile = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The hospital's settings.")]
By = Annotated[str | None, typer.Option(help="Who decides it, for the audit log; your login name if not given.")]


def open_site(settings: Path) -> Site:
    """Open the site of a ``site.yaml``; its state folder is made if it is not there."""
    try:
        return Site(read_settings(settings, SiteSettings), settings.parent)
    except OSError as error:
        raise InputError(f"{settings}: its state folder cannot be made ({error.strerror}). Correct 'state'.") from None


def at_work(settings: Path) -> Site:
    """Open the site of a ``site.yaml`` that was set up before.

    Raises
    ------
    InputError
        If its state folder is not there or empty: nothing is begun anew where a disk is not mounted.
    """
    state = settings.parent / read_settings(settings, SiteSettings).state
    if not (state.is_dir() and any(state.iterdir())):
        raise InputError(
            f"{state}: is {'empty' if state.is_dir() else 'not there'}; expected the site's state folder. Is its disk "
            "mounted? A new site's is made with 'fedbrainlm site init'."
        )
    return open_site(settings)


def login() -> str:
    """Name of the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        raise InputError("your login has no name. Say with --by who decides it.") from None
