"""What a coordinator could ask for to single out participants, and what the site says to it."""

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from base.settings import check_settings
from brainlm import ModelConfig, TrainingConfig
from brainlm.pretraining import initial_model
from cli.main import run_command
from client.app import app
from client.door.spending import Spend
from client.features import FeatureSet, FeatureStore
from client.site import find_site
from cohorts import Cohort
from exchange.messages import (
    Arrays,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    Job,
    Payload,
    SummarizeRequest,
    TableSpec,
    TrainReply,
    TrainRequest,
    join,
)
from exchange.refusals import RefusalCode
from harmonization import CrossValidatedRidge, Design
from harmonization.core.design import KNOWN
from tests.support.cohorts import read_recordings, with_gaps
from tests.support.federation import STUDY
from tests.support.local_grid import write_site
from tests.support.wire import be_in_run

MODEL = check_settings(STUDY["model"], ModelConfig, "model")
WEIGHTS = {name: values.numpy() for name, values in initial_model(MODEL, 0).state_dict().items()}


@pytest.fixture
def context(tmp_path, small_cohorts) -> Context:
    """A site of 21 people with the default numbers of a policy."""
    site = write_site(tmp_path / "a", "aalborg", small_cohorts[0], min_participants=10, min_group=5)
    return Context(7, 1, {"site-config": str(site)}, RecordDict(), {})


@pytest.fixture
def features(context, small_cohorts) -> np.ndarray:
    """Features that lie at the site, a row a participant."""
    people = Cohort.open(small_cohorts[0]).covariates()["participant_id"].tolist()
    values = np.random.default_rng(0).normal(size=(len(people), 4))
    FeatureStore(find_site(context).folder_of("small")).write("x", FeatureSet(people, values))
    return values


def ask(context: Context, request: Payload) -> RecordDict | Error:
    be_in_run(7)
    reply = app(Message(request.to_records(), dst_node_id=1, message_type=request.message), context)
    return reply.error if reply.has_error() else reply.content


def refused(context: Context, said: RecordDict | Error) -> str:
    """Rule by which the site refused: its own log says which, and the coordinator hears one code for all of data's."""
    assert isinstance(said, Error)
    refusal = find_site(context).audit.read()[-1]
    assert refusal["event"] == "refusal"
    assert said.reason == refusal["code"] == str(RefusalCode(refusal["rule"]).told)
    return refusal["rule"]


def train(
    context: Context,
    holdout: float,
    round_number: int = 1,
    weights: Arrays = WEIGHTS,
    max_norm: float | None = None,
    **changes: object,
) -> RecordDict | Error:
    training = TrainingConfig(**{**STUDY["training"], "steps_per_round": 6, "holdout": holdout, **changes})
    return ask(
        context,
        TrainRequest(
            arrays=join(weights=weights),
            study="small",
            model=MODEL.model_dump(mode="json"),
            training=training.model_dump(mode="json"),
            round_number=round_number,
            rounds=2,
            seed=0,
            max_norm=max_norm,
        ),
    )


def summarize(context: Context, analysis: str, covariates: list[object], **parameters: object) -> RecordDict | Error:
    table = TableSpec(features="x", covariates=Design(tuple(covariates)).to_json(), target="age")
    job = Job(analysis=analysis, parameters=parameters, table=table)
    return ask(context, SummarizeRequest(study="small", jobs={"j": job}))


def test_the_held_out_are_not_evaluated_where_they_are_few(context):
    alone = TrainReply.from_records(train(context, holdout=0.05)).part("evaluation/schaefer100")
    enough = TrainReply.from_records(train(context, holdout=0.4)).part("evaluation/schaefer100")

    assert all(not values.any() for values in alone.values())
    assert enough["parcels"][0].all()


def embed(context: Context, holdout: float, **moments: np.ndarray) -> RecordDict | Error:
    return ask(
        context,
        EmbedRequest(
            arrays=join(weights=WEIGHTS, **{"moments/schaefer100": moments}),
            study="small",
            model=MODEL.model_dump(mode="json"),
            recipe="rsfmri_brainlm_segments_v1",
            holdout=holdout,
            seed=0,
        ),
    )


