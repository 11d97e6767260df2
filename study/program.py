"""The order of a study's questions, as a pure reducer: no network, no disk, no clock.

Whoever drives it asks the sites each question, adds what they answer, and says which of them are in the sum; from the
same study, sites and sums the same questions follow, wherever and however often they are asked for.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from exchange.messages import Arrays, DescribeReply
from study import harmonizing, measuring
from study.comparing import lacking_sites
from study.errors import StudyError
from study.harmonizing import HARMONIZATION
from study.measuring import MEASURING
from study.pretraining import Embedding, Rounds
from study.question import Question
from study.settings import Study
from study.state import Findings, State
from study.sums import Sums

STAGES: tuple[Sums | Rounds | Embedding, ...] = (
    Sums("quartiles", MEASURING, measuring.quartile_tasks, measuring.keep_scaling, strict=True),
    Sums("moments", MEASURING, measuring.moment_tasks, measuring.keep_moments, strict=True),
    Rounds(),
    Embedding(),
    Sums("components", HARMONIZATION, harmonizing.component_tasks, harmonizing.with_components),
    Sums("held out", HARMONIZATION, harmonizing.held_out_tasks, harmonizing.with_methods),
    Sums("final", HARMONIZATION, harmonizing.final_tasks, harmonizing.with_recipe),
    Sums("association", HARMONIZATION, harmonizing.association_tasks, harmonizing.with_association, optional=True),
)
"""Each asks until it is over. What it then has solved, the sites apply before the next one begins."""
DONE = "done"
_STAGES = {stage.name: stage for stage in STAGES}
_NEXT = dict(zip(_STAGES, [*list(_STAGES)[1:], DONE], strict=True))


@dataclass(frozen=True)
class Program:
    """What a study asks, in order."""

    study: Study
    """With all that it asks for."""

    def begin(self, sites: Mapping[str, DescribeReply], weights: Arrays) -> State:
        """Begin with the sites that gathered, and weights of round 0; a StudyError if one that it needs is missing."""
        reference = self.study.harmonization.reference
        if reference is not None and reference not in sites:
            raise StudyError(f"harmonization.reference: site '{reference}' does not take part. Name another.")
        begun = State(stage=STAGES[0].name, sites=dict(sorted(sites.items()))).holding(weights=weights)
        return self._settled(begun)

    def resume(self, state: State, round_number: int, weights: Arrays, memory: Arrays) -> State:
        """Go on after a round of training that was kept: its weights, and what the outer optimizer remembers."""
        return self._settled(state.but(round_number=round_number).holding(weights=weights, outer=memory))

    def ask(self, state: State) -> Question | None:
        """Return the next question; None once the study is done."""
        if state.steps:
            return harmonizing.ask_to_apply(self.study, state)
        return None if state.stage == DONE else _STAGES[state.stage].ask(self.study, state)

    def advance(self, state: State, sites: Collection[str], total: Arrays) -> State:
        """Go on with the sum of the answers to `ask`.

        Parameters
        ----------
        sites : collection of str
            Whose answers were added: those that took part, and not those that fell silent.
        total : dict
            Name → sum over those of them that send it.

        Raises
        ------
        StudyError, HarmonizationError
            If the study cannot go on from it.
        """
        if state.steps:
            return self._settled(harmonizing.once_applied(state, sites, total))
        return self._settled(_STAGES[state.stage].advance(self.study, state, sites, total))

    def findings(self, state: State) -> Findings:
        """Return what was found, and what so few sites could not give."""
        return state.and_found(*lacking_sites(self.study, len(state.sites))).findings

    def _settled(self, state: State) -> State:
        """Pass over stages that have nothing more to ask."""
        while not state.steps and state.stage != DONE and _STAGES[state.stage].is_over(self.study, state):
            state = _STAGES[state.stage].end(self.study, state).but(stage=_NEXT[state.stage])
        return state


def unlike(study: Study, sites: Mapping[str, DescribeReply]) -> dict[str, str]:
    """Name the sites whose vectors have other dimensions than those of most, and say why they are left out.

    A StudyError ends the study if the others are too few.
    """
    if study.association is None:
        return {}
    vectors, found = study.association.vectors, {site: about.n_vector_dimensions for site, about in sites.items()}
    ((most, n_alike),) = Counter(found.values()).most_common(1)
    if n_alike < len(found) and (n_alike < study.averaging.quorum or 2 * n_alike <= len(found)):
        listed = ", ".join(f"{site} {number}" for site, number in found.items())
        raise StudyError(f"vectors '{vectors}' have other dimensions at each site ({listed}). Use one model for all.")
    said = "its vectors '{}' have {} dimensions; most have {}"
    return {site: said.format(vectors, number, most) for site, number in found.items() if number != most}
