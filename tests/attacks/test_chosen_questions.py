"""Attacks on the secure sum by a coordinator that chooses what it asks; nothing else is needed.

Each test says what the coordinator does, and asserts that it is stopped. One is expected to fail: that attack works, as
those of test_open_attacks.py do, and docs/privacy.md says so.
"""

import json
import math

import numpy as np
import pytest
import torch
import yaml

from base.seeding import derive_seed
from brainlm import TrainingConfig
from brainlm.pretraining import initial_model
from brainlm.windows import WindowSet
from client.door.kept_answers import Kept
from client.door.policy import SHOWS_ONE_SITE
from client.features import FeatureSet, FeatureStore
from client.frames import split_site
from client.site import load_site
from exchange.aggregation import add_replies
from exchange.messages import (
    Arrays,
    Group,
    HarmonizeRequest,
    Job,
    MessageError,
    Step,
    SummarizeReply,
    SummarizeRequest,
    SumReply,
    TableSpec,
    TrainReply,
    join,
)
from exchange.refusals import Refusal, RefusalCode
from tests.attacks.coordinator import (
    MODEL,
    SUMS,
    WEIGHTS,
    WIDTH,
    Coordinator,
    features_of,
    kept_of,
    own_sum,
    write_careful_sites,
)


def works(remedy: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=remedy)


def vector(arrays: Arrays, part: str = "update") -> np.ndarray:
    """All changes of weights, one after the other."""
    return np.concatenate([np.asarray(arrays[f"{part}/{name}"]).ravel() for name in WEIGHTS])


def kept_update(coordinator: Coordinator, site: str) -> np.ndarray:
    """What the coordinator must not learn: the update of one site, as it lies on that site's disk."""
    return vector(kept_of(coordinator.sites[site]).arrays)


def likeness(seen: np.ndarray, secret: np.ndarray) -> float:
    return float(abs(np.corrcoef(seen, secret)[0, 1]))


# --- one message ------------------------------------------------------------------------------------------------------


def test_a_job_that_is_called_shown_does_not_leave_in_the_clear(coordinator):
    """What a site shows of itself is never masked, and is known by its name: which the coordinator gives to a job."""
    reply = coordinator.ask("aalborg", coordinator.sums(jobs={"shown": SUMS["projection"]}))

    assert not isinstance(reply, SumReply) or "shown/feature_sum" not in reply.arrays


def test_other_sites_cannot_be_asked_for_nothing(coordinator):
    """Model inconsistency (Pasquini, Francati & Ateniese, CCS 2022): all but one site are made to add zeros.

    Here by a max_norm of next to nothing; a learning rate, weights or states would do as well. Masks are bound to what
    is asked, and do not cancel between different questions.
    """
    asked = coordinator.training()
    nothing = coordinator.training(max_norm=1e-30)
    replies = {site: coordinator.ask(site, asked if site == "aalborg" else nothing) for site in coordinator.names}
    assert all(isinstance(reply, SumReply) for reply in replies.values())

    with pytest.raises(MessageError, match="masks did not cancel"):
        add_replies(asked, replies)


def test_one_message_does_not_ask_among_all_sites_and_all_but_one(coordinator):
    """The same job twice in a message, once in a group that lacks a site: their difference is that site's sum.

    With a job for each site, one message would show all of them. The ledger counts the sites of each group.
    """
    names = coordinator.names
    jobs = {"all": SUMS["projection"], **dict.fromkeys(names, SUMS["projection"])}
    request = coordinator.sums(jobs=jobs, groups={name: [n for n in names if n != name] for name in names})

    assert {coordinator.ask(site, request) for site in names} == {RefusalCode.DATA}
    assert {coordinator.audit_of(site)[-1]["rule"] for site in names} == {"disclosure.other-sites-before"}


@pytest.mark.parametrize("groups", [{"update": 3}, {"tally": 3}, {"overall": 3}, {"overall": 3, "evaluation": 4}])
def test_no_part_of_a_round_is_asked_for_among_all_sites_and_all_but_one(tmp_path, four_cohorts, groups):
    """The message is among all sites each time; a part of its answer, in a group of the coordinator's choice, is not.

    In two messages, or by parcel and over all parcels in one: with one set of sites allowed, each question is answered
    among one alone.
    """
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, max_attempts=1))
    parts = [Group(parts=[part], sites=coordinator.names[:n]) for part, n in groups.items()]
    asked = [coordinator.training(groups=parts), coordinator.training(secure={"step": 2})]

    assert RefusalCode.DATA in [coordinator.code(request) for request in asked]
    assert "disclosure.other-sites-before" in [event.get("rule") for event in coordinator.audit_of("aalborg")]


