"""Private training: whose gradient is whose, how long it may be, what is drawn, and that every step is counted."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from base.errors import SettingsError
from base.settings import check_settings
from brainlm.config import MaskConfig, ModelConfig, PrivacyConfig, TrainingConfig, WindowConfig
from brainlm.pretraining import initial_model
from brainlm.released.dense import DenseConfig
from brainlm.windows import WindowSet
from client.door.database import SiteDatabase
from client.door.spending import PrivacyLedger, Spend, epsilon_of
from client.privacy import ClippedSum, Draws, check_privacy, spends_to_come, train_privately
from cohorts import Cohort, Recording
from cohorts.atlas import Atlas
from exchange.messages import DescribeRequest
from exchange.refusals import Refusal, RefusalCode
from tests.client.door.test_spending import by_hand

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Opacus, asked by hand
N_PARCELS = 12
PLAIN = {"optimizer": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "final_fraction": 1.0, "precision": "float32"}
SMALL = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "decode_every": 1}


def make_config(kind: str = "random", **changes: object) -> ModelConfig:
    weights = {"random": 1, "time": 1} if kind == "mixed" else {}
    window = changes.pop("window", WindowConfig(n_frames=20, patch_frames=5))
    return ModelConfig(window=window, mask=MaskConfig(kind=kind, ratio=0.5, weights=weights), **{**SMALL, **changes})


def make_training(batch_size: int = 4, noise_multiplier: float = 1.0, clip: float = 0.1, **changes: object):
    privacy = PrivacyConfig(clip=clip, noise_multiplier=noise_multiplier)
    return TrainingConfig(**{**PLAIN, "batch_size": batch_size, "steps_per_round": 2, "privacy": privacy, **changes})


def make_model(config: ModelConfig | DenseConfig) -> torch.nn.Module:
    """A model whose every weight matters: fresh ones have zeros."""
    model = initial_model(config, 1).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def bytes_of(seed: int):
    return np.random.default_rng(seed).bytes


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters() if parameter.requires_grad])


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Cohort:
    """Nine people; the first has three recordings. Some lack parcels, and one recording has another TR."""
    rng = np.random.default_rng(0)
    names = [f"sub-{number}" for number in range(9)]
    atlas = Atlas("twelve", tuple(f"p{i}" for i in range(N_PARCELS)), rng.normal(0, 40, (N_PARCELS, 3)))
    cohort = Cohort.create(
        tmp_path_factory.mktemp("private") / "c", atlas=atlas, participants=pd.DataFrame({"participant_id": names})
    )
    for number, (name, run) in enumerate([(name, 1) for name in names] + [(names[0], 2), (names[0], 3)]):
        coverage = np.ones(N_PARCELS, dtype=bool)
        coverage[: number % 3] = False
        signal = rng.normal(size=(50, N_PARCELS)).astype(np.float32)
        signal[:, ~coverage] = 0
        t_r = 1.0 if number == 3 else 2.0
        cohort.add(Recording(name, signal, t_r, recording_id=f"{name}_run-{run}", coverage=coverage))
    cohort.save()
    return cohort


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("random", {}),
        ("random", {"decode_every": 3, "parcels_per_token": 5}),
        ("random", {"objective": "latent"}),
        ("parcel", {}),
        ("time", {}),
        ("future", {}),
        ("mixed", {}),
    ],
)
def test_gradients_of_windows_in_a_batch_equal_those_of_each_alone(cohort, kind, changes):
    """Parameter by parameter, also for windows that lack parcels."""
    config = make_config(kind, **changes)
    windows, draws = WindowSet(cohort, config.window), Draws("secret", 0, 1)
    places = [draws.place(windows, participant) for participant in windows.participants]
    model = make_model(config)
    with ClippedSum(model, windows, make_training()) as clipped:
        together = clipped.by_window(windows[places], draws)

    mask = draws.mask(config.mask)
    for number, place in enumerate(places):
        window = windows[[place]]
        model.zero_grad()
        noise = draws.noise(model, mask, window)
        model(window.signal, window.coordinates, noise, window.valid, mask=mask).loss.sum().backward()
        length = torch.stack([p.grad.norm() for _, p in trained(model) if p.grad is not None]).norm()
        for (name, parameter), gradients in zip(trained(model), together, strict=True):
            alone = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found = torch.zeros_like(parameter) if gradients is None else gradients[number]
            # In float32, and the phases of the place code alone have rounding errors of some 1e-6.
            assert (found - alone).norm() <= 5e-6 * length, name
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())


def trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


DENSE = DenseConfig(
    window=WindowConfig(n_frames=20, patch_frames=5),
    num_brain_voxels=N_PARCELS,
    mask_ratio=0.5,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    decoder_hidden_size=16,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=16,
    conv_kernel_size=3,
)
ADAPTIVE = make_config(window=WindowConfig(n_frames=20, patch_frames=5, temporal="adaptive"))


@pytest.mark.parametrize("config", [make_config(), ADAPTIVE, DENSE], ids=["ours", "adaptive", "released"])
def test_one_participant_more_adds_one_clipped_gradient_and_nothing_else(config, cohort):
    """However many are in memory at once, of whatever length: the sum is that of everybody's own, each at most clip."""
    windows, draws = WindowSet(cohort, config.window), Draws("secret", 3, 10)
    people = windows.participants

    def sum_of(participants: list[str], clip: float, **changes: object) -> torch.Tensor:
        training = make_training(clip=clip, **changes)
        with ClippedSum(make_model(config), windows, training) as clipped:
            return torch.cat([values.flatten() for values in clipped.of(participants, draws)])

    whole = {person: sum_of([person], clip=1e6) for person in people}
    clip = float(np.median([gradient.norm() for gradient in whole.values()]))
    shortened = {person: gradient * min(1.0, clip / float(gradient.norm())) for person, gradient in whole.items()}

    assert not sum_of([], clip).any()
    for changes in ({"batch_size": 100}, {"batch_size": 2}, {"batch_size": 8, "accumulation": 3}):
        together = sum_of(people, clip, **changes)
        torch.testing.assert_close(together, sum(shortened.values()), rtol=1e-4, atol=1e-5)
        without = sum_of(people[1:], clip, **changes)
        torch.testing.assert_close(together - without, shortened[people[0]], rtol=1e-4, atol=1e-5)
        assert (together - without).norm() <= clip * (1 + 1e-4)


