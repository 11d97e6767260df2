import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainlm.attention import Chosen, SpaceAttention, TimeAttention, Tokens


def grid(seed: int, shape: tuple[int, int, int], share: float = 0.5) -> torch.Tensor:
    """Some tokens, at least one a window."""
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    chosen[:, 0, 0] = True
    return chosen


def tokens(on_grid: torch.Tensor, width: int, seed: int) -> tuple[Tokens, torch.Tensor, torch.Tensor]:
    """The chosen ones, and the values and places that they were taken from, [B, G, S, D]."""
    generator = torch.Generator().manual_seed(seed)
    values, places = torch.randn(2, *on_grid.shape, width, generator=generator)
    chosen = Chosen.of(on_grid)
    return Tokens(chosen.take(values.flatten(1, 2)), chosen.take(places.flatten(1, 2)), chosen), values, places


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_groups=st.integers(1, 9),
    n_spans=st.integers(1, 5),
    share=st.floats(0, 1),
)
def test_tokens_find_their_way_back(seed, n_groups, n_spans, share):
    on_grid = grid(seed, (3, n_groups, n_spans), share)
    chosen = Chosen.of(on_grid)
    every = torch.randn(3, n_groups * n_spans, 2)

    there = chosen.there
    mine = chosen.take(every)

    assert there.sum() == on_grid.sum()
    torch.testing.assert_close(chosen.put(mine)[on_grid], every.unflatten(1, (n_groups, n_spans))[on_grid])
    torch.testing.assert_close(chosen.from_spans(chosen.by_span(mine))[there], mine[there])
    by_span = chosen.by_span(mine)
    for window in range(3):
        for span in range(n_spans):
            expected = every[window].unflatten(0, (n_groups, n_spans))[on_grid[window, :, span], span]
            torch.testing.assert_close(by_span[window, span][chosen.slot_taken[window, span]], expected)


def test_space_attention_is_attention_within_the_span():
    torch.manual_seed(0)
    layer = SpaceAttention(6, 2, 6)
    asking, values, places = tokens(grid(1, (2, 5, 3)), 6, 1)
    context, seen, where = tokens(grid(2, (2, 5, 3)), 6, 2)

    found = asking.chosen.put(layer(asking, context))

    for window, group, span in asking.chosen.on_grid.nonzero().tolist():
        others = context.chosen.on_grid[window, :, span]
        mixed = torch.zeros(6)
        if others.any():
            query = layer.query(values[window, group, span] + places[window, group, span]).view(2, 3)
            key = layer.key(seen[window, others, span] + where[window, others, span]).view(-1, 2, 3)
            weight = (torch.einsum("hd,khd->hk", query, key) / math.sqrt(3)).softmax(dim=-1)
            mixed = torch.einsum("hk,khd->hd", weight, layer.value(seen[window, others, span]).view(-1, 2, 3)).flatten()
        torch.testing.assert_close(found[window, group, span], layer.project(mixed), atol=1e-5, rtol=1e-4)


def test_time_attention_weighs_by_distance_alone():
    torch.manual_seed(0)
    layer = TimeAttention(6, 2, 6, 4)
    torch.nn.init.normal_(layer.distance.weight)
    asking = Chosen.of(grid(1, (2, 3, 4)))
    context, seen, _ = tokens(grid(2, (2, 3, 4), 0.3), 6, 2)

    found = asking.put(layer(asking, context))

    for window, group, span in asking.on_grid.nonzero().tolist():
        mixed = torch.zeros(2, 3)
        for head in range(2):
            others = [other for other in range(4) if context.chosen.on_grid[window, group, other]]
            scores = [layer.distance.weight[span - other + 3, head].exp() for other in others]
            total = sum(scores) + layer.distance.weight[-1, head].exp()
            for score, other in zip(scores, others, strict=True):
                mixed[head] += score / total * layer.value(seen[window, group, other]).view(2, 3)[head]
        torch.testing.assert_close(found[window, group, span], layer.project(mixed.flatten()), atol=1e-5, rtol=1e-4)


def test_weights_of_any_size_stay_finite():
    layer = TimeAttention(4, 2, 4, 3)
    context, _, _ = tokens(grid(0, (1, 2, 3)), 4, 0)
    for size in (-1e4, 1e4):
        torch.nn.init.constant_(layer.distance.weight, size)
        layer.distance.weight.data[1] = 0.0
        assert layer(context.chosen, context).isfinite().all()
