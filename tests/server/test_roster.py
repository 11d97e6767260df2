from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from flwr.app import Error, Message

from exchange.expected import Expected
from exchange.messages import DescribeReply, DescribeRequest, HarmonizeReply, HarmonizeRequest, Step
from exchange.refusals import RefusalCode
from server.errors import QuorumError
from server.journal import Journal
from server.roster import Roster
from study.sections import ProtectionConfig, RoundsConfig
from study.settings import load_study
from tests.support.federation import STUDY, write_sites
from tests.support.local_grid import LocalGrid
from tests.support.wire import over_the_wire


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path)


@pytest.fixture
def request_(tmp_path) -> DescribeRequest:
    import yaml

    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    study = load_study(tmp_path / "study.yaml")
    return DescribeRequest(
        study=study.study,
        contract=study.contract().model_dump(mode="json"),
        window=study.model.window.model_dump(mode="json"),
        analyses=study.asks_for(),
        recipe=study.recipe,
        holdout=0.2,
        folds=3,
        secure_sums=False,
    )


CLEAR = ProtectionConfig(secure_sums=False)


def limits(**changes: object) -> RoundsConfig:
    return RoundsConfig(**{"quorum": 2, "deadline_s": 5, "start_deadline_s": 0.1, "quorum_deadline_s": 0, **changes})


ASK = HarmonizeRequest(study="small", steps=[Step(source="a", result="b", transform="projection")])


def test_sites_that_take_part_are_known_by_name_in_order(tmp_path, small_cohorts, journal, request_):
    roster = Roster(
        LocalGrid(write_sites(tmp_path / "s", small_cohorts)[::-1]),
        journal,
        limits(),
        CLEAR,
    )

    roster.gather(request_)

    assert roster.sites == ["aalborg", "bergen", "coimbra"]
    assert [about.n_participants for about in roster.about.values()] == [21, 16, 11]
    assert [member.node for member in roster.members.values()] == [3, 2, 1]


def test_a_site_that_refuses_does_not_stop_the_others(tmp_path, small_cohorts, journal, request_):
    sites = write_sites(tmp_path / "s", small_cohorts)
    sites[0].write_text(sites[0].read_text().replace("min_participants: 2", "min_participants: 99"))
    roster = Roster(LocalGrid(sites), journal, limits(), CLEAR)

    roster.gather(request_)

    assert roster.sites == ["bergen", "coimbra"]
    assert "site.cannot-answer" in journal.table("outcomes")["outcome"].tolist()


def test_below_the_quorum_the_reasons_are_named(tmp_path, small_cohorts, journal, request_):
    sites = write_sites(tmp_path / "s", small_cohorts, secure_sum_required=True)
    roster = Roster(LocalGrid(sites), journal, limits(), CLEAR)

    with pytest.raises(QuorumError, match=r"0 of 3 sites answered, the quorum is 2") as failed:
        roster.gather(request_)

    assert str(failed.value).count("policy.secure-sum-required") == 3
    assert RefusalCode.PLAIN.sentence in str(failed.value)


def test_two_sites_of_one_name_are_an_error(tmp_path, small_cohorts, journal, request_):
    sites = write_sites(tmp_path / "s", small_cohorts)
    sites[1].write_text(sites[1].read_text().replace("name: bergen", "name: aalborg"))

    with pytest.raises(QuorumError, match="two sites call themselves 'aalborg'"):
        Roster(LocalGrid(sites), journal, limits(), CLEAR).gather(request_)


def test_the_start_waits_for_a_quorum_and_no_longer(journal, request_):
    with pytest.raises(QuorumError, match=r"0 sites were online after 0\.1 s; the quorum is 2"):
        Roster(LocalGrid([]), journal, limits(), CLEAR).gather(request_)


def test_the_start_makes_do_with_a_quorum_when_hoped_for_sites_stay_away(tmp_path, small_cohorts, journal, request_):
    roster = Roster(
        LocalGrid(write_sites(tmp_path / "s", small_cohorts[:2])),
        journal,
        limits(sites=3),
        CLEAR,
    )

    roster.gather(request_)

    assert roster.sites == ["aalborg", "bergen"]


