"""A hospital's Flower ClientApp: five handlers. Each computes here; `client.door.release` lets the answer out."""

from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from base.files import save_arrays
from base.seeding import derive_seed
from base.settings import check_settings
from brainlm.architectures import AnyModel, check_model_config
from brainlm.config import WindowConfig
from brainlm.embedding import CONNECTIVITY, EMBEDDING, UNTRAINED, embed_each, find_recipe
from brainlm.evaluation import MODEL, reconstruct_example
from brainlm.pretraining import initial_model
from brainlm.windows import WindowSet, lengths_of
from client import training
from client.door import ledger, summaries
from client.door.disclosure import read_design
from client.door.ledger import LACKING, Release
from client.door.limits import permit_design
from client.door.participation import Participation, objections
from client.door.release import Answer, answer
from client.features import FeatureSet, FeatureStore, complete_rows, read_features
from client.frames import moments_of, scaling_of, split_site
from client.models import (
    evaluate_held_out,
    evaluation_parts,
    evaluation_releases,
    incoming_model,
    set_linear_path,
    shown_metrics,
)
from client.site import Site
from exchange.messages import (
    Arrays,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    HarmonizeReply,
    HarmonizeRequest,
    Step,
    SummarizeRequest,
    TrainRequest,
    hash_arrays,
    join,
)
from exchange.refusals import Refusal, RefusalCode
from harmonization import ANALYSES, SiteTable, harmonizers, make_harmonizer
from harmonization.core.protocol import Array
from harmonization.core.selection import Selection
from harmonization.methods.harmonizer import Effect
from harmonization.methods.projection import ProjectionModel
from harmonization.methods.residualization import ResidualizationModel

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say whether the site takes part, and with how much."""
    return answer(message, context, DescribeRequest, _describe)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Evaluate the incoming model on held-out participants and train it on the others."""
    return answer(message, context, TrainRequest, training.train)


@app.query("embed")
def embed(message: Message, context: Context) -> Message:
    """Embed every participant and keep the vectors here."""
    return answer(message, context, EmbedRequest, _embed)


@app.query("summarize")
def summarize(message: Message, context: Context) -> Message:
    """Sum what the analyses of this round ask for."""
    return answer(message, context, SummarizeRequest, summaries.summarize)


@app.query("harmonize")
def harmonize(message: Message, context: Context) -> Message:
    """Apply what was solved to the site's own features and keep the result here."""
    return answer(message, context, HarmonizeRequest, _harmonize)


def _describe(site: Site, request: DescribeRequest) -> Answer:
    refusals, window = objections(site, request), check_settings(request.window, WindowConfig, "the study's window")
    lengths = lengths_of(site.cohort, window)
    if lengths.too_short:
        site.log.info("query.describe: %s", lengths.said)
    for refusal in refusals:
        raise refusal
    whom = Participation.of(site, request)
    people = whom.people
    windows = WindowSet(site.cohort, window)
    reply = DescribeReply(
        site=site.name,
        n_participants=len(people),
        n_recordings=sum(len(recordings) for recordings in lengths.usable.values()),
        n_quarantined=len(site.cohort.quarantined),
        n_too_short=len(lengths.too_short),
        n_left_out=lengths.n_left_out,
        n_incomplete=site.policy.told(len(people) - len(whom.complete)),
        n_like_visits=site.policy.told(site.cohort.visits.n_ids if site.cohort.visits else 0),
        n_windows=windows.n_windows,
        n_parcels=site.cohort.atlas.n_parcels,
        n_vector_dimensions=whom.vectors.matrix.shape[1] if whom.vectors else 0,
        n_without_vectors=site.policy.told(len(whom.without_vectors)),
        atlas=site.cohort.atlas.name,
        preprocessing=site.cohort.preprocessing,
        software={"torch": torch.__version__, "numpy": np.__version__, "threads": str(site.settings.threads)},
        rosters=site.keys.usable(),
    )
    return Answer(reply, len(people))


