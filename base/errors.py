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


def of_the_disk(error: Exception) -> InputError | None:
    """The sentence for a fault of a disk; None if an error is another one."""
    if not isinstance(error, OSError):
        return None
    named, why = error.filename, os.strerror(error.errno or 0)
    if error.errno in UNWRITABLE:
        return InputError(
            f"{error.filename2 or named or 'Output'}: cannot be written ({why}). Make room or choose another place, "
            "and repeat the command."
        )
    if error.errno in GONE:
        return InputError(
            f"{named or 'A file'}: cannot be used ({why}). See whether its disk is mounted and whole, and repeat the "
            "command."
        )
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return InputError(f"{named or 'A path'}: cannot be a path ({why}). Correct it, and repeat the command.")
    return None


def of_the_installation(error: Exception) -> InputError | None:
    """The sentence for what a base install lacks; None if an error is another one."""
    if isinstance(error, ModuleNotFoundError) and find_spec("flwr") is None:
        return InputError(
            f"{error.name} is not installed: studies and federations need what the base install leaves out. "
            "Install it: pip install 'fedbrainlm[federation]'"
        )
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