def gathered(tmp_path, small_cohorts, journal, request_, tamper, **changes: object) -> Roster:
    """A roster of three sites whose answers are tampered with after they joined."""
    grid = LocalGrid(write_sites(tmp_path / "s", small_cohorts))
    roster = Roster(grid, journal, limits(**changes), CLEAR)
    roster.gather(request_)
    grid.tamper = tamper
    return roster


def test_a_silent_site_is_left_out_of_the_answers(tmp_path, small_cohorts, journal, request_):
    def silent(node: int, message: Message) -> Message | bool:
        return node != 2 and Message(HarmonizeReply().to_records(), reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, silent)

    assert list(roster.ask(ASK, HarmonizeReply, {}, "x").replies) == ["aalborg", "coimbra"]
    assert journal.table("outcomes")["outcome"].tolist()[-3:] == ["ok", "no reply", "ok"]


def test_the_text_of_an_error_is_never_repeated(tmp_path, small_cohorts, journal, request_):
    """Flower sends an exception's text as it is; it may hold a path or a name."""

    def crash(node: int, message: Message) -> Message:
        return Message(Error(code=2, reason="/data/sub-0042.nii: no such file"), reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, crash)

    with pytest.raises(QuorumError, match=r"x, round 3: 0 of 3 sites answered.*aalborg: flower error 2") as failed:
        roster.ask(ASK, HarmonizeReply, {}, "x", 3)

    assert "0042" not in str(failed.value)
    assert "0042" not in "".join(journal.table("outcomes")["outcome"])


def test_damaged_answers_do_not_count(tmp_path, small_cohorts, journal, request_):
    def damage(node: int, message: Message) -> Message:
        records = HarmonizeReply().to_records()
        if node == 1:
            records["header"]["json"] = "{"
        return Message(records, reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, damage)

    assert list(roster.ask(ASK, HarmonizeReply, {}, "x").replies) == ["bergen", "coimbra"]
    assert "protocol.unreadable" in journal.table("outcomes")["outcome"].tolist()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"tally/b": np.array(1), "shown/parameters/../../final/x": np.ones(2)},
            "'shown/parameters/../../final/x' was",
        ),
        ({"tally/b": np.array(1.0)}, "'tally/b' of shape () and kind float64 is not what was asked for"),
        ({}, "'tally/b' is missing"),
    ],
)
def test_an_answer_that_was_not_asked_for_is_dropped_and_named_and_the_run_goes_on(
    tmp_path, small_cohorts, journal, request_, arrays, said
):
    def tamper(node: int, message: Message) -> Message:
        own = arrays if node == 2 else {"tally/b": np.array(node)}
        return Message(HarmonizeReply(arrays=own).to_records(), reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, tamper)

    answers = roster.ask(ASK, HarmonizeReply, {"tally/b": Expected("count")}, "x")

    assert (list(answers.replies), answers.total["tally/b"]) == (["aalborg", "coimbra"], 4)
    assert journal.table("outcomes")["outcome"].tolist()[-3:] == ["ok", "protocol.unreadable", "ok"]
    assert [note for note in journal.table("notes")["text"] if "bergen was dropped" in note and said in note]


@pytest.mark.parametrize(
    "changes",
    [
        {"n_parcels": 99},
        {"atlas": "../x"},
        {"atlas": "schaefer200", "n_parcels": 200},
        {"n_participants": 0},
        {"n_windows": 0},
        {"arrays": {"tally/n": np.array(20)}},
    ],
)
def test_a_site_that_says_of_itself_what_cannot_be_is_left_out(tmp_path, small_cohorts, journal, request_, changes):
    """Of another atlas than the study's, with nobody to add, or with arrays that nobody asked for."""

    def lie(node: int, message: Message) -> Message | None:
        about = {"site": "bergen", "atlas": "schaefer100", "preprocessing": "x", "software": {}, "n_parcels": 100}
        about |= dict.fromkeys(("n_participants", "n_recordings", "n_windows"), 20) | {"n_quarantined": 0}
        reply = DescribeReply(**about).model_copy(update=changes)
        return Message(reply.to_records(), reply_to=message) if node == 2 else None

    roster = Roster(LocalGrid(write_sites(tmp_path / "s", small_cohorts), lie), journal, limits(), CLEAR)
    roster.gather(request_)

    assert roster.sites == ["aalborg", "coimbra"]


