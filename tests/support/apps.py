"""Small apps as Flower packs them, and people who sign them with OpenSSH's own program."""

import subprocess
from pathlib import Path

from flwr.cli.build import build_fab_from_files

from client.keys.signatures import NAMESPACE

PROJECT = b"""
[project]
name = "fedbrainlm"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedbrainlm"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
run-directory = ""
"""


def app_of(text: str, **others: bytes) -> bytes:
    """Return a FAB that a site takes for an app of ours, whose ClientApp is `text`; `others` by name of a root file."""
    files = {"pyproject.toml": PROJECT, "study.yaml": b"study: small\n", "client/app.py": text.encode()}
    return build_fab_from_files({**files, "server/app.py": b"app = None\n", **others})[0]


class Signer:
    """Somebody with an Ed25519 key of OpenSSH's, made in a folder."""

    def __init__(self, folder: Path, name: str, kind: str = "ed25519") -> None:
        self._key = folder / name
        command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", name, "-f", str(self._key)]
        subprocess.run(command, check=True, timeout=30)
        self.line = self._key.with_suffix(".pub").read_text().strip()

    def sign(self, content: bytes, namespace: str = NAMESPACE, *options: str) -> str:
        command = ["ssh-keygen", "-Y", "sign", "-n", namespace, "-f", str(self._key), *options]
        return subprocess.run(command, input=content, capture_output=True, check=True, timeout=30).stdout.decode()
