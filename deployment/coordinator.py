"""A federation's folder on the coordinator: settings, certificates, sites, and the programs that serve them."""

import json
import re
import secrets
import sys
import tomllib
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import yaml
from pydantic import Field

from base.errors import InputError
from base.files import write_text
from base.secrets import secret_once
from base.settings import Name, Settings, read_settings
from base.wording import docstrings_of
from deployment.authority import Authority
from exchange.bundle import JoinPackage, SiteBundle
from exchange.key_roster import MIN_SITES, KeyRoster, read_json
from runtime.flower import connections, flower_home, program

_NGINX = jinja2.Template(
    Path(__file__).with_name("nginx.jinja").read_text(encoding="utf-8"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
_NGINX_SYNTAX = set("\"';{}\n\\$ ")


class FederationSettings(Settings):
    """``federation.yaml``, which says of each setting what its docstring does."""

    name: Name
    """name of the federation, and of the connection in Flower's configuration"""
    host: str = Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$",
        json_schema_extra={"words": "the name or IPv4 address of a host"},
    )
    """how hospitals reach the edge: it is in the certificate; after a change, 'fedbrainlm federation renew'"""
    port: int = Field(443, ge=1, le=65535)
    """the edge's; below 1024 only root may listen"""
    superlink_port: int = Field(8000, ge=1, le=65535)
    """the SuperLink's, on 127.0.0.1 alone"""
    health_port: int = Field(8001, ge=1, le=65535)
    """of its gRPC health service, on 127.0.0.1 alone"""
    run_edge: bool = True
    """false: you run nginx.conf by other means, such as a container"""
    client_authority: Path | None = None
    """file of an authority whose certificates clients of the edge must have; null: none"""
    requests_per_second: int = Field(100, ge=1)
    """most requests from one address, four times as many at once; others must try again"""
    max_request_mb: int = Field(32, ge=8)
    """largest request; Flower cuts arrays into pieces of 5 MB"""

    def to_yaml(self) -> str:
        """Return the settings with a comment on each."""
        lines = [yaml.safe_dump({name: value}).strip() for name, value in self.model_dump(mode="json").items()]
        width, said = max(map(len, lines)) + 2, docstrings_of(FederationSettings)
        return "".join(f"{line:{width}}# {said[line.partition(':')[0]]}\n" for line in lines)


@dataclass(frozen=True)
class Member:
    """A site of the federation."""

    bundle: SiteBundle
    """What it sent."""
    added: str
    """When, in UTC."""
    node: str | None = None
    """The number that the SuperLink gave its SuperNode; None until it is registered."""
    revoked: str | None = None
    """When it was revoked; None if it was not."""


class Federation:
    """A federation's folder; a SettingsError if its ``federation.yaml`` is missing or wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.settings = read_settings(folder / "federation.yaml", FederationSettings)
        self.name = self.settings.name
        self.authority = Authority(self.folder / "keys")
        self.home = self.folder / "flower"
        self.database = self.folder / "superlink.sqlite"
        self.run = self.folder / "run"
        self.logs = self.folder / "logs"
        self._sites = self.folder / "sites"

    @classmethod
    def make(cls, folder: Path, settings: FederationSettings) -> "Federation":
        """Make a federation's folder, or what of it is missing; no key and no setting is replaced.

        Raises
        ------
        InputError
            If the folder holds another federation, or Flower knows another one by this name.
        """
        path = folder / "federation.yaml"
        if path.is_file():
            there = read_settings(path, FederationSettings)
            if (there.name, there.host) != (settings.name, settings.host):
                raise InputError(
                    f"{path}: holds federation {there.name} at {there.host}, not {settings.name} at {settings.host}. "
                    "Correct the command, or choose another folder."
                )
        else:
            # Before anything is written: the folder would hold a federation that has another's name.
            _known_connection(settings.name, str(Authority(folder.resolve() / "keys").ca_certificate))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text(path, settings.to_yaml())
        made = cls(folder)
        made.make_folders()
        made.authority.make(made.name, made.settings.host)
        _ = made.superexec_secret
        made.write_configuration()
        return made

    def make_folders(self) -> None:
        """Make the folders that are missing: those of what is at work need no backup."""
        for part in (self.folder / "keys", self.home, self.run, self.logs, self._sites):
            part.mkdir(mode=0o700, exist_ok=True)

    @property
    def superlink(self) -> str:
        """Address of the SuperLink, on this machine."""
        return f"127.0.0.1:{self.settings.superlink_port}"

    @property
    def connection(self) -> dict[str, str]:
        """The way to the SuperLink, as Flower's configuration has it."""
        return {"address": self.superlink, "root-certificates": str(self.authority.ca_certificate)}

    @property
    def superexec_secret(self) -> Path:
        """File of the secret that the SuperLink knows its own SuperExec by."""
        path = self.folder / "keys" / "superexec.secret"
        secret_once(path, lambda: secrets.token_hex(32))
        return path

    def write_configuration(self) -> None:
        """Write the edge's settings, and the connection into Flower's own configuration."""
        write_text(self.folder / "nginx.conf", self.nginx_configuration())
        _connect(self.name, self.connection)

    def nginx_configuration(self) -> str:
        """Return the settings of the edge: hospitals reach the Fleet API, and nothing else of the SuperLink.

        Raises
        ------
        InputError
            If a path holds what nginx would read as syntax.
        """
        certificates, own = self.settings.client_authority, self.authority
        client_authority = self.folder / certificates if certificates else None
        for path in (self.folder, own.ca_certificate, own.server_certificate, own.server_key, client_authority):
            if _NGINX_SYNTAX & set(str(path)):
                raise InputError(
                    f"{path}: has a space or a sign that nginx cannot have in a path. Choose another folder."
                )
        return _NGINX.render(
            folder=self.folder, settings=self.settings, authority=own, client_authority=client_authority
        )

    @property
    def program_names(self) -> tuple[str, ...]:
        """Names of the programs that serve the federation, in the order in which they start."""
        return ("superlink", "superexec", "edge") if self.settings.run_edge else ("superlink", "superexec")

    def programs(self) -> dict[str, list[str]]:
        """Commands of the programs, by name; an InputError if one is not installed."""
        keys, secret = self.authority, str(self.superexec_secret)
        link = [sys.executable, "-P", "-m", "runtime.superlink"]
        link += ["--host", "127.0.0.1", "--port", str(self.settings.superlink_port)]
        link += ["--ssl-ca-certfile", str(keys.ca_certificate), "--ssl-certfile", str(keys.server_certificate)]
        link += ["--ssl-keyfile", str(keys.server_key), "--enable-supernode-auth"]
        link += ["--database", str(self.database), "--disable-runtime-dependency-installation"]
        link += ["--isolation", "process", "--superexec-auth-secret-file", secret]
        link += ["--health-server-address", f"127.0.0.1:{self.settings.health_port}"]
        executor = [program("flower-superexec"), "--runtime-api-address", self.superlink]
        executor += ["--root-certificates", str(keys.ca_certificate), "--superexec-auth-secret-file", secret]
        programs = {"superlink": link, "superexec": executor}
        if self.settings.run_edge:
            nginx = program("nginx", "Install nginx (Debian: apt install nginx-light), or set run_edge: false.")
            errors = str(self.logs / "edge-errors.log")
            programs["edge"] = [nginx, "-p", str(self.folder), "-e", errors, "-c", str(self.folder / "nginx.conf")]
        return programs

    def members(self) -> list[Member]:
        """The sites, by name."""
        return [self._read(path) for path in sorted(self._sites.glob("*.json"))]

    def active(self) -> list[Member]:
        """The sites that were not revoked."""
        return [member for member in self.members() if member.revoked is None]

    def member(self, name: str) -> Member:
        """Return a site; an InputError if there is none of this name."""
        for member in self.members():
            if member.bundle.site == name:
                return member
        known = ", ".join(member.bundle.site for member in self.members()) or "none"
        raise InputError(f"{name}: is no site of federation {self.name} (known: {known}). Check the name.")

    def admit(self, bundle: SiteBundle) -> Member:
        """Return a new site, to be registered or kept; or the one that is there with these keys.

        Raises
        ------
        InputError
            If its name or its SuperNode key is another site's, or the key was revoked.
        """
        for member in self.members():
            other, same_key = member.bundle, member.bundle.supernode_key.split()[1] == bundle.supernode_key.split()[1]
            if member.revoked and same_key:
                raise InputError(
                    f"{bundle.site}: its SuperNode key was revoked, which is for good. Let the hospital move "
                    "state/supernode.key away, repeat 'fedbrainlm site init', and send its new bundle."
                )
            if member.revoked:
                continue
            if other == bundle:
                return member
            if other.site == bundle.site:
                raise InputError(
                    f"{bundle.site}: is in federation {self.name} with other keys. Ask the hospital by telephone; if "
                    "it has new keys, first 'fedbrainlm federation revoke-site'."
                )
            if same_key:
                raise InputError(f"{bundle.site}: has the SuperNode key of {other.site}. Each site makes its own.")
        return Member(bundle, _now())

    def keep(self, member: Member) -> Member:
        """Write a site down."""
        content = {**asdict(member), "bundle": member.bundle.model_dump()}
        write_text(self._sites / f"{member.bundle.site}.json", json.dumps(content, indent=2) + "\n")
        return member

    def revoke(self, name: str) -> Member:
        """Note that a site is no longer one."""
        return self.keep(replace(self.member(name), node=None, revoked=_now()))

    def package(self) -> JoinPackage:
        """What hospitals join with: the way to the edge, and the roster once there are three sites."""
        bundles = [member.bundle.model_dump() for member in self.active()]
        return JoinPackage(
            federation=self.name,
            address=f"{self.settings.host}:{self.settings.port}",
            ca_certificate=self.authority.ca_certificate.read_text(encoding="utf-8"),
            roster=KeyRoster.from_bundles(self.name, bundles) if len(bundles) >= MIN_SITES else None,
        )

    def _read(self, path: Path) -> Member:
        content = read_json(path)
        try:
            bundle = SiteBundle.model_validate(content["bundle"])
            return Member(bundle, content["added"], content["node"], content["revoked"])
        except (KeyError, ValueError):
            raise InputError(f"{path}: is damaged. Restore it, or remove it and add the site again.") from None


def registered_names(connection: str) -> dict[str, str]:
    """Names of the sites that a federation of this machine registered, by Flower's numbers of their nodes.

    Empty where the connection was not made by ``fedbrainlm federation``: a site then goes by its number until it says
    what it is.
    """
    authority = Path(connections().get(connection, {}).get("root-certificates", ""))  # FOLDER/keys/ca.crt
    folder = authority.parent.parent
    if not (authority.is_absolute() and (folder / "federation.yaml").is_file()):
        return {}
    return {member.node: member.bundle.site for member in Federation(folder).active() if member.node is not None}


def _connect(name: str, wanted: dict[str, str]) -> None:
    """Add the connection to Flower's configuration, or bring it up to date; another's of this name is refused."""
    path = flower_home() / "config.toml"
    text = path.read_text(encoding="utf-8") if path.is_file() else f'[superlink]\ndefault = "{name}"\n'
    there = _known_connection(name, wanted["root-certificates"])
    if there == wanted:
        return
    if there is not None:
        text = re.sub(rf"^\[superlink\.{re.escape(name)}\]\n(?:(?!\[).*(?:\n|\Z))*", "", text, flags=re.M)
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in wanted.items())
    write_text(path, f"{text.rstrip()}\n\n[superlink.{name}]\n{table}")


def _known_connection(name: str, certificate: str) -> dict[str, str] | None:
    """Return the connection that Flower's configuration has under a federation's name, if any.

    By the path of its authority's certificate it is told from another's, which is refused.
    """
    path = flower_home() / "config.toml"
    try:
        there = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {}).get(name)
    except FileNotFoundError:
        return None
    except tomllib.TOMLDecodeError:
        raise InputError(f"{path}: is no valid TOML. Correct it.") from None
    if there is not None and there.get("root-certificates") != certificate:
        raise InputError(
            f"{path}: has another connection [superlink.{name}]. Remove it, or give the federation another name."
        )
    return there


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
