"""Sites whose tables lie at hand, and a study's program driven over them: no server, no client, no network."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load, save

from brainlm.embedding import feature_sizes
from exchange.messages import (
    Arrays,
    DescribeReply,
    EmbedRequest,
    FrameSpec,
    HarmonizeRequest,
    Job,
    SummarizeRequest,
    TableSpec,
    TrainRequest,
    join,
)
from harmonization import Categorical, Continuous, Design, SiteTable, add_sums, make_analysis, make_harmonizer
from harmonization.methods.projection import ProjectionModel
from harmonization.methods.residualization import ResidualizationModel
from study.program import Program
from study.question import Question
from study.settings import Study, load_study
from study.state import State
from tests.support.federation import STUDY

CONTENT = {
    **STUDY,
    "cohort": {"atlases": ["schaefer100", "aal116"]},
    "model": {**STUDY["model"], "window": {**STUDY["model"]["window"], "scaling": "robust"}},
    "averaging": {**STUDY["averaging"], "optimizer": "fedadam", "quorum": 3},
    "privacy": {"secure_sums": False},
    "harmonization": {"residualize": ["age", "sex"]},
    "analyses": {
        "targets": ["age", "sex"],
        "folds": 3,
        "permutations": 5,
        "category_permutations": 2,
        "bootstrap": 5,
        "leave_one_site_out": True,
        "site_classification": True,
        "compare": ["covbat"],
    },
    "association": {"vectors": "genes", "components": 3, "permutations": 5},
}
"""A study that asks almost everything, of sites with two atlases."""
WEIGHTS = {"a.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "b": np.float32(0.5)}
ATLASES = {"aalborg": ("schaefer100", 100), "bergen": ("schaefer100", 100), "coimbra": ("aal116", 116)}
ATLASES |= {"delft": ("schaefer100", 100), "espoo": ("aal116", 116)}


def read_study(folder: Path, **changes: object) -> Study:
    (folder / "study.yaml").write_text(yaml.safe_dump({**CONTENT, **changes}))
    return load_study(folder / "study.yaml")


class PooledSite:
    """One site: people with covariates, frames, features and vectors, drawn by its number."""

    def __init__(self, number: int, name: str) -> None:
        self.name, self.n, self.number = name, 21 + 2 * number, number
        self.atlas, self.n_parcels = ATLASES[name]
        rng = np.random.default_rng(number)
        self.people = {"age": rng.uniform(20, 80, self.n), "sex": np.where(rng.random(self.n) < 0.5, "F", "M")}
        self.people["sex/age"] = self.people["age"]
        self.frames = [rng.normal(size=(40, self.n_parcels)) for _ in range(2)]
        self.features = {"vectors.genes": rng.normal(size=(self.n, 6)) + self.people["age"][:, None] / 50}
        self.models: dict[str, Arrays] = {}

    @property
    def about(self) -> DescribeReply:
        counts = {"n_participants": self.n, "n_recordings": self.n, "n_windows": 10 * self.n, "n_quarantined": 0}
        atlas = {"n_parcels": self.n_parcels, "atlas": self.atlas, "preprocessing": "x", "software": {}}
        return DescribeReply(site=self.name, **counts, **atlas, n_vector_dimensions=6)

    def answer(self, request: object, study: Study) -> Arrays:
        """What it adds to the answer to a question."""
        if isinstance(request, TrainRequest):
            share = self.about.n_windows / request.max_windows
            update = {name: (0.1 + self.number) / 50 * share * (1 + v) for name, v in request.part("weights").items()}
            n_windows = np.array(float(self.about.n_windows))
            return join(update=update, tally={"n_windows": n_windows, "n_losses": n_windows, "loss": n_windows / 2})
        if isinstance(request, EmbedRequest):
            return self._embed(request, study)
        if isinstance(request, HarmonizeRequest):
            return self._apply(request)
        assert isinstance(request, SummarizeRequest)
        sums = {}
        for name, job in request.jobs.items():
            if isinstance(job.table, TableSpec) or job.table.atlas == self.atlas:
                analysis = make_analysis(job.analysis, json.loads(json.dumps(job.parameters)))
                state = analysis.read_state(job.state, request.part(name)) if job.state else None
                sums[name] = add_sums(analysis.summarize(table, state) for table in self.tables(job))
        return join(**sums)

    def _embed(self, request: EmbedRequest, study: Study) -> Arrays:
        rng = np.random.default_rng([self.number, request.seed])
        age = self.people["age"][:, None] / 20
        shift = self.number + sum(values.sum() for values in request.part("weights").values())
        for name, size in feature_sizes(study.model, self.n_parcels).items():
            self.features[name] = rng.normal(size=(self.n, size)) * (1 + self.number / 9) + age + shift
        lacking = np.zeros(self.features["connectivity"].shape[1])
        tally = {"n_participants": np.array(float(self.n))}
        return join(tally=tally, **{f"lacking/{self.atlas}": {"connectivity": lacking}})

    def _apply(self, request: HarmonizeRequest) -> Arrays:
        for step in request.steps:
            features, arrays = self.features[step.source], request.part(step.result)
            design = Design.from_json(step.covariates).encode(self.people, self.n)
            if step.transform == "projection":
                made = ProjectionModel.from_arrays(arrays).project(features)
            elif step.transform == "residualization":
                made = ResidualizationModel.from_arrays(arrays).residualize(features, design)
            else:
                method = make_harmonizer(step.transform, step.options)
                made = method.harmonize(method.read_state(step.model, arrays), SiteTable(features, design))
            self.features[step.result], self.models[step.result] = made, arrays
        return join(tally={step.result: np.array(float(self.n)) for step in request.steps})

    def tables(self, job: Job) -> Iterable[SiteTable]:
        """Tables of a job."""
        spec = job.table
        if isinstance(spec, FrameSpec):
            return [SiteTable(frames, frames=True) for frames in self.frames]
        loadings = self.models[spec.through]["components"][: spec.n_loadings].T if spec.through else None
        return [
            SiteTable(
                self.features[spec.features],
                Design.from_json(spec.covariates).encode(self.people, self.n) if spec.covariates else None,
                self._target(spec),
                second=self.features[spec.second] if spec.second else None,
                loadings=loadings,
                site=self.name,
                seed=self.number,
            )
        ]

    def _target(self, spec: TableSpec) -> np.ndarray | None:
        if spec.target is None:
            return None
        if spec.target == "site":
            return np.tile(np.eye(len(spec.levels))[spec.levels.index(self.name)], (self.n, 1))
        coding = Categorical(spec.target, tuple(spec.levels)) if spec.levels else Continuous(spec.target)
        coded = Design((coding,)).encode(self.people, self.n)
        return np.column_stack([1 - coded.sum(axis=1), coded]) if spec.levels else coded[:, 0]


def as_written_and_read(state: State) -> State:
    """Return a state as another process would read it."""
    arrays = load(save({name: np.asarray(values, order="C") for name, values in state.arrays.items()}))
    return State(**json.loads(state.model_dump_json()), arrays=arrays)


def fingerprint(question: Question) -> str:
    """All that a question says: two that are equal are equal in every byte."""
    expected = {name: [e.kind, e.shape, e.dtype, e.most] for name, e in sorted(question.expected.items())}
    groups = [group.model_dump() for group in question.request.groups]
    place = [question.stage, question.round_number, question.bound, question.optional]
    return json.dumps([place, question.request.question, groups, expected])


def drive(
    program: Program,
    silent: Mapping[int, str] | None = None,
    between: Callable[[State], State] = lambda state: state,
) -> tuple[list[tuple[Question, State]], State, dict[str, PooledSite]]:
    """Run a study to its end; `silent` are sites that no longer answer from the question of a number on.

    Returns
    -------
    tuple
        Each question with the state that asked it, the last state, and the sites.
    """
    sites = {name: PooledSite(number, name) for number, name in enumerate(ATLASES)}
    state, asked = between(program.begin({name: site.about for name, site in sites.items()}, WEIGHTS)), []
    while (question := program.ask(state)) is not None:
        sites.pop((silent or {}).get(len(asked), ""), None)
        asked.append((question, state))
        answering = {name: site for name, site in sites.items() if name in state.sites}
        state = between(program.advance(state, list(answering), added(answering, question.request, program.study)))
    return asked, state, sites


def added(sites: Mapping[str, PooledSite], request: object, study: Study) -> Arrays:
    """Add what sites answer, in the order of names."""
    total: Arrays = {}
    for _, site in sorted(sites.items()):
        for part, values in site.answer(request, study).items():
            total[part] = total[part] + values if part in total else values
    return total


def print_questions(folder: str) -> None:
    """Print what a study asks, for another process to compare."""
    asked, _, _ = drive(Program(load_study(Path(folder) / "study.yaml")), between=as_written_and_read)
    print(json.dumps([fingerprint(question) for question, _ in asked]))
