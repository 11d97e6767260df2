"""The methods paragraph: what was done, in the words of a paper, from the run itself."""

from collections.abc import Sequence
from importlib import resources

import jinja2

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


def methods_paragraph(data: RunData) -> tuple[str, list[str]]:
    """Write the paragraph, of ``methods.txt``, and the references that it cites, in order."""
    cited: list[str] = []

    def cite_all(references: Sequence[str]) -> str:
        cited.extend(reference for reference in references if reference not in cited)
        return "[" + ", ".join(str(cited.index(reference) + 1) for reference in references) + "]"

    study, summary, harmonization = data.study, data.summary, data.summary["harmonization"]
    sites, left_out = summary["sites"].values(), harmonization.get("left_out", {})
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters |= {"g": "{:g}".format, "percent": "{:.0%}".format}
    template = environment.from_string((resources.files(__package__) / "methods.txt").read_text(encoding="utf-8"))
    text = template.render(
        study,
        study=study,
        window=study["model"]["window"],
        privacy=summary["privacy"],
        harmonization=harmonization,
        recipe=summary["recipe"],
        n_sites=len(sites),
        total=lambda name: sum(site[name] for site in sites),
        atlases=", ".join(sorted({site["atlas"] for site in sites})),
        kind="simulated" if all(site["preprocessing"] == "simulated" for site in sites) else "",
        people=" ".join(people_sentences(data)),
        method=None if harmonization["method"] == "none" else harmonizers()[harmonization["method"]],
        components=harmonization.get("components", {}).get("projected", {}).get("components"),
        removed=", ".join(harmonization["residualize"]),
        lacks=lambda *names: not left_out.keys().isdisjoint(names),
        site_effects=any(harmonization.get("site_effect", {}).values()),
        associated=summary["association"],
        software=", ".join(f"{name} {number}" for name, number in summary["software"].items()),
        cite=lambda name: cite_all([REFERENCES[name]]),
        cite_all=cite_all,
        permanova=CrossValidatedPermanova.references,
        cca=CrossValidatedCCA.references,
    )
    return " ".join(text.split()), cited
