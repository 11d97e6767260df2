"""Pretraining: rounds in which the sites train the model, and their average becomes the next one; then they embed."""

from collections.abc import Collection

import numpy as np

from brainlm.embedding import feature_sizes
from brainlm.pretraining import largest_change
from exchange.messages import Arrays, EmbedReply, EmbedRequest, TrainReply, TrainRequest, part_of
from study.errors import StudyError
from study.expecting import of_embedding, of_training
from study.harmonizing import select, vectors_of
from study.outer import outer_step
from study.question import Question, atlases_of, evaluation_groups
from study.settings import Study
from study.state import State

PRETRAINING, EMBEDDING = "pretraining", "embedding"


class Rounds:
    """Each round all sites train; one that misses a round is asked again in the next."""

    name = PRETRAINING

    def is_over(self, study: Study, state: State) -> bool:
        """Whether the last round is done."""
        return state.round_number >= study.averaging.rounds

    def ask(self, study: Study, state: State) -> Question:
        """Ask for a round of training."""
        number = state.round_number + 1
        parts = ("weights", "scaling", *(["moments"] if study.starts_from_linear_prediction else []))
        request = TrainRequest(
            arrays=_parts(state, *parts),
            study=study.study,
            groups=evaluation_groups(state.sites, secure=study.privacy.secure_sums),
            model=study.model.model_dump(mode="json"),
            training=study.training.model_dump(mode="json"),
            round_number=number,
            rounds=study.averaging.rounds,
            seed=study.seed,
            max_windows=max(about.n_windows for about in state.sites.values()),
            max_norm=study.privacy.max_norm,
        )
        expected = of_training(request, atlases_of(state.sites))
        return Question(PRETRAINING, request, TrainReply, expected, number, _bound(study, request))

    def advance(self, study: Study, state: State, sites: Collection[str], total: Arrays) -> State:
        """Take the outer step.

        Parameters
        ----------
        total : dict
            Under masks the sums of updates; in the clear ``weights/…``, the average of the sites' weights.

        Raises
        ------
        StudyError
            If the new model is not finite.
        """
        number, weights = state.round_number + 1, state.part("weights")
        average = part_of(total, "weights") or _securely_averaged(state, total)
        weights, memory = outer_step(study.averaging, number, weights, average, state.part("outer"))
        if not all(np.isfinite(values).all() for values in weights.values()):
            raise StudyError(f"round {number}: the averaged model is not finite. Lower training.learning_rate.")
        return state.but(round_number=number).holding(weights=weights, outer=memory)

    def end(self, study: Study, state: State) -> State:
        """Go on to what is done with the model."""
        return state


def _bound(study: Study, request: TrainRequest) -> float:
    """Size of a weight's change that has room in the round's secure sum; known to all, and no site's own."""
    largest = max(float(np.abs(values).max(initial=0.0)) for values in request.part("weights").values())
    bound = largest_change(study.training, request.round_number, request.rounds, largest)
    return min(bound, request.max_norm or bound)


def _securely_averaged(state: State, total: Arrays) -> Arrays:
    """Weights of the incoming model, and the mean of updates that were weighted before they were summed."""
    total_weight = float(total["tally/n_windows"]) / max(about.n_windows for about in state.sites.values())
    return {
        name: (values + total[f"update/{name}"] / total_weight).astype(values.dtype)
        for name, values in state.part("weights").items()
    }


class Embedding:
    """All sites embed their participants with the final model; those that do go on."""

    name = EMBEDDING

    def is_over(self, study: Study, state: State) -> bool:
        """Whether the sites have embedded them."""
        return bool(state.sizes)

    def ask(self, study: Study, state: State) -> Question:
        """Ask once."""
        request = EmbedRequest(
            arrays=_parts(state, "weights", "scaling", "moments"),
            study=study.study,
            groups=evaluation_groups(state.sites, secure=study.privacy.secure_sums),
            model=study.model.model_dump(mode="json"),
            recipe=study.recipe,
            holdout=study.training.holdout,
            seed=study.seed,
        )
        return Question(EMBEDDING, request, EmbedReply, of_embedding(request, study.model, atlases_of(state.sites)))

    def advance(self, study: Study, state: State, sites: Collection[str], total: Arrays) -> State:
        """Go on with the feature sets that are the same at all sites, and in these with what nobody lacks."""
        after = state.among(sites).holding(weights={}, outer={}, scaling={}, moments={})
        (atlas, n_parcels), *others = atlases_of(after.sites).items()
        sizes, lacking = feature_sizes(study.model, n_parcels), part_of(total, f"lacking/{atlas}")
        if others:  # connectivity of another atlas has other edges, even if as many
            del sizes["connectivity"]
            lacking = {}
        if study.association is not None:
            sizes[vectors_of(study)] = next(iter(after.sites.values())).n_vector_dimensions  # as many at each
        return select(after.but(n_counted=int(total["tally/n_participants"]), sizes=sizes), lacking)

    def end(self, study: Study, state: State) -> State:
        """Go on to the analyses."""
        return state


def _parts(state: State, *names: str) -> Arrays:
    """Take parts of the state's arrays, under their names."""
    return {name: values for name, values in state.arrays.items() if name.partition("/")[0] in names}
