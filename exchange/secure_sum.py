"""The secure sum: each site adds masks that cancel in the sum over all sites, and in nothing less.

After Bonawitz et al., Practical Secure Aggregation (CCS 2017), with static keys that each site's administrator has
approved (`exchange.key_roster`), and without secret shares: hospitals are few and known, so a dropout is answered by a
second, smaller attempt. One exchange, no word between sites. With pair key K[ij] = HKDF(X25519(secret i, public j))::

    sent[i] = encode(x[i]) + sum over j > i of mask[ij] - sum over j < i of mask[ij]    mod 2^64 or 2^32

where mask[ij] is the ChaCha20 stream of a key that is K[ij] bound to the context: study, run, step, attempt, the sites
of the attempt, all that is asked, and what is summed, name by name. A mask is a one-time pad:
`client.door.kept_answers` gives out one plaintext only under one context.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from exchange.key_roster import MIN_SITES, KeyRoster
from exchange.ring import Encoding, RingError, Words, bits_of, decode, encode, words_of

_INFO = b"fedbrainlm secure-sum v1"
_PIECE_BYTES = 2**17
"""Bytes masked at a time: stream and words stay in the processor's cache."""
_ZEROS = bytes(_PIECE_BYTES)
_MOST_WORDS = 2**34
"""Words of a layout that is read; more fit into no message."""


class SecureSumError(Exception):
    """Parts of a secure sum do not belong together. Use the same version, study and roster everywhere."""


@checked_dataclass(frozen=True)
class SummedArray:
    """What is known in public of a summed array: its name, shape and kind (`exchange.ring.Encoding`)."""

    name: str
    shape: tuple[Annotated[int, Field(ge=0, le=_MOST_WORDS, strict=True)], ...]
    kind: Encoding

    @property
    def n_words(self) -> int:
        return math.prod(self.shape) * words_of(self.kind)


@checked_dataclass(frozen=True)
class SumLayout:
    """The arrays that a group of sites sums together, in order of names, and the bound of updates among them."""

    fields: tuple[SummedArray, ...]
    bound: float = Field(0.0, ge=0, allow_inf_nan=False)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], bound: float = 0.0) -> Self:
        """Describe arrays: whole numbers are counts, what is called ``update/…`` are updates, all else are sums."""
        named = ((name, np.asarray(arrays[name])) for name in sorted(arrays))
        return cls(tuple(SummedArray(name, values.shape, _kind(name, values)) for name, values in named), bound)

    @model_validator(mode="after")
    def _fits_into_a_message(self) -> Self:
        names = [field.name for field in self.fields]
        if names != sorted(set(names)) or sum(field.n_words for field in self.fields) > _MOST_WORDS:
            raise ValueError("a layout has names twice, without order, or more words than a message")
        return self

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned; `SecureSumError` if it is no layout."""
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError:
            raise SecureSumError("the layout of a secure sum is damaged.") from None

    def to_json(self) -> dict[str, Any]:
        """Return the layout, JSON-able."""
        return asdict(self)

    def of_ring(self, bits: int) -> list[SummedArray]:
        """Return the arrays that are words of one ring."""
        return [field for field in self.fields if bits_of(field.kind) == bits]

    def n_words(self, bits: int) -> int:
        """Count the words of one ring: those of its fields, and one more that tells whether the sum opened."""
        fields = self.of_ring(bits)
        return sum(field.n_words for field in fields) + 1 if fields else 0


@dataclass(frozen=True)
class MaskContext:
    """What a mask is for. It is never used for anything else.

    Study, run, step, attempt and sites, in order of names, are those of the request (`exchange.messages.SecureSum`).
    `question` is the hash of all that is asked: answers to different questions, or of different models, never add.
    """

    study: str
    run: str
    step: int
    attempt: int
    sites: tuple[str, ...]
    question: str

    def digest(self, layout: SumLayout, bits: int) -> bytes:
        """Hash the context of one ring's words: no two contexts or layouts share it."""
        content = {**asdict(self), **layout.to_json(), "bits": bits}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).digest()