def test_a_gradient_that_is_not_finite_has_no_bound_and_adds_nothing(cohort):
    class Broken(WindowSet):
        def __getitem__(self, places):
            batch = super().__getitem__(places)
            batch.signal[[person == "sub-4" for person in batch.participants]] = torch.inf
            return batch

    def sum_of(kind: type[WindowSet], participants: list[str]) -> torch.Tensor:
        windows = kind(cohort, make_config().window)
        with ClippedSum(make_model(make_config()), windows, make_training(batch_size=3)) as clipped:
            return torch.cat([values.flatten() for values in clipped.of(participants, Draws("secret", 0, 1))])

    people = [f"sub-{number}" for number in range(9)]
    others = [person for person in people if person != "sub-4"]
    torch.testing.assert_close(sum_of(Broken, people), sum_of(WindowSet, others), rtol=1e-4, atol=1e-6)


def test_everybody_is_drawn_alike_and_apart_whatever_their_recordings(cohort):
    """Poisson sampling of participants; then one window of one of the recordings."""
    windows = WindowSet(cohort, make_config().window)
    people, steps, rate = windows.participants, 3000, 1 / 9
    drawn = [Draws("secret", step, steps).participants(people, rate) for step in range(steps)]
    present = np.array([[person in step for person in people] for step in drawn], dtype=float)
    runs = {Draws("secret", step, steps).place(windows, "sub-0")[1] for step in range(40)}

    assert all(len(set(step)) == len(step) for step in drawn)
    np.testing.assert_allclose(present.mean(axis=0), rate, atol=5 * math.sqrt(rate / steps))
    assert np.abs(np.corrcoef(present.T) - np.eye(9)).max() < 5 / math.sqrt(steps)
    assert np.mean([not step for step in drawn]) == pytest.approx((1 - rate) ** 9, abs=0.05)
    assert runs == {"sub-0_run-1", "sub-0_run-2", "sub-0_run-3"}
    assert Draws("secret", 0, steps).participants(people, 1.0) == people
    assert drawn != [Draws("another", step, steps).participants(people, rate) for step in range(steps)]


