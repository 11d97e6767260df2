"""Seeds that depend on names, not on the order of events."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from a path of names, such as ``(study seed, site, "round", 3)``.

    The same parts give the same seed on every machine; different parts give unrelated seeds.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
