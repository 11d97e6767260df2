"""How fast sites mask and the coordinator opens, on one core, in MB of what is summed for each other site.

    python benchmarks/secure_sum.py [--megabytes 50] [--sites 4] [--turns 5]
    python benchmarks/secure_sum.py --precision

Updates are float32 and take as many bytes under masks; summaries are float64 and take twice as many. A site makes one
mask for each other site, so its rate is that of one mask. Plain additions of the same arrays, in the same turn, are the
yardstick.

With ``--precision`` it compares ways of writing numbers as words of 64 bits: the largest error of ComBat's harmonized
values, over the feature's standard deviation, for features of different sizes at four sites.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from exchange.key_roster import KeyRoster, SiteKey
from exchange.ring import decode, encode
from exchange.secure_sum import MaskContext, Masker, open_sum
from harmonization import ComBat, HarmonizationError, SiteTable, add_sums

SIZES = (1e-6, 1e-3, 1.0, 1e3, 1e6)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", action="store_true")
    options = parser.parse_args()
    if options.precision:
        print_precision(options.sites)
        return

    keys = {f"site{number:02}": X25519PrivateKey.generate() for number in range(options.sites)}
    entries = [SiteKey(name=n, public_key=key.public_key().public_bytes_raw().hex()) for n, key in keys.items()]
    roster = KeyRoster(name="benchmark", sites=tuple(entries))
    maskers = [Masker(name, key, roster) for name, key in keys.items()]
    rng = np.random.default_rng(0)
    size = options.megabytes * 10**6
    kinds = {
        "model updates, float32": {"update/w": rng.normal(scale=0.01, size=size // 4).astype(np.float32)},
        "summaries, float64": {"moment": rng.normal(scale=100, size=size // 8)},
    }
    print("| what | mask, MB/s a peer | open, MB/s a site | plain sum, MB/s a site | largest error |")
    print("| --- | --- | --- | --- | --- |")
    for what, arrays in kinds.items():
        context = MaskContext("benchmark", "1", 1, 1, tuple(keys), "")
        (values,) = arrays.values()
        masking, opening, plain = [], [], []
        for _ in range(options.turns):
            seconds, first = _timed(maskers[0].seal, arrays, context, 0.1)
            masking.append(options.megabytes * (options.sites - 1) / seconds)
            sealed = [first, *(masker.seal(arrays, context, 0.1) for masker in maskers[1:])]
            seconds, total = _timed(open_sum, sealed)
            opening.append(options.megabytes * options.sites / seconds)
            seconds, expected = _timed(_add, values, options.sites)
            plain.append(options.megabytes * options.sites / seconds)
        (found,) = total.values()
        error = np.abs(found - expected).max() / np.abs(expected).max()
        rates = " | ".join(f"{statistics.median(values):,.0f}" for values in (masking, opening, plain))
        print(f"| {what} | {rates} | {error:.1e} |")


def print_precision(n_sites: int) -> None:
    """Print a table of errors by the size of the features."""
    ways = {f"one word, {bits} fraction bits": _one_word(bits, n_sites) for bits in (20, 32, 40)}
    ways["two words, 8 and 60"] = lambda values: decode(_two_words(values, n_sites), "sum", n_sites)
    print("| numbers as | " + " | ".join(f"size {size:g}" for size in SIZES) + " |")
    print("| --- |" + " --- |" * len(SIZES))
    for way, add in ways.items():
        print(f"| {way} | " + " | ".join(_error(add, size, n_sites) for size in SIZES) + " |")


def _error(add: Callable[[np.ndarray], np.ndarray], size: float, n_sites: int) -> str:
    """Largest error of harmonized values where ComBat's sums [sites, n] are added in some way; or what hinders it."""
    rng = np.random.default_rng(0)
    shifts = size * rng.normal(scale=0.5, size=(n_sites, 1, 20))
    rows = [(shift + size * rng.normal(size=(40, 20)), rng.uniform(-1, 1, size=(40, 1))) for shift in shifts]
    tables = [SiteTable(*of_site) for of_site in rows]
    combat = ComBat()
    of_sites = [combat.summarize(table, None) for table in tables]
    exact = _harmonized(combat, tables, add_sums(of_sites))
    try:
        total = {name: add(np.stack([np.ravel(sums[name]) for sums in of_sites])) for name in of_sites[0]}
        found = _harmonized(combat, tables, {n: v.reshape(np.shape(of_sites[0][n])) for n, v in total.items()})
    except OverflowError:
        return "overflow"
    except HarmonizationError:  # the features seem not to vary
        return "lost"
    error = np.abs(found - exact).max() / size
    return f"{error:.0e}" if error < 0.1 else "lost"


def _harmonized(combat: ComBat, tables: list[SiteTable], total: dict[str, np.ndarray]) -> np.ndarray:
    model = combat.solve(total, None)
    with np.errstate(invalid="ignore"):
        return np.concatenate([combat.apply(model, table, combat.estimate(model, table)) for table in tables])


def _one_word(bits: int, n_sites: int) -> Callable[[np.ndarray], np.ndarray]:
    def add(values: np.ndarray) -> np.ndarray:
        if np.abs(values).max() * n_sites >= 2.0 ** (63 - bits):
            raise OverflowError
        return np.ldexp(np.rint(np.ldexp(values, bits)).astype(np.int64).sum(axis=0).astype(float), -bits)

    return add


def _two_words(values: np.ndarray, n_sites: int) -> np.ndarray:
    return np.sum([encode(of_site, "sum", n_sites) for of_site in values], axis=0, dtype=np.uint64)


def _add(values: np.ndarray, n_sites: int) -> np.ndarray:
    total = values.astype(np.float64)
    for _ in range(n_sites - 1):
        total += values
    return total


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Processor seconds of this thread, and what came out."""
    start = time.thread_time()
    result = work(*arguments)
    return time.thread_time() - start, result


if __name__ == "__main__":
    main()
