"""The site: its settings on disk, its cohort, its state folder, and its own secrets."""

import logging
import os
import secrets
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from flwr.app import Context

from base.errors import FedBrainLMError
from base.secrets import secret_once
from base.seeding import derive_seed
from base.settings import read_settings
from brainlm.errors import BrainLMError
from brainlm.parallel import count_devices
from client.door.audit import AuditLog
from client.door.database import SiteDatabase
from client.door.kept_answers import KeptAnswers
from client.door.ledger import ReleaseLedger
from client.door.older_files import take_in
from client.door.spending import PrivacyLedger
from client.keys.approvals import Approvals
from client.keys.keyring import Keyring
from client.logs import site_log
from client.settings import SiteSettings
from cohorts import Cohort
from cohorts.pseudonyms import Pseudonyms
from cohorts.recording import check_identifier
from exchange.refusals import Refusal, RefusalCode

SIMULATED_SITES = "FEDBRAINLM_SIMULATED_SITES"
"""Environment variable that names the folder of a simulation's sites. No message can set it."""


class Site:
    """A site at work, by what its ``site.yaml`` says and the folder where that lies."""

    def __init__(self, settings: SiteSettings, folder: Path) -> None:
        self.settings = settings
        self.name = settings.name
        self.policy = settings.policy
        self.state = folder / settings.state
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)  # embeddings and ids: nobody else's to read
        if self.state.stat().st_mode & 0o077:
            self.state.chmod(0o700)
        self.audit = AuditLog(self.state / "audit.jsonl", self.name)
        self._cohort_folder = folder / settings.cohort

    @cached_property
    def cohort(self) -> Cohort:
        return Cohort.open(self._cohort_folder)

    @cached_property
    def covariates(self) -> pd.DataFrame:
        """Covariates of the cohort's participants, by id: read once a message, which may hold hundreds of jobs."""
        return self.cohort.covariates().set_index("participant_id")

    def covariates_of(self, participants: list[str]) -> dict[str, list[Any]]:
        """Covariates of these participants, in their order; missing where the cohort does not know them."""
        table = self.covariates.reindex(participants)
        return {str(name): table[name].tolist() for name in table}

    @property
    def device(self) -> torch.device:
        return torch.device(self.settings.device)

    @property
    def devices(self) -> int:
        """How many processes share the training; more than there are GPUs are refused."""
        try:
            return count_devices(self.device, self.settings.devices)
        except BrainLMError as error:
            raise Refusal(RefusalCode.SETUP, str(error)) from None

    @cached_property
    def keys(self) -> Keyring:
        """The site's key for secure sums, and the rosters that its administrator approved."""
        return Keyring(self.name, self.state, self.audit)

    @cached_property
    def approvals(self) -> Approvals:
        """The apps that its administrators approved."""
        return Approvals(self.state, self.audit, self.policy)

    @cached_property
    def database(self) -> SiteDatabase:
        """What the site told, gave out under masks, and spent."""
        return SiteDatabase(self.state, str(self.private_seed("ledger")).encode(), take_in)

    @property
    def ledger(self) -> ReleaseLedger:
        """What the site told of whom before."""
        return ReleaseLedger(self.database)

    @property
    def kept(self) -> KeptAnswers:
        """What the site gave out under masks."""
        return KeptAnswers(self.database, self.policy)

    def spending(self, study: str) -> PrivacyLedger:
        """What a study has spent of the site's privacy budget."""
        return PrivacyLedger(self.database, study, delta=self.policy.delta, budget=self.policy.epsilon)

    @cached_property
    def log(self) -> logging.Logger:
        """The site's own log, where details go that must not leave."""
        return site_log(self.name, self.state)

    def pseudonym(self, participant_id: str) -> str:
        """Return what a participant is called where an id must be shown."""
        return "p-" + Pseudonyms(self.state / "pseudonym_key").pseudonym(participant_id)

    def folder_of(self, study: str) -> Path:
        """Folder of what this site makes for a study."""
        return self.state / "studies" / check_identifier(study, "study")

    def private_seed(self, *purpose: str) -> int:
        """Derive a seed that nobody outside can know, the same whenever the purpose is."""
        secret = secret_once(self.state / "private_seed", lambda: secrets.token_hex(32))
        return derive_seed(secret, *purpose)


def load_site(path: Path) -> Site:
    """Load a site from its ``site.yaml``."""
    return Site(read_settings(path, SiteSettings), path.parent)


def find_site(context: Context) -> Site:
    """Load the site that this process works for.

    A deployed SuperNode names its ``site.yaml`` in its node config, on the site's own disk. In a simulation the
    nodes are numbered, and the folder of the sites comes from the environment of the simulation's process.

    Raises
    ------
    Refusal
        If the site is not set up.
    """
    configured = context.node_config.get("site-config")
    try:
        if configured is not None:
            path = Path(str(configured))
        elif SIMULATED_SITES in os.environ and "partition-id" in context.node_config:
            sites = sorted(Path(os.environ[SIMULATED_SITES]).glob("*/site.yaml"))
            path = sites[int(context.node_config["partition-id"])]
            path.with_name("node").write_text(str(context.node_id))  # so that the coordinator can name it
        else:
            raise Refusal(RefusalCode.SETUP, "the node config names no 'site-config'. See configs/sites/.")
        return load_site(path)
    except (FedBrainLMError, IndexError) as error:
        raise Refusal(RefusalCode.SETUP, str(error)) from error
