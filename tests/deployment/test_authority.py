import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from base.errors import InputError
from deployment.authority import Authority, days_left, read_certificate

FILES = ("ca.key", "ca.crt", "server.key", "server.crt")


@pytest.fixture
def authority(tmp_path):
    authority = Authority(tmp_path / "keys")
    authority.make("north", "coordinator.example.org")
    return authority


def test_nothing_that_is_there_is_replaced(tmp_path, authority):
    before = {name: (tmp_path / "keys" / name).read_bytes() for name in FILES}

    authority.make("north", "elsewhere.example.org")

    assert {name: (tmp_path / "keys" / name).read_bytes() for name in FILES} == before
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600


def test_the_certificate_names_the_host_and_this_machine(authority):
    certificate = read_certificate(authority.server_certificate)

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["coordinator.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    certificate.verify_directly_issued_by(read_certificate(authority.ca_certificate))
    ssl.create_default_context(cafile=str(authority.ca_certificate)).load_cert_chain(
        authority.server_certificate, authority.server_key
    )


def test_renewal_keeps_keys_and_authority(tmp_path, authority):
    before = {name: (tmp_path / "keys" / name).read_bytes() for name in FILES}

    ends = authority.renew("new.example.org")

    changed = [name for name in FILES if (tmp_path / "keys" / name).read_bytes() != before[name]]
    assert changed == ["server.crt"]
    assert ends > datetime.now(UTC) + timedelta(days=390)
    certificate = read_certificate(authority.server_certificate)
    assert days_left(certificate) in (396, 397)
    assert "new.example.org" in str(certificate.extensions)


def test_days_are_negative_once_a_certificate_has_expired(authority):
    authority.renew("localhost", timedelta(seconds=-1))

    assert days_left(read_certificate(authority.server_certificate)) == -1


def test_what_is_missing_or_damaged_is_said(authority):
    authority.server_certificate.write_text("none")
    with pytest.raises(InputError, match="is no certificate"):
        read_certificate(authority.server_certificate)
    authority.ca_key.write_text("none")
    with pytest.raises(InputError, match="holds no key"):
        authority.renew("localhost")
    authority.ca_certificate.unlink()
    with pytest.raises(InputError, match="federation init"):
        authority.renew("localhost")
