import pytest
from flwr.app import Error, Message

from exchange.messages import DescribeRequest, HarmonizeReply, HarmonizeRequest, Step
from exchange.refusals import RefusalCode
from server.errors import QuorumError
from server.journal import Journal
from server.roster import Roster
from server.study import ProtectionConfig, RoundsConfig, load_study
from tests.support.federation import STUDY, write_sites
from tests.support.local_grid import LocalGrid


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
    return RoundsConfig(**{"quorum": 2, "deadline_s": 5, "start_deadline_s": 0.1, **changes})


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
    assert "policy.too-few-participants" in journal.table("outcomes")["outcome"].tolist()


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


def gathered(tmp_path, small_cohorts, journal, request_, tamper) -> Roster:
    """A roster of three sites whose answers are tampered with after they joined."""
    grid = LocalGrid(write_sites(tmp_path / "s", small_cohorts))
    roster = Roster(grid, journal, limits(), CLEAR)
    roster.gather(request_)
    grid.tamper = tamper
    return roster


def test_a_silent_site_is_left_out_of_the_answers(tmp_path, small_cohorts, journal, request_):
    def silent(node: int, message: Message) -> Message | bool:
        return node != 2 and Message(HarmonizeReply().to_records(), reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, silent)

    assert list(roster.ask(ASK, HarmonizeReply, "x").replies) == ["aalborg", "coimbra"]
    assert journal.table("outcomes")["outcome"].tolist()[-3:] == ["ok", "no reply", "ok"]


def test_the_text_of_an_error_is_never_repeated(tmp_path, small_cohorts, journal, request_):
    """Flower sends an exception's text as it is; it may hold a path or a name."""

    def crash(node: int, message: Message) -> Message:
        return Message(Error(code=2, reason="/data/sub-0042.nii: no such file"), reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, crash)

    with pytest.raises(QuorumError, match=r"x, round 3: 0 of 3 sites answered.*aalborg: flower error 2") as failed:
        roster.ask(ASK, HarmonizeReply, "x", 3)

    assert "0042" not in str(failed.value)
    assert "0042" not in "".join(journal.table("outcomes")["outcome"])


def test_damaged_answers_do_not_count(tmp_path, small_cohorts, journal, request_):
    def damage(node: int, message: Message) -> Message:
        records = HarmonizeReply().to_records()
        if node == 1:
            records["header"]["json"] = "{"
        return Message(records, reply_to=message)

    roster = gathered(tmp_path, small_cohorts, journal, request_, damage)

    assert list(roster.ask(ASK, HarmonizeReply, "x").replies) == ["bergen", "coimbra"]
    assert "protocol.unreadable" in journal.table("outcomes")["outcome"].tolist()
