"""The messages: five questions of the coordinator, and what a site may answer to each.

A payload is a set of named arrays and a short header. On the wire it is one ArrayRecord and one ConfigRecord; reading
checks names, types and version, and takes nothing that the payload does not declare.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors.numpy import load, save

from base.settings import Name

PROTOCOL = 6
"""Version of the messages. Coordinator and sites must have the same."""

RUN = r"^[A-Za-z0-9-]{0,64}$"
"""What a run may be called."""

Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""Of participants who are held out."""

_AUDIT_HEAD = "audit_head"
_MOST_JOBS = 100_000
"""In one message, whatever policies allow: a site's audit log names the analyses of one that it refuses."""
SHOWN = "shown/"
"""How the names of arrays begin that a site shows of itself: they are neither masked nor added."""
_PACKED = "safetensors"
"""Name and kind of the one array that holds all arrays of a request, as the bytes of a safetensors file."""

Arrays = dict[str, NDArray[Any]]
AnyOne = TypeVar("AnyOne")


class MessageError(Exception):
    """A message cannot be read: another version, or damaged. Use the same version everywhere."""


class Part(BaseModel):
    """JSON-able fields of a header, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Payload(Part):
    """A header of JSON-able fields, and named arrays."""

    model_config = ConfigDict(arbitrary_types_allowed=True, ser_json_inf_nan="constants")

    arrays: Arrays = Field(default_factory=dict, exclude=True)

    def to_records(self) -> RecordDict:
        """Return the payload as Flower's records."""
        header = ConfigRecord({"protocol": PROTOCOL, "kind": type(self).__name__, "json": self.model_dump_json()})
        return RecordDict({"header": header, "arrays": ArrayRecord(self._to_arrays())})

    @classmethod
    def from_records(cls, records: RecordDict) -> Self:
        """Undo `to_records`; a MessageError if the records are of another kind or version, or damaged."""
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
            return cls(**fields, arrays=cls._from_arrays(arrays))
        except MessageError:
            raise
        except Exception as error:  # whatever damaged bytes make of a reader
            raise MessageError(
                f"a message of kind {cls.__name__} is damaged. Use the same version everywhere."
            ) from error

    def _to_arrays(self) -> dict[str, Array]:
        """Make one array of Flower's of each: a site's audit log lists every one that leaves."""
        return {name: Array(np.asarray(values, order="C")) for name, values in self.arrays.items()}

    @classmethod
    def _from_arrays(cls, arrays: ArrayRecord) -> Arrays:
        return {name: array.numpy() for name, array in arrays.items()}

    def part(self, name: str) -> Arrays:
        """Arrays whose names begin with `name` and a slash, without that."""
        return part_of(self.arrays, name)


def part_of(arrays: Mapping[str, NDArray[Any]], name: str) -> Arrays:
    """Take the arrays whose names begin with `name` and a slash, without that."""
    return {key.removeprefix(f"{name}/"): values for key, values in arrays.items() if key.startswith(f"{name}/")}


def join(**parts: Mapping[str, NDArray[Any]]) -> Arrays:
    """Name arrays by their part: ``join(a={"b": x})`` is ``{"a/b": x}``. `part_of` takes them apart."""
    return {f"{part}/{name}": values for part, arrays in parts.items() for name, values in arrays.items()}


def hash_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of arrays, their names, kinds and shapes, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.asarray(arrays[name])
        digest.update(json.dumps([name, values.dtype.str, values.shape]).encode() + b"\n")
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def with_audit_head(records: RecordDict, head: str) -> RecordDict:
    """Note the head of the site's audit log in an answer, so that the coordinator can tell later if it was cut."""
    records.config_records["header"][_AUDIT_HEAD] = head
    return records


def audit_head_of(records: RecordDict) -> str:
    """Read the head of the site's audit log; empty if an answer has none, or anything else in its place."""
    head = str(records.config_records["header"].get(_AUDIT_HEAD, ""))
    return head if re.fullmatch("[0-9a-f]{64}", head) else ""


def size_of(records: RecordDict) -> int:
    """Bytes of the arrays and the header, less the head of an audit log, which is known only once they are listed."""
    arrays = sum(len(array.data) for record in records.array_records.values() for array in record.values())
    headers = [named for record in records.config_records.values() for named in record.items()]
    return arrays + sum(len(str(value)) for name, value in headers if name != _AUDIT_HEAD)


