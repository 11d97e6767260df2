"""What ends a run, and what to do about each."""

from base.errors import FedBrainLMError


class ServerError(FedBrainLMError):
    """Base of what ends a run as failed. The message is the reason that the journal and the report show."""


class QuorumError(ServerError):
    """Too few sites answered. Look at the named sites, or lower the quorum."""


class JournalError(ServerError):
    """The run's journal cannot be written or read. Do what the message says; then resume the run."""
