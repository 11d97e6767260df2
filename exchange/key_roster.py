"""The roster: which sites take part in secure sums, and each one's public key.

A site computes only with a roster that its own administrator approved, and so nobody can put himself between two sites.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from base.errors import FedBrainLMError
from base.files import read_json as read_object
from base.settings import Hex64, Name
from base.wording import faults_of

MIN_SITES = 3
"""With two, each would read the other's values in the sum."""
_PRIME = 2**255 - 19


class RosterError(FedBrainLMError):
    """A roster or a key bundle is missing or wrong. Ask whoever made the named file for a right one."""


class Mailed(BaseModel):
    """What hospitals and the coordinator send each other once, by mail: a JSON file that the reader may not trust."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    no_such: ClassVar[str] = ""
    """How an error begins after the file's path."""
    remedy: ClassVar[str]
    """How it ends."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file; a RosterError if there is none, or it is damaged."""
        return cls.checked(read_json(path), f"{path}{cls.no_such}", cls.remedy)

    @classmethod
    def checked(cls, content: Mapping[str, Any], source: str, remedy: str) -> Self:
        """Check what a file holds; an error begins with its source, and says all that is wrong, in its field names."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            said = "; ".join(fault.said for fault in faults_of(error, cls))
            raise RosterError(f"{source}: {said}. {remedy}.") from None

    def to_json(self) -> str:
        return json.dumps(self.model_dump(), indent=2) + "\n"


def spoken(sha256: str) -> str:
    """What two people compare over the telephone: the first 16 bytes of a SHA-256, in groups of four digits."""
    return " ".join(sha256[start : start + 4] for start in range(0, 32, 4))


class SiteKey(Mailed):
    """A site's public key."""

    remedy = "Ask the site for a right one"

    name: Name
    """Name of the site."""
    public_key: Hex64
    """The 32 bytes of its X25519 public key (RFC 7748), in 64 lower-case hexadecimal digits."""

    @field_validator("public_key")
    @classmethod
    def _is_a_good_point(cls, public_key: str) -> str:
        """Refuse second spellings of a key, and the few keys with which every secret is zero."""
        raw = bytes.fromhex(public_key)
        try:
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(raw))
        except ValueError:
            raise ValueError("this key makes no secret; no key pair has it") from None
        if int.from_bytes(raw, "little") >= _PRIME:
            raise ValueError("this is another spelling of a key; no key pair has it")
        return public_key

    @property
    def fingerprint(self) -> str:
        return spoken(hashlib.sha256(bytes.fromhex(self.public_key)).hexdigest())


class KeyRoster(Mailed):
    """The sites of a federation and their keys, in one fixed order."""

    remedy = "Ask the coordinator for a right one"

    name: Name
    """Name of the federation."""
    sites: tuple[SiteKey, ...]
    """At least three, sorted by name; no name and no key twice."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        names = [site.name for site in self.sites]
        if len(names) < MIN_SITES:
            raise ValueError(f"it lists {len(names)} sites; a secure sum takes at least {MIN_SITES}")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"it lists {', '.join(sorted(twice))} more than once")
        if len({site.public_key for site in self.sites}) < len(names):
            raise ValueError("two sites have the same key; each makes its own with 'fedbrainlm site key'")
        if names != sorted(names):
            raise ValueError("its sites are not sorted by name")
        return self

    @classmethod
    def from_bundles(cls, name: str, bundles: Sequence[Mapping[str, Any]]) -> Self:
        """Make a roster of the ``site``, ``public_key`` and ``fingerprint`` that ``fedbrainlm site key`` wrote.

        Raises
        ------
        RosterError
            If a bundle is damaged, its fingerprint is not its key's, or the sites make no roster.
        """
        sites = [_site_of(bundle) for bundle in bundles]
        content = {"name": name, "sites": sorted(sites, key=lambda site: site.name)}
        return cls.checked(content, "the roster", "Give the bundles of three or more sites, each once")

    def write(self, path: Path) -> None:
        """Write the roster. The SHA-256 of the file is the roster's hash."""
        path.write_bytes(self.canonical())

    def canonical(self) -> bytes:
        """Return the roster as JSON with sorted keys and no spaces, in UTF-8: equal rosters give equal bytes."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal: what a site approves, and what keys are derived with."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def site(self, name: str) -> SiteKey:
        """Return a site's entry; `RosterError` if the roster does not list it."""
        for site in self.sites:
            if site.name == name:
                return site
        listed = ", ".join(site.name for site in self.sites)
        raise RosterError(f"roster {self.name}: does not list the site {name}; it lists {listed}. Ask the coordinator.")

    def public_key(self, name: str) -> X25519PublicKey:
        """Return the public key of a `site`."""
        return X25519PublicKey.from_public_bytes(bytes.fromhex(self.site(name).public_key))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; a RosterError if there is none."""
    try:
        return read_object(path)
    except OSError as error:
        raise RosterError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except ValueError:
        raise RosterError(
            f"{path}: is not a JSON object. Ask whoever made it for the file as it was written."
        ) from None


def _site_of(bundle: Mapping[str, Any]) -> SiteKey:
    name = bundle.get("site")
    content = {"name": name, "public_key": bundle.get("public_key")}
    site = SiteKey.checked(content, f"key bundle of {name}", SiteKey.remedy)
    if bundle.get("fingerprint") != site.fingerprint:
        raise RosterError(
            f"key bundle of {name}: its fingerprint is not its key's ({site.fingerprint}), so it was changed on its "
            "way. Ask the site to send it again."
        )
    return site
