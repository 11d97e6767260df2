"""What ``site.yaml`` may say. Without torch and Flower: the SuperNode reads it, too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from base.proxies import DIRECT, EXPECTED, Proxy
from base.settings import Name, Settings
from client.door.policy import Policy

_DEVICES = "cpu, cuda, or cuda:N with the number N of one GPU, counted from 0"


class SuperNodeSettings(Settings):
    """The SuperNode, which fetches messages and starts the app for each."""

    port: int = Field(default=9094, ge=1, le=65535, strict=True)
    """Port on this machine between the SuperNode and the apps that it starts."""
    health: str | None = None
    """Address of a gRPC health service, such as ``127.0.0.1:9095``; None for none."""
    proxy: str | None = None
    """Proxy by which the coordinator is reached, such as ``http://proxy.example.org:3128``; ``direct`` for none; None
    for what ``HTTPS_PROXY`` and ``NO_PROXY`` say."""
    executor: Literal["here", "elsewhere"] = "here"
    """Where the apps are started: by the SuperNode's own process, or by ``fedbrainlm site execute`` in a container
    without a network, which shares the state folder. There, too, the health service is at `health`."""

    @field_validator("proxy")
    @classmethod
    def _is_a_proxy(cls, proxy: str | None) -> str | None:
        if proxy not in (None, DIRECT):
            if "://" not in proxy:
                raise ValueError(f"{EXPECTED}, or {DIRECT}. Correct it.")
            try:
                Proxy.read(proxy, "supernode.proxy")
            except ValueError:
                raise ValueError(f"{EXPECTED}, or {DIRECT}. Correct it.") from None
        return proxy


class SiteSettings(Settings):
    """``site.yaml``. Relative paths start from its folder."""

    name: Name
    """Name of the site in studies and reports; not ``all``, which stands for all sites."""
    cohort: Path
    """Folder of the cohort."""
    state: Path
    """Folder for what the site makes and keeps: embeddings, audit log, log, its private seed."""
    policy: Policy = Policy()
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:[0-9]{1,2})?)$", json_schema_extra={"words": _DEVICES})
    """What trains and embeds: ``cpu``, ``cuda``, or one GPU of several, such as ``cuda:1``."""
    devices: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    """GPUs of ``device: cuda`` that share the training; ``auto``: all that are visible. On a CPU, processes."""
    threads: int = Field(default=1, ge=1)
    """CPU threads. Changing them changes the weights in the last digits, so they are recorded."""
    supernode: SuperNodeSettings = SuperNodeSettings()

    def conflicts(self) -> Iterator[str]:
        if self.name == "all":
            yield "name 'all' stands for all sites in reports. Choose another name."
        if ":" in self.device and self.devices not in (1, "auto"):
            yield f"device {self.device} is one GPU, and devices is {self.devices}. Set device to cuda."
