"""What can be wrong with a site's files, and what to do about each.

Every message names the thing, what was expected of it, and the remedy, in one or two lines.
"""

from base.errors import FedBrainLMError


class CohortError(FedBrainLMError):
    """A cohort cannot be made, opened or changed as asked. Do what the message says and repeat the command."""


class AtlasError(CohortError):
    """An atlas is unknown or its table is broken. Name a known atlas, or correct the table."""


class ParticipantsError(CohortError):
    """The participants table is broken. Correct the named rows or columns."""


class VectorsError(CohortError):
    """A second table of vectors is missing or broken. Correct the named column or rows, and import it again."""


class NoRecordingsError(CohortError):
    """A source has no usable recording. Do what the message says about the first one."""


class RecordingError(CohortError):
    """One recording is not usable. Preparation quarantines it with this message and goes on.

    Parameters
    ----------
    code : str
        A stable name of the fault, such as ``transposed``; tables and counts use it.
    message : str
        The file or key, the expectation and the remedy.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["RecordingError"], tuple[str, str]]:
        """Let it cross from one process to another."""
        return type(self), (self.code, str(self))
