"""`fedbrainlm site approve`, `approved` and `withdraw`: the apps that may run at a hospital."""

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import InputError
from cli.fab import describe_fab
from cli.site_files import By, SettingsFile, login, open_site

Code = Annotated[str, typer.Argument(metavar="FAB|HASH", help="What 'fedbrainlm study build' made, or its SHA-256.")]


def approve(settings: SettingsFile, code: Code, by: By = None) -> None:
    """Approve an app with its study, so that the SuperNode may run it."""
    site = open_site(settings)
    code_hash, study = code, ""
    if Path(code).is_file():
        content = _read(Path(code))
        code_hash = hashlib.sha256(content).hexdigest()
        study = describe_fab(content, code)
    approved = site.approvals.approve(code_hash, by or login(), study)
    if site.approvals.may_run(approved):
        typer.echo(f"Approved for {site.name}: {code_hash} may run.")
        return
    missing = site.approvals.needed - len(approved.approvers)
    typer.echo(f"Approved for {site.name}, by one: {code_hash} may run when {missing} more has approved it.")


def approved(settings: SettingsFile) -> None:
    """List the apps that somebody approved."""
    site = open_site(settings)
    listed = list(site.approvals.listed())
    if not listed:
        typer.echo(f"{site.name} has approved no app.")
    for app in listed:
        waits = "" if site.approvals.may_run(app) else f" (may not run: policy.approvers is {site.approvals.needed})"
        typer.echo(f"{app.hash} {app.study or 'study not known'}{waits}")
        for approver in app.approvers:
            typer.echo(f"  by {approver.by}, {approver.time}")


def withdraw(
    settings: SettingsFile,
    code_hash: Annotated[str, typer.Argument(metavar="HASH", help="The app's, as 'approved' lists it.")],
    by: By = None,
) -> None:
    """Take the approval of an app back; a run that goes on is refused from its next message on."""
    site = open_site(settings)
    site.approvals.withdraw(code_hash, by or login())
    typer.echo(f"Withdrawn for {site.name}.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from None
