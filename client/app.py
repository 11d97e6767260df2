"""A hospital's Flower ClientApp: five handlers. Each computes at the site; `client.release` lets the answer out."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from brainlm.architectures import AnyModel, check_model_config
from brainlm.baselines import make_baselines
from brainlm.checkpoints import load_weights
from brainlm.config import TrainingConfig, WindowConfig
from brainlm.embedding import find_recipe, functional_connectivity
from brainlm.errors import CheckpointError
from brainlm.evaluation import MODEL, ReconstructionSums, compare, reconstruct_example
from brainlm.linear_path import LinearPath
from brainlm.model import BrainLM
from brainlm.optimization import forget_optimizers, make_optimizer, restore_optimizer, save_optimizer
from brainlm.pretraining import initial_model, train_round
from brainlm.scaling import Scaling
from brainlm.windows import WindowSet, split_participants, usable_recordings
from client.features import (
    FeatureSet,
    FeatureStore,
    build_table,
    complete_rows,
    permit_categories,
    read_features,
)
from client.frames import counted_parcels, moments_of, read_frames, scaling_of, split_site
from client.release import Answer, answer
from client.site import Site
from cohorts.contract import CohortContract
from cohorts.files import save_arrays
from cohorts.seeding import derive_seed
from cohorts.settings import check_settings
from cohorts.vectors import read_vectors
from exchange.messages import (
    Arrays,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    FrameSpec,
    HarmonizeReply,
    HarmonizeRequest,
    Job,
    Step,
    SummarizeReply,
    SummarizeRequest,
    TrainReply,
    TrainRequest,
    join,
)
from exchange.refusals import Refusal, RefusalCode
from harmonization import (
    METHODS,
    Analysis,
    Categorical,
    Design,
    Moments,
    SecondMoments,
    SiteTable,
    State,
    add_sums,
    make_analysis,
    make_harmonizer,
)
from harmonization.projection import ProjectionModel
from harmonization.protocol import Array, Sums
from harmonization.residualization import ResidualizationModel

app = ClientApp()

_MISMATCHES = {
    "atlas": RefusalCode.ATLAS,
    "timing": RefusalCode.TIMING,
    "scaling": RefusalCode.SCALING,
    "covariates": RefusalCode.COVARIATES,
}


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say whether the site takes part, and with how much."""
    return answer(message, context, DescribeRequest, _describe)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Evaluate the incoming model on held-out participants and train it on the others."""
    return answer(message, context, TrainRequest, _train)


@app.query("embed")
def embed(message: Message, context: Context) -> Message:
    """Embed every participant and keep the vectors here."""
    return answer(message, context, EmbedRequest, _embed)


@app.query("summarize")
def summarize(message: Message, context: Context) -> Message:
    """Sum what the analyses of this round ask for."""
    return answer(message, context, SummarizeRequest, _summarize)


@app.query("harmonize")
def harmonize(message: Message, context: Context) -> Message:
    """Apply what was solved to the site's own features and keep the result here."""
    return answer(message, context, HarmonizeRequest, _harmonize)


