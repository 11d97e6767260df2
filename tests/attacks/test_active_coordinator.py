"""A coordinator that does not follow the protocol: it asks the real ClientApp of each site whatever may help it.

It chooses every byte of a request, runs, steps, attempts and sets of sites, and it reads every reply. It has no
site's private key. What it tries here is refused; test_open_attacks.py has what is not.
"""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from client.features import FeatureSet, FeatureStore
from client.site import load_site
from exchange.key_roster import KeyRoster, SiteKey
from exchange.messages import (
    EmbedRequest,
    HarmonizeReply,
    Job,
    SummarizeRequest,
    SumReply,
    SumRequest,
    TableSpec,
    TrainRequest,
    join,
)
from exchange.refusals import RefusalCode
from tests.attacks.coordinator import MODEL, SUMS, WEIGHTS, WIDTH, Coordinator, own_sum, write_careful_sites
from tests.support.federation import STUDY

OTHER = {"projection": Job(analysis="projection", parameters={"n_components": 3}, table=TableSpec(features="x"))}


def words(reply: SumReply) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in reply.arrays.items()}


# --- the two-time pad -------------------------------------------------------------------------------------------------


def test_the_same_message_gets_the_same_words_and_another_in_its_context_is_refused(coordinator):
    """Two answers under one mask would show their difference; each message here meets a new process of the site."""
    first = coordinator.ask("bergen", coordinator.sums())

    assert words(coordinator.ask("bergen", coordinator.sums())) == words(first)
    others = [
        coordinator.sums(jobs=OTHER),
        coordinator.sums(jobs={**SUMS, "more": SUMS["projection"]}),
        coordinator.sums(study="another"),
        coordinator.sums(coordinator.names[:3]),
        coordinator.sums(groups={"projection": coordinator.names[:3]}),
        coordinator.sums(bound=0.5),
        coordinator.training(),
    ]
    assert {coordinator.ask("bergen", other) for other in others} == {RefusalCode.CONTEXT}
    assert words(coordinator.ask("bergen", coordinator.sums())) == words(first)


@pytest.mark.parametrize("changes", [{"seed": 6}, {"weights": 1}, {"max_norm": 1.0}, {"training": {"batch_size": 5}}])
def test_a_round_of_training_is_answered_once(coordinator, changes):
    """Other weights, seeds or settings under one mask would show how the site's update changes with them."""
    first = coordinator.ask("bergen", coordinator.training())
    if "weights" in changes:
        changes = {"weights": {name: values + np.float32(1e-3) for name, values in WEIGHTS.items()}}

    assert coordinator.ask("bergen", coordinator.training(**changes)) is RefusalCode.CONTEXT
    assert words(coordinator.ask("bergen", coordinator.training())) == words(first)


def test_masks_of_another_run_or_step_are_others(coordinator):
    replies = [coordinator.ask("bergen", coordinator.sums(), run=run) for run in (77, 78)]
    replies.append(coordinator.ask("bergen", coordinator.sums(step=2), run=78))

    assert len({str(words(reply)) for reply in replies}) == 3


def test_a_site_that_was_killed_remembers(coordinator):
    """All that a site must know of the past lies on its disk; a lower step is over, whether it was asked or not."""
    coordinator.ask("bergen", coordinator.sums(step=4))

    assert coordinator.ask("bergen", coordinator.sums(step=3)) is RefusalCode.CONTEXT
    assert coordinator.ask("bergen", coordinator.sums(step=4, jobs=OTHER)) is RefusalCode.CONTEXT
    with load_site(coordinator.sites["bergen"]).database.transaction() as database:
        database.execute("DELETE FROM kept")  # as by hand
    assert coordinator.ask("bergen", coordinator.sums(step=4)) is RefusalCode.CONTEXT


# --- a dropout that is not one ----------------------------------------------------------------------------------------


def test_a_second_attempt_is_among_fewer_sites_and_no_more_than_allowed(coordinator):
    names = coordinator.names
    coordinator.ask("aalborg", coordinator.sums())

    refused = {
        "the same": (names, RefusalCode.ATTEMPT),
        "two": (names[:2], RefusalCode.FEW_SITES),
        "without itself": (names[1:], RefusalCode.ROSTER),
        "a stranger": ([*names[:2], "elsewhere"], RefusalCode.ROSTER),
    }
    for what, (sites, code) in refused.items():
        assert coordinator.ask("aalborg", coordinator.sums(sites, attempt=2)) is code, what
    assert coordinator.ask("aalborg", coordinator.sums(names[:3], attempt=3)) is RefusalCode.ATTEMPT
    assert isinstance(coordinator.ask("aalborg", coordinator.sums(names[:3], attempt=2)), SumReply)
    another_three = [names[0], *names[2:]]
    assert coordinator.ask("aalborg", coordinator.sums(another_three, attempt=2)) is RefusalCode.CONTEXT
    assert coordinator.ask("aalborg", coordinator.sums(names, attempt=2)) is RefusalCode.CONTEXT
    assert coordinator.ask("aalborg", coordinator.sums()) is RefusalCode.ATTEMPT  # back to the first
    assert coordinator.ask("aalborg", coordinator.sums(step=2, attempt=2)) is RefusalCode.ATTEMPT  # never begun


