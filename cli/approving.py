"""`fedbrainlm site show`, `approve`, `approved` and `withdraw`: the apps that may run at a hospital."""

from pathlib import Path
from typing import Annotated

import typer

from base.errors import InputError
from base.files import read_bytes
from base.output import say
from client.door.describing import policy_objections
from client.site import Site
from deployment.site_files import By, SettingsFile, login, open_site
from runtime.fab import OfferedApp, describe_fab

Fab = Annotated[Path, typer.Argument(metavar="FAB", help="What 'fedbrainlm study build' made.")]
Code = Annotated[str, typer.Argument(metavar="FAB|HASH", help="What 'fedbrainlm study build' made, or its SHA-256.")]


def show(
    fab: Fab,
    settings: Annotated[
        Path | None, typer.Argument(metavar="[SITE.yaml]", help="Also say what this hospital's policy has against it.")
    ] = None,
) -> None:
    """Show what an app computes, and whether its code is that of this installation. Nothing is approved or run."""
    app = describe_fab(_read(fab), str(fab))
    if settings is not None:
        _show_objections(open_site(settings), app)


def approve(
    settings: SettingsFile,
    code: Code,
    by: By = None,
    signature: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What 'ssh-keygen -Y sign' made, where policy.approvers lists keys."),
    ] = None,
    other_code: Annotated[
        bool, typer.Option("--other-code", help="Approve code that is not that of this installation.")
    ] = False,
    unseen: Annotated[bool, typer.Option("--unseen", help="Approve a hash without its app at hand.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="What 'site show' prints was read; do not ask.")] = False,
) -> None:
    """Approve an app with its study, so that the SuperNode may run it. Shows it first, and asks."""
    site = open_site(settings)
    if Path(code).is_file():
        content = _read(Path(code))
        app = describe_fab(content, code)
        _show_objections(site, app)
        if app.differences and not other_code:
            raise InputError(
                f"{code}: its code is not that of this installation. Read what differs; then give --other-code, too."
            )
        _confirm(f"May this app run at {site.name}?", yes)
        signed = None if signature is None else _read(signature).decode(errors="replace")
        approved = site.approvals.approve(content, by or login(), app.study.study, signed)
    else:
        if not unseen:
            raise InputError(
                f"{code[:80]}: no such file. Give the app's file, which is then shown; or its hash, with --unseen."
            )
        _confirm(f"May the app of this hash, which nobody has looked at here, run at {site.name}?", yes)
        approved = site.approvals.approve_unseen(code, by or login())
    if not (missing := site.approvals.missing(approved)):
        say(f"Approved for {site.name}: {approved.hash} may run.")
        return
    say(f"Approved for {site.name}: {approved.hash} may run when {missing} more has signed it.")


def approved(settings: SettingsFile) -> None:
    """List the apps that somebody approved."""
    site = open_site(settings)
    listed = list(site.approvals.listed())
    if not listed:
        say(f"{site.name} has approved no app.")
    for app in listed:
        missing = site.approvals.missing(app)
        waits = f" (may not run: {missing} more must sign it)" if missing else ""
        say(f"{app.hash} {app.study or 'study not known'}{waits}")
        for approval in app.approvers:
            say(f"  by {approval.by}, {approval.time}" + (f", {approval.key}" if approval.key else ""))


def withdraw(
    settings: SettingsFile,
    code_hash: Annotated[str, typer.Argument(metavar="HASH", help="The app's, as 'approved' lists it.")],
    by: By = None,
) -> None:
    """Take the approval of an app back; a run that goes on is refused from its next message on."""
    site = open_site(settings)
    site.approvals.withdraw(code_hash, by or login())
    say(f"Withdrawn for {site.name}.")


def _show_objections(site: Site, app: OfferedApp) -> None:
    """Say what the policy has against the study, so that nobody takes an approval for the last word."""
    objections = list(policy_objections(site.policy, app.study.introduction()))
    if not objections:
        say(f"The policy of {site.name} has nothing against this study.")
        return
    say(f"The policy of {site.name} refuses this study, approved or not:")
    for refusal in objections:
        say(f"  {refusal.code}: {refusal.detail}")


def _confirm(question: str, yes: bool) -> None:
    if not yes and not typer.confirm(question):
        raise InputError("the app is not approved.")


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
