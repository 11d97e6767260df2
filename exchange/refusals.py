"""Why a site did not answer: stable codes that say nothing about its data.

A code is an answer, too. Whoever may ask anything, and hears that this question fails by a rule and that one by
another, learns the data behind both. So all that depends on the participants leaves as one code, `RefusalCode.DATA`;
which rule it was stays in the site's own log.
"""

from enum import StrEnum


class RefusalCode(StrEnum):
    """A refusal or failure at a site. What `told` returns crosses the wire; all else stays in the site's log."""

    PROTOCOL = "protocol.unreadable"
    STUDY = "policy.study-not-allowed"
    ANALYSIS = "policy.analysis-not-allowed"
    RECIPE = "policy.recipe-not-allowed"
    PARTICIPANTS = "policy.too-few-participants"
    GROUP = "policy.small-group"
    COLUMN = "policy.column-not-allowed"
    RATIO = "policy.too-many-covariates"
    ROUNDS = "policy.too-many-rounds"
    RELEASES = "policy.too-many-releases"
    REFUSALS = "policy.too-many-refusals"
    LIMIT = "policy.too-large"
    PLAIN = "policy.secure-sum-required"
    GRAM = "disclosure.gram-of-few"
    REPEAT = "disclosure.cohort-changed-little"
    SITES = "disclosure.other-sites-before"
    PRIVACY = "privacy.not-as-required"
    BUDGET = "privacy.budget-spent"
    NOT_PRIVATE = "privacy.not-possible"
    ROSTER = "sum.roster-not-approved"
    FEW_SITES = "sum.too-few-sites"
    CONTEXT = "sum.context-used-before"
    ATTEMPT = "sum.attempt-not-allowed"
    OVERFLOW = "sum.overflow"
    AUDIT = "audit.broken"
    ATLAS = "contract.atlas"
    TIMING = "contract.repetition-time"
    SCALING = "contract.scaling"
    COVARIATES = "contract.covariates"
    VECTORS = "contract.vectors"
    WINDOWS = "contract.no-usable-recordings"
    DIVERGED = "training.diverged"
    ANALYSIS_FAILED = "analysis.not-possible"
    CODE = "site.code-not-approved"
    DATA = "site.cannot-answer"
    SETUP = "site.not-set-up"
    INTERNAL = "site.internal-error"

    @property
    def told(self) -> "RefusalCode":
        """The code that the coordinator hears."""
        return RefusalCode.DATA if self in _OF_DATA else self

    @property
    def number(self) -> int:
        """Flower's error code: above the numbers that Flower keeps for itself."""
        return _ABOUT[self][0]

    @property
    def sentence(self) -> str:
        """What the code means, without data."""
        return _ABOUT[self][1]


#: Number and sentence of each code. A number is never given to another code.
_ABOUT = {
    RefusalCode.PROTOCOL: (
        1000,
        "the message is not one that this version understands; use the same version everywhere",
    ),
    RefusalCode.STUDY: (1001, "the site's policy does not allow this study"),
    RefusalCode.ANALYSIS: (1002, "the site's policy does not allow an analysis of this study"),
    RefusalCode.RECIPE: (1003, "the site's policy does not allow this embedding recipe"),
    RefusalCode.PARTICIPANTS: (1004, "fewer participants than the site's policy asks for stand behind the answer"),
    RefusalCode.GROUP: (
        1014,
        "a part of the answer would stand for fewer participants than the site's policy asks for",
    ),
    RefusalCode.PLAIN: (1005, "the site's policy lets sums leave only inside a secure sum"),
    RefusalCode.COLUMN: (1017, "the site's policy does not let a study use a column that this one asks for"),
    RefusalCode.RATIO: (1018, "the study has more covariates than the site's participants and its policy allow"),
    RefusalCode.ROUNDS: (1019, "the site has trained as many rounds of this study as its policy allows"),
    RefusalCode.RELEASES: (1020, "the site has answered this study as often as its policy allows"),
    RefusalCode.GRAM: (
        1021,
        "without a secure sum, second moments of as many features as participants would show the participants",
    ),
    RefusalCode.REPEAT: (
        1022,
        "the site answered this question before for a cohort that differs in fewer participants than its policy asks",
    ),
    RefusalCode.SITES: (
        1023,
        "the site answered this question before among other sites, as often as its policy allows",
    ),
    RefusalCode.PRIVACY: (1024, "the site's policy asks for differential privacy that the study does not offer"),
    RefusalCode.BUDGET: (1025, "the site's privacy budget for this study is spent"),
    RefusalCode.NOT_PRIVATE: (1026, "what the study asks for cannot be given with differential privacy"),
    RefusalCode.ROSTER: (1027, "the site's administrator has not approved the roster of this secure sum"),
    RefusalCode.FEW_SITES: (1028, "a secure sum over so few sites would show too much of each"),
    RefusalCode.CONTEXT: (
        1029,
        "a secure sum of that name was answered before, and its answer is gone or the question was another",
    ),
    RefusalCode.ATTEMPT: (1030, "a further attempt at a secure sum must follow the one before, among fewer sites"),
    RefusalCode.OVERFLOW: (1031, "a number is too large for the secure sum"),
    RefusalCode.AUDIT: (1032, "the site's audit log is damaged, and nothing leaves until it is mended"),
    RefusalCode.ATLAS: (1006, "the cohort's atlas is not one that the study allows"),
    RefusalCode.TIMING: (1007, "a repetition time of the cohort lies outside what the study allows"),
    RefusalCode.SCALING: (1015, "the cohort's recordings were z-scored before, and the study scales them otherwise"),
    RefusalCode.COVARIATES: (1008, "the cohort lacks a covariate of the study"),
    RefusalCode.VECTORS: (
        1016,
        "the site has no vectors of that name, or cannot read them; its log says why",
    ),
    RefusalCode.WINDOWS: (1009, "no recording of the cohort is as long as the study's window"),
    RefusalCode.DIVERGED: (1010, "the local loss became NaN or infinite"),
    RefusalCode.ANALYSIS_FAILED: (1011, "the site's data do not allow an analysis; its log says why"),
    RefusalCode.CODE: (1033, "the site's administrator has not approved the app that the run brings"),
    RefusalCode.REFUSALS: (1034, "the site refused this study, for reasons in its data, as often as its policy allows"),
    RefusalCode.LIMIT: (1036, "what was asked would take more of the site's time or memory than its policy gives"),
    RefusalCode.DATA: (1035, "what was asked cannot be answered of the site's participants; its log says why"),
    RefusalCode.SETUP: (1012, "the site is not set up; its log says why"),
    RefusalCode.INTERNAL: (1013, "an error at the site; its log has the details"),
}

_OF_DATA = frozenset(
    {
        RefusalCode.PARTICIPANTS,
        RefusalCode.GROUP,
        RefusalCode.RATIO,
        RefusalCode.GRAM,
        RefusalCode.REPEAT,
        RefusalCode.SITES,
        RefusalCode.OVERFLOW,
        RefusalCode.COVARIATES,
        RefusalCode.WINDOWS,
        RefusalCode.DIVERGED,
        RefusalCode.ANALYSIS_FAILED,
        RefusalCode.INTERNAL,
    }
)
"""Codes that depend on the participants' data, on how many they are, or on what was told of them before."""


class Refusal(Exception):  # noqa: N818 (it is an answer, not an error)
    """A site will not or cannot answer.

    Parameters
    ----------
    code : RefusalCode
        Which rule; the coordinator hears what `RefusalCode.told` makes of it.
    detail : str
        What the site's own log is told.
    """

    def __init__(self, code: RefusalCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
