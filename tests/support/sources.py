"""Functions of other packages that ours rest on though they are private: an upgrade must not change them unseen."""

import hashlib
import inspect
from collections.abc import Callable, Mapping


def changed(sources: Mapping[Callable[..., object], str]) -> dict[str, str]:
    """Functions whose source is not the one that was read, with the start of the SHA-256 of what it is now.

    Parameters
    ----------
    sources : mapping
        Function → the first 16 digits of its source's SHA-256.
    """
    found = {function: hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16] for function in sources}
    return {f"{f.__module__}.{f.__qualname__}": now for f, now in found.items() if now != sources[f]}
