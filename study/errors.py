"""What a study's program cannot go on from."""

from base.errors import FedBrainLMError


class StudyError(FedBrainLMError):
    """The study's file contradicts itself, or the sites and their sums. Correct the file."""
