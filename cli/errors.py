"""How a command ends: 0 done, 1 the run failed, 2 something in the input is wrong."""

from brainlm.errors import BrainLMError
from client.errors import ClientError
from cohorts.errors import CohortError
from exchange.roster import RosterError
from harmonization.errors import HarmonizationError
from server.errors import ServerError


class InputError(Exception):
    """What was asked for cannot be. Do what the message says and repeat the command."""


class RunFailedError(Exception):
    """A run was started and failed. The message is its reason; the run's folder holds the logs."""


class InternalError(Exception):
    """A fault of FedBrainLM. Repeat the command with --debug and report what it prints."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(
            f"{type(cause).__name__}: {cause}. This is a fault of FedBrainLM: repeat with --debug and report it."
        )


#: Families whose message is meant for the user, and end a command with exit code 2.
INPUT_ERRORS = (InputError, CohortError, BrainLMError, HarmonizationError, RosterError, ClientError, ServerError)
