"""Answers of several sites, masked or not, add to the same; answers that do not fit are found."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from exchange.adding import add_replies, misfits, seal
from exchange.messages import EmbedRequest, Group, MessageError, SealedGroup, SecureSum, TrainReply
from exchange.roster import KeyRoster, SiteKey
from exchange.secure_sum import Layout, Masker, SecureSumError

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


def other_shape(reply: TrainReply) -> TrainReply:
    return reply.model_copy(update={"arrays": {**reply.arrays, "update/w": np.zeros(7)}})


def lacking(reply: TrainReply) -> TrainReply:
    return reply.model_copy(update={"arrays": {n: v for n, v in reply.arrays.items() if not n.startswith("tally")}})


def adding(reply: TrainReply) -> TrainReply:
    return reply.model_copy(update={"arrays": {**reply.arrays, "tally/more": np.array(1)}})


@pytest.mark.parametrize("change", [other_shape, lacking, adding])
@pytest.mark.parametrize("request_", [CLEAR, SECURE], ids=["clear", "masked"])
def test_an_answer_unlike_the_others_is_named(change, request_):
    replies = {site: reply_of(site) for site in SITES[:3]}
    replies["b"] = change(replies["b"])
    if request_ is SECURE:
        request_ = SECURE.model_copy(
            update={"secure": SECURE.secure.model_copy(update={"sites": SITES[:3]}), "groups": GROUPS}
        )
        replies = {site: sealed(site, request_, reply) for site, reply in replies.items()}

    assert misfits(request_, replies) == ["b"]
    with pytest.raises(MessageError):
        add_replies(request_, replies)


def test_an_answer_in_the_clear_does_not_pass_for_a_masked_one_nor_the_other_way_round():
    assert misfits(SECURE, {**{site: sealed(site) for site in SITES[1:]}, "a": reply_of("a")}) == ["a"]
    in_clear = CLEAR.model_copy(update={"groups": []})
    plain = {site: reply_of("a") for site in SITES[1:]}
    assert misfits(in_clear, {**plain, "a": sealed("a")}) == ["a"]


def test_nobody_can_put_the_others_out_by_naming_them_in_a_sum_of_its_own():
    lied = SECURE.model_copy(update={"groups": [Group(parts=["update"], sites=["c", "d", "e"])]})
    replies = {site: sealed(site) for site in SITES}
    replies["c"] = sealed("c", lied)

    assert misfits(SECURE, replies) == ["c"]


@pytest.mark.parametrize("sites", [["d"], SITES], ids=["alone", "twice"])
def test_a_sum_that_nobody_asked_for_takes_no_other_s_place(sites):
    """Its words open alone, and what they hold could be called like anything that the sites sum."""
    alone = Layout.of({"evaluation/large/parcels": np.zeros((3, 4))})
    words = np.zeros(alone.n_words(64), dtype=np.uint64)
    words[-1] = 1
    replies = {site: sealed(site) for site in SITES}
    groups = [*replies["d"].sealed, SealedGroup(sites=sites, layout=alone.to_json())]
    arrays = {**replies["d"].arrays, "sealed/1/64": words}
    replies["d"] = replies["d"].model_copy(update={"sealed": groups, "arrays": arrays})

    assert misfits(SECURE, replies) == ["d"]
