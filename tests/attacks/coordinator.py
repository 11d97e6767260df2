"""A coordinator that may send any message to the real ClientApp of each site, and keeps what comes back."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict

from base.settings import check_settings
from brainlm import ModelConfig
from brainlm.pretraining import initial_model
from client.app import app as client_app
from client.door.kept_answers import read_answer
from client.features import FeatureSet, FeatureStore
from client.keys.keyring import agree
from client.site import load_site
from exchange.aggregation import add_replies
from exchange.messages import (
    Arrays,
    Group,
    HarmonizeRequest,
    Job,
    SecureSum,
    Step,
    SummarizeReply,
    SummarizeRequest,
    SumReply,
    SumRequest,
    TableSpec,
    TrainReply,
    TrainRequest,
    join,
)
from exchange.refusals import RefusalCode
from tests.support.federation import STUDY
from tests.support.local_grid import write_site
from tests.support.wire import be_in_run, over_the_wire

RUN = 77
WIDTH = 6
"""Features that every site has, under the name ``x``."""
MODEL = check_settings(STUDY["model"], ModelConfig, "the model")
WEIGHTS = {name: values.numpy() for name, values in initial_model(MODEL, 0).state_dict().items()}
SUMS = {"projection": Job(analysis="projection", parameters={"n_components": 2}, table=TableSpec(features="x"))}
"""Asks for the sum of the features."""
CAREFUL = {"secure_sum_required": True, "min_participants": 10, "min_group": 2, "min_change": 10, "max_refusals": 1000}
_REPLIES: dict[type[SumRequest], type[SumReply]] = {SummarizeRequest: SummarizeReply, TrainRequest: TrainReply}


def write_careful_sites(
    folder: Path, cohorts: list[Path], width: int = WIDTH, seed: int = 0, **policy: object
) -> dict[str, Path]:
    """Write sites whose policy lets nothing leave but inside a secure sum; each has features ``x`` of all its people.

    Sites that lie there already keep their keys and rosters, and get other features.
    """
    sites = {}
    for number, cohort in enumerate(cohorts):
        path = write_site(folder / cohort.name, cohort.name, cohort, **{**CAREFUL, **policy})
        site = load_site(path)
        people = sorted(site.covariates.index)
        values = np.random.default_rng([seed, number]).normal(size=(len(people), width))
        FeatureStore(site.folder_of("small")).write("x", FeatureSet(people, values))
        sites[cohort.name] = path
    if not (folder / cohorts[0].name / "state" / "rosters").is_dir():
        agree("consortium", [load_site(path).keys for path in sites.values()])
    return sites


def features_of(site: Path, name: str = "x") -> np.ndarray:
    return FeatureStore(load_site(site).folder_of("small")).read(name).features


def kept_of(site: Path, step: int = 1) -> SumReply:
    """What lies on a site's disk of an answer under masks, and the coordinator must not learn."""
    with load_site(site).database.transaction() as database:
        return read_answer(database, "small", str(RUN), step).reply


def own_sum(site: Path) -> np.ndarray:
    """The sum of a site's features, which nobody else must learn."""
    return features_of(site).sum(axis=0)


class Coordinator:
    """Whoever sends the messages: with Flower's run id, and any content."""

    def __init__(self, sites: dict[str, Path]) -> None:
        self.sites = sites
        self.names = list(sites)
        self.roster = next(iter(load_site(sites[self.names[0]]).keys.approvals())).hash

    def secure(self, sites: list[str] | None = None, **changes: object) -> SecureSum:
        return SecureSum(**{"roster": self.roster, "step": 1, "sites": sites or self.names, **changes})

    def sums(
        self,
        sites: list[str] | None = None,
        jobs: Mapping[str, Job] = SUMS,
        groups: Mapping[str, list[str]] | None = None,
        arrays: Arrays | None = None,
        study: str = "small",
        **secure: object,
    ) -> SummarizeRequest:
        """Ask for sums of ``x``, or of other `jobs`, under masks; `groups` says who sends which part.

        Unlike a coordinator that keeps to the protocol, it does not check what it asks.
        """
        request = SummarizeRequest(
            study=study,
            jobs=SUMS,
            groups=[Group(parts=[part], sites=of_part) for part, of_part in (groups or {}).items()],
            secure=self.secure(sites, **secure),
            arrays=arrays or {},
        )
        return request.model_copy(update={"jobs": dict(jobs)})

    def training(
        self,
        sites: list[str] | None = None,
        weights: Arrays | None = None,
        secure: dict[str, object] | None = None,
        training: dict[str, object] | None = None,
        **changes: object,
    ) -> TrainRequest:
        """Ask for a round of training, under masks; without arrays for a further attempt."""
        settings = {**STUDY["training"], "holdout": 0.2, "clip_norm": None, **(training or {})}
        about = {"round_number": 1, "rounds": 1, "seed": 5, "max_windows": 1000}
        masked = self.secure(sites, **{"bound": 0.1, **(secure or {})})
        request = TrainRequest(
            arrays=join(weights=WEIGHTS if weights is None else weights) if masked.attempt == 1 else {},
            study="small",
            model=MODEL.model_dump(mode="json"),
            training=settings,
            secure=masked,
            **about,
        )
        return request.model_copy(update=changes)

    def projection(self, source: str, result: str, components: np.ndarray, step: int = 1) -> HarmonizeRequest:
        """Have features projected on axes of the coordinator's choice, and kept under a name of its choice."""
        model = {"mean": np.zeros(WIDTH), "components": components, "explained_variance": np.ones(len(components))}
        return HarmonizeRequest(
            arrays=join(**{result: {**model, "total_variance": np.array(1.0)}}),
            study="small",
            steps=[Step(source=source, result=result, transform="projection", model="ProjectionModel")],
            secure=self.secure(step=step),
        )

    def send(self, site: str, records: RecordDict, kind: str, run: int = RUN, message_id: str = "") -> Message:
        """Send whatever it is, as bytes both ways. Every message meets a process without memory, but for the disk."""
        be_in_run(run)
        sent = over_the_wire(Message(records, dst_node_id=1, message_type=kind))
        sent.metadata.__dict__["_message_id"] = message_id or sent.object_id  # as Flower does
        context = Context(run, 1, {"site-config": str(self.sites[site])}, RecordDict(), {})
        return over_the_wire(client_app(sent, context))

    def ask(self, site: str, request: SumRequest, run: int = RUN) -> SumReply | RefusalCode:
        """Ask one site; return its answer, or the code of its refusal."""
        reply = self.send(site, request.to_records(), request.message, run)
        if reply.has_error():
            return RefusalCode(reply.error.reason)
        return _REPLIES[type(request)].from_records(reply.content)

    def code(self, request: SumRequest, site: str = "aalborg") -> RefusalCode | None:
        """Ask one site; return the code of its refusal, or None if it answers."""
        reply = self.send(site, request.to_records(), request.message)
        return RefusalCode(reply.error.reason) if reply.has_error() else None

    def ask_all(self, request: SumRequest) -> dict[str, SumReply] | None:
        """Ask all sites of the request's sum; return their answers, or None if one refuses."""
        assert request.secure is not None
        replies = {site: self.ask(site, request) for site in request.secure.sites}
        return replies if all(isinstance(reply, SumReply) for reply in replies.values()) else None

    def total(self, request: SumRequest) -> Arrays:
        """Ask all sites of the request's sum, who must answer, and open it."""
        replies = self.ask_all(request)
        assert replies is not None
        return add_replies(request, replies)

    def audit_of(self, site: str) -> list[dict]:
        return list(load_site(self.sites[site]).audit.read())
