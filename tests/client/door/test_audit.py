import hashlib
import json
import os
import shutil
import stat
import subprocess
import zipfile
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.door.audit import AuditLog, app_hash, describe_records
from client.errors import AuditError
from exchange.messages import SealedGroup, TrainReply
from runtime.fab import PROJECT, pack_fab, stage_app
from study.settings import load_study
from tests.support.programs import run_at_once

N_LINES = 9


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> AuditLog:
    """A log of nine lines; never changed."""
    log = AuditLog(tmp_path_factory.mktemp("log") / "new" / "audit.jsonl", "st-olav")
    for number in range(N_LINES - 1):
        log.append(["release", "refusal"][number % 2], run=number, text="sex: é\n")
    return log


@pytest.fixture(scope="module")
def spoilt(written) -> AuditLog:
    """A log beside it, for what a test makes of the first one's lines."""
    return AuditLog(written.path.with_name("spoilt.jsonl"))


def lines_of(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def sha256(line: bytes) -> str:
    return hashlib.sha256(line.removesuffix(b"\n")).hexdigest()


def test_lines_are_appended_and_read(tmp_path):
    path = tmp_path / "new" / "audit.jsonl"
    AuditLog(path, "st-olav").append("release", bytes=3)
    AuditLog(path, "st-olav").append("refusal", code="x")

    events = AuditLog(path).read()

    assert [event["event"] for event in events] == ["release", "refusal"]
    assert events[0]["bytes"] == 3
    assert events[0]["time"] <= events[1]["time"]
    begin = next(AuditLog(path).events())
    assert (begin["event"], begin["site"], len(begin["salt"])) == ("begin", "st-olav", 64)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_head_is_the_hash_of_the_last_line_and_every_line_names_the_one_before(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    heads = [log.append("release", n=n) for n in range(3)]

    lines = lines_of(log)

    assert [sha256(line) for line in lines[1:]] == heads
    assert [json.loads(line)["previous"] for line in lines] == ["0" * 64, *map(sha256, lines[:-1])]
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4]


def test_what_is_no_strict_json_is_not_written(written):
    before = written.path.read_bytes()
    for value in (float("nan"), b"bytes"):
        with pytest.raises((ValueError, TypeError)):
            written.append("release", value=value)
    with pytest.raises(TypeError, match="previous"):
        written.append("release", previous="mine")
    assert written.path.read_bytes() == before


@given(line=st.integers(1, N_LINES), data=st.data())
def test_a_changed_line_is_named(written, spoilt, line, data):
    """Any byte of any line; of the last one, only a head tells."""
    lines = lines_of(written)
    text = bytearray(lines[line - 1])
    place = data.draw(st.integers(0, len(text) - 2))
    text[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (text[place], 10)))
    lines[line - 1] = bytes(text)
    spoilt.path.write_bytes(b"".join(lines))

    plain, with_head = spoilt.verify(), spoilt.verify(sha256(lines_of(written)[-1]))

    assert not with_head.intact
    if line < N_LINES - 1:
        assert plain.line == line
    elif line == N_LINES - 1:  # the last line's link was changed, or the line before: nothing after it tells which
        assert plain.line in (line, line + 1)


@given(first=st.integers(1, N_LINES), second=st.integers(1, N_LINES))
def test_lines_that_were_removed_moved_or_repeated_are_found(written, spoilt, first, second):
    head, (low, high) = sha256(lines_of(written)[-1]), sorted((first, second))

    def check(lines: list[bytes], line: int | None, *, without_head: bool) -> None:
        spoilt.path.write_bytes(b"".join(lines))
        assert not spoilt.verify(head).intact
        verdict = spoilt.verify()
        assert verdict.intact is not without_head
        assert verdict.line == line

    lines = lines_of(written)
    removed = lines[: low - 1] + lines[high:]
    if removed:
        check(removed, low if high < N_LINES else None, without_head=high < N_LINES)
    swapped = lines.copy()
    swapped[low - 1], swapped[high - 1] = swapped[high - 1], swapped[low - 1]
    if low < high:
        check(swapped, low, without_head=True)
    repeated = [*lines[:high], lines[low - 1], *lines[high:]]
    check(repeated, high + 1, without_head=True)


@given(line=st.integers(1, N_LINES))
def test_a_forged_line_is_found(written, spoilt, line):
    """Even if it is linked as it should be: the true line after it is not."""
    lines = lines_of(written)
    forged = {**json.loads(lines[-1]), "number": line, "event": "begin" if line == 1 else "release"}
    forged["previous"] = sha256(lines[line - 2]) if line > 1 else "0" * 64
    spoilt.path.write_bytes(b"".join([*lines[: line - 1], json.dumps(forged).encode() + b"\n", *lines[line - 1 :]]))

    assert spoilt.verify().line == line + 1


@given(data=st.data())
def test_a_log_that_was_cut_off_is_found_by_a_head(written, spoilt, data):
    content = written.path.read_bytes()
    spoilt.path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    whole = spoilt.path.read_bytes().endswith(b"\n")

    verdict = spoilt.verify()

    assert verdict.intact is whole
    said = "unless you give the head" if whole else "half written" if spoilt.path.read_bytes() else "is empty"
    assert said in str(verdict)
    assert not spoilt.verify(sha256(lines_of(written)[-1])).intact


