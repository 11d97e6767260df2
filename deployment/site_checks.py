"""What a hospital needs before it takes part, thing by thing."""

import hashlib
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from base.errors import FedBrainLMError, of_the_disk
from client.door.participation import objections
from client.site import Site
from deployment import connection_checks
from deployment.checks import Check, Found, attempt, versions
from deployment.site_files import at_work
from runtime.fab import build_fab
from study.fitting import left_out
from study.settings import load_study

_DISK_GB = 5


def checks(settings: Path, study: Path | None) -> Iterator[Check]:
    """Yield each check as it is made; those that need what failed are left out."""
    try:
        site = at_work(settings)
    except (FedBrainLMError, OSError) as error:
        yield Check("settings", "fail", str(of_the_disk(error) or error))
        return
    yield Check("settings", "pass", f"site {site.name}, state in {site.state}")
    yield attempt("versions", versions)
    # Of the two containers of a hospital, one has the recordings and the other one has a network.
    apart = site.settings.supernode.executor == "elsewhere"
    has_recordings = not apart or (settings.parent / site.settings.cohort).is_dir()
    if has_recordings:
        yield attempt("cohort", _cohort, site)
    else:
        yield Check("cohort", "skip", "not here: the SuperNode has no recordings. Repeat this where the apps run.")
    for what, look in _AT_HOME.items():
        yield attempt(what, look, site)
    if has_recordings and study is not None:
        yield attempt("study", _study, site, study)
        yield attempt("its app", _app, site, study)
    if apart and has_recordings:
        yield Check("federation", "skip", "no network where the recordings are. Repeat this at the SuperNode.")
    else:
        yield from connection_checks.checks(site, settings)


def _cohort(site: Site) -> Found:
    cohort = site.cohort
    participants = cohort.covariates()["participant_id"].nunique()
    said = f"{participants} participants, {len(cohort)} recordings, atlas {cohort.atlas.name}"
    if participants < site.policy.min_participants:
        return "fail", f"{said}; policy.min_participants is {site.policy.min_participants}. Prepare more."
    return "pass", said


def _policy(site: Site) -> Found:
    if not site.policy.studies:
        return "warn", "policy.studies is empty, so that every study is refused. Name those that may run."
    said = f"studies: {', '.join(site.policy.studies)}; secure sums "
    if not site.policy.secure_sum_required:
        return "warn", f"{said}NOT required: this site's own sums may leave. Set secure_sum_required: true."
    return "pass", f"{said}required; {site.policy.min_approvers} must approve an app"


def _keys(site: Site) -> Found:
    bundle = site.keys.public_bundle()
    if stat.S_IMODE(site.state.stat().st_mode) & 0o077:
        return "fail", f"{site.state}: others may read it. Run 'chmod 700 {site.state}'."
    return "pass", f"sums {bundle['fingerprint']}; SuperNode {bundle['supernode_fingerprint']}"


def _audit(site: Site) -> Found:
    if not site.audit.path.is_file():
        return "pass", "none yet"
    verdict = site.audit.verify()
    if not verdict.intact:
        return "fail", f"{verdict} Find out who changed it: docs/privacy.md."
    return "pass", f"{verdict.n_lines} lines, head {verdict.head}"


def _disk(site: Site) -> Found:
    free = shutil.disk_usage(site.state).free / 1e9
    if free < _DISK_GB:
        return "fail", f"{free:.1f} GB free at {site.state}; expected {_DISK_GB}. Make room."
    return "pass", f"{free:.0f} GB free"


def _device(site: Site) -> Found:
    import torch

    if site.device.type == "cuda" and not torch.cuda.is_available():
        return "fail", f"device is {site.device}, and no GPU is visible. Install its driver, or use cpu."
    return "pass", f"{site.device}, {site.devices} at a time, {site.settings.threads} threads"


def _roster(site: Site) -> Found:
    usable = site.keys.usable()
    if not usable:
        return "warn", "none is approved, so that secure sums are refused. See 'fedbrainlm site join'."
    return "pass", ", ".join(usable)


def _apps(site: Site) -> Found:
    ready = [app for app in site.approvals.listed() if not site.approvals.missing(app)]
    if not ready:
        return "warn", "none, so that every run is refused. See 'fedbrainlm site approve'."
    return "pass", ", ".join(f"{app.study or 'study not known'} {app.hash[:12]}…" for app in ready)


_AT_HOME: dict[str, Callable[[Site], Found]] = {
    "policy": _policy,
    "keys": _keys,
    "audit log": _audit,
    "disk": _disk,
    "device": _device,
    "roster": _roster,
    "approved apps": _apps,
}


def _study(site: Site, path: Path) -> Found:
    study = load_study(path)
    found = dict.fromkeys(f"{refusal.code}: {refusal.detail}" for refusal in objections(site, study.opening()))
    if found:
        return "fail", " ".join(found)
    return "pass", " ".join([f"{study.study}: cohort and policy fit.", *left_out(study, site.cohort)])


def _app(site: Site, path: Path) -> Found:
    """Look for the very app that this installation makes of the study among those that may run."""
    study = load_study(path)
    code_hash = hashlib.sha256(build_fab(study)).hexdigest()
    app = site.approvals.find(code_hash)
    if app is not None and (missing := site.approvals.missing(app)):
        return "warn", f"{code_hash[:12]}…: {missing} more must approve it before the study can run."
    if app is not None:
        return "pass", f"{code_hash[:12]}… may run"
    return (
        "warn",
        f"{code_hash[:12]}…, as this installation makes it of the study, is not approved, so that the study is "
        "refused. Look at the coordinator's with 'fedbrainlm site show', and approve it.",
    )