def test_baselines_are_evaluated_beside_the_final_model(context):
    covariance = np.eye(100) + 1.0
    moments = {"covariance": covariance, "following": 0.8 * covariance, "autocovariance": 0.8 ** np.arange(32)}
    moments |= {"pairs": np.full((100, 100), 100.0), "n": np.array(100.0)}

    plain = EmbedReply.from_records(embed(context, 0.4)).part("baselines/schaefer100")
    linear = EmbedReply.from_records(embed(context, 0.4, **moments)).part("baselines/schaefer100")
    alone = EmbedReply.from_records(embed(context, 0.05, **moments)).part("baselines/schaefer100")

    names = {"parcel_mean", "time_interpolation"}
    assert {key.split("/")[0] for key in plain} == names
    assert {key.split("/")[0] for key in linear} == names | {"gaussian", "gaussian_space_time"}
    assert len({values[0].sum() for key, values in linear.items()}) == 1  # the same hidden values
    assert alone.keys() == linear.keys()
    assert not any(values.any() for values in alone.values())  # held out are too few
    assert embed(context, 0.4, **{**moments, "covariance": np.eye(7)}).reason == "protocol.unreadable"


def test_each_recording_is_read_once_for_all_that_an_embedding_needs(context, small_cohorts, monkeypatch):
    read = read_recordings(monkeypatch)

    assert not isinstance(embed(context, 0.4), Error)

    assert sorted(read) == Cohort.open(small_cohorts[0]).recordings["recording_id"].tolist()


def test_a_cohort_is_only_read(context, small_cohorts):
    def files() -> dict[str, tuple[bytes, int]]:
        found = (path for path in small_cohorts[0].rglob("*") if path.is_file())
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    before = files()
    assert not isinstance(train(context, 0.4), Error)
    assert not isinstance(embed(context, 0.4), Error)
    assert files() == before


@pytest.mark.parametrize("longest", [1e-3, 1e3])
def test_an_update_is_no_longer_than_the_study_s_bound(context, longest):
    trained = TrainReply.from_records(train(context, 0.2, max_norm=longest)).part("weights")
    length = np.sqrt(sum(float(((trained[name] - values) ** 2).sum()) for name, values in WEIGHTS.items()))

    assert 0 < length < longest * 1.01
    assert (length > longest * 0.99) == (longest < 1)


@pytest.mark.parametrize("changes", [{"holdout": 0.9}, {"holdout": 0.2, "batch_size": 1}])
def test_an_update_stands_for_enough_participants(context, changes):
    assert refused(context, train(context, **changes)) == "policy.too-few-participants"


def test_the_optimizer_of_a_round_goes_on_in_the_next(context):
    """It stays at the site; without it, or with one that does not fit, the round begins afresh and the log says so."""
    settings = {"holdout": 0.2, "keep_optimizer_state": True}
    site = find_site(context)
    kept = site.folder_of("small") / "optimizer-0001.safetensors"

    def second_round(**changes: object) -> Arrays:
        return TrainReply.from_records(train(context, round_number=2, weights=first, **{**settings, **changes})).part(
            "weights"
        )

    first = TrainReply.from_records(train(context, **settings)).part("weights")
    going_on = second_round()
    again = second_round()
    kept.write_bytes(kept.read_bytes()[:-10])
    damaged = second_round()
    afresh = second_round(keep_optimizer_state=False)

    for name, values in going_on.items():
        np.testing.assert_array_equal(again[name], values)
        np.testing.assert_array_equal(damaged[name], afresh[name])
    assert any((going_on[name] != afresh[name]).any() for name in afresh)
    log = (site.state / "site.log").read_text()
    assert log.count("begins with a fresh optimizer") == 1
    assert "round 2 begins with a fresh optimizer" in log
    assert "is damaged" in log


def test_folds_hold_enough_participants(context, features):
    assert isinstance(summarize(context, "cross_validated_ridge", [], n_folds=4), RecordDict)
    one_each = summarize(context, "cross_validated_ridge", [], n_folds=len(features))
    assert refused(context, one_each) == "policy.small-group"


