"""Why a site did not answer: stable codes that say nothing about its data."""

from enum import StrEnum


class RefusalCode(StrEnum):
    """A refusal or failure at a site. The value crosses the wire; the details stay in the site's log."""

    PROTOCOL = "protocol.unreadable"
    STUDY = "policy.study-not-allowed"
    ANALYSIS = "policy.analysis-not-allowed"
    RECIPE = "policy.recipe-not-allowed"
    PARTICIPANTS = "policy.too-few-participants"
    PLAIN = "policy.secure-sum-required"
    ATLAS = "contract.atlas"
    TIMING = "contract.repetition-time"
    COVARIATES = "contract.covariates"
    WINDOWS = "contract.no-usable-recordings"
    DIVERGED = "training.diverged"
    ANALYSIS_FAILED = "analysis.not-possible"
    SETUP = "site.not-set-up"
    INTERNAL = "site.internal-error"

    @property
    def number(self) -> int:
        """Flower's error code: above the numbers that Flower keeps for itself."""
        return 1000 + list(RefusalCode).index(self)

    @property
    def sentence(self) -> str:
        """What the code means, without data."""
        return _SENTENCES[self]


_SENTENCES = {
    RefusalCode.PROTOCOL: "the message is not one that this version understands; use the same version everywhere",
    RefusalCode.STUDY: "the site's policy does not allow this study",
    RefusalCode.ANALYSIS: "the site's policy does not allow an analysis of this study",
    RefusalCode.RECIPE: "the site's policy does not allow this embedding recipe",
    RefusalCode.PARTICIPANTS: "fewer participants than the site's policy asks for stand behind the answer",
    RefusalCode.PLAIN: "the site's policy lets sums leave only inside a secure sum",
    RefusalCode.ATLAS: "the cohort's atlas is not one that the study allows",
    RefusalCode.TIMING: "a repetition time of the cohort lies outside what the study allows",
    RefusalCode.COVARIATES: "the cohort lacks a covariate of the study",
    RefusalCode.WINDOWS: "no recording of the cohort is as long as the study's window",
    RefusalCode.DIVERGED: "the local loss became NaN or infinite",
    RefusalCode.ANALYSIS_FAILED: "the site's data do not allow an analysis; its log says why",
    RefusalCode.SETUP: "the site is not set up; its log says why",
    RefusalCode.INTERNAL: "an error at the site; its log has the details",
}


class Refusal(Exception):  # noqa: N818 (it is an answer, not an error)
    """A site will not or cannot answer.

    Parameters
    ----------
    code : RefusalCode
        What the coordinator is told.
    detail : str
        What the site's own log is told.
    """

    def __init__(self, code: RefusalCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
