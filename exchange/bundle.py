"""What a hospital and the coordinator send each other once, by mail: public keys one way, the way in the other.

Nothing here is secret. Both files are read aloud in part, over the telephone: whoever could change them on their way
could otherwise put himself between the two.
"""

import hashlib
from base64 import b64decode, b64encode
from typing import Annotated, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import Field, field_validator, model_validator

from base.settings import Name
from exchange.key_roster import KeyRoster, Mailed, SiteKey, spoken

Address = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[1-9][0-9]{0,4}$",
        json_schema_extra={"words": "a host and its port, such as coordinator.example.org:443"},
    ),
]
"""Host name or IPv4 address, and port."""


def ssh_fingerprint(public_key: str) -> str:
    """Return what ``ssh-keygen -lf`` shows of an ECDSA P-384 key in OpenSSH's format; a ValueError for any other."""
    try:
        key = load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise ValueError("this is no ECDSA P-384 public key of OpenSSH's format")
    digest = hashlib.sha256(b64decode(public_key.split()[1])).digest()
    return "SHA256:" + b64encode(digest).decode().rstrip("=")


class SiteBundle(Mailed):
    """A hospital's public keys, for the coordinator."""

    no_such = ": no bundle of a site"
    remedy = "Ask the site to send it again"

    site: Name
    """Name of the site."""
    public_key: str
    """Its X25519 key for secure sums, as `SiteKey` has it."""
    fingerprint: str
    """That key's."""
    supernode_key: str = Field(max_length=400)
    """ECDSA P-384 key that its SuperNode signs requests with: one line of OpenSSH's format."""
    supernode_fingerprint: str
    """As ``ssh-keygen -lf`` shows it."""

    @model_validator(mode="after")
    def _fingerprints_fit(self) -> Self:
        if self.fingerprint != SiteKey(name=self.site, public_key=self.public_key).fingerprint:
            raise ValueError("its fingerprint is not its public_key's, so it was changed on its way")
        if self.supernode_fingerprint != ssh_fingerprint(self.supernode_key):
            raise ValueError("its supernode_fingerprint is not its supernode_key's, so it was changed on its way")
        return self


class JoinPackage(Mailed):
    """How a hospital reaches the coordinator, and whom it will sum with."""

    no_such = ": no join package"
    remedy = "Ask the coordinator to send it again"

    federation: Name
    """Name of the federation."""
    address: Address
    """Host and port of the coordinator's edge."""
    ca_certificate: str = Field(max_length=10_000)
    """PEM of the authority that signs the edge's certificate."""
    roster: KeyRoster | None = None
    """The sites' keys; None while they are fewer than three."""

    @field_validator("ca_certificate")
    @classmethod
    def _is_an_authority(cls, pem: str) -> str:
        try:
            extensions = x509.load_pem_x509_certificate(pem.encode()).extensions
            is_authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (ValueError, x509.ExtensionNotFound):
            is_authority = False
        if not is_authority:
            raise ValueError("this is no certificate of an authority")
        return pem

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def fingerprint(self) -> str:
        """The authority's, for the telephone: the start of what ``openssl x509 -fingerprint -sha256`` shows."""
        return spoken(x509.load_pem_x509_certificate(self.ca_certificate.encode()).fingerprint(SHA256()).hex())