def test_below_the_quorum_the_run_waits_and_asks_only_those_who_are_missing(tmp_path, small_cohorts, journal, request_):
    asked = []

    def late(node: int, message: Message) -> Message | bool:
        asked.append(node)
        return not (node > 1 and asked.count(node) <= 2) and Message(HarmonizeReply().to_records(), reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, late, quorum_deadline_s=30)

    assert list(roster.ask(ASK, HarmonizeReply, {}, "x").replies) == ["aalborg", "bergen", "coimbra"]
    assert asked == [1, 2, 3, 2, 3, 2, 3]
    assert list(journal.table("notes")["text"]) == ["x: below the quorum of 2; waiting for bergen, coimbra"]
    assert journal.table("exchanges")["step"].tolist()[-2:] == [1, 1]  # the same question to the sites


def test_nobody_waits_for_a_site_that_refuses(tmp_path, small_cohorts, journal, request_):
    refusal = Error(code=RefusalCode.BUDGET.number, reason=str(RefusalCode.BUDGET))

    def refuse(node: int, message: Message) -> Message:
        return Message(refusal, reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, refuse, quorum_deadline_s=600)

    with pytest.raises(QuorumError, match=r"x: 0 of 3 sites answered.*coimbra: privacy\.budget-spent"):
        roster.ask(ASK, HarmonizeReply, {}, "x")


def test_a_site_that_comes_back_as_another_node_is_known_by_its_name(tmp_path, small_cohorts, journal, request_):
    def gone(node: int, message: Message) -> Message | bool | None:
        if message.metadata.message_type == DescribeRequest.message:
            return None
        if node in (2, 3):  # the hospitals restart their SuperNodes, which get new numbers
            grid.sites[node + 10] = grid.sites.pop(node)
        return node in (1, 12) and Message(HarmonizeReply().to_records(), reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, gone, quorum_deadline_s=30)
    grid = roster._grid

    assert list(roster.ask(ASK, HarmonizeReply, {}, "x").replies) == ["aalborg", "bergen"]
    assert [member.node for member in roster.members.values()] == [1, 12, 13]


def test_a_slow_site_misses_its_deadline_and_takes_part_in_the_next_round(tmp_path, small_cohorts, journal, request_):
    slow = [True]

    def late(node: int, message: Message) -> Message | bool:
        return not (node == 2 and slow[0]) and Message(HarmonizeReply().to_records(), reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, late)

    assert list(roster.ask(ASK, HarmonizeReply, {}, "x", 1).replies) == ["aalborg", "coimbra"]
    slow.clear()
    slow.append(False)
    assert list(roster.ask(ASK, HarmonizeReply, {}, "x", 2).replies) == ["aalborg", "bergen", "coimbra"]


