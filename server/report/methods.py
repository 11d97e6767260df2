"""The methods paragraph: what was done, in the words of a paper, from the run itself."""

from collections.abc import Callable
from typing import Any

from harmonization import CrossValidatedCCA, CrossValidatedPermanova, harmonizers
from server.report.data import RunData
from server.report.people import people_sentences

REFERENCES = {
    "brainlm": "Ortega Caro J, et al. BrainLM: a foundation model for brain activity recordings. ICLR 2024.",
    "mae": "He K, et al. Masked autoencoders are scalable vision learners. CVPR 2022.",
    "fedavg": "McMahan HB, et al. Communication-efficient learning of deep networks from decentralized data. "
    "AISTATS 2017.",
    "flower": "Beutel DJ, et al. Flower: a friendly federated learning research framework. arXiv:2007.14390.",
    "secure_sum": "Bonawitz K, et al. Practical secure aggregation for privacy-preserving machine learning. CCS 2017.",
    "dp_sgd": "Abadi M, et al. Deep learning with differential privacy. CCS 2016.",
}
_OPTIMIZERS = {"adamw": "AdamW", "sgd": "gradient descent"}
_SCALINGS = {
    "zscore": " and z-scored by parcel",
    "robust": " and scaled by parcel to the median and interquartile range of all sites' training frames",
    "none": "",
}
_HIDDEN = {
    "random": "tokens at random",
    "parcel": "whole parcels at random",
    "time": "whole time spans at random",
    "future": "the last ones of every window",
    "mixed": "by a mixture of masks",
}
_OBJECTIVES = {
    "reconstruction": "",
    "latent": " It was trained to predict the latents of a slowly moving copy of the encoder.",
}
_RESIDUALS = {
    "none": "",
    "gaussian": " The decoder started from a linear Gaussian prediction, whose moments were summed over the sites.",
}
_OUTER = {
    "fedavg": "",
    "fedavgm": " and an outer step of gradient descent with momentum",
    "fedadam": " and an outer step of Adam",
    "fedyogi": " and an outer step of Yogi",
}
_PRIORS = {
    "parametric": "parametric empirical Bayes",
    "nonparametric": "non-parametric empirical Bayes",
    "none": "no empirical Bayes",
}


def methods_paragraph(data: RunData) -> tuple[str, list[str]]:
    """Write the paragraph and the references that it cites, in order."""
    text: list[str] = []
    cited: list[str] = []

    def cite(*references: str) -> str:
        cited.extend(reference for reference in references if reference not in cited)
        return "[" + ", ".join(str(cited.index(reference) + 1) for reference in references) + "]"

    text.append(_cohorts(data))
    text.append(_model(data, cite(REFERENCES["brainlm"]), cite(REFERENCES["mae"])))
    text.append(_federation(data, cite(REFERENCES["fedavg"]), cite(REFERENCES["flower"])))
    text += _protection(data, cite)
    text.append(_embedding(data))
    method = data.summary["harmonization"]["method"]
    if method != "none" and not _left_out(data, f"harmonization by {method}", "embedding/harmonized/model"):
        text.append(_harmonization(data, cite(*harmonizers()[method].references)))
    text.append(_measures(data))
    if any(data.summary["harmonization"].get("site_effect", {}).values()):
        text.append(_site_effects(data, cite(*CrossValidatedPermanova.references)))
    if data.summary["association"]:
        text.append(_association(data, cite(*CrossValidatedCCA.references)))
    versions = ", ".join(f"{name} {number}" for name, number in data.summary["software"].items())
    text.append(f"Software: {versions}.")
    return " ".join(text), cited


def _left_out(data: RunData, *names: str) -> bool:
    """Whether the sites or their data did not allow one of these."""
    return not data.summary["harmonization"].get("left_out", {}).keys().isdisjoint(names)


def _cohorts(data: RunData) -> str:
    sites = data.summary["sites"].values()
    n_participants = sum(site["n_participants"] for site in sites)
    n_recordings = sum(site["n_recordings"] for site in sites)
    n_quarantined = sum(site["n_quarantined"] for site in sites)
    atlases = ", ".join(sorted({site["atlas"] for site in sites}))
    kind = "simulated " if all(site["preprocessing"] == "simulated" for site in sites) else ""
    described = (
        f"{n_recordings} {kind}resting-state recordings of {n_participants} participants at {len(sites)} sites were "
        f"analysed as mean time series of the parcels of {atlases}; {n_quarantined} recordings were excluded by "
        "quality rules at the sites."
    )
    return " ".join([described, *people_sentences(data)])


def _model(data: RunData, brainlm: str, mae: str) -> str:
    model: dict[str, Any] = data.study["model"]
    window = model["window"]
    begun = " Its weights came from an earlier checkpoint." if data.study.get("start") else ""
    if "architecture" in model:
        return (
            f"{_recordings(window)} The model is the "
            f"released BrainLM {brainlm} of architecture {model['architecture']} ({model['num_hidden_layers']} encoder "
            f"blocks of width {model['hidden_size']}), a masked autoencoder {mae} that saw windows of "
            f"{window['n_frames']} frames with {model['mask_ratio']:.0%} of its tokens hidden.{begun}"
        )
    members = model["parcels_per_token"]
    parcels = "one parcel" if members == 1 else f"{members} neighbouring parcels"
    return (
        f"{_recordings(window)} A masked autoencoder {mae} after "
        f"BrainLM {brainlm} ({model['depth']} encoder blocks of width {model['width']}, {model['decoder_depth']} "
        f"cross-attention decoder blocks of width {model['decoder_width']}, attention factorised over space and time) "
        f"saw windows of {window['n_frames'] * window['t_r']:g} s as tokens of {parcels} and "
        f"{window['patch_frames'] * window['t_r']:g} s; {model['mask']['ratio']:.0%} were hidden, "
        f"{_HIDDEN[model['mask']['kind']]}.{_OBJECTIVES[model['objective']]}{_RESIDUALS[model['residual']]}{begun}"
    )


