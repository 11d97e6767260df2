"""The methods paragraph: what was done, in the words of a paper, from the run itself."""

from typing import Any

from server.report.data import RunData

REFERENCES = {
    "brainlm": "Ortega Caro J, et al. BrainLM: a foundation model for brain activity recordings. ICLR 2024.",
    "mae": "He K, et al. Masked autoencoders are scalable vision learners. CVPR 2022.",
    "fedavg": "McMahan HB, et al. Communication-efficient learning of deep networks from decentralized data. "
    "AISTATS 2017.",
    "flower": "Beutel DJ, et al. Flower: a friendly federated learning research framework. arXiv:2007.14390.",
    "combat": "Johnson WE, Li C, Rabinovic A. Adjusting batch effects in microarray expression data using empirical "
    "Bayes methods. Biostatistics 2007;8:118-127.",
    "combat_mri": "Fortin JP, et al. Harmonization of cortical thickness measurements across scanners and sites. "
    "NeuroImage 2018;167:104-120.",
    "gcv": "Golub GH, Heath M, Wahba G. Generalized cross-validation as a method for choosing a good ridge parameter. "
    "Technometrics 1979;21:215-223.",
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

    def cite(*keys: str) -> str:
        cited.extend(key for key in keys if key not in cited)
        return "[" + ", ".join(str(cited.index(key) + 1) for key in keys) + "]"

    text.append(_cohorts(data))
    text.append(_model(data, cite("brainlm"), cite("mae")))
    text.append(_federation(data, cite("fedavg"), cite("flower")))
    text.append(_embedding(data))
    if data.summary["harmonization"]["method"] == "combat":
        text.append(_harmonization(data, cite("combat", "combat_mri")))
    text.append(_measures(data, cite("gcv")))
    versions = ", ".join(f"{name} {number}" for name, number in data.summary["software"].items())
    text.append(f"Software: {versions}.")
    return " ".join(text), [REFERENCES[key] for key in cited]


def _cohorts(data: RunData) -> str:
    sites = data.summary["sites"].values()
    n_participants = sum(site["n_participants"] for site in sites)
    n_recordings = sum(site["n_recordings"] for site in sites)
    n_quarantined = sum(site["n_quarantined"] for site in sites)
    atlases = ", ".join(sorted({site["atlas"] for site in sites}))
    kind = "simulated " if all(site["preprocessing"] == "simulated" for site in sites) else ""
    return (
        f"{n_recordings} {kind}resting-state recordings of {n_participants} participants at {len(sites)} sites were "
        f"analysed as mean time series of the parcels of {atlases}; {n_quarantined} recordings were excluded by "
        "quality rules at the sites."
    )


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


def _embedding(data: RunData) -> str:
    harmonization = data.summary["harmonization"]
    kept = harmonization.get("components", {}).get("projected", {}).get("components")
    projected = f" projected to {kept} components;" if kept else ""
    removed = ", ".join(harmonization["residualize"])
    return (
        f"Each site embedded its participants with recipe {data.summary['recipe']} (encoding without masking, mean "
        f"over tokens, segments and recordings;{projected} linear effects of {removed} removed)."
    )


def _harmonization(data: RunData, combat: str) -> str:
    harmonization = data.summary["harmonization"]
    keep = ", ".join(harmonization["keep"]) or "no covariate"
    return (
        f"Before the projection, embeddings were harmonized by ComBat {combat} with {_PRIORS[harmonization['prior']]}, "
        f"keeping effects of {keep}, from sums over sites that equal the pooled analysis."
    )


def _measures(data: RunData, gcv: str) -> str:
    analyses = data.study["analyses"]
    return (
        f"Probes were ridge regressions with the penalty chosen by generalized cross-validation {gcv}, and the site "
        f"was classified by shrunken linear discriminants, both in {analyses['folds']}-fold cross-validation inside "
        "the sites with harmonization fitted on training folds only; the classifier's null comes from "
        f"{analyses['permutations']} permutations."
    )
