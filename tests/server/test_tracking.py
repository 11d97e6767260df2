import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from server import tracking as module
from server.journal import Journal
from server.tracking import tracking


def measured(journal: Journal) -> None:
    journal.measure(1, {"all": {"loss": 0.5, "masked_r2": 0.25}})


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """What event files show: records of a length, its checksum, an event and its checksum."""
    shown = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            shown += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return shown


def test_tensorboard_shows_the_rounds_again_when_a_run_is_resumed(tmp_path):
    journal = Journal(tmp_path)
    measured(journal)
    for number in (2, 3):
        with tracking(journal) as track:
            journal.measure(number, {"all": {"loss": 0.5 / number}})
            track()

    shown = {step: value for tag, step, value in scalars(tmp_path / "tensorboard") if tag == "loss/all"}
    assert shown == pytest.approx({1: 0.5, 2: 0.25, 3: 0.5 / 3})


def test_a_tracker_that_fails_costs_no_run(tmp_path, monkeypatch):
    """A stand-in for an MLflow whose server cannot be reached."""
    broken = ModuleType("mlflow")
    broken.set_experiment = lambda name: None
    broken.start_run = lambda **about: SimpleNamespace(info=SimpleNamespace(run_id="1"))
    broken.end_run = lambda: None
    broken.log_metric = lambda *metric, step: 1 / 0
    monkeypatch.setitem(sys.modules, "mlflow", broken)
    monkeypatch.setattr(module, "find_spec", lambda name: name == "mlflow")
    journal = Journal(tmp_path)

    with tracking(journal) as track:
        measured(journal)
        track()
        track()

    assert list(journal.table("notes")["text"]) == ["mlflow is left out: ZeroDivisionError: division by zero"]
