"""What the sites may answer to each question of a run (`exchange.expected`), as it follows from the question alone."""

from collections.abc import Iterable, Mapping

from brainlm.architectures import AnyConfig
from brainlm.baselines import baseline_names
from brainlm.embedding import feature_sizes
from brainlm.evaluation import MAX_HORIZON, MODEL, SUMS
from exchange.expected import Expected
from exchange.messages import EmbedRequest, HarmonizeRequest, TableSpec, TrainRequest
from harmonization import Design, State, harmonizers, make_harmonizer
from harmonization.core.declared import Declared, Widths
from harmonization.core.selection import Selection
from harmonization.methods.projection import ProjectionModel

_MOST_PEOPLE = 10**9


def of_training(request: TrainRequest, atlases: Mapping[str, int]) -> dict[str, Expected]:
    """Expect a round of training: `exchange.messages.TrainReply`.

    Parameters
    ----------
    atlases : mapping
        Atlas → number of parcels, of all sites.
    """
    n_windows = Expected("count", most=request.max_windows)
    expected = {"tally/n_windows": n_windows, "tally/n_losses": n_windows, "tally/loss": Expected("sum")}
    for name, values in request.part("weights").items():
        expected[f"weights/{name}"] = Expected("weights", values.shape, str(values.dtype))
        expected[f"update/{name}"] = Expected("update", values.shape)
    evaluated = _of_evaluation({atlas: [MODEL] for atlas in atlases}, atlases)
    return {**expected, **evaluated, "shown/loss": Expected("shown")}


def of_embedding(request: EmbedRequest, model: AnyConfig, atlases: Mapping[str, int]) -> dict[str, Expected]:
    """Expect what the final model gave: `exchange.messages.EmbedReply`; arguments as of `of_training`."""
    expected = {"tally/n_participants": Expected("count", most=_MOST_PEOPLE)}
    predictors = {atlas: [MODEL, *baseline_names(model.mask, request.part(f"moments/{atlas}"))] for atlas in atlases}
    for atlas, n_parcels in atlases.items():
        n_pairs = feature_sizes(model, n_parcels)["connectivity"]
        expected[f"lacking/{atlas}/connectivity"] = Expected("count", (n_pairs,), most=1)
    return {**expected, **_of_evaluation(predictors, atlases)}


def _of_evaluation(predictors: Mapping[str, Iterable[str]], atlases: Mapping[str, int]) -> dict[str, Expected]:
    """Expect sums over hidden values: by parcel of each atlas, and over all parcels."""
    expected = {"shown/evaluation": Expected("shown", (len(SUMS), 1))}
    for atlas, names in predictors.items():
        for name in names:
            within = f"evaluation/{atlas}" if name == MODEL else f"baselines/{atlas}/{name}"
            for part, n_parcels in ((within, atlases[atlas]), (f"overall/{name}", 1)):
                expected[f"{part}/parcels"] = Expected("sum", (len(SUMS), n_parcels))
                expected[f"{part}/horizons"] = Expected("sum", (len(SUMS), MAX_HORIZON + 1))
    return expected


def of_sums(declared: Mapping[str, Declared]) -> dict[str, Expected]:
    """Expect the sums of analyses: `exchange.messages.SummarizeReply`.

    Parameters
    ----------
    declared : mapping
        Job → what its analysis sends in this round.
    """
    return {
        f"{job}/{name}": Expected("sum", sent.shape) for job, sums in declared.items() for name, sent in sums.items()
    }


def of_harmonization(request: HarmonizeRequest, sizes: Mapping[str, int]) -> dict[str, Expected]:
    """Expect what was applied: `exchange.messages.HarmonizeReply`.

    Parameters
    ----------
    sizes : mapping
        Feature set → how many features it has, results included.
    """
    expected: dict[str, Expected] = {}
    for step in request.steps:
        expected[f"tally/{step.result}"] = Expected("count", most=_MOST_PEOPLE)
        if step.transform in harmonizers():
            harmonizer = make_harmonizer(step.transform, step.options)
            model = harmonizer.read_state(step.model, request.part(step.result))
            for name, shape in harmonizer.effect_shapes(model, sizes[step.source]).items():
                expected[f"shown/parameters/{step.result}/{name}"] = Expected("shown", shape)
        if step.result == request.final:
            expected["shown/embeddings"] = Expected("shown", (None, sizes[step.result]))
    return expected


def size_after(model: State, size: int) -> int:
    """How many features a set has once a solved model was applied to one of `size`."""
    if isinstance(model, Selection):
        return int((model.kept > 0).sum())
    return len(model.components) if isinstance(model, ProjectionModel) else size


def widths_of(table: TableSpec, sizes: Mapping[str, int]) -> Widths:
    """Columns of the tables that sites make of a spec."""
    seen = sizes[table.features]
    if table.through is not None:
        seen = min(sizes[table.through], table.n_loadings or sizes[table.through])
    target = (len(table.levels),) if table.levels else ()
    return Widths(
        features=sizes[table.features],
        seen=seen,
        covariates=len(Design.from_json(table.covariates).columns),
        target=None if table.target is None else target,
        second=sizes[table.second] if table.second else 0,
    )