class Chance:
    """Random bytes of which the first, the secret of the draws, are given, and the noise is zero or of a seed."""

    def __init__(self, secret: int, noise: int | None) -> None:
        self.secret: bytes | None = bytes([secret]) * 32
        self.noise = bytes if noise is None else np.random.default_rng(noise).bytes

    def __call__(self, n: int) -> bytes:
        given, self.secret = self.secret, None
        return given or self.noise(n)


@pytest.mark.parametrize("config", [make_config(), DENSE], ids=["ours", "released"])
def test_a_round_is_the_steps_of_clipped_sums_and_their_noise(config, cohort, tmp_path):
    """Without noise, gradient descent on the sums over the expected batch; with it, normal numbers of the right size.

    Some of the steps draw nobody: with noise they step all the same, and count.
    """
    training = make_training(batch_size=1, noise_multiplier=2.0, clip=0.1, steps_per_round=6)
    windows = WindowSet(cohort, config.window)

    def trained_with(noise: int | None) -> torch.Tensor:
        model, ledger = make_model(config), PrivacyLedger(SiteDatabase(tmp_path, b"key"), str(noise), delta=1e-5)
        outcome, spend = train_privately(
            model, windows, training, round_number=2, rounds=3, ledger=ledger, random_bytes=Chance(1, noise)
        )
        assert math.isnan(outcome.loss)
        assert outcome.n_windows == windows.n_windows
        assert ledger.epsilon == 0  # nothing left yet
        assert epsilon_of([spend], 1e-5) == by_hand(Spend(2.0, 1 / 9, 6))
        return weights(model)

    model, empty = make_model(config), 0
    with ClippedSum(model, windows, training) as clipped:
        for step in range(6, 12):
            draws = Draws((bytes([1]) * 32).hex(), step, 18)
            people = draws.participants(windows.participants, 1 / 9)
            empty += not people
            for parameter, values in zip(clipped.parameters, clipped.of(people, draws), strict=True):
                parameter.data -= values
    assert 0 < empty < 6
    torch.testing.assert_close(trained_with(None), weights(model), rtol=0, atol=1e-6)

    rested = PrivacyConfig(clip=1e-5, noise_multiplier=10_000)  # gradients of hardly any length
    training = training.model_copy(update={"privacy": rested})
    model = make_model(config)
    before = weights(model)
    train_privately(
        model,
        windows,
        training,
        round_number=1,
        rounds=1,
        ledger=PrivacyLedger(SiteDatabase(tmp_path, b"key"), "x", delta=1e-5),
        random_bytes=Chance(1, 7),
    )
    noise = (weights(model) - before).double().numpy() / (0.1 * math.sqrt(6))
    assert stats.kstest(noise, "norm").pvalue > 1e-6


def test_a_killed_round_costs_nothing_and_is_done_again_with_other_noise(cohort, tmp_path):
    """Nothing of it left. In the end the ledger says what it says of a training that nobody killed."""
    config, training = make_config(), make_training(batch_size=9, noise_multiplier=1.5)
    windows = WindowSet(cohort, config.window)

    class KilledError(Exception):
        """The process ends here."""

    def killed(n: int) -> bytes:
        calls.append(n)
        if len(calls) > 30:
            raise KilledError
        return bytes_of(0)(n)

    def train(name: str, round_number: int, **changes: object) -> torch.Tensor:
        model, ledger = make_model(config), PrivacyLedger(SiteDatabase(tmp_path, b"key"), name, delta=1e-5)
        _, spend = train_privately(
            model, windows, training, round_number=round_number, rounds=2, ledger=ledger, **changes
        )
        ledger.commit([spend])
        return weights(model)

    calls: list[int] = []
    train("killed", 1)
    with pytest.raises(KilledError):
        train("killed", 2, random_bytes=killed)
    again = train("killed", 2)
    for round_number in (1, 2):
        train("whole", round_number)

    spent = [PrivacyLedger(SiteDatabase(tmp_path, b"key"), name, delta=1e-5).epsilon for name in ("killed", "whole")]
    assert spent == [by_hand(Spend(1.5, 1.0, 4))] * 2
    assert not torch.equal(train("killed", 2), again)


