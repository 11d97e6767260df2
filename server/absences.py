"""Sites that were not in all of a run: who, where, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from exchange.refusals import RefusalCode
from server.journal import Journal

AWAY = "not online"
"""Why a site is missing that was not there when the run began."""
_STAGES = {"describe": "when the sites gathered", "measuring": "when recordings were measured"}


@dataclass(frozen=True)
class Absence:
    """A site that did not answer, or not as it should."""

    site: str
    """Its name."""
    stage: str
    """Where: ``describe`` is the question with which a run begins."""
    rounds: tuple[int, ...]
    """In which rounds of training, if it was in training."""
    why: str
    """``no reply``, a code of `exchange.refusals.RefusalCode`, or a few words."""
    for_good: bool
    """Whether the run went on without it from then on."""

    @property
    def sentence(self) -> str:
        """What became of the site, for people."""
        if self.rounds:
            place = f"{'round' if len(self.rounds) == 1 else 'rounds'} {_listed(self.rounds)} of {self.stage}"
        else:
            place = _STAGES.get(self.stage, f"in {self.stage}")
        what = "was left out" if self.for_good else "missed" if self.rounds else "did not answer"
        return f"{self.site} {what} {place}: {explained(self.why)}"


def absences_of(journal: Journal) -> list[Absence]:
    """Find the sites that a run left out for good, and then those that missed a question."""
    left_out = [Absence(site, stage, (), why, for_good=True) for site, stage, why in journal.left_out()]
    left = {(absence.site, absence.stage) for absence in left_out}
    missed: dict[tuple[str, str, str], list[int]] = {}
    for site, stage, round_number, why in journal.unanswered():
        if (site, stage) not in left:
            missed.setdefault((site, stage, why), []).extend([] if round_number is None else [round_number])
    return left_out + [
        Absence(site, stage, tuple(sorted(rounds)), why, for_good=False)
        for (site, stage, why), rounds in sorted(missed.items())
    ]


def explained(said: str) -> str:
    """Add to a code what it means."""
    return f"{said} ({RefusalCode(said).sentence})" if said in list(RefusalCode) else said


def silent(outcomes: Mapping[str, str]) -> str:
    """Say of each site that did not answer what came instead."""
    return "; ".join(f"{name}: {explained(said)}" for name, said in outcomes.items() if said != "ok")


def _listed(rounds: tuple[int, ...]) -> str:
    """Name rounds, those in a row by the first and the last of them."""
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)
