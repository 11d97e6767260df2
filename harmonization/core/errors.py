"""What can go wrong in an analysis, and what to do about each."""

from base.errors import FedBrainLMError


class HarmonizationError(FedBrainLMError):
    """The data do not allow the analysis. The message says what was found and what to change."""


class SmallGroupError(HarmonizationError):
    """A sum would stand for fewer participants than the site allows. Use fewer folds, or coarser categories."""


class DesignError(HarmonizationError):
    """A covariate is missing, has an unknown level, or says nothing. Correct the table or the study's covariates."""


class TableError(HarmonizationError):
    """Features, covariates or targets have the wrong shape or are not finite. Give one finite row a participant."""
