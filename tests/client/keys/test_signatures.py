"""Signatures that OpenSSH's own program made."""

import subprocess

import pytest

from client.errors import SignatureError
from client.keys.signatures import NAMESPACE, key_fingerprint, public_key, signer_of
from tests.support.apps import Signer

APP = b"the bytes of an app"


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> dict[str, Signer]:
    folder = tmp_path_factory.mktemp("people")
    return {name: Signer(folder, name) for name in ("anna", "bo")} | {"eve": Signer(folder, "eve", "ecdsa")}


def refused(content, signature, keys) -> str:
    with pytest.raises(SignatureError) as error:
        signer_of(content, signature, keys)
    return str(error.value)


def test_a_signature_tells_whose_it_is(people):
    keys = [public_key(people[name].line) for name in ("anna", "bo")]

    for name, key in zip(("anna", "bo"), keys, strict=True):
        assert signer_of(APP, people[name].sign(APP), keys) == key
        assert signer_of(APP, people[name].sign(APP, NAMESPACE, "-O", "hashalg=sha256"), keys) == key


def test_a_signature_of_another_file_purpose_or_person_is_none(people):
    anna, bo = (public_key(people[name].line) for name in ("anna", "bo"))

    assert "under another file" in refused(APP + b"!", people["anna"].sign(APP), [anna])
    assert "nobody's whose key policy.approvers lists" in refused(APP, people["bo"].sign(APP), [anna])
    assert "is no signature of an app" in refused(APP, people["anna"].sign(APP, "file"), [anna, bo])
    assert "is no signature of an app" in refused(APP, people["eve"].sign(APP), [anna, bo])


def test_no_byte_of_a_signature_can_be_changed(people):
    anna = public_key(people["anna"].line)
    signature = people["anna"].sign(APP)
    body = signature.index("\n") + 1

    for place in range(body, signature.rindex("\n-----END")):
        if signature[place] == "\n":
            continue
        for other in "ABQ":
            if other == signature[place]:
                continue
            with pytest.raises(SignatureError):
                signer_of(APP, signature[:place] + other + signature[place + 1 :], [anna])
    for cut in (0, 10, len(signature) // 2, len(signature) - 3):
        assert "is no signature" in refused(APP, signature[:cut], [anna])


def test_a_key_is_known_by_what_openssh_calls_it(people, tmp_path):
    (tmp_path / "key.pub").write_text(people["anna"].line)
    shown = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "key.pub")], capture_output=True, text=True, check=True)

    assert key_fingerprint(public_key(people["anna"].line)) == shown.stdout.split()[1]


@pytest.mark.parametrize("line", ["", "anna", "ssh-ed25519 AAAA anna", "ssh-rsa AAAAB3NzaC1yc2E="])
def test_what_is_no_ed25519_key_is_refused(line):
    with pytest.raises(SignatureError, match=r"no Ed25519 public key"):
        public_key(line)


def test_a_key_of_another_kind_is_refused(people):
    with pytest.raises(SignatureError, match=r"no Ed25519 public key"):
        public_key(people["eve"].line)
