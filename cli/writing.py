"""Files that commands write, which take no other's place."""

from pathlib import Path

from base.errors import InputError
from base.files import atomic_path


def write_once(path: Path, content: bytes) -> None:
    """Write a file, unless it is there already with this content; never over another.

    Raises
    ------
    InputError
        If the file holds something else, or cannot be written.
    """
    try:
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        elif path.read_bytes() != content:
            raise InputError(f"{path}: exists already and holds something else. Choose another name, or move it away.")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from None