def test_a_second_attempt_trains_nobody_again(coordinator, monkeypatch):
    names = coordinator.names
    first = coordinator.total(coordinator.training())

    def trains(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("client.training.train", trains)
    second = coordinator.total(coordinator.training(names[:3], secure={"attempt": 2}))
    kept = [
        load_site(coordinator.sites[name]).kept.find("77", coordinator.training(names[:3], secure={"attempt": 2}))
        for name in names[:3]
    ]
    for name in WEIGHTS:
        stored = sum(one.reply.arrays[f"update/{name}"] for one in kept)
        np.testing.assert_allclose(second[f"update/{name}"], stored, atol=1e-8)
    assert first.keys() == second.keys()


def test_what_a_pretended_dropout_shows_is_one_site_s_sum_and_stands_in_every_log(coordinator):
    """A known limit: the difference of both attempts is the sum of the site that was left out.

    Nobody can tell a dropout from a pretended one. It shows a sum over that site's people, and no person; each site
    has written down both attempts with the names; and a third set of sites is refused, in this run and in any other.
    """
    names = coordinator.names
    everybody = coordinator.total(coordinator.sums())
    fewer = coordinator.total(coordinator.sums(names[:3], attempt=2))

    left = everybody["projection/feature_sum"] - fewer["projection/feature_sum"]
    np.testing.assert_allclose(left, own_sum(coordinator.sites[names[3]]), atol=1e-9)
    for name in names[:3]:
        released = [event for event in coordinator.audit_of(name) if event["event"] == "release"]
        assert [(event["attempt"], event["among"]) for event in released] == [(1, names), (2, names[:3])]
    assert coordinator.ask(names[0], coordinator.sums(names[:2] + names[3:], step=2)) is RefusalCode.DATA
    assert coordinator.ask(names[0], coordinator.sums(names[:2] + names[3:]), run=78) is RefusalCode.DATA
    assert [event["rule"] for event in coordinator.audit_of(names[0])[-2:]] == ["disclosure.other-sites-before"] * 2
    assert isinstance(coordinator.ask(names[0], coordinator.sums(names[:3], step=3)), SumReply)


@pytest.mark.parametrize("in_a_group", [False, True])
def test_a_sum_among_accomplices_is_the_honest_site_s_and_stands_in_its_log(coordinator, in_a_group):
    """A known limit: who knows the parts of all sites but one knows that one's, and any three of a roster may be asked.

    A part of an answer may be among fewer than its message is; both stand in the log.
    """
    names, three = coordinator.names, coordinator.names[:3]
    groups = {"projection": three} if in_a_group else {}
    total = coordinator.total(coordinator.sums(names if in_a_group else three, groups=groups))

    left = total["projection/feature_sum"] - sum(own_sum(coordinator.sites[accomplice]) for accomplice in three[1:])
    np.testing.assert_allclose(left, own_sum(coordinator.sites[three[0]]), atol=1e-9)
    released = coordinator.audit_of(three[0])[-1]
    assert (released["among"], released["groups"]) == (names if in_a_group else three, [three])


def test_a_policy_asks_for_more_sites_than_side_with_the_coordinator(tmp_path, four_cohorts):
    """With `min_sites` at k + 2, k accomplices leave two honest sites, whose sum is all that is known."""
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, min_sites=4))
    in_a_group = coordinator.sums(groups={"projection": coordinator.names[:3]})

    assert coordinator.code(coordinator.sums(coordinator.names[:3])) is RefusalCode.FEW_SITES
    assert coordinator.code(in_a_group) is RefusalCode.FEW_SITES
    assert coordinator.code(coordinator.sums()) is None


# --- a coordinator in the middle --------------------------------------------------------------------------------------


def test_a_roster_with_the_coordinator_s_own_key_is_not_approved(coordinator):
    """Whoever holds one end of every pair key reads the masks: the sites' administrators compared fingerprints."""
    site = load_site(coordinator.sites["aalborg"])
    true = site.keys.approved(coordinator.roster)
    mine = X25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    forged = KeyRoster(
        name=true.name,
        sites=tuple(
            key if key.name == "aalborg" else SiteKey(name=key.name, public_key=mine[:-2] + f"{number:02x}"[-2:])
            for number, key in enumerate(true.sites)
        ),
    )

    assert coordinator.ask("aalborg", coordinator.sums(roster=forged.hash)) is RefusalCode.ROSTER
    for damaged in ("", "../" * 8, coordinator.roster.upper(), coordinator.roster[:-1]):
        assert coordinator.ask("aalborg", coordinator.sums(roster=damaged)) is RefusalCode.ROSTER
    path = site.state / "rosters" / f"{coordinator.roster}.json"
    forged.write(path)  # by whoever can write the site's disk, but not its approvals
    assert coordinator.ask("aalborg", coordinator.sums()) is RefusalCode.ROSTER


