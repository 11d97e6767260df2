"""The messages: five questions of the coordinator, and what a site may answer to each.

A payload is a set of named arrays and a short header. On the wire it is one ArrayRecord and one ConfigRecord; reading
checks names, types and version, and takes nothing that the payload does not declare.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

PROTOCOL = 2
"""Version of the messages. Coordinator and sites must have the same."""

Arrays = dict[str, NDArray[Any]]


class MessageError(Exception):
    """A message cannot be read: another version, or damaged. Use the same version everywhere."""


class Payload(BaseModel):
    """A header of JSON-able fields, and named arrays."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, ser_json_inf_nan="constants")

    arrays: Arrays = Field(default_factory=dict, exclude=True)

    def to_records(self) -> RecordDict:
        """Return the payload as Flower's records."""
        header = ConfigRecord({"protocol": PROTOCOL, "kind": type(self).__name__, "json": self.model_dump_json()})
        arrays = {name: Array(np.asarray(values, order="C")) for name, values in self.arrays.items()}
        return RecordDict({"header": header, "arrays": ArrayRecord(arrays)})

    @classmethod
    def from_records(cls, records: RecordDict) -> Self:
        """Read what `to_records` returned.

        Raises
        ------
        MessageError
            If the records are of another kind or version, or damaged.
        """
        try:
            header, arrays = records["header"], records["arrays"]
            if not isinstance(header, ConfigRecord) or not isinstance(arrays, ArrayRecord) or len(records) != 2:
                raise MessageError("a message holds other records than its header and arrays.")
            if (header["protocol"], header["kind"]) != (PROTOCOL, cls.__name__):
                raise MessageError(
                    f"a message is {header['kind']!r} of protocol {header['protocol']!r}; expected {cls.__name__} of "
                    f"protocol {PROTOCOL}. Use the same version everywhere."
                )
            fields = json.loads(str(header["json"]))
            return cls(**fields, arrays={name: array.numpy() for name, array in arrays.items()})
        except MessageError:
            raise
        except Exception as error:  # whatever damaged bytes make of a reader
            raise MessageError(
                f"a message of kind {cls.__name__} is damaged. Use the same version everywhere."
            ) from error

    def part(self, name: str) -> Arrays:
        """Arrays whose names begin with `name` and a slash, without that."""
        return {
            key.removeprefix(f"{name}/"): values for key, values in self.arrays.items() if key.startswith(f"{name}/")
        }


def join(**parts: Mapping[str, NDArray[Any]]) -> Arrays:
    """Name arrays by their part: ``join(a={"b": x})`` is ``{"a/b": x}``. `Payload.part` takes them apart."""
    return {f"{part}/{name}": values for part, arrays in parts.items() for name, values in arrays.items()}


def size_of(records: RecordDict) -> int:
    """Bytes of the arrays and the header."""
    arrays = sum(len(array.data) for record in records.array_records.values() for array in record.values())
    return arrays + sum(len(str(value)) for record in records.config_records.values() for value in record.values())


# --- describe: may this site take part, and with how much? -----------------------------------------------------------


class DescribeRequest(Payload):
    """Everything that the study will ask for, so that a site can refuse at once.

    Attributes
    ----------
    study : str
        Name of the study.
    contract : dict
        What the cohort must be like (`cohorts.contract.CohortContract`).
    window : dict
        The model's window (`brainlm.config.WindowConfig`).
    analyses : list of str
        Names of the analyses, and ``pretraining`` and ``embedding``.
    recipe : str
        Id of the embedding recipe.
    holdout : float
        Fraction of participants to hold out of training.
    folds : int
        Folds of the cross-validated analyses; 1 if there are none.
    vectors : str or None
        Name of the second table of vectors that the study associates with the embeddings.
    """

    message: ClassVar[str] = "query.describe"

    study: str
    contract: dict[str, Any]
    window: dict[str, Any]
    analyses: list[str]
    recipe: str
    holdout: float
    folds: int
    vectors: str | None = None


class DescribeReply(Payload):
    """A site that takes part: its name, and counts; ``n_vector_dimensions`` is 0 if no vectors were asked for."""

    site: str
    n_participants: int
    n_recordings: int
    n_quarantined: int
    n_windows: int
    n_parcels: int
    n_vector_dimensions: int = 0
    atlas: str
    preprocessing: str
    software: dict[str, str]


# --- train: one round of local training ------------------------------------------------------------------------------


class TrainRequest(Payload):
    """The incoming model (part ``weights``) and the place of the round in the study.

    For robust scaling, part ``scaling/<atlas>`` is as in `EmbedRequest`; for a model that starts from the linear
    prediction, so is ``moments/<atlas>``.

    For robust scaling, part ``scaling/<atlas>`` holds median and iqr [P] (`brainlm.scaling.Scaling`).

    Attributes
    ----------
    model, training : dict
        `brainlm.architectures.AnyConfig` and `brainlm.config.TrainingConfig`.
    round_number, rounds : int
        This round, counted from 1, and all.
    seed : int
        The study's.
    """

    message: ClassVar[str] = "train"

    study: str
    model: dict[str, Any]
    training: dict[str, Any]
    round_number: int
    rounds: int
    seed: int