# --- sums: what sites answer is added, in the clear or under masks --------------------------------------------------


class Group(Part):
    """Parts of an answer that only some sites send, in order of names, such as those that share an atlas.

    Nobody sends them where a secure sum would be over too few.
    """

    parts: list[str]
    sites: list[str]


class SecureSum(Part):
    """How an answer is to be masked (`exchange.secure_sum`)."""

    roster: str
    """Hash of the roster of keys (`exchange.key_roster`)."""
    step: int = Field(ge=1)
    """Number of the exchange in the run: a site answers each once."""
    attempt: int = Field(1, ge=1)
    """1, or more when a site fell silent: the answer is the one that the site kept, masked anew for those that are
    left. Requests after the first carry no arrays."""
    sites: list[str]
    """The sites of this attempt, in order of names."""
    bound: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Largest change of a weight that has room in the sum; larger updates are scaled down to it."""


class StudyRequest(Payload):
    """What a study asks of a site."""

    is_round: ClassVar[bool] = False
    """Whether it asks for a round of training, of which a study has only as many as a site's policy allows."""

    study: Name
    """Name of the study."""
    run: str = Field("", pattern=RUN)
    """What the run is called, however often it was killed and resumed; empty for Flower's number of it. Sites keep
    books on it, and it takes nothing back that they wrote: what a run had answered, it had answered."""

    @property
    def question(self) -> str:
        """Hash of all that is asked."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def audited(self) -> dict[str, Any]:
        """What of the question a reader of the site's audit log looks for, beside its hash."""
        return {}

    def sites_of(self, array: str, sites: Sequence[str]) -> list[str]:
        """Return those of `sites` that send an array."""
        return list(sites)


class SumRequest(StudyRequest):
    """A request whose answers the coordinator adds, in the clear where it is not for a secure sum."""

    groups: list[Group] = []
    """Of the parts that not all sites send."""
    secure: SecureSum | None = None

    def _to_arrays(self) -> dict[str, Array]:
        """Pack all arrays into one: Flower fetches each array by two requests, twice on its way to an app."""
        packed = save({name: np.asarray(values, order="C") for name, values in self.arrays.items()})
        return {_PACKED: Array("uint8", (len(packed),), _PACKED, packed)}

    @classmethod
    def _from_arrays(cls, arrays: ArrayRecord) -> Arrays:
        ((name, array),) = arrays.items()
        if (name, array.stype) != (_PACKED, _PACKED):
            raise MessageError(f"a request's arrays are '{name}' of kind '{array.stype}'; expected '{_PACKED}'.")
        return load(array.data)

    @property
    def question(self) -> str:
        """Hash of all that is asked, but for the run, and for whom the answer is masked among."""
        header = self.model_dump_json(exclude={"secure", "groups", "run"})
        return hashlib.sha256(f"{header}{hash_arrays(self.arrays)}".encode()).hexdigest()

    def by_sites(self, arrays: Mapping[str, AnyOne]) -> dict[tuple[str, ...], dict[str, AnyOne]]:
        """Return what stands by the names of arrays, by the sites of the secure sum that send them."""
        assert self.secure is not None, "answers in the clear have no groups"
        found: dict[tuple[str, ...], dict[str, AnyOne]] = {}
        for name, one in arrays.items():
            found.setdefault(tuple(self.sites_of(name, self.secure.sites)), {})[name] = one
        return found

    def sites_of(self, array: str, sites: Sequence[str]) -> list[str]:
        for group in self.groups:
            if any(array.startswith(f"{part}/") for part in group.parts):
                return [site for site in sites if site in group.sites]
        return list(sites)


_PARTS = {
    *("", "weights", "update", "tally", "lacking", "evaluation", "overall", "baselines", "shown", "sealed"),
    *("scaling", "moments"),
}
"""Parts of answers and requests that have a meaning of their own."""


class SumReply(Payload):
    """An answer to be added: arrays of whole numbers are counts, ``update/…`` are changes of weights, others sums.

    What a site shows of itself, if its policy lets it, is in part ``shown``, and never added.
    """

    sealed: list["SealedGroup"] = []
    """What masked arrays hold; empty for an answer in the clear."""


