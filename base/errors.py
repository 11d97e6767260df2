"""How what goes wrong ends: as a message for the user (exit code 2), a run that failed (1), or a fault of ours."""

import errno
import os
from importlib.util import find_spec


class FedBrainLMError(Exception):
    """What was asked for cannot be. The message is the user's: the thing, what was expected of it, and the remedy."""


class InputError(FedBrainLMError):
    """A command was asked for what cannot be. Do what the message says and repeat it."""


class SettingsError(FedBrainLMError):
    """A YAML file is missing, is not YAML, or a setting in it is wrong. Correct the named setting."""


class FileError(FedBrainLMError):
    """A file or folder is not what it should be, or somebody else changes it. Do what the message says."""


class SecretError(FileError):
    """A secret file can be read by others, or holds something else. Correct its mode, or restore it from a backup."""


#: What the system says where nothing can be written: no fault of a program.
UNWRITABLE = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS)
#: What it says of a disk that is broken or no longer there.
GONE = (errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ENXIO, errno.ESTALE)


def _why(cause: OSError) -> str:
    return os.strerror(cause.errno or 0)


class UnwritableError(InputError):
    """The disk is full or read-only, or a folder is somebody else's. Make room, and repeat the command."""

    def __init__(self, cause: OSError) -> None:
        what = cause.filename2 or cause.filename or "Output"
        super().__init__(
            f"{what}: cannot be written ({_why(cause)}). Make room or choose another place, and repeat the command."
        )


class DiskGoneError(InputError):
    """A disk is broken or no longer mounted. See to it, and repeat the command."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"{cause.filename or 'A file'}: cannot be used ({_why(cause)}). See whether its disk is "
            "mounted and whole, and repeat the command."
        )


class NoPathError(InputError):
    """What was given as a path cannot be one. Correct it, and repeat the command."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"{cause.filename or 'A path'}: cannot be a path ({_why(cause)}). Correct it, and repeat the command."
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


class NotInstalledError(InputError):
    """What was asked for needs Flower, and a base install has none. Install it, and repeat the command."""

    def __init__(self, cause: ModuleNotFoundError) -> None:
        super().__init__(
            f"{cause.name} is not installed: studies and federations need what the base install leaves out. "
            "Install it: pip install 'fedbrainlm[federation]'"
        )


def of_the_installation(error: Exception) -> InputError | None:
    """The sentence for what a base install lacks; None if an error is another one."""
    if isinstance(error, ModuleNotFoundError) and find_spec("flwr") is None:
        return NotInstalledError(error)
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
