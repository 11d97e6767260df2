"""Signatures under apps, by people who may approve them: what ``ssh-keygen -Y sign`` writes, with Ed25519 keys.

An approver's private key is on the approver's own computer. So whoever can write to a hospital's state folder, or knows
the others' names, still cannot approve in their place. The format is OpenSSH's (PROTOCOL.sshsig).
"""

import binascii
import hashlib
from base64 import b64decode, b64encode

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from client.errors import SignatureError

NAMESPACE = "fedbrainlm-app"
"""What a signature is for; one under anything else is none under an app."""
_KIND = b"ssh-ed25519"
_MAGIC = b"SSHSIG"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_LARGEST = 4096
_HASHES = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}


def public_key(line: str) -> Ed25519PublicKey:
    """Read a public key as OpenSSH writes it, ``ssh-ed25519 AAAA… name``; a SignatureError if it is none."""
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(
            f"'{line[:80]}' is no Ed25519 public key of OpenSSH's. Give the line of the .pub file that 'ssh-keygen -t "
            "ed25519' wrote."
        )
    return key


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """Return what ``ssh-keygen -lf`` shows of a key."""
    blob = b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    return "SHA256:" + b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def signer_of(content: bytes, signature: str, keys: list[Ed25519PublicKey]) -> Ed25519PublicKey:
    """Return whose signature it is under `content`.

    Parameters
    ----------
    content : bytes
        What was signed.
    signature : str
        The file that ``ssh-keygen -Y sign -n fedbrainlm-app`` wrote.
    keys : list
        Keys of the people whose signature counts.

    Raises
    ------
    SignatureError
        If it is no such signature, or nobody's of these under this content.
    """
    key_blob, digest, signed = _parse(signature)
    message = _MAGIC + _string(NAMESPACE.encode()) + _string(b"") + _string(digest)
    message += _string(_HASHES[digest](content).digest())
    for key in keys:
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        if key_blob == _string(_KIND) + _string(raw):
            try:
                key.verify(signed, message)
            except InvalidSignature:
                raise SignatureError("the signature is under another file. Sign the app's very file.") from None
            return key
    raise SignatureError("the signature is nobody's whose key policy.approvers lists. Ask one of those to sign.")


def _parse(signature: str) -> tuple[bytes, bytes, bytes]:
    """Blob of the key, name of the hash, and the 64 bytes of a signature."""
    try:
        body = signature.strip().removeprefix(_BEGIN).removesuffix(_END)
        if len(signature) > _LARGEST or len(signature.strip()) - len(body) != len(_BEGIN) + len(_END):
            raise ValueError("no signature")
        letters = "".join(body.split())
        blob = b64decode(letters, validate=True)
        if b64encode(blob).decode() != letters:  # bits at the end that no byte holds
            raise ValueError("not as it was written")
        if not blob.startswith(_MAGIC + (1).to_bytes(4, "big")):
            raise ValueError("no signature")
        key_blob, namespace, _reserved, digest, inner = _strings(blob[len(_MAGIC) + 4 :], 5)
        kind, signed = _strings(inner, 2)
        if (namespace, kind) != (NAMESPACE.encode(), _KIND) or digest not in _HASHES or len(signed) != 64:
            raise ValueError("another kind of signature")
    except (ValueError, binascii.Error):
        raise SignatureError(
            f"this is no signature of an app. Make one with 'ssh-keygen -Y sign -n {NAMESPACE} -f KEY APP.fab', where "
            "KEY is of type ed25519."
        ) from None
    return key_blob, digest, signed


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def _strings(content: bytes, n: int) -> list[bytes]:
    """Take n strings, which are all there is."""
    found = []
    for _ in range(n):
        size = int.from_bytes(content[:4], "big")
        if len(content) < 4 + size:
            raise ValueError("cut off")
        found.append(content[4 : 4 + size])
        content = content[4 + size :]
    if content:
        raise ValueError("more than a signature")
    return found