def test_no_person_is_told_of_in_an_evaluation_of_too_few(tmp_path, four_cohorts):
    """Nothing is entered for sums that are zeros, so that they stand in nobody's way."""
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, min_group=5))
    site = load_site(coordinator.sites["aalborg"])

    assert coordinator.code(coordinator.training(training={"holdout": 0})) is None
    with site.database.transaction() as database:
        asked = [json.loads(question)[0] for (question,) in database.execute("SELECT question FROM questions")]
    assert asked == ["pretraining"]


def test_an_update_is_not_of_one_person_s_window(coordinator):
    """Ten steps of one window pass for ten participants, but the schedule gives nine of them a rate of zero.

    Together with one of the attacks above the coordinator has the gradient of a single window of a single person.
    """
    schedule = {"warmup_steps": 10, "final_fraction": 0.0, "steps_per_round": 10, "batch_size": 1}
    training = {**schedule, "optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 0.0, "precision": "float32"}
    request = coordinator.training(training=training, round_number=2, rounds=1, max_windows=1)
    request = request.model_copy(update={"max_windows": 1000})
    answered = coordinator.ask("aalborg", request)
    if not isinstance(answered, TrainReply):
        return

    gradient = _gradient_of_first_window(coordinator, request.training, 2, request.seed)
    assert likeness(kept_update(coordinator, "aalborg"), gradient) < 0.9


def _gradient_of_first_window(coordinator: Coordinator, training: dict, round_number: int, seed: int) -> np.ndarray:
    site = load_site(coordinator.sites["aalborg"])
    settings = TrainingConfig(**training)
    people, _ = split_site(site, MODEL.window, settings.holdout, seed)
    windows = WindowSet(site.cohort, MODEL.window, people)
    known = derive_seed(seed, site.name)  # public, and so are the draws and masks
    rng = np.random.default_rng(derive_seed(known, round_number, "windows"))
    generator = torch.Generator().manual_seed(derive_seed(known, round_number, "masks"))
    batch = windows[windows.draw(1, rng)]
    model = initial_model(MODEL, 0).train()
    noise = model.draw_noise(MODEL.mask, 1, batch.signal.shape[1], generator)
    model(batch.signal, batch.coordinates, noise, batch.valid, mask=MODEL.mask).loss.sum().backward()
    return np.concatenate([parameter.grad.numpy().ravel() for parameter in model.parameters()])


# --- several messages -------------------------------------------------------------------------------------------------


def test_no_refusal_tells_how_large_a_site_s_own_sum_is(coordinator):
    """A number beyond the ring is refused, and the coordinator sets the bound: it finds a site's sum by halving.

    Here a projection on one axis, a thousandfold, so that no other number is as large, in a job that is called
    ``update``, whose numbers have the bound of the request. Large scales would do as much in any other ring.
    """
    secret = 1000 * abs(own_sum(coordinator.sites["aalborg"])[0])
    assert coordinator.code(coordinator.projection("x", "axis", 1000.0 * np.eye(WIDTH)[:1])) is None
    job = Job(analysis="projection", parameters={"n_components": 1}, table=TableSpec(features="axis"))
    low, high = 1.0, 1e6
    for step in range(2, 40):
        bound = math.sqrt(low * high)
        too_large = coordinator.code(coordinator.sums(jobs={"update": job}, step=step, bound=bound))
        if too_large not in (None, RefusalCode.DATA):
            return
        low, high = (bound, high) if too_large else (low, bound)

    assert secret != pytest.approx(low, rel=1e-6)


def test_a_second_attempt_does_not_tell_the_largest_change_of_a_site_s_update(coordinator):
    """It is refused where its bound is too small, free and as often as asked: the coordinator raises it until not."""
    coordinator.ask_all(coordinator.training())
    secret = float(np.abs(kept_update(coordinator, "aalborg")).max())
    bound = 1e-6
    while bound < 1:
        request = coordinator.training(coordinator.names[:3], secure={"attempt": 2, "bound": bound})
        if (code := coordinator.code(request)) is not RefusalCode.DATA:
            break
        bound *= 1.2

    assert code is not None or secret != pytest.approx(bound / 1.1, rel=0.1)


@pytest.mark.parametrize("analysis", ["linear_regression", "logistic_regression", "softmax_regression", "ridge"])
def test_no_regression_on_the_site_shows_each_site_s_mean(coordinator, analysis):
    """With a column a site as the target, X'Y has each site's own sum as a column, masked or not."""
    table = TableSpec(features="x", target="site", levels=coordinator.names)
    parameters = {"alpha": 1.0} if analysis == "ridge" else {}
    jobs = {"j": Job(analysis=analysis, parameters=parameters, table=table)}

    assert coordinator.code(coordinator.sums(jobs=jobs)) is RefusalCode.PROTOCOL
    assert "has no use for the site" in (load_site(coordinator.sites["aalborg"]).state / "site.log").read_text()


@pytest.mark.parametrize("name", sorted(SHOWS_ONE_SITE - {"reference_site", "leave_one_site_out"}))
def test_what_shows_each_site_s_mean_is_refused_unless_it_is_named(tmp_path, four_cohorts, name):
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, analyses=["*"]))
    table = TableSpec(features="x", target="site", levels=coordinator.names)
    parameters = {"sites": coordinator.names} if name == "site_adversarial" else {}
    jobs = {"j": Job(analysis=name, parameters=parameters, table=table)}

    assert coordinator.code(coordinator.sums(jobs=jobs)) is RefusalCode.ANALYSIS


