"""A study's questions to its sites: what is asked and masked, and what was answered, added and kept."""

import time
from collections import Counter
from dataclasses import replace

from exchange.aggregation import add_replies
from exchange.key_roster import MIN_SITES
from exchange.messages import AnySumRequest, Group, MessageError, SecureSum, SumReply
from exchange.refusals import RefusalCode
from server.absences import silent
from server.answers import Answers, read_answers
from server.errors import QuorumError, ServerError
from server.journal import Attempt
from server.presence import POLL_S, Presence
from study.question import Question, together

_LONGEST_PAUSE_S = 30


class Inquiry:
    """Asks the sites that are present, once they have gathered; at a secure sum in so many attempts at the most."""

    def __init__(self, presence: Presence, max_attempts: int) -> None:
        self.presence = presence
        self._max_attempts = max_attempts
        self._journal = presence.line.journal
        self._asked: Counter[str] = Counter()  # questions by stage

    def ask(self, question: Question) -> Answers:
        """Ask every site, and add the answers; one that is not as the question expects counts as none.

        Where sums are masked and a site fell silent, those that are left are asked once more, for the answers that
        they kept, masked among themselves.

        Raises
        ------
        QuorumError
            If fewer sites than the quorum, or than a secure sum needs, answered before the deadline.
        ServerError
            If the answers do not open, for which nobody can be named.
        """
        stage, said = question.stage, question.request.question
        self._asked[stage] += 1
        number = self._asked[stage] if question.round_number is None else question.round_number
        path = self._journal.answers(stage, number)
        if self._journal.is_whole(path) and (known := read_answers(path, said, question.reply)) is not None:
            return known
        answers = self._attempts(question, self._journal.attempt(stage, number, said, tuple(self.presence.sites)))
        answers.save(path, said)
        self._journal.seal(path)
        return answers

    def _attempts(self, question: Question, attempt: Attempt) -> Answers:
        """Ask until the sites of an attempt have answered, or those that are left of them."""
        masked, where = bool(self.presence.keys.roster), _place(question)
        while True:
            asked = question.request.model_copy(update={"run": self._journal.run})
            if masked:
                asked = self._masked(asked, attempt, question.bound)
            replies, outcomes = self._ask_until_quorum(replace(question, request=asked), attempt)
            if not masked or len(replies) == len(attempt.sites):
                try:
                    return Answers(replies, add_replies(asked, replies), masked=masked)
                except MessageError as error:
                    raise ServerError(f"{where}: {error}") from None
            self._require_another_attempt(attempt.attempt, outcomes, where)
            attempt = replace(attempt, attempt=attempt.attempt + 1, sites=tuple(replies))

    def _ask_until_quorum(self, question: Question, attempt: Attempt) -> tuple[dict[str, SumReply], dict[str, str]]:
        """Ask the sites of an attempt; below the quorum wait for those that are missing, and ask them again.

        A site answers the same question of an attempt as often as it is asked, and with the same.
        """
        answers: dict[str, SumReply] = {}
        outcomes: dict[str, str] = {}
        limits, where = self.presence.limits, _place(question)
        give_up, pause, waited_for = None, POLL_S, ""
        while True:
            arrived, said = self.presence.line.exchange(
                question.request,
                question.reply.from_records,
                {site: self.presence.nodes.get(site) for site in attempt.sites if site not in answers},
                question.stage,
                expected=question.expected,
                round_number=question.round_number,
                attempt=attempt,
            )
            answers |= arrived
            outcomes |= said
            if len(answers) >= limits.quorum:
                return {site: answers[site] for site in attempt.sites if site in answers}, outcomes
            give_up = give_up or time.monotonic() + limits.quorum_deadline_s
            if time.monotonic() >= give_up or not any(map(_may_change, outcomes.values())):
                self.presence.require_quorum(len(answers), outcomes, where)
            missing = ", ".join(site for site, said in outcomes.items() if said != "ok")
            if missing != waited_for:
                self._journal.say(f"{where}: below the quorum of {limits.quorum}; waiting for {missing}")
            waited_for = missing
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            self.presence.look_again()

    def _masked(self, request: AnySumRequest, attempt: Attempt, bound: float) -> AnySumRequest:
        """Ask for an answer under masks; after the first attempt for the one that the sites kept."""
        sites, roster = list(attempt.sites), self.presence.keys.roster
        groups = [
            Group(parts=group.parts, sites=together({*sites} & {*group.sites}, secure=True)) for group in request.groups
        ]
        secure = SecureSum(roster=roster, step=attempt.step, attempt=attempt.attempt, sites=sites, bound=bound)
        arrays = request.arrays if attempt.attempt == 1 else {}
        return request.model_copy(update={"groups": groups, "secure": secure, "arrays": arrays})

    def _require_another_attempt(self, attempt: int, outcomes: dict[str, str], where: str) -> None:
        answered = sum(said == "ok" for said in outcomes.values())
        if answered < MIN_SITES:
            raise QuorumError(
                f"{where}: {answered} sites are left, and a secure sum needs {MIN_SITES}, or it would show too much "
                f"of each. {silent(outcomes)}."
            )
        if attempt >= self._max_attempts:
            raise QuorumError(
                f"{where}: a site was missing in each of {attempt} attempts at a secure sum. {silent(outcomes)}. "
                "Resume the run when they answer again, or begin it again with a larger privacy.max_attempts, as far "
                "as the sites' policies allow."
            )


def _place(question: Question) -> str:
    return question.stage if question.round_number is None else f"{question.stage}, round {question.round_number}"


def _may_change(said: str) -> bool:
    """Whether a site that is asked again may answer: a refusal stays one."""
    return said != "ok" and said not in list(RefusalCode)