def _embed(site: Site, request: EmbedRequest) -> Answer:
    site.policy.permit(request.study, ["embedding"], request.recipe)
    weights = request.part("weights")
    scale, moments = scaling_of(site, request), moments_of(site, request)
    model = incoming_model(site, request.model, weights)
    seed = derive_seed(request.seed, site.name)
    people, held_out = split_site(site, model.config.window, request.holdout, request.seed)
    set_linear_path(site, model, moments, people)
    windows = WindowSet(site.cohort, model.config.window, scale=scale)
    model_hash = hash_arrays(weights)
    lacking = _keep_features(site, request, model, model_hash, windows)
    folder = site.folder_of(request.study)
    for name, measured in (("scaling", scale), ("moments", moments)):
        if measured:
            save_arrays(folder / f"{name}.safetensors", measured.to_arrays())
    if held_out:
        example = reconstruct_example(model, windows.of(held_out), seed=seed, device=site.device)
        save_arrays(folder / "reconstruction.safetensors", example)
    evaluation = evaluate_held_out(site, model, windows, held_out, seed, beside=True, moments=moments)
    participants = windows.participants
    reply = EmbedReply(
        arrays=join(
            tally={"n_participants": np.array(len(participants))},
            lacking={f"{site.cohort.atlas.name}/connectivity": lacking.astype(np.int64)},
            shown=shown_metrics(site, evaluation[MODEL]),
            **evaluation_parts(site, evaluation),
        )
    )
    counted = (
        Release(ledger.EMBEDDING, participants, ("tally",), accounted=True),
        Release(LACKING, participants, ("lacking",)),
    )
    evaluated = evaluation_releases(site, held_out, (model_hash,))
    return Answer(reply, len(participants), (*counted, *evaluated))


def _keep_features(site: Site, request: EmbedRequest, model: AnyModel, model_hash: str, windows: WindowSet) -> Array:
    """Embed everybody, and keep the vectors; return which pairs of parcels [pairs] are missing in somebody."""
    recipe = find_recipe(request.recipe)
    about: dict[str, Any] = {
        "study": request.study,
        "recipe": recipe.id,
        "model_sha256": model_hash,
        "preprocessing": site.cohort.preprocessing,
        "atlas": site.cohort.atlas.name,
        "scaling_sha256": hash_arrays(windows.scale.to_arrays()) if windows.scale else None,
        "transforms": [],
    }
    config = check_model_config(request.model, "the study's model")
    models = {EMBEDDING: model, UNTRAINED: initial_model(config, derive_seed(request.seed, "untrained"))}
    features = embed_each(models, windows, recipe.id, device=site.device, connectivity=True)
    store = FeatureStore(site.folder_of(request.study), request.run)
    for name, values in features.items():
        store.write(name, FeatureSet(windows.participants, values, {**about, "features": name}))
    lacking: Array = np.isnan(features[CONNECTIVITY]).any(axis=0)
    if lacking.any():
        site.log.info("%d of %d pairs of parcels are missing in somebody.", lacking.sum(), len(lacking))
    return lacking


def _harmonize(site: Site, request: HarmonizeRequest) -> Answer:
    site.policy.permit(request.study, [step.transform for step in request.steps if step.transform in ANALYSES])
    site.policy.permit_size("jobs", len(request.steps), "transforms in one message")
    store = FeatureStore(site.folder_of(request.study), request.run)
    tally: Arrays = {}
    shown: Arrays = {}
    pseudonyms: list[str] = []
    for step in request.steps:
        model = request.part(step.result)
        result, effect = _transform(site, read_features(site, store, step.source), step, model)
        store.write_model(step.result, model)
        if effect is not None:
            store.write_model(f"{step.result}.effect", effect.to_arrays())
            # Only the log says how many: the model decides what counts, and whoever chose it could ask again and again.
            site.log.info("%s: %d features hardly vary here, and stay as they are.", step.result, effect.n_unadjusted)
            if site.policy.share_parameters:
                shown |= join(**{f"parameters/{step.result}": effect.to_arrays()})
        store.write(step.result, result)
        tally[step.result] = np.array(len(result.participants))
        if step.result == request.final and site.policy.share_embeddings:
            shown["embeddings"] = result.features
            pseudonyms = [site.pseudonym(participant) for participant in result.participants]
    reply = HarmonizeReply(arrays=join(tally=tally, shown=shown), pseudonyms=pseudonyms)
    return Answer(reply, int(min(tally.values())))


def _transform(site: Site, source: FeatureSet, step: Step, model: Arrays) -> tuple[FeatureSet, Effect | None]:
    """Apply one solved model to the participants whose covariates are known; also return the site's own effect."""
    permit_design(site.policy, step.covariates)
    rows, design = complete_rows(site, source.participants, read_design(step.covariates))
    features, effect = source.features[rows], None
    if step.transform != "selection":
        source.require_whole(step.source)
    if step.transform == "selection":
        changed: Array = Selection.from_arrays(model).select(features)
    elif step.transform == "projection":
        changed = ProjectionModel.from_arrays(model).project(features)
    elif step.transform == "residualization":
        changed = ResidualizationModel.from_arrays(model).residualize(features, design)
    elif step.transform in harmonizers():
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
        "model_sha256": hash_arrays(model),
    }
    origin = source.about.get("features", step.source)  # what the release ledger knows all that is made of it by
    about = {**source.about, "features": origin, "transforms": [*source.about.get("transforms", []), done]}
    return FeatureSet([source.participants[row] for row in rows], changed, about), effect
