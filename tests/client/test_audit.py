import hashlib

import numpy as np

from client.audit import AuditLog, describe_records
from exchange.messages import TrainReply


def test_lines_are_appended_and_read(tmp_path):
    log = AuditLog(tmp_path / "new" / "audit.jsonl")
    log.append("release", bytes=3)
    log.append("refusal", code="x")

    events = AuditLog(tmp_path / "new" / "audit.jsonl").read()

    assert [event["event"] for event in events] == ["release", "refusal"]
    assert events[0]["bytes"] == 3
    assert events[0]["time"] <= events[1]["time"]


def test_every_array_is_described_by_what_crosses_the_wire():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    records = TrainReply(arrays={"weights/a": values}, n_windows=5, loss=0.5, atlas="a").to_records()

    array, header = describe_records(records)

    data = records["arrays"]["weights/a"].data
    assert array == {
        "name": "weights/a",
        "dtype": "float32",
        "shape": [2, 3],
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert '"loss":0.5' in header["text"].replace("\\", "").replace(" ", "")