def _model(window: dict[str, object] | None = None, **changes: object) -> dict[str, object]:
    """A model as large as settings allow: what is beyond them is not read."""
    known = MODEL.model_dump(mode="json")
    return {**known, **changes, "window": {**known["window"], **(window or {})}}


def _many_levels(coordinator: Coordinator) -> SummarizeRequest:
    table = TableSpec(features="x", covariates=[{"name": "age", "levels": [str(n) for n in range(300_000)]}])
    return coordinator.sums(jobs={"j": SUMS["projection"].model_copy(update={"table": table})})


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.training(training={"steps_per_round": 10**6}),
        lambda c: c.training(model=_model(width=16_384)),
        lambda c: c.training(model=_model(width=4096, depth=512)),
        lambda c: c.training(training={"batch_size": 10**6}, model=_model(window={"n_frames": 3200})),
        _many_levels,
        lambda c: c.sums(jobs={f"j{n}": SUMS["projection"] for n in range(3000)}),
        lambda c: c.sums(jobs={"j": SUMS["projection"].model_copy(update={"parameters": {"n_components": 10**9}})}),
    ],
    ids=["steps", "width", "depth", "batch", "levels", "jobs", "components"],
)
def test_no_question_takes_a_site_s_hours_and_memory(coordinator, ask):
    assert coordinator.code(ask(coordinator)) is RefusalCode.LIMIT
    assert "policy.max_" in (load_site(coordinator.sites["aalborg"]).state / "site.log").read_text()


AGES = [str(age) for age in range(6, 96)]


@pytest.mark.parametrize("levels", [["6", "7"], AGES, [*AGES[:40], *AGES[41:]], ["F", "M"], ["0" * 99]])
def test_a_refusal_says_the_same_whatever_of_the_data_it_was_for(coordinator, levels):
    """One rule for a level that few have and another for a person whose level is none told every age at a hospital."""
    design = [{"name": "age", "levels": levels}]
    jobs = {"projection": SUMS["projection"].model_copy(update={"table": TableSpec(features="x", covariates=design)})}
    seen = coordinator.send("aalborg", coordinator.sums(jobs=jobs).to_records(), "query.summarize")

    assert (seen.error.code, seen.error.reason) == (RefusalCode.DATA.number, "site.cannot-answer")


def test_a_site_tells_little_by_refusing_however_often_it_is_asked(tmp_path, four_cohorts):
    """Each refusal is counted, and noted with study and question; then the study gets no answer of any kind."""
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, max_refusals=4))

    def ask(age: str) -> RefusalCode | None:
        table = TableSpec(features="x", covariates=[{"name": "age", "levels": ["0", age]}])
        job = SUMS["projection"].model_copy(update={"table": table})
        return coordinator.code(coordinator.sums(jobs={"projection": job}))

    heard = [ask(age) for age in AGES[:8]]

    assert heard == [RefusalCode.DATA] * 4 + [RefusalCode.REFUSALS] * 4
    assert coordinator.code(coordinator.sums()) is RefusalCode.REFUSALS
    refusals = [event for event in coordinator.audit_of("aalborg") if event["event"] == "refusal"]
    assert {event["study"] for event in refusals} == {"small"}
    assert len({event["question"] for event in refusals}) == 9
    assert all(event["analyses"] == ["projection"] for event in refusals)