class Repeating(LocalGrid):
    """A grid that delivers every answer twice, the second one changed, and one of a node that was not asked."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in list(super().pull_messages(message_ids)):
            yield reply
            if reply.content["header"]["kind"] == "HarmonizeReply":
                again = HarmonizeReply(arrays={"tally/b": np.array(99)}).to_records()
                changed = over_the_wire(reply)
                changed.content = again
                yield changed


def test_an_answer_that_comes_twice_counts_once(tmp_path, small_cohorts, journal, request_):
    def reply(node: int, message: Message) -> Message | None:
        if message.metadata.message_type == DescribeRequest.message:
            return None
        return Message(HarmonizeReply(arrays={"tally/b": np.array(node)}).to_records(), reply_to=message)

    roster = Roster(Repeating(write_sites(tmp_path / "s", small_cohorts), reply), journal, limits(), CLEAR)
    roster.gather(request_)

    assert roster.ask(ASK, HarmonizeReply, {"tally/b": Expected("count")}, "x").total["tally/b"] == 1 + 2 + 3
    notes = sorted(journal.table("notes")["text"])
    assert notes == [f"x: {name} answered twice; the second answer was dropped" for name in roster.sites]


def test_a_resumed_run_does_not_wait_for_a_site_that_it_had_left_out(tmp_path, small_cohorts, journal, request_):
    sites = write_sites(tmp_path / "s", small_cohorts)
    begun = Roster(LocalGrid(sites), journal, limits(), CLEAR)
    begun.gather(request_)
    begun.keep(["aalborg", "coimbra"])

    resumed = Roster(LocalGrid([sites[2], sites[0]]), journal, limits(start_deadline_s=3600), CLEAR)
    resumed.gather(request_)

    # It is still known: what was asked before it fell silent is gone through again.
    assert {site: member.node for site, member in resumed.members.items()} == {
        "aalborg": 2,
        "bergen": None,
        "coimbra": 1,
    }
    assert resumed.about == {**begun.about, "bergen": resumed.about["bergen"]}


def test_sites_that_the_coordinator_registered_are_named_before_they_say_what_they_are(
    tmp_path, small_cohorts, journal, request_
):
    sites = write_sites(tmp_path / "s", small_cohorts)
    sites[0].write_text(sites[0].read_text().replace("min_participants: 2", "min_participants: 99"))
    journal.note(nodes='{"1": "aalborg", "2": "bergen", "3": "coimbra", "4": "oslo"}')

    Roster(LocalGrid(sites), journal, limits(), CLEAR).gather(request_)

    assert journal.table("outcomes").set_index("site")["outcome"].to_dict() == {
        "aalborg": "site.cannot-answer",
        "bergen": "ok",
        "coimbra": "ok",
    }
    assert journal.facts()["left_out"] == "aalborg, oslo"
    assert "not online when the run began, and left out: oslo" in journal.table("notes")["text"].tolist()


def test_a_site_that_refused_before_the_run_began_takes_part_once_it_does_not(
    tmp_path, small_cohorts, journal, request_
):
    """The run had failed for want of keys in common, and is resumed when administrators had done their part."""
    sites = write_sites(tmp_path / "s", small_cohorts)
    refusing = sites[0].read_text().replace("min_participants: 2", "min_participants: 99")
    allowed, _ = sites[0].read_text(), sites[0].write_text(refusing)
    journal.note(nodes='{"1": "aalborg", "2": "bergen", "3": "coimbra"}')
    with pytest.raises(QuorumError, match="the study names roster 000000000000"):
        Roster(LocalGrid(sites), journal, limits(), ProtectionConfig(roster="0" * 64)).gather(request_)

    sites[0].write_text(allowed)
    Roster(LocalGrid(sites), journal, limits(), CLEAR).gather(request_)

    assert (journal.left_out(), journal.facts()["left_out"]) == ([], "")


def test_too_few_at_the_start_names_the_others(tmp_path, small_cohorts, journal, request_):
    journal.note(nodes='{"1": "aalborg", "2": "bergen", "3": "coimbra"}')
    grid = LocalGrid(write_sites(tmp_path / "s", small_cohorts[:1]))

    with pytest.raises(QuorumError, match=r"1 sites were online .* Missing: bergen, coimbra\. Start the sites"):
        Roster(grid, journal, limits(), CLEAR).gather(request_)


def test_a_registered_site_cannot_take_the_place_of_another(tmp_path, small_cohorts, journal, request_):
    sites = write_sites(tmp_path / "s", small_cohorts)
    sites[0].write_text(sites[0].read_text().replace("name: aalborg", "name: bergen"))
    journal.note(nodes='{"1": "aalborg", "2": "bergen", "3": "coimbra"}')
    roster = Roster(LocalGrid(sites), journal, limits(), CLEAR)

    roster.gather(request_)

    assert {site: member.node for site, member in roster.members.items()} == {"bergen": 2, "coimbra": 3}
    assert "aalborg is left out: it calls itself bergen" in " ".join(journal.table("notes")["text"])