def test_a_round_over_the_budget_trains_nothing(cohort, tmp_path):
    config, model = make_config(), make_model(make_config())
    before = weights(model)
    ledger = PrivacyLedger(SiteDatabase(tmp_path, b"key"), "x", delta=1e-5, budget=0.5)

    with pytest.raises(Refusal) as refused:
        train_privately(
            model, WindowSet(cohort, config.window), make_training(), round_number=1, rounds=1, ledger=ledger
        )
    assert refused.value.code is RefusalCode.BUDGET
    assert torch.equal(weights(model), before)
    assert ledger.epsilon == 0


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"residual": "gaussian"}, RefusalCode.NOT_PRIVATE, "'gaussian'"),
        ({"window": WindowConfig(scaling="robust")}, RefusalCode.NOT_PRIVATE, "'robust'"),
        ({"devices": 2}, RefusalCode.NOT_PRIVATE, "devices is 2"),
        ({"n_participants": 200_000}, RefusalCode.PARTICIPANTS, "delta"),
    ],
)
def test_what_would_not_be_as_private_as_it_says_is_refused(changes, code, says):
    asked = {"privacy": make_training().privacy, "window": make_config().window, "n_participants": 40, **changes}

    with pytest.raises(Refusal, match=says) as refused:
        check_privacy(**asked)
    assert refused.value.code is code
    check_privacy(make_training().privacy, make_config().window, n_participants=40)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_study_will_cost_is_known_when_it_begins(tmp_path, seed):
    """What the site takes when it is asked what it is fits in every round, whatever was spent before; else it is said.

    Rounds, steps, batches, targets and what was spent are drawn; the budget is just enough, or a hair too little.
    """
    rng = np.random.default_rng(seed)
    rounds, steps, n_participants = int(rng.integers(1, 4)), int(rng.integers(1, 40)), int(rng.integers(5, 60))
    asked = {"epsilon": float(rng.choice([0.5, 8.0, 48.0]))} if seed % 2 else {"noise_multiplier": rng.uniform(0.6, 3)}
    before = [Spend(float(rng.uniform(1, 4)), float(rng.uniform(0.1, 1)), 5)] if seed % 3 else []
    request = DescribeRequest(
        study="s",
        contract={},
        window={},
        analyses=[],
        recipe="r",
        holdout=0.0,
        folds=1,
        rounds=rounds,
        all_rounds=rounds,
        steps_per_round=steps,
        batch_size=int(rng.integers(1, 70)),
        privacy=asked,
        frame_noise={"clip": 1.0, "noise_multiplier": 4.0},
        noisy_sums=2,
    )
    database = SiteDatabase(tmp_path, b"key")
    unlimited = PrivacyLedger(database, "x", delta=1e-5)
    unlimited.commit(before)
    training, sums = spends_to_come(request, n_participants, unlimited)
    needed = epsilon_of([*before, training, sums], 1e-5)

    with pytest.raises(Refusal, match=r"would be .* policy\.epsilon is"):
        PrivacyLedger(database, "x", delta=1e-5, budget=0.999 * needed).permit(training, sums)
    ledger = PrivacyLedger(database, "x", delta=1e-5, budget=needed)
    ledger.permit(training, sums)
    for _ in range(2):
        ledger.commit([Spend(4.0, 1.0, 1)])
    for _ in range(rounds):
        ledger.commit([training._replace(steps=steps)])
    assert ledger.epsilon == needed


def test_settings_that_do_not_go_with_privacy_are_refused():
    private = {"privacy": {"epsilon": 8.0}}
    settings = check_settings(private, TrainingConfig, "study")

    assert settings.clip_norm is None
    assert check_settings(settings.model_dump(mode="json"), TrainingConfig, "study") == settings  # over the wire
    for wrong, says in (
        ({**private, "clip_norm": 1.0}, "clip_norm and privacy do not go together"),
        ({**private, "checkpointing": True}, "checkpointing and privacy do not go together"),
        ({"privacy": {}}, "Give one of them"),
        ({"privacy": {"epsilon": 8.0, "delta": 1e-12}}, r"privacy\.delta' is 1e-12"),
        ({"privacy": {"epsilon": 60.0}}, r"privacy\.epsilon' is 60.0"),
        ({"privacy": {"noise_multiplier": 1e-200}}, r"privacy\.noise_multiplier' is 1e-200"),
        ({"privacy": {"epsilon": 8.0, "noise_multiplier": 1.0}}, "Give one of them"),
    ):
        with pytest.raises(SettingsError, match=says):
            check_settings(wrong, TrainingConfig, "study")
