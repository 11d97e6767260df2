"""How a command ends: 0 done, 1 the run failed, 2 something in the input is wrong."""

import errno
import sys


def printable(text: str) -> str:
    """Text without what a terminal would obey, such as a name that somebody gave a file."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


class InputError(Exception):
    """What was asked for cannot be. Do what the message says and repeat the command."""


#: What the system says where nothing can be written: no fault of a program.
UNWRITABLE = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)


class UnwritableError(InputError):
    """The disk is full or read-only, or a folder is somebody else's. Make room, and repeat the command."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"{cause.filename or 'Output'}: cannot be written ({cause.strerror}). Make room or choose another place, "
            "and repeat the command."
        )


class RunFailedError(Exception):
    """A run was started and failed. The message is its reason; the run's folder holds the logs."""


class StoppedError(Exception):
    """The user stopped a run. The message says how to go on with it."""


class InternalError(Exception):
    """A fault of FedBrainLM. Repeat the command with --debug and report what it prints."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(
            f"{type(cause).__name__}: {cause}. This is a fault of FedBrainLM: repeat with --debug and report it."
        )


#: Families whose message is meant for the user, and end a command with exit code 2.
_FAMILIES = {
    "brainlm.errors": "BrainLMError",
    "client.errors": "ClientError",
    "cohorts.errors": "CohortError",
    "exchange.roster": "RosterError",
    "harmonization.errors": "HarmonizationError",
    "server.errors": "ServerError",
}


def is_input_error(error: Exception) -> bool:
    """Whether the message of an error is meant for the user. Imports nothing: what is not there did not raise it."""
    families = [getattr(sys.modules[module], name) for module, name in _FAMILIES.items() if module in sys.modules]
    return isinstance(error, (InputError, *families))
