"""What a question may cost: refused before it is begun, or when its time is over."""

import math
import threading
import time

import pytest

from brainlm import ModelConfig
from brainlm.architectures import check_model_config, count_weights, weight_shapes
from client.door.limits import permit_design, permit_job, permit_model, time_limit
from client.door.policy import Policy
from exchange.messages import FrameSpec, Job, TableSpec
from exchange.refusals import Refusal, RefusalCode
from harmonization import make_analysis

TABLE = TableSpec(features="x")


def refused(call) -> str:
    with pytest.raises(Refusal) as refusal:
        call()
    assert refusal.value.code is RefusalCode.LIMIT
    return refusal.value.detail


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_ratio": 64},
        {"depth": 512},
        {"width": 16_384},
        {"decoder_depth": 512},
        {"window": {"n_frames": 100_000, "patch_frames": 100_000}},
        {"parcels_per_token": 10_000},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_model_without_measure_is_refused_before_it_is_made(changes):
    config = check_model_config(changes, "the study's model")

    policy = Policy(max_parameters=5_000_000)

    permit_model(policy, ModelConfig(), 400)
    assert "policy.max_parameters is 5e+06" in refused(lambda: permit_model(policy, config, 400))


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_weights_are_counted_without_making_them(depth):
    config = ModelConfig(depth=depth, decoder_depth=depth + 1, width=24, heads=2)

    assert count_weights(config) == sum(math.prod(shape) for shape in weight_shapes(config).values())


def test_windows_and_weights_fit_the_memory():
    config = ModelConfig(window={"n_frames": 10**5, "patch_frames": 10**3})
    permit_model(Policy(), config, 400, batch_size=40)

    assert "policy.max_memory_gb is 32" in refused(lambda: permit_model(Policy(), config, 400, batch_size=1000))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("projection", {"n_components": 10**9}),
        ("cross_validated_ridge", {"n_folds": 10**6}),
        ("cross_validated_ridge", {"bootstrap": 10**6}),
        ("permanova", {"permutations": 10**6, "sizes": (3, 4)}),
        ("quantiles", {"probabilities": tuple(n / 10**4 for n in range(1, 9999))}),
        ("two_tower", {"rounds": 10**6}),
        ("cross_validated_ridge", {"method": "content_style", "options": {"rounds": 10**6}}),
    ],
    ids=str,
)
def test_an_analysis_without_measure_is_refused(name, parameters):
    job = Job(analysis=name, parameters=parameters, table=TABLE)
    analysis = make_analysis(name, parameters)

    assert "policy.max_components is 4096" in refused(lambda: permit_job(Policy(), job, analysis))
    usual = make_analysis("permanova", {"permutations": 1000, "sizes": (10**6, 10**6)})
    permit_job(Policy(), job, usual)


def test_tables_have_as_many_levels_and_columns_as_people_can_tell_apart():
    many = [str(level) for level in range(2 * 10**6)]
    for table in (
        TableSpec(features="x", target="age", levels=many),
        TableSpec(features="x", covariates=[{"name": "age", "levels": many}]),
        TableSpec(features="x", complete=[{"name": "age", "levels": many}]),
        TableSpec(features="x", covariates=[{"name": "age", "center": 0, "scale": 1}] * 1000),
    ):
        job = Job(analysis="projection", parameters={"n_components": 2}, table=table)
        asked = make_analysis("projection", {"n_components": 2})
        assert "policy.max_levels is 200" in refused(lambda job=job, asked=asked: permit_job(Policy(), job, asked))
    assert "max_levels" in refused(lambda: permit_design(Policy(), [{"name": "age", "levels": many}]))
    through = TableSpec(features="x", through="x.components", n_loadings=10**6)
    job = Job(analysis="projection", parameters={"n_components": 2}, table=through)
    asked = make_analysis("projection", {"n_components": 2})
    assert "max_components" in refused(lambda: permit_job(Policy(), job, asked))


def test_frames_have_no_levels():
    spec = FrameSpec(atlas="a", window={}, holdout=0.1, seed=10**12)
    job = Job(analysis="second_moments", parameters={"n_lags": 2}, table=spec)

    analysis = make_analysis("second_moments", {"n_lags": 2})

    permit_job(Policy(), job, analysis)
    assert "n_lags" in refused(lambda: permit_job(Policy(max_components=1), job, analysis))


def test_what_takes_too_long_is_ended_whatever_it_does_with_errors():
    def stubborn() -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:  # as many a library does
                continue

    with pytest.raises(Refusal) as refusal, time_limit(Policy(max_seconds=1)):
        stubborn()
    assert refusal.value.code is RefusalCode.LIMIT
    assert "policy.max_seconds" in refusal.value.detail

    before = time.monotonic()
    with time_limit(Policy(max_seconds=1)):
        pass
    while time.monotonic() < before + 1.2:  # the alarm is off again
        sum(range(1000))


def test_other_threads_have_no_alarm_and_still_answer():
    answered: list[int] = []

    def answer() -> None:
        with time_limit(Policy(max_seconds=1)):
            answered.append(1)

    thread = threading.Thread(target=answer)
    thread.start()
    thread.join()
    assert answered == [1]