def test_no_site_tells_alone_which_of_its_features_somebody_lacks(coordinator):
    """That leaves in a sum; asked of single features, by selecting each, refusals told it of one site, uncounted."""
    site = load_site(coordinator.sites["aalborg"])
    store, whole = FeatureStore(site.folder_of("small")), features_of(coordinator.sites["aalborg"]).copy()
    people = store.read("x").participants
    whole[3, 1] = np.nan
    store.write("lacking", FeatureSet(people, whole))

    def ask(place: int) -> RefusalCode | None:
        kept, step = np.eye(WIDTH)[place], 2 * place + 1
        name = f"only{place}"
        select = Step(source="lacking", result=name, transform="selection", model="selection")
        chosen = HarmonizeRequest(
            study="small",
            steps=[select],
            secure=coordinator.secure(step=step),
            arrays=join(**{name: {"kept": kept}}),
        )
        assert coordinator.code(chosen) is None
        job = Job(analysis="projection", parameters={"n_components": 1}, table=TableSpec(features=name))
        return coordinator.code(coordinator.sums(jobs={"projection": job}, step=step + 1))

    assert [ask(place) for place in range(3)] == [None, RefusalCode.DATA, None]
    assert site.ledger.refusals("small") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"study": "y" * 10**6},
        {"jobs": {"j": SUMS["projection"].model_copy(update={"analysis": "y" * 10**6})}},
        {"jobs": {"j": SUMS["projection"].model_copy(update={"table": TableSpec(features="y" * 10**6)})}},
        {"jobs": {"y" * 10**6: SUMS["projection"].model_copy(update={"parameters": {"y" * 10**6: 1}})}},
        {"jobs": {"j": SUMS["projection"].model_copy(update={"analysis": "x\n2026-01-01 INFO nothing\x1b[2J"})}},
    ],
    ids=["study", "analysis", "features", "job", "lines"],
)
def test_no_question_fills_or_forges_the_logs(coordinator, changes):
    """A line of the audit log that is longer than lines are read ended all answers, and made the log look damaged."""
    state = load_site(coordinator.sites["aalborg"]).state

    request = coordinator.sums().model_copy(update=changes)

    assert isinstance(coordinator.code(request), RefusalCode)

    written = [(state / name).read_text() for name in ("site.log", "audit.jsonl")]
    assert all(len(text) < 10_000 for text in written)
    assert len(written[0].splitlines()) == 1
    assert written[0][:-1].isprintable()


def test_a_round_that_the_policy_refused_does_not_leave_when_asked_again(tmp_path, four_cohorts):
    """The answer is kept before the ledger refuses it, and a kept one does not count as a round."""
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, max_rounds=0))

    assert coordinator.ask("aalborg", coordinator.training()) is RefusalCode.ROUNDS
    assert coordinator.ask("aalborg", coordinator.training()) is RefusalCode.ROUNDS


def test_a_second_attempt_is_for_the_same_study(tmp_path, four_cohorts):
    """It is counted, and paid for out of the privacy budget, where it says that it belongs."""
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, studies=["small"]))
    assert coordinator.code(coordinator.sums(study="unheard-of")) is RefusalCode.STUDY
    coordinator.ask_all(coordinator.sums())

    again = coordinator.sums(coordinator.names[:3], attempt=2, study="unheard-of")
    assert not isinstance(coordinator.ask("aalborg", again), SumReply)


@works("no exact remedy: among which sites a study trains may only shrink, and its seed has to be the site's own")
def test_weights_that_differ_in_the_last_digit_are_not_another_question(coordinator):
    """Sets of sites are counted for each incoming model, and a model that is nearly the same gets the same update.

    So the coordinator has each site's update by leaving out one after the other.
    """
    names = coordinator.names
    everybody = vector(coordinator.total(coordinator.training()))
    secret = kept_update(coordinator, names[3])
    for step, lacking in enumerate((3, 2, 1), start=2):
        nearly = {name: values.copy() for name, values in WEIGHTS.items()}
        first = next(iter(nearly.values()))
        first.flat[0] += np.float32(step * 1e-6)
        others = [name for name in names if name != names[lacking]]
        request = coordinator.training(others, weights=nearly, secure={"step": step})
        if (replies := coordinator.ask_all(request)) is None:
            return
        if lacking == 3:
            seen = everybody - vector(add_replies(request, replies))

    assert likeness(seen, secret) < 0.9


