"""Answers of several sites, masked or not, add to the same."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from exchange.aggregation import add_replies, seal
from exchange.key_roster import KeyRoster, SiteKey
from exchange.messages import EmbedRequest, Group, SecureSum, TrainReply
from exchange.secure_sum import Masker, SecureSumError

SITES = ["a", "b", "c", "d", "e"]
KEYS = {site: X25519PrivateKey.generate() for site in SITES}
ROSTER = KeyRoster(
    name="r",
    sites=tuple(SiteKey(name=s, public_key=k.public_key().public_bytes_raw().hex()) for s, k in KEYS.items()),
)
GROUPS = [Group(parts=["evaluation/small"], sites=[]), Group(parts=["evaluation/large"], sites=["a", "b", "c"])]
CLEAR = EmbedRequest(study="s", model={}, recipe="r", holdout=0, seed=0, groups=GROUPS)
SECURE = CLEAR.model_copy(update={"secure": SecureSum(roster=ROSTER.hash, step=1, sites=SITES)})


def reply_of(site: str) -> TrainReply:
    rng = np.random.default_rng(SITES.index(site))
    atlas = "large" if site in "abc" else "small"
    arrays = {f"evaluation/{atlas}/parcels": rng.normal(size=(3, 4 if atlas == "large" else 2))}
    arrays |= {"update/w": rng.normal(size=6, scale=0.1), "tally/n": np.array(SITES.index(site) + 5)}
    return TrainReply(arrays={**arrays, "shown/loss": np.array(0.5)})


def sealed(site: str, request: EmbedRequest = SECURE, reply: TrainReply | None = None) -> TrainReply:
    return seal(reply or reply_of(site), request, Masker(site, KEYS[site], ROSTER), site=site, run="77", question="q")


def test_masked_answers_add_to_what_plain_ones_do():
    plain = {site: reply_of(site) for site in SITES}
    for site in "de":  # who are too few to sum theirs
        del plain[site].arrays["evaluation/small/parcels"]
    clear, masked = add_replies(CLEAR, plain), add_replies(SECURE, {site: sealed(site) for site in SITES})

    assert clear.keys() == masked.keys() == {"evaluation/large/parcels", "update/w", "tally/n"}
    for name, values in clear.items():
        np.testing.assert_allclose(masked[name], values, rtol=1e-9, atol=1e-8)


def test_what_a_site_shows_is_neither_masked_nor_added():
    reply = sealed("a")

    assert reply.arrays["shown/loss"] == 0.5
    assert {name.split("/")[0] for name in reply.arrays} == {"shown", "sealed"}
    assert [group.sites for group in reply.sealed] == [["a", "b", "c"], SITES]
    assert [group.sites for group in sealed("e").sealed] == [SITES]


def test_nothing_is_masked_for_a_request_in_the_clear():
    with pytest.raises(SecureSumError):
        sealed("a", CLEAR)