def test_a_budget_is_all_that_is_told_unless_the_policy_names_more(context, features):
    """ComBat's sums are of the people whom the budget is for, and no noise hides anybody in them."""
    path = find_site(context).state.parent / "site.yaml"
    text = path.read_text()
    path.write_text(text.replace("policy:", "policy:\n  epsilon: 8.0"))
    assert refused(context, summarize(context, "combat", [KNOWN["age"]])) == "privacy.not-as-required"

    path.write_text(text.replace("policy:", "policy:\n  epsilon: 8.0\n  outside_epsilon: [combat]"))
    assert isinstance(summarize(context, "combat", [KNOWN["age"]]), RecordDict)
    assert refused(context, summarize(context, "ridge", [])) == "privacy.not-as-required"


def describe(context: Context, **changes: object) -> RecordDict | Error:
    atlas = Cohort.open(find_site(context).cohort.path).atlas
    study = {
        "study": "small",
        "contract": {"atlases": {"schaefer100": atlas.content_hash}},
        "window": MODEL.window.model_dump(mode="json"),
        "analyses": [CrossValidatedRidge.name],
        "recipe": "rsfmri_brainlm_segments_v1",
        "holdout": 0.2,
        "folds": 4,
    }
    return ask(context, DescribeRequest(**{**study, **changes}))


def test_whom_a_study_leaves_out_is_counted_and_a_few_are_not_told_apart(tmp_path, small_cohorts):
    age = {"contract": {"atlases": {"schaefer100": Cohort.open(small_cohorts[0]).atlas.content_hash}}}
    age["contract"]["covariates"] = {"age": ()}

    def described(**gaps: int) -> DescribeReply:
        folder = tmp_path / "-".join(f"{name}{n}" for name, n in gaps.items())
        cohort = with_gaps(small_cohorts[0], folder / "c", **gaps)
        site = write_site(folder, "aalborg", cohort, min_participants=5, min_group=3)
        return DescribeReply.from_records(
            describe(Context(7, 1, {"site-config": str(site)}, RecordDict(), {}), folds=3, **age)
        )

    short = described(short=4)
    assert (short.n_participants, short.n_recordings, short.n_too_short, short.n_left_out) == (17, 17, 4, 4)
    assert short.n_incomplete == 0
    assert described(without_age=3).n_incomplete == 3
    assert described(without_age=2).n_incomplete is None
    assert described(short=1, without_age=5).n_incomplete == 5


def test_people_without_a_vector_are_counted(tmp_path, small_cohorts, capsys):
    path = with_gaps(small_cohorts[0], tmp_path / "c")
    people = Cohort.open(path).recordings["participant_id"].tolist()
    rows = [f"{person}\t{number}\n" for number, person in enumerate(people[:-5])]
    (tmp_path / "v.tsv").write_text("participant_id\tv0\n" + "".join(rows))
    site = write_site(tmp_path, "aalborg", path, min_participants=10, min_group=4)

    assert run_command(["cohort", "vectors", str(path), str(tmp_path / "v.tsv")]) == 0
    context = Context(7, 1, {"site-config": str(site)}, RecordDict(), {})
    reply = DescribeReply.from_records(describe(context, vectors="vectors"))

    assert "5 of 21 participants have none" in capsys.readouterr().out
    assert (reply.n_vector_dimensions, reply.n_without_vectors) == (1, 5)


@pytest.mark.parametrize(
    ("gaps", "code"),
    [
        ({"short": 19}, "contract.no-usable-recordings"),
        ({"short": 14}, "policy.too-few-participants"),
        ({"without_age": 14}, "policy.too-few-participants"),
        ({"without_age": 10}, "policy.small-group"),
    ],
)
def test_a_cohort_of_which_too_little_is_left_is_refused_at_once(tmp_path, small_cohorts, gaps, code):
    cohort = with_gaps(small_cohorts[0], tmp_path / "c", **gaps)
    site = write_site(tmp_path, "aalborg", cohort, min_participants=10, min_group=4)
    contract = {"atlases": {"schaefer100": Cohort.open(cohort).atlas.content_hash}, "covariates": {"age": ()}}
    context = Context(7, 1, {"site-config": str(site)}, RecordDict(), {})

    assert refused(context, describe(context, folds=3, contract=contract)) == code
    if "short" in gaps:
        log = (tmp_path / "state" / "site.log").read_text()
        assert f"{gaps['short']} of 21 recordings are shorter than the window of 64 s (they have 60 s)" in log


