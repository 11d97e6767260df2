"""A wire between two network namespaces, which can be made slow and cut. Nothing is added outside of them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

HUB, FAR = f"chaos-hub-{os.getpid()}", f"chaos-far-{os.getpid()}"
"""The coordinator's namespace, with all sites but one; and that one's."""
IN_HUB, IN_FAR = (["nsenter", f"--net=/run/netns/{namespace}"] for namespace in (HUB, FAR))
"""What goes before a command there."""
ADDRESS = "10.77.0.1"
"""The coordinator's, in both."""
_NFT_CUT = 'table inet cut { chain arriving { type filter hook input priority 0; iifname "veth0" drop; }; }'
_PATH = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
_PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "nsenter": "util-linux"}


@contextmanager
def wire() -> Iterator[None]:
    """Make the two namespaces and the wire, until the end of a block."""
    _require_rights()
    try:
        for namespace in (HUB, FAR):
            _root("ip", "netns", "add", namespace)
            _root("ip", "-n", namespace, "link", "set", "lo", "up")
        _root("ip", "-n", HUB, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", FAR)
        for namespace, address in ((HUB, ADDRESS), (FAR, "10.77.0.2")):
            _root("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "veth0")
            _root("ip", "-n", namespace, "link", "set", "veth0", "up")
        yield
    finally:
        for namespace in (HUB, FAR):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


@contextmanager
def slow(rate: str) -> Iterator[None]:
    """Limit the wire, in both directions, to a rate such as ``256kbit``."""
    for namespace in (HUB, FAR):
        limit = ("tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
        _root("ip", "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", "veth0", "root", *limit)
    try:
        yield
    finally:
        for namespace in (HUB, FAR):
            _root("ip", "netns", "exec", namespace, "tc", "qdisc", "delete", "dev", "veth0", "root")


@contextmanager
def cut() -> Iterator[None]:
    """Let nothing through, in either direction, and say so to nobody."""
    for namespace in (HUB, FAR):
        _root("ip", "netns", "exec", namespace, "nft", _NFT_CUT)
    try:
        yield
    finally:
        for namespace in (HUB, FAR):
            _root("ip", "netns", "exec", namespace, "nft", "delete table inet cut")


def _require_rights() -> None:
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program, path=_PATH) is None}
    if missing:
        pytest.skip(f"network namespaces take {', '.join(sorted(missing))}: apt install them")
    if os.geteuid() != 0:
        pytest.skip("network namespaces and small disks take root")


def _root(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": _PATH}, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
