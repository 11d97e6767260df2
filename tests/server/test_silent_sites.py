"""Secure sums of which any number of sites falls silent: those that answered are added, and none of them is blamed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Message

from exchange.aggregation import seal
from exchange.expected import Expected
from exchange.messages import (
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    FrameSpec,
    Group,
    HarmonizeReply,
    HarmonizeRequest,
    Job,
    Step,
    SummarizeReply,
    SummarizeRequest,
    TrainReply,
    TrainRequest,
)
from exchange.secure_sum import Masker
from server import replies
from server.errors import QuorumError
from server.inquiry import Inquiry
from server.journal import Journal
from server.presence import Presence
from study.question import Question, evaluation_groups
from study.sections import ProtectionConfig, RoundsConfig
from tests.exchange.sealing import roster_of
from tests.support.local_grid import LocalGrid

NAMES = ["aalborg", "bergen", "coimbra", "delft", "espoo", "fulda", "ghent", "hobro"]
KEYS = {name: X25519PrivateKey.generate() for name in NAMES}
ROSTER = roster_of(KEYS)
FRAMES = FrameSpec(atlas="schaefer200", window={}, holdout=0, seed=0)
MOMENTS = Job(analysis="second_moments", parameters={}, table=FRAMES)
TRAINING = {"model": {}, "training": {}, "round_number": 1, "rounds": 1, "seed": 0}
STEP = Step(source="a", result="b", transform="projection")
QUESTIONS = {
    question.stage: question
    for question in (
        Question("measuring", SummarizeRequest(study="s", jobs={"x": MOMENTS}), SummarizeReply, {}),
        Question("pretraining", TrainRequest(study="s", **TRAINING, arrays={"weights/w": np.zeros(2)}), TrainReply, {}),
        Question("embedding", EmbedRequest(study="s", model={}, recipe="r", holdout=0, seed=0), EmbedReply, {}),
        Question("harmonization", HarmonizeRequest(study="s", steps=[STEP]), HarmonizeReply, {}),
    )
}
ATLASES = {"schaefer200": 200, "schaefer100": 100}


class Hospitals(LocalGrid):
    """The first sites of `NAMES`, which mask made-up sums: of each part the site's number, in every element.

    `silent` are those that no longer answer, `deviating` those whose arrays have another shape, from an attempt on.
    Every third site has an atlas of its own kind.
    """

    def __init__(self, n_sites: int, silent: list[str], deviating: dict[str, int]) -> None:
        super().__init__([Path()] * n_sites, self._reply)
        self.silent, self.deviating = silent, deviating
        self._asked = ""

    def _reply(self, node: int, message: Message) -> Message | bool:
        site = NAMES[node - 1]
        if message.metadata.message_type == DescribeRequest.message:
            return Message(self._about(site).to_records(), reply_to=message)
        kind = message.content["header"]["kind"]
        question = next(one for one in QUESTIONS.values() if type(one.request).__name__ == kind)
        request, stage = type(question.request).from_records(message.content), question.stage
        assert bool(request.arrays) == (stage == "pretraining" and request.secure.attempt == 1)  # never sent again
        if request.secure.attempt == 1:
            self._asked = request.question
        if site in self.silent:
            return False
        shape = (3,) if request.secure.attempt >= self.deviating.get(site, 99) else (2,)
        values = {name: np.full(shape, float(NAMES.index(site) + 1)) for name in self.parts(site, stage)}
        sealed = seal(
            question.reply(arrays=values),
            request,
            Masker(site, KEYS[site], ROSTER),
            site=site,
            run=request.run,
            question=self._asked,
        )
        return Message(sealed.to_records(), reply_to=message)

    @staticmethod
    def parts(site: str, stage: str) -> list[str]:
        if stage == "measuring":
            return ["x/total"]
        evaluation = [f"evaluation/{_atlas(site)}/parcels", "overall/model"]
        return ["tally/n", *(evaluation if stage in ("pretraining", "embedding") else [])]

    def _about(self, site: str) -> DescribeReply:
        counts = dict.fromkeys(("n_participants", "n_recordings", "n_windows"), 20)
        counts["n_parcels"] = ATLASES[_atlas(site)]
        about = {"site": site, "atlas": _atlas(site), "preprocessing": "x", "software": {}, "rosters": [ROSTER.hash]}
        return DescribeReply(**about, **counts, n_quarantined=0)


def _atlas(site: str) -> str:
    return list(ATLASES)[NAMES.index(site) % 3 == 2]


def begun(folder: Path, grid: Hospitals, *, quorum: int = 3, attempts: int = 2) -> Inquiry:
    folder.mkdir(parents=True, exist_ok=True)
    limits = RoundsConfig(quorum=quorum, deadline_s=5, start_deadline_s=5, quorum_deadline_s=0)
    presence = Presence(grid, Journal(folder), limits, ProtectionConfig())
    request = DescribeRequest(
        study="s", contract={"atlases": ATLASES}, window={}, analyses=[], recipe="r", holdout=0, folds=1
    )
    presence.gather(request)
    return Inquiry(presence, attempts)


def ask(inquiry: Inquiry, stage: str) -> dict[str, np.ndarray]:
    """What the sites sum."""
    presence, request = inquiry.presence, QUESTIONS[stage].request
    if stage in ("pretraining", "embedding"):
        request = request.model_copy(update={"groups": evaluation_groups(presence.about, secure=True)})
    if stage == "measuring":
        request = request.model_copy(update={"groups": [Group(parts=["x"], sites=presence.sites)]})
    parts = {name for site in presence.sites for name in Hospitals.parts(site, stage)}
    expected = {name: Expected("sum", (2,)) for name in parts}
    return inquiry.ask(replace(QUESTIONS[stage], request=request, expected=expected)).total


def outcomes(folder: Path) -> dict[str, set[str]]:
    """What came of each site, in all attempts."""
    table = Journal(folder).table("outcomes")
    exchanges = Journal(folder).table("exchanges").query("message != 'query.describe'")["id"]
    return table[table["exchange"].isin(exchanges)].groupby("site")["outcome"].apply(set).to_dict()


def sum_of(sites: list[str]) -> float:
    return float(sum(NAMES.index(site) + 1 for site in sites))


CASES = [
    (NAMES[:n_sites], NAMES[start : start + n_silent])
    for n_sites in range(3, 9)
    for n_silent in range(n_sites - 2)
    for start in sorted({0, (n_sites - n_silent) // 2, n_sites - n_silent})
]
"""Sites, and those of them that are silent: the first, the middle or the last ones, but for three or more."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Look for answers at once: they are there."""
    monkeypatch.setattr(replies, "_FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize("stage", QUESTIONS)
def test_those_that_answered_are_added_however_many_are_silent(tmp_path, stage):
    for number, (names, silent) in enumerate(CASES):
        left = [name for name in names if name not in silent]
        folder = tmp_path / str(number)
        inquiry = begun(folder, Hospitals(len(names), silent, {}), quorum=len(left))

        total = ask(inquiry, stage)

        part = "x/total" if stage == "measuring" else "tally/n"
        np.testing.assert_array_equal(total[part], [sum_of(left)] * 2)
        for atlas in ATLASES:
            having = [name for name in left if _atlas(name) == atlas]
            if stage in ("pretraining", "embedding") and len(having) >= 3:
                np.testing.assert_array_equal(total[f"evaluation/{atlas}/parcels"], [sum_of(having)] * 2)
            else:
                assert f"evaluation/{atlas}/parcels" not in total
        said = outcomes(folder)
        assert {site for site, what in said.items() if what == {"ok"}} == set(left)
        assert {site for site, what in said.items() if what == {"no reply"}} == set(silent)


@pytest.mark.parametrize("stage", QUESTIONS)
def test_beside_silent_sites_one_that_deviates_is_left_out_and_no_other(tmp_path, stage):
    for number, (names, silent) in enumerate(CASES):
        answering = [name for name in names if name not in silent]
        if len(answering) < 4:
            continue  # without the deviating one they would be too few
        deviating = answering[number % len(answering)]
        left = [name for name in answering if name != deviating]
        folder = tmp_path / str(number)
        inquiry = begun(folder, Hospitals(len(names), silent, {deviating: 1}))

        total = ask(inquiry, stage)

        part = "x/total" if stage == "measuring" else "tally/n"
        np.testing.assert_array_equal(total[part], [sum_of(left)] * 2)
        said = outcomes(folder)
        assert said[deviating] == {"protocol.unreadable"}
        assert {site for site, what in said.items() if what == {"ok"}} == set(left)


def test_a_site_that_deviates_once_others_fell_silent_takes_one_more_attempt(tmp_path):
    """It is not answered by an attempt more than privacy.max_attempts: then the run ends and names it, and no other."""
    inquiry = begun(tmp_path / "three", Hospitals(7, ["aalborg", "hobro", "bergen"], {"delft": 2}), attempts=3)

    np.testing.assert_array_equal(
        ask(inquiry, "pretraining")["tally/n"], [sum_of(["coimbra", "espoo", "fulda", "ghent"])] * 2
    )

    two = begun(tmp_path / "two", Hospitals(7, ["aalborg", "bergen"], {"delft": 2}))
    with pytest.raises(QuorumError, match=r"in each of 2 attempts.*delft: protocol\.unreadable") as failed:
        ask(two, "pretraining")
    assert not any(name in str(failed.value) for name in ("coimbra", "espoo", "fulda", "ghent"))
