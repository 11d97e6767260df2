"""Why a site did not answer: stable codes that say nothing about its data.

A code is an answer, too. Whoever may ask anything, and hears that this question fails by a rule and that one by
another, learns the data behind both. So all that depends on the participants leaves as one code, `RefusalCode.DATA`;
which rule it was stays in the site's own log.
"""

from enum import StrEnum


class RefusalCode(StrEnum):
    """A refusal or failure at a site. What `told` returns crosses the wire; all else stays in the site's log.

    Each has Flower's error code, above the numbers that Flower keeps for itself and never given to another; what it
    means, without data; and whether it depends on the participants' data, on how many they are, or on what was told of
    them before.
    """

    number: int
    sentence: str
    of_data: bool

    def __new__(cls, code: str, number: int = 0, sentence: str = "", of_data: bool = False) -> "RefusalCode":
        refusal = str.__new__(cls, code)
        refusal._value_, refusal.number, refusal.sentence, refusal.of_data = code, number, sentence, of_data
        return refusal

    PROTOCOL = (
        "protocol.unreadable",
        1000,
        "the message is not one that this version understands; use the same version everywhere",
    )
    STUDY = "policy.study-not-allowed", 1001, "the site's policy does not allow this study"
    ANALYSIS = "policy.analysis-not-allowed", 1002, "the site's policy does not allow an analysis of this study"
    RECIPE = "policy.recipe-not-allowed", 1003, "the site's policy does not allow this embedding recipe"
    PARTICIPANTS = (
        "policy.too-few-participants",
        1004,
        "fewer participants than the site's policy asks for stand behind the answer",
        True,
    )
    GROUP = (
        "policy.small-group",
        1014,
        "a part of the answer would stand for fewer participants than the site's policy asks for",
        True,
    )
    COLUMN = (
        "policy.column-not-allowed",
        1017,
        "the site's policy does not let a study use a column that this one asks for",
    )
    RATIO = (
        "policy.too-many-covariates",
        1018,
        "the study has more covariates than the site's participants and its policy allow",
        True,
    )
    ROUNDS = "policy.too-many-rounds", 1019, "the site has trained as many rounds of this study as its policy allows"
    RELEASES = "policy.too-many-releases", 1020, "the site has answered this study as often as its policy allows"
    REFUSALS = (
        "policy.too-many-refusals",
        1034,
        "the site refused this study, for reasons in its data, as often as its policy allows",
    )
    LIMIT = (
        "policy.too-large",
        1036,
        "what was asked would take more of the site's time or memory than its policy gives",
    )
    PLAIN = "policy.secure-sum-required", 1005, "the site's policy lets sums leave only inside a secure sum"
    GRAM = (
        "disclosure.gram-of-few",
        1021,
        "without a secure sum, second moments of as many features as participants would show the participants",
        True,
    )
    REPEAT = (
        "disclosure.cohort-changed-little",
        1022,
        "the site answered this question before for a cohort that differs in fewer participants than its policy asks",
        True,
    )
    SITES = (
        "disclosure.other-sites-before",
        1023,
        "the site answered this question before among other sites, as often as its policy allows",
        True,
    )
    PRIVACY = (
        "privacy.not-as-required",
        1024,
        "the site's policy asks for differential privacy that the study does not offer",
    )
    BUDGET = "privacy.budget-spent", 1025, "the site's privacy budget for this study is spent"
    NOT_PRIVATE = "privacy.not-possible", 1026, "what the study asks for cannot be given with differential privacy"
    ROSTER = "sum.roster-not-approved", 1027, "the site's administrator has not approved the roster of this secure sum"
    FEW_SITES = "sum.too-few-sites", 1028, "a secure sum over so few sites would show too much of each"
    CONTEXT = (
        "sum.context-used-before",
        1029,
        "a secure sum of that name was answered before, and its answer is gone or the question was another",
    )
    ATTEMPT = (
        "sum.attempt-not-allowed",
        1030,
        "a further attempt at a secure sum must follow the one before, among fewer sites",
    )
    OVERFLOW = "sum.overflow", 1031, "a number is too large for the secure sum", True
    AUDIT = "audit.broken", 1032, "the site's audit log is damaged, and nothing leaves until it is mended"
    ATLAS = "contract.atlas", 1006, "the cohort's atlas is not one that the study allows"
    TIMING = "contract.repetition-time", 1007, "a repetition time of the cohort lies outside what the study allows"
    SCALING = (
        "contract.scaling",
        1015,
        "the cohort's recordings were z-scored before, and the study scales them otherwise",
    )
    COVARIATES = "contract.covariates", 1008, "the cohort lacks a covariate of the study", True
    VECTORS = "contract.vectors", 1016, "the site has no vectors of that name, or cannot read them; its log says why"
    WINDOWS = (
        "contract.no-usable-recordings",
        1009,
        "too few recordings of the cohort are as long as the study's window",
        True,
    )
    DIVERGED = "training.diverged", 1010, "the local loss became NaN or infinite", True
    ANALYSIS_FAILED = "analysis.not-possible", 1011, "the site's data do not allow an analysis; its log says why", True
    CODE = "site.code-not-approved", 1033, "the site's administrator has not approved the app that the run brings"
    DATA = "site.cannot-answer", 1035, "what was asked cannot be answered of the site's participants; its log says why"
    SETUP = "site.not-set-up", 1012, "the site is not set up; its log says why"
    INTERNAL = "site.internal-error", 1013, "an error at the site; its log has the details", True

    @property
    def told(self) -> "RefusalCode":
        """The code that the coordinator hears."""
        return RefusalCode.DATA if self.of_data else self


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