class SealedGroup(Part):
    """Masked words of one group of sites, and what they hold (`exchange.secure_sum.SumLayout`).

    Arrays ``sealed/<number>/32`` and ``…/64`` hold the words of a group, by its place.
    """

    sites: list[str]
    layout: dict[str, Any]


# --- describe: may this site take part, and with how much? -----------------------------------------------------------


class DescribeRequest(StudyRequest):
    """Everything that the study will ask for, so that a site can refuse at once."""

    message: ClassVar[str] = "query.describe"
    secure: ClassVar[None] = None
    """Never masked: who takes part is told in the clear."""

    contract: dict[str, Any]
    """What the cohort must be like (`cohorts.contract.CohortContract`)."""
    window: dict[str, Any]
    """The model's window (`brainlm.config.WindowConfig`)."""
    analyses: list[str]
    """Names of the analyses, and ``pretraining`` and ``embedding``."""
    recipe: str
    """Id of the embedding recipe."""
    holdout: Fraction
    """Fraction of participants to hold out of training."""
    folds: int = Field(ge=1)
    """Folds of the cross-validated analyses; 1 if there are none."""
    vectors: str | None = None
    """Name of the second table of vectors that the study associates with the embeddings."""
    columns: list[str] = []
    """Covariates and targets that the study uses."""
    designs: list[list[dict[str, Any]]] = []
    """Codings of covariates that its analyses use together (`harmonization.Design.to_json`)."""
    rounds: int = Field(1, ge=0)
    """Rounds of training that are to come."""
    secure_sums: bool = True
    """Whether answers will be masked."""
    privacy: dict[str, Any] | None = None
    """How training is private (`brainlm.config.PrivacyConfig`); None if it is not."""
    noisy: list[str] = []
    """Those of the analyses whose sums will carry noise."""
    all_rounds: int = Field(1, ge=1)
    """Rounds of training of the whole study: the noise that an ε takes is for all of them."""
    steps_per_round: int = Field(0, ge=0)
    """Steps of a round."""
    batch_size: int = Field(1, ge=1)
    """Windows a step."""
    frame_noise: dict[str, Any] | None = None
    """Noise on sums over frames before training (`brainlm.config.SummaryNoise`); None for none."""
    noisy_sums: int = Field(0, ge=0)
    """How many such sums are to come."""


def _is_plain(text: str) -> str:
    """Refuse what a terminal or a page would obey: these texts are shown to people as a site says them."""
    if not text.isprintable():
        raise ValueError("a text holds characters that cannot be printed")
    return text


Label = Annotated[str, Field(max_length=1000), AfterValidator(_is_plain)]
"""A text that a site chooses, and that the coordinator shows."""
Count = Annotated[int, Field(ge=0, le=10**9, strict=True)]
Some = Annotated[int, Field(ge=1, le=10**9, strict=True)]
"""Of what a site that takes part has: with none of it, the others' answers would have nothing to add to."""
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DescribeReply(Payload):
    """A site that takes part: its name, and counts."""

    sealed: ClassVar[tuple["SealedGroup", ...]] = ()

    site: Name
    n_participants: Some
    """Who takes part: those with a recording of `n_recordings`."""
    n_recordings: Some
    """Recordings that are at least a window long."""
    n_quarantined: Count
    """Recordings that were set aside at the site."""
    n_too_short: Count = 0
    """Recordings that are shorter than the window."""
    n_left_out: Count = 0
    """Participants all of whose recordings are too short."""
    n_incomplete: Count | None = 0
    """Participants who are trained on and in no analysis, since a covariate is not known; None for a few, fewer than
    the site's policy lets any number stand for."""
    n_like_visits: Count | None = 0
    """Participants whose ids look like visits of the same people; None for a few."""
    n_windows: Some
    """Windows of `n_recordings`."""
    n_parcels: Some
    n_vector_dimensions: Count = 0
    """Dimensions of the vectors; 0 if no vectors were asked for."""
    n_without_vectors: Count | None = 0
    """Participants without vectors, if these were asked for; None for a few."""
    atlas: Label
    preprocessing: Label
    software: Annotated[dict[Label, Label], Field(max_length=20)]
    rosters: Annotated[list[Hash], Field(max_length=1000)] = []
    """Hashes of the rosters of keys that its administrator approved, and that list its key."""