class TrainReply(Payload):
    """The trained model (part ``weights``), and how the incoming one did on held-out participants.

    Part ``evaluation`` holds the arrays of `brainlm.evaluation.ReconstructionSums`: sums by parcel and by horizon.

    Attributes
    ----------
    n_windows : int
        Weight of the site in the average.
    loss : float
        Mean over the round's windows.
    """

    n_windows: int = Field(ge=1)
    loss: float
    atlas: str


# --- embed: the final model, applied at the site; embeddings stay there ----------------------------------------------


class EmbedRequest(Payload):
    """The final model (part ``weights``) and the recipe.

    For robust scaling, part ``scaling/<atlas>`` holds median and iqr [P] (`brainlm.scaling.Scaling`). Part
    ``moments/<atlas>`` holds covariance, pairs and following [P, P], autocovariance [L] and n, where they were measured
    (`harmonization.Moments`).

    Attributes
    ----------
    holdout : float
        Fraction of participants held out of training, on whom the model is evaluated.
    seed : int
        The study's; it decides who was held out, and the weights of the untrained encoder.
    """

    message: ClassVar[str] = "query.embed"

    study: str
    model: dict[str, Any]
    recipe: str
    holdout: float
    seed: int


class EmbedReply(Payload):
    """How many participants were embedded, in how many dimensions, and how the model did (part ``evaluation``).

    Part ``baselines`` holds the sums of other predictors of the same hidden values, as ``baselines/<name>/<array>``.

    Attributes
    ----------
    dimensions : dict
        Feature set → number of features.
    """

    n_participants: int
    dimensions: dict[str, int]
    atlas: str


# --- summarize: one round of any analyses ----------------------------------------------------------------------------


class TableSpec(BaseModel):
    """Which rows and columns of a site make an analysis's table.

    Attributes
    ----------
    features : str
        Name of a feature set on the site's disk.
    through : str or None
        A feature set that was made by projection: its loadings stand between features and analysis.
    n_loadings : int or None
        How many of its leading components; None for all.
    covariates : list of dict
        The agreed design (`harmonization.Design.to_json`).
    target : str or None
        A covariate to predict, or ``site`` for the one-hot site.
    levels : list of str
        Agreed levels of a target that is a category, which becomes one-hot; for ``site`` the names of all sites.
    second : str or None
        A feature set that is the other view of the same participants; those who lack it are left out.
    complete : list of dict
        A design that rows must be complete in, too, so that variants are measured on the same people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: str
    through: str | None = None
    n_loadings: int | None = None
    covariates: list[dict[str, Any]] = []
    target: str | None = None
    levels: list[str] = []
    second: str | None = None
    complete: list[dict[str, Any]] = []


class FrameSpec(BaseModel):
    """Frames of a site's recordings as tables: those of its training participants, a table a recording.

    Sites with another atlas leave the job out. For robust scaling, part ``scaling/<atlas>`` of the request holds median
    and iqr.

    Attributes
    ----------
    atlas : str
        Name of the atlas.
    window : dict
        How recordings are resampled and scaled, and how long they must be (`brainlm.config.WindowConfig`).
    holdout : float
        Fraction of participants held out of training.
    seed : int
        The study's; it decides who is held out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    atlas: str
    window: dict[str, Any]
    holdout: float
    seed: int


class Job(BaseModel):
    """One analysis in one of its rounds.

    Attributes
    ----------
    analysis : str
        Name in `harmonization.ANALYSES`.
    parameters : dict
        Its parameters.
    table : TableSpec or FrameSpec
        What it is about: participants, or frames.
    state : str or None
        Class of the state that the coordinator solved last; its arrays are a part of the request. None at first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    analysis: str
    parameters: dict[str, Any]
    table: TableSpec | FrameSpec
    state: str | None = None


class SummarizeRequest(Payload):
    """Analyses that travel together: jobs by name, each job's state as the part of that name."""

    message: ClassVar[str] = "query.summarize"

    study: str
    jobs: dict[str, Job]


class SummarizeReply(Payload):
    """Sums of each job that is about this site, as the part of its name, and the participants behind them."""

    n_participants: dict[str, int]


# --- harmonize: apply what was solved; the results stay at the site --------------------------------------------------


class Step(BaseModel):
    """One transform of a feature set, its solved model being the part of the request of the same name.

    Attributes
    ----------
    source, result : str
        Feature sets: the one to read, and the one to write.
    transform : str
        What to apply: ``projection``, ``residualization``, or a name of `harmonization.METHODS`.
    options : dict
        Options of a method.
    model : str
        Kind of the solved model.
    covariates : list of dict
        The agreed design.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    result: str
    transform: str
    options: dict[str, Any] = {}
    model: str = ""
    covariates: list[dict[str, Any]] = []


class HarmonizeRequest(Payload):
    """Transforms to apply in order; each one's model is the part named by its result."""

    message: ClassVar[str] = "query.harmonize"

    study: str
    steps: list[Step] = Field(min_length=1)


class HarmonizeReply(Payload):
    """How many participants each written feature set holds."""

    n_participants: dict[str, int]


Request = DescribeRequest | TrainRequest | EmbedRequest | SummarizeRequest | HarmonizeRequest
