"""A federation's own certificate authority, and the certificate of its edge."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from base.errors import InputError
from base.files import write_text
from base.secrets import secret_once

AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=397)
"""Longest life that today's browsers and libraries accept of a server's certificate."""
_CLOCKS_APART = timedelta(minutes=10)


class Authority:
    """The federation's authority and its server certificate.

    Parameters
    ----------
    folder : Path
        ``ca.key``, ``ca.crt``, ``server.key`` and ``server.crt`` lie there.
    """

    def __init__(self, folder: Path) -> None:
        self.ca_key = folder / "ca.key"
        self.ca_certificate = folder / "ca.crt"
        self.server_key = folder / "server.key"
        self.server_certificate = folder / "server.crt"

    def make(self, name: str, host: str) -> None:
        """Make what is not there yet; nothing that is there is replaced."""
        secret_once(self.ca_key, _new_key)
        if not self.ca_certificate.is_file():
            self._sign_itself(name)
        secret_once(self.server_key, _new_key)
        if not self.server_certificate.is_file():
            self.renew(host)

    def renew(self, host: str, life: timedelta = SERVER_LIFE) -> datetime:
        """Sign the server's key anew; return when that ends. The authority stays, and so do the hospitals' files."""
        issuer, ca_key, key = read_certificate(self.ca_certificate), _read_key(self.ca_key), _read_key(self.server_key)
        # localhost and 127.0.0.1: the edge and the coordinator's own commands reach the SuperLink there.
        names = [_general_name(name) for name in dict.fromkeys((host, "localhost", "127.0.0.1"))]
        builder = _builder(issuer.subject, host, key, life)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        certificate = builder.sign(ca_key, SHA384())
        write_text(self.server_certificate, certificate.public_bytes(Encoding.PEM).decode())
        return certificate.not_valid_after_utc

    def _sign_itself(self, name: str) -> None:
        key = _read_key(self.ca_key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        builder = _builder(subject, f"{name} authority", key, AUTHORITY_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_SIGNS_ONLY, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = builder.add_extension(identifier, critical=False).sign(key, SHA384())
        write_text(self.ca_certificate, certificate.public_bytes(Encoding.PEM).decode())


_SIGNS_ONLY = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def read_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate; an InputError if there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). See 'fedbrainlm federation init'.") from None
    except ValueError:
        raise InputError(f"{path}: is no certificate. Restore it from a backup.") from None


def days_left(certificate: x509.Certificate) -> int:
    """Whole days until a certificate expires; negative once it has."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).days


def _builder(issuer: x509.Name, name: str, key: EllipticCurvePrivateKey, life: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = x509.CertificateBuilder().issuer_name(issuer).subject_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _CLOCKS_APART).not_valid_after(now + life)


def _new_key() -> str:
    key = generate_private_key(SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Use the account that owns this key.") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise InputError(f"{path}: holds no key of the federation. Restore it from a backup.")
    return key


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
