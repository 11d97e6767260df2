"""How a command ends: 0 done, 1 the run failed, 2 something in the input is wrong."""

import errno
import os
import sys


class InputError(Exception):
    """What was asked for cannot be. Do what the message says and repeat the command."""


#: What the system says where nothing can be written: no fault of a program.
UNWRITABLE = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS)
#: What it says of a disk that is broken or no longer there.
GONE = (errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ENXIO, errno.ESTALE)


class UnwritableError(InputError):
    """The disk is full or read-only, or a folder is somebody else's. Make room, and repeat the command."""

    def __init__(self, cause: OSError) -> None:
        what = cause.filename2 or cause.filename or "Output"
        super().__init__(
            f"{what}: cannot be written ({os.strerror(cause.errno)}). Make room or choose another place, and repeat "
            "the command."
        )


class DiskGoneError(InputError):
    """A disk is broken or no longer mounted. See to it, and repeat the command."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"{cause.filename or 'A file'}: cannot be used ({os.strerror(cause.errno)}). See whether its disk is "
            "mounted and whole, and repeat the command."
        )


class NoPathError(InputError):
    """What was given as a path cannot be one. Correct it, and repeat the command."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"{cause.filename or 'A path'}: cannot be a path ({os.strerror(cause.errno)}). Correct it, and repeat the "
            "command."
        )


def of_the_disk(error: Exception) -> InputError | None:
    """The sentence for a fault of a disk; None if an error is another one."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return UnwritableError(error)
    if isinstance(error, OSError) and error.errno in GONE:
        return DiskGoneError(error)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return NoPathError(error)
    return None


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
