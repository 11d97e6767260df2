"""The study's model at a site: made from what arrives, and evaluated on the people who were held out."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from brainlm.architectures import AnyModel, check_model_config
from brainlm.baselines import make_baselines
from brainlm.checkpoints import load_weights
from brainlm.evaluation import MODEL, ReconstructionSums, compare
from brainlm.linear_path import LinearPath
from brainlm.model import BrainLM
from brainlm.pretraining import initial_model
from brainlm.windows import WindowSet
from client.door.ledger import EVALUATION, Release
from client.door.limits import permit_model
from client.frames import counted_parcels
from client.site import Site
from exchange.messages import Arrays
from exchange.refusals import Refusal, RefusalCode
from harmonization import Moments


def incoming_model(site: Site, config: dict[str, Any], weights: Arrays, batch_size: int = 1) -> AnyModel:
    """Build the model of the request, on the site's number of threads."""
    torch.set_num_threads(site.settings.threads)
    checked = check_model_config(config, "the study's model")
    permit_model(site.policy, checked, site.cohort.atlas.n_parcels, batch_size)
    model = initial_model(checked, 0)
    load_weights(model, {name: torch.from_numpy(values) for name, values in weights.items()}, "the incoming model")
    return model


def set_linear_path(site: Site, model: AnyModel, moments: Moments | None, people: list[str]) -> None:
    """Give the model the linear prediction that it starts from; `people` are the training participants."""
    if isinstance(model, BrainLM) and model.config.residual == "gaussian":
        if moments is None:
            raise Refusal(
                RefusalCode.PROTOCOL, "the model starts from a linear prediction; the request has no moments."
            )
        counted = counted_parcels(site, model.config.window, people)
        model.prior = LinearPath(moments.covariance, moments.autocovariance, moments.pairs, counted)


def evaluate_held_out(
    site: Site,
    model: AnyModel,
    windows: WindowSet,
    held_out: list[str],
    seed: int,
    *,
    beside: bool = False,
    moments: Moments | None = None,
) -> dict[str, Arrays]:
    """Sums over the hidden values of held-out participants; zeros where too few were held out to stand for a sum.

    Parameters
    ----------
    windows : WindowSet
        The site's; those of the held-out are taken.
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
        least = site.policy.min_group
        sums = compare(model, baselines, windows.of(held_out), seed=seed, device=site.device, least=least)
    return {name: of_predictor.to_arrays() for name, of_predictor in sums.items()}


def evaluation_parts(site: Site, sums: dict[str, Arrays]) -> dict[str, Arrays]:
    """Name sums of predictors by part of an answer: by parcel within the site's atlas, and over all parcels.

    Which of the two leaves is for the request's groups to say: the second where too few share the atlas.
    """
    parts = {}
    for name, arrays in sums.items():
        within = (
            f"evaluation/{site.cohort.atlas.name}" if name == MODEL else f"baselines/{site.cohort.atlas.name}/{name}"
        )
        parts[within] = arrays
        parts[f"overall/{name}"] = ReconstructionSums(**arrays).over_parcels().to_arrays()
    return parts


def evaluation_releases(site: Site, held_out: list[str], asked: tuple[str, ...]) -> tuple[Release, ...]:
    """Whom an evaluation tells of: nobody where so few were held out that the sums are zeros.

    Parameters
    ----------
    asked : tuple of str
        What tells the question from others of its kind: a hash of the incoming weights.
    """
    if len(held_out) < site.policy.min_group:
        return ()
    parts = ("evaluation", "baselines", "overall")
    return (Release(replace(EVALUATION, details=asked), held_out, parts),)


def shown_metrics(site: Site, evaluation: Arrays, loss: float | None = None) -> Arrays:
    """The site's own scores and loss, if its policy lets them leave beside those of all sites together."""
    if not site.policy.share_metrics:
        return {}
    shown = {"evaluation": evaluation["parcels"].sum(axis=1, keepdims=True)}
    return shown if loss is None or not math.isfinite(loss) else {**shown, "loss": np.array(loss)}