def _recordings(window: dict[str, Any]) -> str:
    """What became of the recordings before the model saw them."""
    scaling = _SCALINGS[window["scaling"]]
    if window["temporal"] == "adaptive":
        return (
            f"Recordings kept their repetition times{scaling}; patches of the same duration were resized to "
            f"{window['patch_frames']} frames by a pseudo-inverse."
        )
    return f"Recordings were resampled to a repetition time of {window['t_r']:g} s{scaling}."


def _federation(data: RunData, fedavg: str, flower: str) -> str:
    training, averaging = data.study["training"], data.study["averaging"]
    return (
        f"It was pretrained without pooling data, by {averaging['rounds']} rounds of federated averaging {fedavg} "
        f"weighted by the sites' numbers of windows{_OUTER[averaging['optimizer']]}, in Flower {flower}; in each round "
        f"a site took {training['steps_per_round']} steps of {_OPTIMIZERS[training['optimizer']]} on batches of "
        f"{training['batch_size']} windows (peak learning rate {training['learning_rate']:g}, cosine schedule over all "
        f"rounds), leaving out {training['holdout']:.0%} of its participants for evaluation."
    )


def _protection(data: RunData, cite: Callable[..., str]) -> list[str]:
    privacy, text = data.summary["privacy"], []
    if privacy["secure_sums"]:
        cited = cite(REFERENCES["secure_sum"])
        text.append(
            "All that was added over the sites, model updates included, was masked with pairwise keys, so that a "
            f"coordinator that follows the protocol reads only sums over three or more of them {cited}."
        )
    if (training := privacy["differential_privacy"]) is not None:
        goal = "noise multiplier" if training["epsilon"] is None else "ε"
        value = training["noise_multiplier"] if training["epsilon"] is None else training["epsilon"]
        cited = cite(REFERENCES["dp_sgd"])
        text.append(
            f"Training was differentially private with the participant as the unit {cited} ({goal} {value:g}, "
            f"δ {training['delta']:g}, gradients clipped to {training['clip']:g}): in every step each was drawn with "
            "probability batch size over participants, at most 1."
        )
    return text


def _embedding(data: RunData) -> str:
    harmonization = data.summary["harmonization"]
    kept = harmonization.get("components", {}).get("projected", {}).get("components")
    projected = f" projected to {kept} components;" if kept else ""
    removed = f" linear effects of {', '.join(harmonization['residualize'])} removed;"
    if not kept or _left_out(data, "residualization"):
        removed = ""
    return (
        f"Each site embedded its participants with recipe {data.summary['recipe']} (encoding without masking, mean "
        f"over tokens, segments and recordings;{projected}{removed}".removesuffix(";")
        + ")."
    )


def _harmonization(data: RunData, references: str) -> str:
    harmonization = data.summary["harmonization"]
    method = harmonizers()[harmonization["method"]]
    keep = ", ".join(harmonization["keep"]) or "no covariate"
    shrunk = f" with {_PRIORS[harmonization['prior']]}" if method.exact and "prior" in method.study_options else ""
    reference = f", with {harmonization['reference']} as reference site" if harmonization["reference"] else ""
    trained = "from sums over sites that equal the pooled analysis" if method.exact else "trained without pooling data"
    return (
        f"Before the projection, embeddings were harmonized by {method.described} {references}{shrunk}{reference}, "
        f"keeping effects of {keep}, {trained}."
    )


def _measures(data: RunData) -> str:
    analyses = data.study["analyses"]
    intervals = (
        f"; 95% intervals come from {analyses['bootstrap']} draws of participants within sites"
        if analyses["bootstrap"]
        else ""
    )
    return (
        "Targets were predicted by ridge regression (numbers) or logistic regression (categories) with the penalty "
        f"chosen by nested folds, in {analyses['folds']}-fold cross-validation inside the sites with harmonization "
        f"fitted on training folds only{intervals}. Nulls come from {analyses['permutations']} permutations within "
        f"sites ({analyses['category_permutations']} for categories)."
    )


def _site_effects(data: RunData, permanova: str) -> str:
    classified = data.study["analyses"]["site_classification"]
    site = "The site was classified by shrunken linear discriminants in the same folds. " if classified else ""
    return (
        f"{site}Site effects over all "
        f"participants were measured by permutational analysis of variance {permanova}, eta squared, the spread of the "
        "sites' variances, and the distance of their covariances."
    )


def _association(data: RunData, cca: str) -> str:
    settings = data.study["association"]
    return (
        f"The embedding was associated with the vectors '{settings['vectors']}' of the same participants by canonical "
        f"correlation {cca} of at most {settings['components']} principal components of each view, fitted on training "
        "folds inside the sites and correlated in held-out participants, beyond covariates and site; the null comes "
        f"from {settings['permutations']} permutations of one view within the sites, each fitted anew."
    )