class Masker:
    """One site's masks, of its private key and a roster of public ones, which the site's administrator approved."""

    def __init__(self, site: str, key: X25519PrivateKey, roster: KeyRoster) -> None:
        self._site = site
        self._key = key
        self._roster = roster

    def seal(
        self, arrays: Mapping[str, NDArray[Any]], context: MaskContext, bound: float = 0.0
    ) -> tuple[SumLayout, dict[int, Words]]:
        """Encode and mask arrays.

        Parameters
        ----------
        arrays : mapping
            What the site adds, by name.
        context : MaskContext
            The sum that they are for.
        bound : float
            Public bound of ``update/…`` (`exchange.ring.encode`).

        Returns
        -------
        layout : SumLayout
            What the words hold; the same at every site.
        words : dict
            Bits of a ring → masked words [n].

        Raises
        ------
        SecureSumError
            If the context is not among three or more sites of the roster, this one included.
        RingError
            If a number does not fit.
        """
        if len(set(context.sites)) < MIN_SITES or self._site not in context.sites:
            raise SecureSumError(f"a secure sum is among {len(set(context.sites))} sites; expected {MIN_SITES}.")
        if list(context.sites) != sorted(set(context.sites)):
            raise SecureSumError("the sites of a secure sum are not in order of names.")
        layout = SumLayout.of(arrays, bound)
        n_sites, sealed = len(context.sites), {}
        for bits in (32, 64):
            if layout.n_words(bits):
                words = _pack(arrays, layout, bits, n_sites)
                self._mask(words, context, layout, bits)
                sealed[bits] = words
        return layout, sealed

    def _mask(self, words: Words, context: MaskContext, layout: SumLayout, bits: int) -> None:
        """Add the masks shared with later sites to the words, and subtract those shared with earlier ones."""
        digest = context.digest(layout, bits)
        streams = [
            (self._stream(other, digest), np.add if other > self._site else np.subtract)
            for other in context.sites
            if other != self._site
        ]
        buffer, step = bytearray(_PIECE_BYTES), _PIECE_BYTES // words.itemsize
        mask = np.frombuffer(buffer, dtype=words.dtype.newbyteorder("<"))
        for start in range(0, len(words), step):
            piece = words[start : start + step]
            for stream, combine in streams:
                stream.update_into(_ZEROS[: piece.nbytes], buffer)
                combine(piece, mask[: len(piece)], out=piece)

    def _stream(self, other: str, digest: bytes) -> CipherContext:
        """Open the stream of masks shared with one other site, for one context; the key is never used again."""
        shared = self._key.exchange(self._roster.public_key(other))
        salt = bytes.fromhex(self._roster.hash)
        pair_key = HKDF(hashes.SHA256(), length=32, salt=salt, info=_INFO).derive(shared)
        key = HKDFExpand(hashes.SHA256(), length=32, info=digest).derive(pair_key)
        return Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()


def check_numbers(arrays: Mapping[str, NDArray[Any]], n_sites: int, bound: float = 0.0) -> None:
    """Refuse arrays that `Masker.seal` would refuse for a number in them: a `RingError` names one, and says why."""
    for field in SumLayout.of(arrays, bound).fields:
        _encoded(field, arrays, n_sites, bound)


def open_sum(sealed: Sequence[tuple[SumLayout, Mapping[int, Words]]]) -> dict[str, NDArray[np.float64]]:
    """Add what all sites of an attempt sealed; masks cancel.

    Returns
    -------
    dict
        Sums by name, float64.

    Raises
    ------
    SecureSumError
        If layouts differ, words are missing, or masks do not cancel.
    """
    layout, n_sites = sealed[0][0], len(sealed)
    if any(other != layout for other, _ in sealed):
        raise SecureSumError("sites summed different arrays. Use the same features, covariates and version everywhere.")
    total: dict[str, NDArray[np.float64]] = {}
    for bits in (32, 64):
        if not (n_words := layout.n_words(bits)):
            continue
        words: Words = np.zeros(n_words, dtype=f"uint{bits}")
        for _, of_site in sealed:
            if bits not in of_site or of_site[bits].shape != words.shape or of_site[bits].dtype != words.dtype:
                raise SecureSumError("a site's part of a secure sum is incomplete.")
            words += of_site[bits]
        if words[-1] != n_sites:
            raise SecureSumError(
                "masks did not cancel: the sites were asked different things or know other keys, or an answer was not "
                "to this question."
            )
        total |= _unpack(words, layout, bits, n_sites)
    return total


def _kind(name: str, values: NDArray[Any]) -> Encoding:
    if name.startswith("update/"):
        return "update"
    return "count" if values.dtype.kind in "iu" else "sum"


def _pack(arrays: Mapping[str, NDArray[Any]], layout: SumLayout, bits: int, n_sites: int) -> Words:
    """Encode the fields of one ring, one after the other, and a one."""
    words: Words = np.ones(layout.n_words(bits), dtype=f"uint{bits}")
    start = 0
    for field in layout.of_ring(bits):
        words[start : start + field.n_words] = _encoded(field, arrays, n_sites, layout.bound)
        start += field.n_words
    return words


def _encoded(field: SummedArray, arrays: Mapping[str, NDArray[Any]], n_sites: int, bound: float) -> Words:
    try:
        return encode(np.asarray(arrays[field.name]), field.kind, n_sites, bound)
    except RingError as error:
        raise type(error)(f"{field.name}: {error}") from None


def _unpack(words: Words, layout: SumLayout, bits: int, n_sites: int) -> dict[str, NDArray[np.float64]]:
    """Undo `_pack`, of the sum of all sites."""
    arrays, start = {}, 0
    for field in layout.of_ring(bits):
        part = words[start : start + field.n_words]
        arrays[field.name] = decode(part, field.kind, n_sites, layout.bound).reshape(field.shape)
        start += field.n_words
    return arrays
