"""Sites with keys, and what is asked of them: five hospitals, of which too few share a small atlas."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from exchange.aggregation import seal
from exchange.key_roster import KeyRoster, SiteKey
from exchange.messages import Group, SumReply, SumRequest
from exchange.secure_sum import Masker


def roster_of(keys: dict[str, X25519PrivateKey]) -> KeyRoster:
    sites = (SiteKey(name=name, public_key=key.public_key().public_bytes_raw().hex()) for name, key in keys.items())
    return KeyRoster(name="consortium", sites=tuple(sites))


SITES = ["a", "b", "c", "d", "e"]
KEYS = {site: X25519PrivateKey.generate() for site in SITES}
ROSTER = roster_of(KEYS)
GROUPS = [Group(parts=["evaluation/small"], sites=[]), Group(parts=["evaluation/large"], sites=["a", "b", "c"])]


def sealed(reply: SumReply, request: SumRequest, site: str) -> SumReply:
    return seal(reply, request, Masker(site, KEYS[site], ROSTER), site=site, run="77", question="q")
