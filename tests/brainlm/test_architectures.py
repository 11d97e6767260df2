import pytest

from brainlm.architectures import check_model_config, mask_conflicts
from brainlm.config import MaskConfig, ModelConfig, WindowConfig
from brainlm.masking import count_tokens, masks_of
from tests.support.released import DENSE, PADDED, make_released

ONE_SPAN = {"window": WindowConfig(n_frames=20, patch_frames=20)}
FEW = {"window": WindowConfig(n_frames=20, patch_frames=10), "parcels_per_token": 20}


def conflicts(n_parcels: int = 100, **settings: object) -> list[str]:
    return list(mask_conflicts(ModelConfig(**settings), n_parcels))


def masked(**mask: object) -> dict[str, MaskConfig]:
    return {"mask": MaskConfig(**mask)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**ONE_SPAN, **masked(kind="time")}, "'time' of ratio 0.75 hides nothing of a window of 100 x 1 tokens"),
        ({**ONE_SPAN, **masked(kind="future")}, "'future' of ratio 0.75 hides nothing"),
        ({**ONE_SPAN, **masked(kind="mixed", weights={"random": 9, "time": 1})}, "'time' of ratio 0.75 hides nothing"),
        (masked(ratio=0), "'random' of ratio 0 hides nothing"),
        (masked(ratio=1e-10), "'random' of ratio 1e-10 hides nothing"),
        (masked(initial_ratio=0), "'random' of ratio 0 hides nothing"),
        (masked(ratio=0, initial_ratio=0.5), "'random' of ratio 0 hides nothing"),
        (
            {"parcels_per_token": 100, **masked(kind="parcel")},
            "'parcel' of ratio 0.75 hides nothing of a window of 1 x",
        ),
        ({**FEW, **masked(ratio=0.1)}, "hides 1 of a window's 10 tokens, and decode_every 4 predicts none of them"),
        ({**ONE_SPAN, "objective": "latent", **masked(kind="time")}, "hides nothing"),
    ],
)
def test_masks_that_leave_nothing_to_learn_are_told(settings, said):
    assert any(said in one for one in conflicts(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        masked(kind="future", ratio=0.01),
        masked(ratio=0.999),
        masked(kind="mixed", weights={"random": 3, "parcel": 1, "future": 1}),
        {**FEW, "decode_every": 1, **masked(ratio=0.15)},
    ],
)
def test_masks_that_hide_something_are_taken(settings):
    assert conflicts(**settings) == []


def test_a_mask_is_judged_by_what_it_hides_in_each_atlas():
    groups = {"parcels_per_token": 150, **masked(kind="parcel")}

    assert conflicts(100, **groups)
    assert not conflicts(400, **groups)


@pytest.mark.parametrize(("ratio", "decode_every", "predicted"), [(0.75, 1, 750), (0.75, 4, 187), (0.001, 1, 1)])
def test_what_is_predicted_is_counted_as_training_does(ratio, decode_every, predicted):
    (mask,) = masks_of(MaskConfig(ratio=ratio))

    assert count_tokens(mask, 100, 10, decode_every) == (1000 - round(1000 * ratio), predicted)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**DENSE, "mask_ratio": 0.0}, "mask_ratio 0 hides nothing"),
        ({**DENSE, "mask_ratio": 0.999}, "mask_ratio 0.999 hides everything"),
        ({**PADDED, "mask_ratio": 0.0}, "mask_ratio 0 hides nothing"),
        ({**PADDED, "mask_ratio": 0.99}, "mask_ratio 0.99 hides everything"),
        ({**PADDED, "mask_ratio": 0.05, "train_mode": "predict_last_pixel"}, "mask_ratio 0.05 hides nothing"),
        ({**PADDED, "mask_ratio": 0.95, "train_mode": "predict_last"}, "mask_ratio 0.95 hides everything"),
    ],
)
def test_released_models_hide_a_part_of_a_window(content, said):
    config = make_released(content).config

    assert said in next(mask_conflicts(config, 10))
    usual = {**config.model_dump(), "mask_ratio": 0.5}
    assert not list(mask_conflicts(check_model_config(usual, "test"), 10))