def test_a_copy_of_the_features_is_not_another_question(coordinator):
    """A projection on all axes copies the features under any name; each may be asked for among two sets of sites."""
    names, left = coordinator.names, {}
    everybody = coordinator.total(coordinator.sums())["projection/feature_sum"]
    for number, lacking in enumerate(names):
        others = [name for name in names if name != lacking]
        copied = coordinator.projection("x", f"copy{number}", np.eye(WIDTH), 2 + 2 * number)
        for site in names:
            coordinator.code(copied, site)
        job = Job(analysis="projection", parameters={"n_components": 2}, table=TableSpec(features=f"copy{number}"))
        request = coordinator.sums(others, jobs={"projection": job}, step=3 + 2 * number)
        if (replies := coordinator.ask_all(request)) is None:
            return
        left[lacking] = everybody - add_replies(request, replies)["projection/feature_sum"]

    assert not all(np.allclose(seen, own_sum(coordinator.sites[site])) for site, seen in left.items())


def test_private_training_costs_each_time_it_is_answered(tmp_path, four_cohorts):
    """In the clear, the same message is answered with new noise; as Flower's id of it is the same, nothing is paid.

    The mean of many answers has as little noise as the coordinator likes. It needs a SuperLink of its own, which hands
    a message to a site twice.
    """
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, secure_sum_required=False))
    private = {"noise_multiplier": 1.0, "delta": 1e-5}
    request = coordinator.training(training={"privacy": private}).model_copy(update={"secure": None})
    spent, updates = [], []
    for _ in range(2):
        reply = coordinator.send("aalborg", request.to_records(), "train", message_id="the same")
        updates.append(vector(TrainReply.from_records(reply.content).arrays, "weights"))
        spent.append(load_site(coordinator.sites["aalborg"]).spending("small").epsilon)

    assert np.array_equal(*updates) or spent[1] > spent[0]


def test_a_study_that_was_withdrawn_gets_no_kept_answer(coordinator):
    """An administrator takes the study out of site.yaml; what was computed before leaves all the same, when asked."""
    coordinator.ask_all(coordinator.sums())
    path = coordinator.sites["aalborg"]
    settings = yaml.safe_load(path.read_text())
    settings["policy"]["studies"] = []
    path.write_text(yaml.safe_dump(settings))

    assert coordinator.code(coordinator.sums(step=2)) is RefusalCode.STUDY
    assert coordinator.code(coordinator.sums(coordinator.names[:3], attempt=2)) is RefusalCode.STUDY


# --- two processes of a site at once ----------------------------------------------------------------------------------


def test_of_two_questions_at_once_the_one_that_was_answered_is_kept(coordinator):
    """Both find the context free; the later one fails, but its plaintext has taken the place of the earlier one's."""
    store = load_site(coordinator.sites["aalborg"]).kept
    asked = [coordinator.sums(), coordinator.sums(jobs={"other": SUMS["projection"]})]
    assert [store.find("77", request) for request in asked] == [None, None]
    store.keep("77", asked[0], Kept(SummarizeReply(arrays={"a/n": np.array(1.0)}), {}, asked[0].question))
    with pytest.raises(Refusal, match="at the same moment"):
        store.keep("77", asked[1], Kept(SummarizeReply(arrays={"a/n": np.array(2.0)}), {}, asked[1].question))

    kept = store.find("77", coordinator.sums(coordinator.names[:3], attempt=2))
    assert kept is not None
    assert kept.reply.arrays["a/n"] == 1.0


def test_of_two_second_attempts_at_once_one_is_refused(coordinator):
    """Each is checked against the first attempt before the other is noted: two differences instead of one."""
    store, names = load_site(coordinator.sites["aalborg"]).kept, coordinator.names
    coordinator.ask("aalborg", coordinator.sums())
    attempts = [coordinator.sums(names[:3], attempt=2), coordinator.sums([*names[:2], names[3]], attempt=2)]
    refused = 0
    for step in (store.find, store.use):
        for request in attempts:
            try:
                step("77", request)
            except Refusal:
                refused += 1

    assert refused
