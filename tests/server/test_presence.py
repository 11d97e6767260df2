import pytest
from flwr.app import Message

from exchange.messages import DescribeReply
from exchange.refusals import RefusalCode
from server.errors import QuorumError
from tests.support.federation import write_sites
from tests.support.local_grid import LocalGrid

REGISTERED = '{"1": "aalborg", "2": "bergen", "3": "coimbra"}'


def refuse(site) -> None:
    site.write_text(site.read_text().replace("min_participants: 2", "min_participants: 99"))


def rename(site, old: str, new: str) -> None:
    site.write_text(site.read_text().replace(f"name: {old}", f"name: {new}"))


def test_sites_that_take_part_are_known_by_name_in_order(sites, presence_of, opening):
    presence = presence_of(LocalGrid(sites[::-1]))

    presence.gather(opening)

    assert presence.sites == ["aalborg", "bergen", "coimbra"]
    assert [about.n_participants for about in presence.about.values()] == [21, 16, 11]
    assert presence.nodes == {"aalborg": 3, "bergen": 2, "coimbra": 1}


def test_a_site_that_refuses_does_not_stop_the_others(sites, presence_of, journal, opening):
    refuse(sites[0])
    presence = presence_of(LocalGrid(sites))

    presence.gather(opening)

    assert presence.sites == ["bergen", "coimbra"]
    assert "site.cannot-answer" in journal.table("outcomes")["outcome"].tolist()


def test_below_the_quorum_the_reasons_are_named(tmp_path, small_cohorts, presence_of, opening):
    sites = write_sites(tmp_path / "s", small_cohorts, secure_sum_required=True)

    with pytest.raises(QuorumError, match=r"0 of 3 sites answered, the quorum is 2") as failed:
        presence_of(LocalGrid(sites)).gather(opening)

    assert str(failed.value).count("policy.secure-sum-required") == 3
    assert RefusalCode.PLAIN.sentence in str(failed.value)


def test_two_sites_of_one_name_are_an_error(sites, presence_of, opening):
    rename(sites[1], "bergen", "aalborg")

    with pytest.raises(QuorumError, match="two sites call themselves 'aalborg'"):
        presence_of(LocalGrid(sites)).gather(opening)


def test_the_start_waits_for_a_quorum_and_no_longer(presence_of, opening):
    with pytest.raises(QuorumError, match=r"0 sites were online after 0\.1 s; the quorum is 2"):
        presence_of(LocalGrid([])).gather(opening)


def test_the_start_makes_do_with_a_quorum_when_hoped_for_sites_stay_away(sites, presence_of, opening):
    presence = presence_of(LocalGrid(sites[:2]), sites=3)

    presence.gather(opening)

    assert presence.sites == ["aalborg", "bergen"]


@pytest.mark.parametrize(
    "changes",
    [
        {"n_parcels": 99},
        {"atlas": "../x"},
        {"atlas": "schaefer200", "n_parcels": 200},
        {"n_participants": 0},
        {"n_windows": 0},
        {"arrays": {"tally/n": 20}},
    ],
)
def test_a_site_that_says_of_itself_what_cannot_be_is_left_out(sites, presence_of, opening, changes):
    """Of another atlas than the study's, with nobody to add, or with arrays that nobody asked for."""

    def lie(node: int, message: Message) -> Message | None:
        about = {"site": "bergen", "atlas": "schaefer100", "preprocessing": "x", "software": {}, "n_parcels": 100}
        about |= dict.fromkeys(("n_participants", "n_recordings", "n_windows"), 20) | {"n_quarantined": 0}
        reply = DescribeReply(**about).model_copy(update=changes)
        return Message(reply.to_records(), reply_to=message) if node == 2 else None

    presence = presence_of(LocalGrid(sites, lie))
    presence.gather(opening)

    assert presence.sites == ["aalborg", "coimbra"]


def test_a_resumed_run_does_not_wait_for_a_site_that_it_had_left_out(sites, presence_of, opening):
    begun = presence_of(LocalGrid(sites))
    begun.gather(opening)
    begun.keep(["aalborg", "coimbra"])

    resumed = presence_of(LocalGrid([sites[2], sites[0]]), start_deadline_s=3600)
    resumed.gather(opening)

    # It is still known: what was asked before it fell silent is gone through again.
    assert resumed.nodes == {"aalborg": 2, "coimbra": 1}
    assert resumed.about == {**begun.about, "bergen": resumed.about["bergen"]}


def test_sites_that_the_coordinator_registered_are_named_before_they_say_what_they_are(
    sites, presence_of, journal, opening
):
    refuse(sites[0])
    journal.note(nodes=REGISTERED.replace("}", ', "4": "oslo"}'))

    presence_of(LocalGrid(sites)).gather(opening)

    assert journal.table("outcomes").set_index("site")["outcome"].to_dict() == {
        "aalborg": "site.cannot-answer",
        "bergen": "ok",
        "coimbra": "ok",
    }
    assert journal.facts()["left_out"] == "aalborg, oslo"
    assert "not online when the run began, and left out: oslo" in journal.table("notes")["text"].tolist()


def test_a_site_that_refused_before_the_run_began_takes_part_once_it_does_not(sites, presence_of, journal, opening):
    """The run had failed for want of keys in common, and is resumed when administrators had done their part."""
    allowed = sites[0].read_text()
    refuse(sites[0])
    journal.note(nodes=REGISTERED)
    with pytest.raises(QuorumError, match="the study names roster 000000000000"):
        presence_of(LocalGrid(sites), roster="0" * 64).gather(opening)

    sites[0].write_text(allowed)
    presence_of(LocalGrid(sites)).gather(opening)

    assert (journal.left_out(), journal.facts()["left_out"]) == ([], "")


def test_too_few_at_the_start_names_the_others(sites, presence_of, journal, opening):
    journal.note(nodes=REGISTERED)

    with pytest.raises(QuorumError, match=r"1 sites were online .* Missing: bergen, coimbra\. Start the sites"):
        presence_of(LocalGrid(sites[:1])).gather(opening)


def test_a_registered_site_cannot_take_the_place_of_another(sites, presence_of, journal, opening):
    rename(sites[0], "aalborg", "bergen")
    journal.note(nodes=REGISTERED)
    presence = presence_of(LocalGrid(sites))

    presence.gather(opening)

    assert presence.nodes == {"bergen": 2, "coimbra": 3}
    assert "aalborg is left out: it calls itself bergen" in " ".join(journal.table("notes")["text"])