def test_a_head_is_found_again_and_misses_from_a_log_that_was_written_anew(written, spoilt):
    lines = lines_of(written)
    verdict = written.verify(sha256(lines[4]).upper())
    assert (verdict.intact, verdict.head_line, verdict.head) == (True, 5, sha256(lines[-1]))
    assert "line 5; 4 came since" in str(verdict)

    spoilt.path.unlink(missing_ok=True)
    for event in written.read():
        spoilt.append(event["event"], run=event["run"], text=event["text"])
    assert spoilt.verify().intact
    assert "no line has the head" in str(spoilt.verify(sha256(lines[4])))

    with pytest.raises(AuditError, match="expected 64 hexadecimal digits"):
        written.verify("abc")
    with pytest.raises(AuditError, match="no such audit log"):
        AuditLog(written.path.with_name("none")).verify()


@given(data=st.data())
def test_a_half_written_line_is_kept_and_the_chain_goes_on(written, spoilt, data):
    """Wherever a power cut ends the file, even in its first line."""
    content = written.path.read_bytes()
    left = content[: data.draw(st.integers(0, len(content) - 1))]
    torn = left.rpartition(b"\n")[2]
    spoilt.path.write_bytes(left)

    head = spoilt.append("release", run=99)

    assert spoilt.verify(head).intact
    assert spoilt.path.read_bytes().startswith(left.removesuffix(torn))
    kept = [bytes.fromhex(event["hex"]) for event in spoilt.read() if event["event"] == "torn"]
    assert kept == ([torn] if torn else [])
    assert spoilt.read()[-1]["run"] == 99


@pytest.mark.parametrize("end", [b"{}\n", b"\n", b"\0\0\n", b'{"number": 10, "event": "release"}\n'])
def test_nothing_is_appended_to_a_damaged_end(written, spoilt, end):
    for damaged in (written.path.read_bytes() + end, b"".join(lines_of(written)[:-2] + lines_of(written)[-1:]), end):
        spoilt.path.write_bytes(damaged)
        with pytest.raises(AuditError, match="the end of this audit log is damaged"):
            spoilt.append("release")
        assert spoilt.path.read_bytes() == damaged


def test_a_line_that_nobody_could_read_again_is_not_written(written, spoilt):
    """Else whoever makes a site log a long text makes its log look damaged, and what stands behind it be lost."""
    before = written.path.read_bytes()
    spoilt.path.write_bytes(before)

    with pytest.raises(AuditError, match="longer than lines are"):
        spoilt.append("refusal", text="y" * 2**24)

    assert spoilt.path.read_bytes() == before
    spoilt.append("refusal", text="y" * (2**24 - 1000))
    spoilt.append("release")
    assert spoilt.verify().intact


def test_only_the_end_is_read(written, spoilt):
    """The log's last lines, after a hole of 64 GiB that nobody could read in a test."""
    spoilt.path.write_bytes(b"")
    with spoilt.path.open("r+b") as file:
        file.seek(2**36)
        file.write(b"\n" + b"".join(lines_of(written)[-2:]))

    head = spoilt.append("release", text="x" * 200_000)  # longer than what is read at a time
    spoilt.append("refusal")

    with spoilt.path.open("rb") as file:
        file.seek(-2 * 10**5, os.SEEK_END)
        assert json.loads(file.read().splitlines()[-1])["previous"] == head
    spoilt.path.unlink()


def test_processes_that_append_at_a_time_make_one_chain(tmp_path):
    program = """
import sys
from pathlib import Path
from client.door.audit import AuditLog
sys.stdin.readline()
for number in range(40):
    AuditLog(Path(sys.argv[1])).append("release", process=sys.argv[2], n=number)
"""
    path = tmp_path / "audit.jsonl"
    run_at_once(program, *((path, name) for name in ("a", "b", "c")))

    assert AuditLog(path).verify().n_lines == 121
    assert AuditLog(path).verify().intact
    for name in ("a", "b", "c"):
        assert [event["n"] for event in AuditLog(path).read() if event["process"] == name] == list(range(40))


def test_every_array_is_described_by_what_crosses_the_wire():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    records = TrainReply(arrays={"weights/a": values}, sealed=[SealedGroup(sites=["x"], layout={"x": 5})]).to_records()

    array, header = describe_records(records)

    data = records["arrays"]["weights/a"].data
    assert array == {
        "name": "weights/a",
        "dtype": "float32",
        "shape": [2, 3],
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert '"layout":{"x":5}' in header["text"].replace("\\", "").replace(" ", "")


def test_the_hash_of_an_app_is_of_all_its_files(tmp_path):
    fab = pack_fab(stage_app(tmp_path / "staged", load_study(PROJECT / "configs" / "studies" / "demo.yaml")))
    zipfile.ZipFile(BytesIO(fab)).extractall(tmp_path / "installed")

    shutil.rmtree(tmp_path / "installed" / ".info")  # as Flower does
    unpacked = app_hash(tmp_path / "installed")

    command = "find . -type f -not -path './.info/*' -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    said = subprocess.run(command, shell=True, cwd=tmp_path / "installed", capture_output=True, text=True, check=True)
    assert said.stdout.split()[0] == unpacked
    for number, name in enumerate(
        ("client/door/policy.py", "pyproject.toml", "study.yaml", "evil.py", "client/evil.so")
    ):
        other = shutil.copytree(tmp_path / "installed", tmp_path / str(number))
        with (other / name).open("a") as file:
            file.write("\n")
        assert app_hash(other) != unpacked
