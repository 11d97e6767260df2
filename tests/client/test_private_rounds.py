"""Rounds of private training through the door: what they cost, whenever the site's process is killed."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from base.settings import check_settings
from brainlm import ModelConfig, TrainingConfig
from brainlm.config import PrivacyConfig
from brainlm.pretraining import initial_model
from client.app import app
from client.door.audit import AuditLog
from client.door.kept_answers import KeptAnswers
from client.door.spending import PrivacyLedger
from client.keys.keyring import agree
from client.site import load_site
from exchange.messages import SecureSum, TrainRequest, join
from tests.support.federation import STUDY
from tests.support.local_grid import write_site
from tests.support.wire import be_in_run

MODEL = check_settings(STUDY["model"], ModelConfig, "model")
PRIVACY = PrivacyConfig(noise_multiplier=1.0, clip=1.0)
SITES = ["aalborg", "bergen", "coimbra"]


@pytest.fixture
def site(tmp_path, small_cohorts) -> Path:
    """A site of 21 people in a roster with two others."""
    paths = [write_site(tmp_path / name, name, small_cohorts[0]) for name in SITES]
    agree("three", [load_site(path).keys for path in paths])
    return paths[0]


def request_of(site: Path, number: int) -> TrainRequest:
    (approval,) = load_site(site).keys.approvals()
    weights = {name: values.numpy() for name, values in initial_model(MODEL, number).state_dict().items()}
    training = TrainingConfig(**{**STUDY["training"], "clip_norm": None, "privacy": PRIVACY})
    return TrainRequest(
        arrays=join(weights=weights),
        study="small",
        secure=SecureSum(roster=approval.hash, step=number, sites=SITES),
        model=MODEL.model_dump(mode="json"),
        training=training.model_dump(mode="json"),
        round_number=number,
        rounds=3,
        seed=0,
        max_windows=1000,
    )


def train(site: Path, number: int, run: int = 7, **changes: object) -> RecordDict | Error:
    be_in_run(run)
    request = request_of(site, number).model_copy(update=changes)
    message = Message(request.to_records(), dst_node_id=1, message_type="train")
    reply = app(message, Context(run, 1, {"site-config": str(site)}, RecordDict(), {}))
    return reply.error if reply.has_error() else reply.content


def words_of(records: RecordDict) -> np.ndarray:
    return records["arrays"]["sealed/0/32"].numpy()


def train_and_die(site: Path, number: int, owner: type, method: str) -> None:
    """Die, as by SIGKILL, instead of calling a method of the site's own machinery."""
    setattr(owner, method, lambda *arguments, **options: os._exit(9))
    train(site, number)


@pytest.mark.parametrize(
    ("owner", "method"),
    [(PrivacyLedger, "commit"), (KeptAnswers, "keep"), (AuditLog, "append")],
    ids=["trained", "paid, and not stored", "paid and stored"],
)
def test_epsilon_after_a_kill_is_that_of_an_uninterrupted_training(tmp_path, site, owner, method):
    """The round that was killed is asked for again; another site, never killed, ends with the same."""
    others = site.parent.parent / "bergen" / "site.yaml"
    assert isinstance(train(site, 1), RecordDict)
    process = multiprocessing.get_context("fork").Process(target=train_and_die, args=(site, 2, owner, method))
    process.start()
    process.join()
    assert process.exitcode == 9

    again = train(site, 2)
    same = train(site, 2)  # as when the answer was lost on its way
    assert isinstance(train(site, 3), RecordDict)

    np.testing.assert_array_equal(words_of(again), words_of(same))
    for number in (1, 2, 3):
        train(others, number)
    spent = [load_site(path).spending("small").epsilon for path in (site, others)]
    assert spent[0] == spent[1] > 0
    assert [load_site(path).ledger.rounds("small") for path in (site, others)] == [3, 3]


def test_people_who_are_held_out_are_not_told_of_beyond_the_budget(site):
    """The coordinator's seed decides who is held out: with one after the other, everybody is, and no noise is on it."""
    site.write_text(site.read_text().replace("policy:", "policy:\n  epsilon: 80.0"))
    asked = request_of(site, 1).training
    assert train(site, 1).reason == "privacy.not-as-required"
    assert load_site(site).spending("small").epsilon == 0

    assert isinstance(train(site, 2, training={**asked, "holdout": 0.0}), RecordDict)
    site.write_text(site.read_text().replace("policy:", "policy:\n  outside_epsilon: [evaluation]"))
    assert isinstance(train(site, 3), RecordDict)


def test_another_run_of_the_study_goes_on_spending(site):
    train(site, 1)
    once = load_site(site).spending("small").epsilon
    train(site, 1, run=8)

    assert load_site(site).spending("small").epsilon > once
    epsilons = [event["epsilon"] for event in load_site(site).audit.read() if event["event"] == "release"]
    assert epsilons == [once, load_site(site).spending("small").epsilon]


def test_every_answer_in_the_clear_costs_anew(site):
    """Nothing is kept of it, so that the same question is trained for again, with other noise."""
    train(site, 1, secure=None)
    once = load_site(site).spending("small").epsilon
    train(site, 1, secure=None)

    assert load_site(site).spending("small").epsilon > once > 0


def test_a_site_whose_budget_is_spent_refuses(site):
    train(site, 1)
    spent = load_site(site).spending("small").epsilon
    site.write_text(site.read_text().replace("policy:", f"policy:\n  epsilon: {spent * 1.01}"))

    assert train(site, 2).reason == "privacy.budget-spent"
    assert load_site(site).spending("small").epsilon == spent
    assert "policy.epsilon is" in (site.parent / "state" / "site.log").read_text()


def test_no_loss_of_a_private_round_leaves(site):
    records = train(site, 1)
    plain = load_site(site).kept.find("7", request_of(site, 1)).reply

    assert plain.arrays["tally/n_losses"] == 0
    assert plain.arrays["tally/loss"] == 0
    assert {name.split("/")[0] for name in records["arrays"]} == {"sealed"}