# --- train: one round of local training ------------------------------------------------------------------------------


class TrainRequest(SumRequest):
    """The incoming model (part ``weights``) and the place of the round in the study.

    For robust scaling, part ``scaling/<atlas>`` is as in `EmbedRequest`; for a model that starts from the linear
    prediction, so is ``moments/<atlas>``.
    """

    message: ClassVar[str] = "train"
    is_round: ClassVar[bool] = True

    model: dict[str, Any]
    """`brainlm.architectures.AnyConfig`."""
    training: dict[str, Any]
    """`brainlm.config.TrainingConfig`."""
    round_number: int = Field(ge=1)
    """This round, counted from 1."""
    rounds: int = Field(ge=1)
    """All of the study's."""
    seed: int
    """The study's."""
    max_windows: int = Field(1, ge=1)
    """Weight of the heaviest site, public: in a secure sum, updates are weighted by a site's windows over this."""
    max_norm: float | None = Field(None, gt=0)
    """L2 norm that a site's update is scaled down to, if it is longer."""

    @property
    def audited(self) -> dict[str, Any]:
        return {"round": self.round_number}

    @model_validator(mode="after")
    def _is_a_round_of_the_study(self) -> Self:
        if not 1 <= self.round_number <= self.rounds:
            raise ValueError(f"round {self.round_number} is none of {self.rounds}")
        return self


class TrainReply(SumReply):
    """What a round of training gave, and how the incoming model did on held-out participants.

    - ``weights/<name>``: the trained model, in the clear; or, in a secure sum, ``update/<name>``: its difference from
      the incoming one, times ``tally/n_windows`` over the request's ``max_windows``.
    - ``tally/n_windows``: the site's weight in the average. ``tally/loss``: sum of the losses of ``tally/n_losses``
      windows; none where training is private.
    - ``evaluation/<atlas>``: arrays of `brainlm.evaluation.ReconstructionSums`, by parcel and by horizon.
      ``overall/model``: the same over all parcels, where too few sites share the atlas.
    - ``shown/loss`` and ``shown/evaluation``, if the site's policy shares metrics: its own mean loss, and its sums over
      all parcels [len(SUMS)].
    """


# --- embed: the final model, applied at the site; embeddings stay there ----------------------------------------------


class EmbedRequest(SumRequest):
    """The final model (part ``weights``) and the recipe.

    For robust scaling, part ``scaling/<atlas>`` holds median and iqr [P] (`brainlm.scaling.Scaling`). Part
    ``moments/<atlas>`` holds covariance, pairs and following [P, P], autocovariance [L] and n, where they were measured
    (`harmonization.Moments`).
    """

    message: ClassVar[str] = "query.embed"

    model: dict[str, Any]
    recipe: str
    holdout: Fraction
    """Fraction of participants held out of training, on whom the model is evaluated."""
    seed: int
    """The study's; it decides who was held out, and the weights of the untrained encoder."""


class EmbedReply(SumReply):
    """How the model and the baselines did, and how many participants were embedded.

    - ``tally/n_participants``: who were embedded.
    - ``lacking/<atlas>/<feature set>`` [p]: 1 for features that are missing in somebody, and 0 for others.
    - ``evaluation/<atlas>`` and ``shown/evaluation``: as in `TrainReply`.
    - ``baselines/<atlas>/<name>`` and ``overall/<name>``: the sums of other predictors of the same hidden values.
    """


# --- summarize: one round of any analyses ----------------------------------------------------------------------------


class TableSpec(Part):
    """Which rows and columns of a site make an analysis's table."""

    features: str
    """Name of a feature set on the site's disk."""
    through: str | None = None
    """A feature set that was made by projection: its loadings stand between features and analysis."""
    n_loadings: int | None = None
    """How many of its leading components; None for all."""
    covariates: list[dict[str, Any]] = []
    """The agreed design (`harmonization.Design.to_json`)."""
    target: str | None = None
    """A covariate to predict, or ``site`` for the one-hot site."""
    levels: list[str] = []
    """Agreed levels of a target that is a category, which becomes one-hot; for ``site`` the names of all sites."""
    second: str | None = None
    """A feature set that is the other view of the same participants; those who lack it are left out."""
    complete: list[dict[str, Any]] = []
    """A design that rows must be complete in, too, so that variants are measured on the same people."""