def test_a_study_that_has_had_its_rounds_does_not_begin_anew(context):
    """Or the second run would end in the middle, after hours of training."""
    site = find_site(context)
    site.ledger.enter(study="small", run="1", releases=[], policy=site.policy, rounds=600)

    assert isinstance(describe(context, rounds=400), RecordDict)
    assert describe(context, rounds=401).reason == "policy.too-many-rounds"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"folds": 5}, "policy.small-group"),
        ({"holdout": 0.8}, "policy.too-few-participants"),
        ({"contract": {"atlases": {"aal116": "00"}}}, "contract.atlas"),
        ({"max_t_r": 1.0}, "contract.repetition-time"),
        ({"covariates": {"handedness": ()}}, "contract.covariates"),
        ({"window": {**MODEL.window.model_dump(mode="json"), "n_frames": 3200}}, "contract.no-usable-recordings"),
        ({"columns": ["handedness"]}, "policy.column-not-allowed"),
        ({"rounds": 5000}, "policy.too-many-rounds"),
        ({"secure_sums": False}, "policy.secure-sum-required"),
        ({"privacy": {"epsilon": 9.0}}, "privacy.budget-spent"),
        ({"privacy": None}, "privacy.not-as-required"),
        ({"analyses": ["combat"]}, "privacy.not-as-required"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_study_that_will_be_refused_later_is_refused_at_once(context, changes, code):
    site = find_site(context)
    limits = "policy:\n  privacy_required: true\n  epsilon: 8.0"
    limits += "\n  outside_epsilon: [evaluation, lacking, cross_validated_ridge]"
    path = site.state.parent / "site.yaml"
    text = path.read_text().replace("secure_sum_required: false", "secure_sum_required: true")
    path.write_text(text.replace("policy:", limits))
    private = {"privacy": {"epsilon": 8.0}}
    contract = {"atlases": {"schaefer100": site.cohort.atlas.content_hash}}
    if inside := {"max_t_r", "covariates"} & changes.keys():
        changes = {"contract": {**contract, **{name: changes[name] for name in inside}}}

    assert isinstance(describe(context, **private), RecordDict)
    assert refused(context, describe(context, **{**private, **changes})) == code


NOISE = {"clip": 1.0, "noise_multiplier": 0.5}


@pytest.mark.parametrize(
    ("privacy", "spent", "changes", "code"),
    [
        ({"epsilon": 8.0}, 0, {}, None),
        ({"epsilon": 8.0}, 1, {}, "privacy.budget-spent"),
        ({"epsilon": 8.0}, 1, {"rounds": 1}, None),  # of a run that is resumed
        ({"noise_multiplier": 0.7}, 0, {}, "privacy.budget-spent"),
        ({"epsilon": 7.9}, 0, {"frame_noise": NOISE, "noisy_sums": 2}, "privacy.budget-spent"),
        ({"epsilon": 8.0, "delta": 0.06}, 0, {}, "policy.too-few-participants"),
        ({"epsilon": 8.0}, 0, {"steps_per_round": 10**12}, "policy.too-large"),
    ],
)
def test_a_study_whose_rounds_to_come_the_budget_does_not_allow_is_refused_at_once(
    context, privacy, spent, changes, code
):
    """The site knows all rounds, steps and sums, its own sampling rate, and what earlier runs spent."""
    site = find_site(context)
    path = site.state.parent / "site.yaml"
    limits = f"policy:\n  epsilon: 8.0\n  delta: {privacy.get('delta', 1e-5):f}"
    limits += "\n  outside_epsilon: [evaluation, lacking, cross_validated_ridge]"
    path.write_text(path.read_text().replace("policy:", limits))
    site.spending("small").commit([Spend(3.0, 1.0, 1)] * spent)
    plan = {"rounds": 10, "all_rounds": 10, "steps_per_round": 20, "batch_size": 4, **changes}

    answered = describe(context, privacy=privacy, **plan)

    assert (refused(context, answered) if isinstance(answered, Error) else None) == code


def test_scaling_that_does_not_go_with_privacy_is_refused_at_once(context):
    window = {**MODEL.window.model_dump(mode="json"), "scaling": "robust"}

    assert refused(context, describe(context, window=window, privacy={"epsilon": 8.0})) == "privacy.not-possible"
    assert isinstance(describe(context, window=window), RecordDict)
