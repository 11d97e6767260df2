"""Answers of several sites, masked or not, add to the same."""

import numpy as np
import pytest

from exchange.aggregation import add_replies
from exchange.messages import EmbedRequest, SecureSum, TrainReply
from exchange.secure_sum import SecureSumError
from tests.exchange.sealing import GROUPS, ROSTER, SITES, sealed

CLEAR = EmbedRequest(study="s", model={}, recipe="r", holdout=0, seed=0, groups=GROUPS)
SECURE = CLEAR.model_copy(update={"secure": SecureSum(roster=ROSTER.hash, step=1, sites=SITES)})


def reply_of(site: str) -> TrainReply:
    rng = np.random.default_rng(SITES.index(site))
    atlas = "large" if site in "abc" else "small"
    arrays = {f"evaluation/{atlas}/parcels": rng.normal(size=(3, 4 if atlas == "large" else 2))}
    arrays |= {"update/w": rng.normal(size=6, scale=0.1), "tally/n": np.array(SITES.index(site) + 5)}
    return TrainReply(arrays={**arrays, "shown/loss": np.array(0.5)})


def sealed_by(site: str, request: EmbedRequest = SECURE) -> TrainReply:
    return sealed(reply_of(site), request, site)


def test_masked_answers_add_to_what_plain_ones_do():
    plain = {site: reply_of(site) for site in SITES}
    for site in "de":  # who are too few to sum theirs
        del plain[site].arrays["evaluation/small/parcels"]
    clear, masked = add_replies(CLEAR, plain), add_replies(SECURE, {site: sealed_by(site) for site in SITES})

    assert clear.keys() == masked.keys() == {"evaluation/large/parcels", "update/w", "tally/n"}
    for name, values in clear.items():
        np.testing.assert_allclose(masked[name], values, rtol=1e-9, atol=1e-8)


def test_what_a_site_shows_is_neither_masked_nor_added():
    reply = sealed_by("a")

    assert reply.arrays["shown/loss"] == 0.5
    assert {name.split("/")[0] for name in reply.arrays} == {"shown", "sealed"}
    assert [group.sites for group in reply.sealed] == [["a", "b", "c"], SITES]
    assert [group.sites for group in sealed_by("e").sealed] == [SITES]


def test_nothing_is_masked_for_a_request_in_the_clear():
    with pytest.raises(SecureSumError):
        sealed_by("a", CLEAR)