def _describe(site: Site, request: DescribeRequest) -> Answer:
    site.policy.permit(request.study, request.analyses, request.recipe)
    contract = check_settings(request.contract, CohortContract, "the study's contract")
    for mismatch in contract.mismatches(site.cohort):
        raise Refusal(_MISMATCHES[mismatch.kind], mismatch.message)
    window = check_settings(request.window, WindowConfig, "the study's window")
    usable = usable_recordings(site.cohort, window)
    if not usable:
        raise Refusal(RefusalCode.WINDOWS, f"no recording is {window.seconds:g} s long, the study's window.")
    # Asked here so that a site that must refuse an answer later refuses the study now.
    people, _ = split_participants(list(usable), request.holdout, 0)
    site.policy.permit_release(len(people), carries_sums=True, in_secure_sum=False)
    site.policy.permit_group(len(usable) // max(1, request.folds), f"each of {request.folds} folds")
    for name, levels in contract.covariates.items():
        if levels:
            permit_categories(site, list(usable), Categorical(name, levels))
    if request.vectors:
        site.policy.permit_vectors(request.vectors)
    vectors = read_vectors(site.cohort, request.vectors) if request.vectors else None
    windows = WindowSet(site.cohort, window)
    reply = DescribeReply(
        site=site.name,
        n_participants=len(usable),
        n_recordings=sum(len(recordings) for recordings in usable.values()),
        n_quarantined=len(site.cohort.quarantined),
        n_windows=windows.n_windows,
        n_parcels=site.cohort.atlas.n_parcels,
        n_vector_dimensions=vectors.matrix.shape[1] if vectors else 0,
        atlas=site.cohort.atlas.name,
        preprocessing=site.cohort.preprocessing,
        software={"torch": torch.__version__, "numpy": np.__version__, "threads": str(site.settings.threads)},
    )
    return Answer(reply, len(usable))


def _train(site: Site, request: TrainRequest) -> Answer:
    site.policy.permit(request.study, ["pretraining"])
    training = check_settings(request.training, TrainingConfig, "the study's training")
    scale, moments = scaling_of(site, request), moments_of(site, request)
    model = _incoming_model(site, request.model, request.part("weights"))
    seed = derive_seed(request.seed, site.name)
    people, held_out = split_site(site, model.config.window, training.holdout, request.seed)
    _set_linear_path(site, model, moments, people)
    evaluation = _evaluation(site, model, held_out, seed, scale)[MODEL]
    kept = site.folder_of(request.study)
    optimizer = _optimizer(site, model, training, kept, request.round_number)
    outcome = train_round(
        model,
        WindowSet(site.cohort, model.config.window, people, scale),
        training,
        round_number=request.round_number,
        rounds=request.rounds,
        seed=seed,
        device=site.device,
        devices=site.devices,
        optimizer=optimizer,
    )
    if training.keep_optimizer_state:
        save_optimizer(kept, optimizer, model, round_number=request.round_number)
    weights = {name: values.detach().cpu().numpy() for name, values in model.state_dict().items()}
    reply = TrainReply(
        arrays=join(weights=weights, evaluation=evaluation),
        n_windows=outcome.n_windows,
        loss=outcome.loss,
        atlas=site.cohort.atlas.name,
    )
    # No more participants stand behind an update than it saw windows.
    return Answer(reply, min(len(people), training.steps_per_round * training.batch_size))


def _embed(site: Site, request: EmbedRequest) -> Answer:
    site.policy.permit(request.study, ["embedding"], request.recipe)
    weights = request.part("weights")
    scale, moments = scaling_of(site, request), moments_of(site, request)
    model = _incoming_model(site, request.model, weights)
    seed = derive_seed(request.seed, site.name)
    people, held_out = split_site(site, model.config.window, request.holdout, request.seed)
    _set_linear_path(site, model, moments, people)
    recipe = find_recipe(request.recipe)
    store = FeatureStore(site.folder_of(request.study))
    about = {
        "study": request.study,
        "recipe": recipe.id,
        "model_sha256": _hash(weights),
        "preprocessing": site.cohort.preprocessing,
        "atlas": site.cohort.atlas.name,
        "scaling_sha256": _hash(scale.to_arrays()) if scale else None,
        "transforms": [],
    }
    untrained = initial_model(model.config, derive_seed(request.seed, "untrained"))
    embedding, participants = recipe.embed(model, site.cohort, site.device, scale)
    connectivity = functional_connectivity(site.cohort, participants).drop(columns="participant_id")
    features: dict[str, Array] = {
        "embedding": embedding,
        "untrained": recipe.embed(untrained, site.cohort, site.device, scale)[0],
        "connectivity": connectivity.to_numpy(),
    }
    for name, values in features.items():
        store.write(name, FeatureSet(participants, values, {**about, "features": name}))
    for name, measured in (("scaling", scale), ("moments", moments)):
        if measured:
            save_arrays(store.folder / f"{name}.safetensors", measured.to_arrays())
    if held_out:
        example = reconstruct_example(
            model, WindowSet(site.cohort, model.config.window, held_out, scale), seed=seed, device=site.device
        )
        save_arrays(store.folder / "reconstruction.safetensors", example)
    baselines = _evaluation(site, model, held_out, seed, scale, beside=True, moments=moments)
    reply = EmbedReply(
        arrays=join(evaluation=baselines.pop(MODEL), baselines=join(**baselines)),
        n_participants=len(participants),
        dimensions={name: values.shape[1] for name, values in features.items()},
        atlas=site.cohort.atlas.name,
    )
    return Answer(reply, len(participants))


def _summarize(site: Site, request: SummarizeRequest) -> Answer:
    site.policy.permit(request.study, [job.analysis for job in request.jobs.values()])
    sums: dict[str, Arrays] = {}
    n_participants = {}
    store = FeatureStore(site.folder_of(request.study))
    for name, job in request.jobs.items():
        if isinstance(job.table, FrameSpec) and job.table.atlas != site.cohort.atlas.name:
            continue
        analysis = make_analysis(job.analysis, job.parameters)
        site.policy.permit(request.study, analysis.asks_for)
        if isinstance(analysis, SecondMoments) and isinstance(job.table, FrameSpec):
            # Lags that only some recordings are long enough for would tell those apart.
            longest = check_settings(job.table.window, WindowConfig, "the study's window").n_frames
            if analysis.n_lags > longest:
                raise Refusal(RefusalCode.PROTOCOL, f"{analysis.n_lags} lags were asked for; a window has {longest}.")
        state = analysis.read_state(job.state, request.part(name)) if job.state else None
        summed, n_participants[name] = _sum(site, store, request, job, analysis, state)
        sums[name] = dict(summed)
    if not sums:
        raise Refusal(RefusalCode.PROTOCOL, f"no job is about atlas {site.cohort.atlas.name}, the cohort's.")
    reply = SummarizeReply(arrays=join(**sums), n_participants=n_participants)
    return Answer(reply, min(n_participants.values()))


def _sum(
    site: Site, store: FeatureStore, request: SummarizeRequest, job: Job, analysis: Analysis, state: State | None
) -> tuple[Sums, int]:
    """Sums of one job, and how many participants stand behind them."""
    if analysis.rows != ("frames" if isinstance(job.table, FrameSpec) else "participants"):
        # Over participants, the counts behind a quantile would lead to a single one's value.
        raise Refusal(RefusalCode.PROTOCOL, f"analysis '{job.analysis}' is of {analysis.rows} alone.")
    if isinstance(job.table, FrameSpec):
        frames = read_frames(site, job.table, scaling_of(site, request))
        return add_sums(analysis.summarize(table, state) for table in frames.tables), len(frames.participants)
    table = build_table(site, request.study, job.table, store)
    return analysis.summarize(table, state), table.n


def _harmonize(site: Site, request: HarmonizeRequest) -> Answer:
    site.policy.permit(request.study, [step.transform for step in request.steps])
    store = FeatureStore(site.folder_of(request.study))
    n_participants = {}
    for step in request.steps:
        model = request.part(step.result)
        result, effect = _transform(site, read_features(site, store, step.source), step, model)
        store.write_model(step.result, model)
        if effect is not None:
            store.write_model(f"{step.result}.effect", effect.to_arrays())
        store.write(step.result, result)
        n_participants[step.result] = len(result.participants)
    return Answer(HarmonizeReply(n_participants=n_participants), min(n_participants.values()))


def _transform(site: Site, source: FeatureSet, step: Step, model: Arrays) -> tuple[FeatureSet, State | None]:
    """Apply one solved model to the participants whose covariates are known; also return the site's own effect."""
    rows, design = complete_rows(site, source.participants, Design.from_json(step.covariates))
    features, effect = source.features[rows], None
    if step.transform == "projection":
        changed: Array = ProjectionModel.from_arrays(model).project(features)
    elif step.transform == "residualization":
        changed = ResidualizationModel.from_arrays(model).residualize(features, design)
    elif step.transform in METHODS:
        harmonizer = make_harmonizer(step.transform, step.options)
        table = SiteTable(features, design, site=site.name, seed=site.private_seed(step.result))
        solved = harmonizer.read_state(step.model, model)
        effect = harmonizer.estimate(solved, table)
        changed = harmonizer.apply(solved, table, effect)
    else:
        raise Refusal(RefusalCode.PROTOCOL, f"transform '{step.transform}' is not known.")
    done = {
        "transform": step.transform,
        "options": step.options,
        "covariates": step.covariates,
        "model_sha256": _hash(model),
    }
    about = {**source.about, "transforms": [*source.about.get("transforms", []), done]}
    return FeatureSet([source.participants[row] for row in rows], changed, about), effect


def _incoming_model(site: Site, config: dict[str, Any], weights: Arrays) -> AnyModel:
    """Build the model of the request, on the site's number of threads."""
    torch.set_num_threads(site.settings.threads)
    model = initial_model(check_model_config(config, "the study's model"), 0)
    load_weights(model, {name: torch.from_numpy(values) for name, values in weights.items()}, "the incoming model")
    return model


def _set_linear_path(site: Site, model: AnyModel, moments: Moments | None, people: list[str]) -> None:
    """Give the model the linear prediction that it starts from; `people` are the training participants."""
    if isinstance(model, BrainLM) and model.config.residual == "gaussian":
        if moments is None:
            raise Refusal(
                RefusalCode.PROTOCOL, "the model starts from a linear prediction; the request has no moments."
            )
        counted = counted_parcels(site, model.config.window, people)
        model.prior = LinearPath(moments.covariance, moments.autocovariance, moments.pairs, counted)


def _optimizer(
    site: Site, model: AnyModel, training: TrainingConfig, kept: Path, round_number: int
) -> torch.optim.Optimizer:
    """Make the round's optimizer, with the moments that the site kept of earlier rounds if the study wants them."""
    optimizer = make_optimizer(model.to(site.device), training)
    if round_number == 1:
        forget_optimizers(kept)  # of an earlier run of the study
    elif training.keep_optimizer_state:
        try:
            restore_optimizer(kept, optimizer, model, round_number=round_number)
        except CheckpointError as error:
            site.log.warning("round %d begins with a fresh optimizer. %s", round_number, error)
    return optimizer


def _evaluation(
    site: Site,
    model: AnyModel,
    held_out: list[str],
    seed: int,
    scale: Scaling | None,
    *,
    beside: bool = False,
    moments: Moments | None = None,
) -> dict[str, Arrays]:
    """Sums over the hidden values of held-out participants; zeros where too few were held out to stand for a sum.

    Parameters
    ----------
    beside : bool
        Evaluate the baselines, too.
    moments : Moments, optional
        What some of them need (`brainlm.baselines.make_baselines`).
    """
    n_parcels = site.cohort.atlas.n_parcels
    known = moments.to_arrays() if moments else None
    baselines = make_baselines(model.config.mask, n_parcels, known) if beside else {}
    if len(held_out) < site.policy.min_group:
        sums = {name: ReconstructionSums.zeros(n_parcels) for name in (MODEL, *baselines)}
    else:
        windows = WindowSet(site.cohort, model.config.window, held_out, scale)
        sums = compare(model, baselines, windows, seed=seed, device=site.device, least=site.policy.min_group)
    return {name: of_predictor.to_arrays() for name, of_predictor in sums.items()}


def _hash(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