@pytest.mark.parametrize(
    ("sites", "code"),
    [
        (["aalborg", "bergen"], RefusalCode.FEW_SITES),
        (["aalborg"], RefusalCode.FEW_SITES),
        (["aalborg", "bergen", "elsewhere"], RefusalCode.ROSTER),
        (["bergen", "aalborg", "coimbra"], RefusalCode.ROSTER),
        (["aalborg", "aalborg", "bergen"], RefusalCode.ROSTER),
        (["bergen", "coimbra"], RefusalCode.FEW_SITES),
        (["bergen", "coimbra", "delft"], RefusalCode.ROSTER),
    ],
    ids=["two", "alone", "a stranger", "unsorted", "twice", "two others", "without itself"],
)
def test_a_sum_and_each_part_of_an_answer_are_among_three_sites_of_the_roster(coordinator, sites, code):
    """The one that is asked is among those of a sum; a part of its answer may be among three others."""
    assert coordinator.ask("aalborg", coordinator.sums(sites)) is code
    if sites != coordinator.names[1:]:
        assert coordinator.ask("aalborg", coordinator.sums(groups={"projection": sites})) is code


def in_the_clear(coordinator: Coordinator) -> dict[str, SumRequest]:
    about = {"study": "small", "model": MODEL.model_dump(mode="json")}
    training = {"training": STUDY["training"], "round_number": 1, "rounds": 1, "seed": 5, "max_windows": 1000}
    arrays = join(weights=WEIGHTS)
    recipe = {"recipe": "rsfmri_brainlm_segments_v1", "holdout": 0.2, "seed": 5}
    return {
        "train": TrainRequest(arrays=arrays, **about, **training),
        "embed": EmbedRequest(arrays=arrays, **about, **recipe),
        "summarize": SummarizeRequest(study="small", jobs=SUMS),
        "harmonize": coordinator.projection("x", "y", np.eye(WIDTH)).model_copy(update={"secure": None}),
    }


@pytest.mark.parametrize("kind", ["train", "embed", "summarize", "harmonize"])
def test_nothing_leaves_in_the_clear_where_sums_must_be_secure(coordinator, kind):
    request = in_the_clear(coordinator)[kind]
    masked = request.model_copy(update={"secure": coordinator.secure()})

    assert (coordinator.code(request), coordinator.code(masked)) == (RefusalCode.PLAIN, None)


def test_who_shares_embeddings_shares_any_features_of_a_participant(tmp_path, four_cohorts):
    """A known limit: which features are the last, and what is done to them, is for the coordinator to say."""
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, share_embeddings=True))
    site = load_site(coordinator.sites["aalborg"])
    people = FeatureStore(site.folder_of("small")).read("x").participants
    connectivity = np.random.default_rng(0).normal(size=(len(people), WIDTH))
    FeatureStore(site.folder_of("small")).write("connectivity", FeatureSet(people, connectivity))
    request = coordinator.projection("connectivity", "y", np.eye(WIDTH)).model_copy(update={"final": "y"})
    reply = HarmonizeReply.from_records(coordinator.send("aalborg", request.to_records(), request.message).content)

    np.testing.assert_array_equal(reply.arrays["shown/embeddings"], connectivity)
    assert reply.pseudonyms == [site.pseudonym(participant) for participant in people]


@pytest.mark.parametrize("spent", [False, True])
def test_an_answer_that_the_ledger_refuses_leaves_in_no_attempt(tmp_path, four_cohorts, spent):
    """Nothing is kept of what was refused, and what was kept before is asked for again."""
    sites = write_careful_sites(tmp_path, four_cohorts, max_releases=1 if spent else 2)
    coordinator = Coordinator(sites)

    assert isinstance(coordinator.ask("aalborg", coordinator.sums()), SumReply)
    assert isinstance(coordinator.ask("aalborg", coordinator.sums(step=2)), SumReply) is not spent
    again, fewer = coordinator.sums(step=2), coordinator.sums(coordinator.names[:3], step=2, attempt=2)
    assert coordinator.ask("aalborg", again) is RefusalCode.RELEASES
    assert coordinator.ask("aalborg", fewer) is (RefusalCode.ATTEMPT if spent else RefusalCode.RELEASES)