class FrameSpec(Part):
    """Frames of a site's recordings as tables: those of its training participants, a table a recording.

    Sites with another atlas leave the job out. For robust scaling, part ``scaling/<atlas>`` of the request holds median
    and iqr.
    """

    atlas: str
    """Name of the atlas."""
    window: dict[str, Any]
    """How recordings are resampled and scaled, and how long they must be (`brainlm.config.WindowConfig`)."""
    holdout: Fraction
    """Fraction of participants held out of training."""
    seed: int
    """The study's; it decides who is held out."""


class Job(Part):
    """One analysis in one of its rounds."""

    analysis: str = Field(pattern="^[a-z_]{1,64}$")
    """Name in `harmonization.ANALYSES`."""
    parameters: dict[str, Any]
    """Its parameters."""
    table: TableSpec | FrameSpec
    """What it is about: participants, or frames."""
    state: str | None = None
    """Class of the state that the coordinator solved last; its arrays are a part of the request. None at first."""


class SummarizeRequest(SumRequest):
    """Analyses that travel together: jobs by name, each job's state as the part of that name.

    No job is called like a part of another kind of answer, for what is summed of a part goes by its name.
    """

    message: ClassVar[str] = "query.summarize"

    jobs: dict[str, Job] = Field(max_length=_MOST_JOBS)
    noise: dict[str, Any] | None = None
    """Noise on every sum (`brainlm.config.SummaryNoise`), at the price of the site's privacy budget; None for none."""

    @property
    def audited(self) -> dict[str, Any]:
        return {"analyses": sorted({job.analysis for job in self.jobs.values()})}

    @field_validator("jobs")
    @classmethod
    def _have_names_of_their_own(cls, jobs: dict[str, Job]) -> dict[str, Job]:
        if taken := {name.partition("/")[0] for name in jobs} & _PARTS:
            raise ValueError(f"a job is called {', '.join(sorted(taken))}, as parts of other answers are")
        return jobs


class SummarizeReply(SumReply):
    """Sums of each job that is about this site, as the part of its name."""


# --- harmonize: apply what was solved; the results stay at the site --------------------------------------------------


class Step(Part):
    """One transform of a feature set, its solved model being the part of the request of the same name."""

    source: str
    """Feature set to read."""
    result: str
    """Feature set to write."""
    transform: str
    """What to apply: ``selection``, ``projection``, ``residualization``, or a name of `harmonization.harmonizers`."""
    options: dict[str, Any] = {}
    """Options of a method."""
    model: str = ""
    """Kind of the solved model."""
    covariates: list[dict[str, Any]] = []
    """The agreed design."""


class HarmonizeRequest(SumRequest):
    """Transforms to apply in order; each one's model is the part named by its result."""

    message: ClassVar[str] = "query.harmonize"

    steps: list[Step] = Field(min_length=1)
    final: str | None = None
    """Result that is the study's last: a site whose policy shares embeddings shows it."""


class HarmonizeReply(SumReply):
    """``tally/<result>``: how many participants each written feature set holds.

    - ``shown/parameters/<result>/…``: the site's own effect in it, if the site's policy shares parameters.
    - ``shown/embeddings`` [n, p], if its policy shares embeddings, and ``pseudonyms`` for its rows.
    """

    pseudonyms: list[Annotated[str, Field(pattern=r"^p-[0-9a-f]{16}$")]] = []

    @model_validator(mode="after")
    def _is_a_row_a_pseudonym(self) -> Self:
        if len(self.pseudonyms) != len(self.arrays.get(f"{SHOWN}embeddings", ())):
            raise ValueError("embeddings are shown with more or fewer pseudonyms than rows")
        return self


AnySumRequest = TrainRequest | EmbedRequest | SummarizeRequest | HarmonizeRequest
Request = DescribeRequest | AnySumRequest
Reply = DescribeReply | SumReply
