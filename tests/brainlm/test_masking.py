from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from brainlm.config import MaskConfig
from brainlm.masking import choose_mask, draw_noise, split_tokens


def hidden(mask: MaskConfig, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Which tokens are hidden, [B, P, S]."""
    noise = draw_noise(mask, shape, torch.Generator().manual_seed(seed))
    _, unseen, _ = split_tokens(noise, mask, shape[2], None)
    return unseen.unflatten(1, shape[1:])


def test_whole_spans_are_hidden_from_all_parcels():
    spans = hidden(MaskConfig(kind="time", ratio=0.3), (50, 7, 10))

    assert (spans == spans[:, :1]).all()
    assert (spans[:, 0].sum(dim=1) == 3).all()
    assert spans[:, 0].any(dim=0).all()  # not always the same ones


def test_the_future_is_the_last_spans():
    spans = hidden(MaskConfig(kind="future", ratio=0.1), (4, 7, 10))

    assert spans[..., :9].sum() == 0
    assert spans[..., 9].all()


@pytest.mark.parametrize(("ratio", "visible"), [(0.8, 2), (0.9, 1), (0.7, 3), (0.75, 2), (0.0, 10)])
def test_rounding_hides_no_span_more(ratio, visible):
    for kind in ("time", "future"):
        assert (~hidden(MaskConfig(kind=kind, ratio=ratio), (2, 3, 10))[:, 0]).sum(dim=1).tolist() == [visible] * 2


def test_whole_parcels_are_hidden():
    parcels = hidden(MaskConfig(kind="parcel", ratio=0.4), (50, 10, 6))

    assert (parcels == parcels[..., :1]).all()
    assert (parcels[..., 0].sum(dim=1) == 4).all()


def test_a_mixture_draws_kinds_by_their_weights():
    mask = MaskConfig(kind="mixed", ratio=0.5, weights={"random": 3, "future": 1})
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(choose_mask(mask, generator=generator).kind for _ in range(2000))

    assert drawn.keys() == {"random", "future"}
    assert drawn["future"] / 2000 == pytest.approx(0.25, abs=0.03)


def test_the_ratio_moves_to_its_end_in_a_straight_line():
    mask = MaskConfig(ratio=0.8, initial_ratio=0.2)

    assert [round(choose_mask(mask, progress).ratio, 6) for progress in (0, 0.5, 1, 2)] == [0.2, 0.5, 0.8, 0.8]
    assert choose_mask(mask).ratio == 0.8
    assert choose_mask(MaskConfig(ratio=0.8), 0.0).ratio == 0.8


def test_weights_belong_to_a_mixture():
    for wrong in ({"kind": "mixed"}, {"weights": {"random": 1}}):
        with pytest.raises(ValidationError, match="do not go together"):
            MaskConfig(**wrong)
