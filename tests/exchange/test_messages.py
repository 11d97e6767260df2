import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from exchange.messages import (
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    FrameSpec,
    Group,
    HarmonizeReply,
    HarmonizeRequest,
    Job,
    MessageError,
    Payload,
    SealedGroup,
    SecureSum,
    Step,
    StudyRequest,
    SummarizeReply,
    SummarizeRequest,
    SumReply,
    SumRequest,
    TableSpec,
    TrainReply,
    TrainRequest,
    audit_head_of,
    join,
    size_of,
    with_audit_head,
)
from tests.support.wire import be_in_run, over_the_wire

ARRAYS = join(
    weights={"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.float32([1.5])},
    sums={"n": np.array(3.0), "empty": np.empty((0, 4)), "order": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
)
GOOD = {
    "site": "oslo",
    "n_participants": 12,
    "n_recordings": 12,
    "n_quarantined": 0,
    "n_windows": 24,
    "n_parcels": 100,
    "atlas": "schaefer100",
    "preprocessing": "fmriprep 23.2",
    "software": {"torch": "2.13"},
    "rosters": ["ab" * 32],
}
PAYLOADS: list[Payload] = [
    DescribeRequest(
        study="s",
        contract={"atlases": {"a": "h"}},
        window={"t_r": 2.0},
        analyses=["combat"],
        recipe="r",
        holdout=0.2,
        folds=5,
    ),
    DescribeReply(**GOOD),
    TrainRequest(
        arrays=ARRAYS,
        study="s",
        groups=[Group(parts=["evaluation/a"], sites=["x", "y", "z"])],
        secure=SecureSum(roster="00", step=3, sites=["x", "y", "z"], bound=0.5),
        model={},
        training={},
        round_number=1,
        rounds=2,
        seed=2**62,
    ),
    TrainReply(arrays=ARRAYS, sealed=[SealedGroup(sites=["a", "b", "c"], layout={"fields": [], "bound": 1.0})]),
    EmbedRequest(arrays=ARRAYS, study="s", model={}, recipe="r", holdout=0.2, seed=1),
    EmbedReply(arrays=ARRAYS),
    SummarizeRequest(
        arrays=ARRAYS,
        study="s",
        jobs={
            "j": Job(analysis="combat", parameters={"x": [1.5]}, table=TableSpec(features="f"), state="Moments"),
            "k": Job(analysis="q", parameters={}, table=FrameSpec(atlas="a", window={"t_r": 2}, holdout=0.2, seed=1)),
        },
    ),
    SummarizeReply(arrays=ARRAYS),
    HarmonizeRequest(arrays=ARRAYS, study="s", steps=[Step(source="a", result="b", transform="combat")]),
    HarmonizeReply(
        arrays=join(tally={"b": np.array(12)}, shown={"embeddings": np.ones((1, 2))}), pseudonyms=["p-0123456789abcdef"]
    ),
]


def as_sent(records: RecordDict) -> RecordDict:
    be_in_run(1)
    message = Message(records, dst_node_id=1, message_type="train")
    return over_the_wire(message).content


def test_every_payload_is_tried_here():
    parents = (Payload, StudyRequest, SumRequest, SumReply)
    kinds = {kind for parent in parents for kind in parent.__subclasses__()}
    sent = {kind for kind in kinds if kind.__module__ == "exchange.messages"}
    assert {type(payload) for payload in PAYLOADS} == sent - {*parents}


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: type(payload).__name__)
def test_payloads_come_back_the_same(payload):
    back = type(payload).from_records(as_sent(payload.to_records()))

    assert back.model_dump() == payload.model_dump()
    assert back.arrays.keys() == payload.arrays.keys()
    for name, values in payload.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], values)
        assert back.arrays[name].dtype == values.dtype
        assert back.arrays[name].shape == values.shape
    assert back.model_copy(update={"arrays": {}}) == payload.model_copy(update={"arrays": {}})


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: type(payload).__name__)
def test_no_payload_is_read_as_another(payload):
    other = TrainReply if not isinstance(payload, TrainReply) else EmbedReply

    with pytest.raises(MessageError, match=f"expected {other.__name__}"):
        other.from_records(payload.to_records())


def header_of(records: RecordDict) -> dict[str, object]:
    return json.loads(records["header"]["json"])


def with_header(records: RecordDict, **changes: object) -> RecordDict:
    header = ConfigRecord({**records["header"], **changes})
    return RecordDict({"header": header, "arrays": records["arrays"]})


