"""What leaves of the frames: training participants' alone, and no parcel or pair of parcels of a few."""

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from base.seeding import derive_seed
from brainlm import WindowConfig
from brainlm.scaling import Scaling
from brainlm.windows import prepare, split_participants
from client.app import app
from client.door.audit import AuditLog
from client.features import FeatureSet, FeatureStore
from client.frames import read_frames
from client.site import find_site
from cohorts import Cohort, Recording
from exchange.messages import FrameSpec, Job, SummarizeReply, SummarizeRequest, TableSpec
from tests.support.local_grid import write_site
from tests.support.wire import be_in_run

WINDOW = WindowConfig(t_r=2.0, n_frames=20, patch_frames=10)
SPEC = FrameSpec(atlas="schaefer100", window=WINDOW.model_dump(mode="json"), holdout=0.25, seed=3)
PEOPLE = [f"sub-{number:02d}" for number in range(16)]


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    """Sixteen people with two recordings each, one of other length and TR; all have parcel 0."""
    rng = np.random.default_rng(0)
    cohort = Cohort.create(tmp_path / "cohort", atlas="schaefer100")
    for number, person in enumerate(PEOPLE):
        missing = ([1] if number != 4 else []) + ([2] if number % 2 else []) + ([3] if number % 2 == 0 else [])
        for run, (frames, t_r) in enumerate([(30, 2.0), (44, 1.5)]):
            signal = rng.normal(900, 20, size=(frames, 100)).astype(np.float32)
            signal[:, missing] = 0
            cohort.add(Recording(person, signal, t_r=t_r, recording_id=f"{person}_run-{run}"))
    cohort.save()
    return cohort


@pytest.fixture
def context(tmp_path, cohort) -> Context:
    site = write_site(tmp_path / "site", "here", cohort.path, min_participants=12, min_group=3)
    return Context(7, 1, {"site-config": str(site)}, RecordDict(), {})


def ask(context: Context, table: FrameSpec | TableSpec, analysis: str, **parameters: object) -> RecordDict | Error:
    be_in_run(7)
    request = SummarizeRequest(study="s", jobs={"j": Job(analysis=analysis, parameters=parameters, table=table)})
    reply = app(Message(request.to_records(), dst_node_id=1, message_type=request.message), context)
    return reply.error if reply.has_error() else reply.content


def test_frames_are_those_that_the_model_is_trained_on(context, cohort):
    training, held_out = split_participants(PEOPLE, 0.25, derive_seed(3, "here"))

    frames = read_frames(find_site(context), SPEC, None)
    tables = [table for tables in frames.tables for table in tables]

    assert frames.participants == training
    assert len(held_out) == 4
    assert len(tables) == 2 * len(training)
    first = prepare(cohort.read(f"{training[0]}_run-0"), WINDOW).T
    np.testing.assert_array_equal(tables[0].features[:, 4:], first[:, 4:])


def test_frames_are_scaled_as_the_request_says(context, cohort):
    spec = SPEC.model_copy(update={"window": {**SPEC.window, "scaling": "robust"}})
    scale = Scaling(np.full(100, 900.0), np.full(100, 25.0))

    frames = read_frames(find_site(context), spec, scale)

    raw = cohort.read(f"{frames.participants[0]}_run-0").signal
    np.testing.assert_allclose(next(frames.tables)[0].features[:, 4:], (raw[:, 4:] - 900) / 25, atol=1e-5)


def test_parcels_that_few_have_are_missing_to_all(context):
    """Parcel 1 is one person's; 2 and 3 are of half the people each, who never have both."""
    reply = SummarizeReply.from_records(ask(context, SPEC, "second_moments", n_lags=4))
    pairs = reply.part("j")["pairs"]

    assert not pairs[1].any()
    assert pairs[2, 2] > 0
    assert pairs[3, 3] > 0
    assert pairs[2, 3] == 0


def test_pairs_that_few_have_together_are_not_summed(context, cohort):
    """Twelve people lack a parcel of the pair, one has both: either parcel goes, though many have it."""
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(30, 100)).astype(np.float32)
    training = read_frames(find_site(context), SPEC, None).participants
    cohort.add(Recording(training[0], signal, t_r=2.0, recording_id="both"))

    pairs = SummarizeReply.from_records(ask(context, SPEC, "second_moments", n_lags=4)).part("j")["pairs"]

    assert pairs[2, 3] == 0
    assert (pairs[2, 2] > 0) != (pairs[3, 3] > 0)


def test_participants_stand_behind_an_answer_and_not_frames(context):
    few = SPEC.model_copy(update={"holdout": 0.5})

    assert ask(context, few, "second_moments", n_lags=4).reason == "site.cannot-answer"
    refusal = AuditLog(find_site(context).state / "audit.jsonl").read()[-1]
    assert (refusal["rule"], refusal["analyses"]) == ("policy.too-few-participants", ["second_moments"])
    assert isinstance(ask(context, SPEC, "quantiles", probabilities=[0.5]), RecordDict)
    released = AuditLog(find_site(context).state / "audit.jsonl").read()[-1]
    assert (released["event"], released["n_participants"]) == ("release", 12)


def test_a_site_adds_nothing_to_sums_of_another_atlas(context):
    records = ask(context, SPEC.model_copy(update={"atlas": "aal116"}), "second_moments", n_lags=4)

    assert SummarizeReply.from_records(records).arrays == {}


def test_quantiles_of_participants_and_other_sums_of_frames_are_refused(context):
    FeatureStore(find_site(context).folder_of("s")).write("x", FeatureSet(PEOPLE, np.eye(16)))

    assert ask(context, TableSpec(features="x"), "quantiles", probabilities=[0.5]).reason == "protocol.unreadable"
    assert ask(context, SPEC, "projection", n_components=2).reason == "protocol.unreadable"


def test_lags_beyond_a_window_are_refused(context):
    """They would tell the recordings that are long enough for them."""
    assert ask(context, SPEC, "second_moments", n_lags=SPEC.window["n_frames"] + 1).reason == "protocol.unreadable"