def test_another_version_and_damage_are_refused():
    records = PAYLOADS[3].to_records()
    content = header_of(records)

    with pytest.raises(MessageError, match="protocol 99"):
        TrainReply.from_records(with_header(records, protocol=99))
    for damaged in ("{", "[]", json.dumps({**content, "extra": 1}), json.dumps({**content, "sealed": "many"})):
        with pytest.raises(MessageError, match="is damaged"):
            TrainReply.from_records(with_header(records, json=damaged))
    with pytest.raises(MessageError, match="is damaged"):
        TrainReply.from_records(RecordDict({"header": records["header"]}))
    smuggled = RecordDict({**records, "more": ArrayRecord({})})
    with pytest.raises(MessageError, match="other records"):
        TrainReply.from_records(smuggled)


def test_numbers_that_json_lacks_survive():
    request = EmbedRequest(study="s", model={"x": float("nan")}, recipe="r", holdout=0.1, seed=1)

    assert np.isnan(EmbedRequest.from_records(request.to_records()).model["x"])


def test_parts_of_a_group_are_sent_by_its_sites_alone():
    request = PAYLOADS[2]

    assert request.sites_of("evaluation/a/parcels", ["w", "x", "z"]) == ["x", "z"]
    assert request.sites_of("evaluation/ab/parcels", ["w", "x", "z"]) == ["w", "x", "z"]


def test_the_head_of_the_audit_log_travels_beside_the_payload():
    records = PAYLOADS[3].to_records()
    size = size_of(records)

    back = as_sent(with_audit_head(records, "ab" * 32))

    assert audit_head_of(back) == "ab" * 32
    assert audit_head_of(PAYLOADS[3].to_records()) == ""
    assert size_of(back) == size
    assert TrainReply.from_records(back).sealed == PAYLOADS[3].sealed


def test_parts_are_named_and_found():
    payload = TrainReply(arrays=ARRAYS)

    assert payload.part("weights").keys() == {"a.weight", "a.bias"}
    assert payload.part("weight") == {}
    assert join(**{name: payload.part(name) for name in ("weights", "sums")}).keys() == ARRAYS.keys()


def test_size_counts_arrays_and_header():
    small, large = (size_of(TrainReply(arrays={"weights/a": np.zeros(n, np.float32)}).to_records()) for n in (10, 1010))

    assert large - small == 4000


@pytest.mark.parametrize("arrays", [{}, ARRAYS, {f"weights/{n}": np.zeros(3) for n in range(200)}])
def test_a_request_is_one_array_on_the_wire_however_many_it_has(arrays):
    request = SummarizeRequest(arrays=arrays, study="s", jobs={})

    assert len(as_sent(request.to_records())["arrays"]) == 1


def test_arrays_of_a_request_that_are_not_packed_are_refused():
    request = SummarizeRequest(arrays=ARRAYS, study="s", jobs={})
    header, packed = request.to_records()["header"], request.to_records()["arrays"]["safetensors"]
    cut = Array(packed.dtype, packed.shape, packed.stype, packed.data[:-1])
    unpacked = {name: Array(np.ascontiguousarray(values)) for name, values in ARRAYS.items()}

    for arrays in ({}, unpacked, {"safetensors": Array(np.zeros(3))}, {"safetensors": cut}):
        with pytest.raises(MessageError, match=r"is damaged|expected 'safetensors'"):
            SummarizeRequest.from_records(RecordDict({"header": header, "arrays": ArrayRecord(arrays)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "../../oslo"},
        {"site": "oslo\x1b[2J"},
        {"site": ""},
        {"n_participants": -1},
        {"n_windows": 10**30},
        {"n_recordings": 1.5},
        {"n_parcels": True},
        {"atlas": "schaefer100\x1b]0;owned\x07"},
        {"preprocessing": "a\nb"},
        {"preprocessing": "x" * 10**5},
        {"software": {"torch": "\r"}},
        {"software": {str(n): "1" for n in range(1000)}},
        {"rosters": ["ab"]},
    ],
    ids=str,
)
def test_what_a_site_says_of_itself_is_plain_short_and_no_path(changes):
    records = DescribeReply(**GOOD).to_records()
    assert DescribeReply.from_records(records).site == "oslo"
    fields = {**json.loads(records["header"]["json"]), **changes}
    records["header"]["json"] = json.dumps(fields)

    with pytest.raises(MessageError):
        DescribeReply.from_records(records)
