"""The SuperNode over Flower's real node state; a coordinator that may lie."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from flwr.app import Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate import NodeStateFactory

from client.door.audit import AuditLog
from client.settings import SiteSettings
from exchange.refusals import RefusalCode
from runtime.supernode import ApprovedAppsOnly
from tests.support.apps import app_of
from tests.support.programs import free_port, start

RUN = 77
GOOD, EVIL = app_of("app = 'reviewed'\n"), app_of("app = 'not reviewed'\n")


def sha256(fab: bytes) -> str:
    return hashlib.sha256(fab).hexdigest()


class Coordinator:
    """What a SuperNode gets from its SuperLink: the run says one thing, and `fab` is what is sent."""

    def __init__(self, fab: bytes, **run: str) -> None:
        self.fab = fab
        said = {"fab_id": "fedbrainlm/fedbrainlm", "fab_version": "1.0.0", "fab_hash": sha256(fab), **run}
        self.run = replace(Run.create_empty(RUN), **said)
        self.fetched = 0

    def message(self) -> Message:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 0, 0
        message = Message(RecordDict(), dst_node_id=5, message_type="query.describe")
        message.metadata.__dict__["_message_id"] = message.object_id
        return message

    def get_fab(self, fab_hash: str, run_id: int) -> Fab:
        self.fetched += 1
        return Fab(self.run.fab_hash, self.fab, {})


class Node:
    """A site's SuperNode up to the app: what was sent back, and whether an app would have been started."""

    def __init__(self, tmp_path) -> None:
        self.folder = tmp_path / "state"
        self.folder.mkdir()
        stores = ObjectStoreFactory()
        self.state, self.store = NodeStateFactory(objectstore_factory=stores).state(), stores.store()
        self.state.set_node_id(5)
        settings = SiteSettings(name="aalborg", cohort="cohort", state="state")
        self.pull = ApprovedAppsOnly(settings, self.folder)

    def take(self, coordinator: Coordinator) -> str | None:
        """Take one message in; return the code of the reply that leaves, None if the app was handed the message."""
        tasks = len(self.state.get_tasks())
        assert self.look([], coordinator) == RUN
        if len(self.state.get_tasks()) > tasks:
            return None
        return self._sent()

    def look(self, nothing: list[None], coordinator: Coordinator) -> int | None:
        """Look for a message as Flower does, which is not there as often as `nothing` has entries."""
        message = coordinator.message()
        objects = get_all_nested_objects(message)
        return self.pull(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: nothing.pop() if nothing else (message, get_object_tree(message)),
            get_run=lambda run_id: coordinator.run,
            get_fab=coordinator.get_fab,
            pull_object=lambda run_id, object_id: objects[object_id].deflate(),
            confirm_message_received=lambda run_id, object_id: None,
            trusted_entities=None,
        )

    def _sent(self) -> str:
        """Let Flower send the reply that waits, as the SuperNode's loop does next."""
        sent: list[Message] = []

        def send(message: Message, tree: object, seconds: float) -> tuple[set[str], str]:
            sent.append(message)
            return set(), ""

        flower._push_messages(self.state, self.store, send, lambda *_: None)
        (reply,) = sent
        assert reply.metadata.dst_node_id == 0
        assert reply.error.code == RefusalCode(reply.error.reason).number
        return str(reply.error.reason)

    @property
    def log(self) -> str:
        return (self.folder / "site.log").read_text()


@pytest.fixture
def node(tmp_path) -> Node:
    return Node(tmp_path)


def test_an_approved_app_is_handed_the_message(node):
    node.pull.approvals.approve(GOOD, "Anna", "small")

    assert node.take(Coordinator(GOOD)) is None
    assert node.state.get_fab(sha256(GOOD)).content == GOOD


def test_an_app_that_nobody_approved_is_answered_with_a_code_and_never_stored(node):
    assert node.take(Coordinator(EVIL)) == "site.code-not-approved"

    assert node.state.get_fab(sha256(EVIL)) is None
    assert f"app {sha256(EVIL)} ({len(EVIL)} bytes) is not approved. Look at it" in node.log
    (event,) = AuditLog(node.folder / "audit.jsonl").read()
    assert (event["event"], event["code"], event["message"]) == ("refusal", str(RefusalCode.CODE), "query.describe")


def test_what_counts_are_the_bytes_and_not_what_the_coordinator_says_of_them(node):
    node.pull.approvals.approve(GOOD, "Anna", "small")

    assert node.take(Coordinator(EVIL, fab_hash=sha256(GOOD))) == "site.code-not-approved"
    assert f"app {sha256(EVIL)}" in node.log
    assert node.take(Coordinator(GOOD, fab_hash=sha256(EVIL))) == "site.code-not-approved"
    assert node.take(Coordinator(GOOD, fab_version="../../elsewhere")) == "site.code-not-approved"
    assert node.take(Coordinator(GOOD, fab_id="../elsewhere")) == "site.code-not-approved"
    assert node.take(Coordinator(GOOD, primary_task_type=TaskType.AGENT_APP)) == "site.code-not-approved"
    assert "by other names" in node.log


def test_an_approval_that_was_withdrawn_ends_the_run_at_its_next_message(node):
    node.pull.approvals.approve(GOOD, "Anna", "small")
    coordinator = Coordinator(GOOD)
    assert node.take(coordinator) is None
    node.pull.approvals.withdraw(sha256(GOOD), "Bo")

    assert node.take(coordinator) == "site.code-not-approved"
    assert coordinator.fetched == 1  # known before: it is the message that is checked


def test_which_app_it_was_is_written_down_before_any_of_its_code_runs(node):
    node.pull.approvals.approve(GOOD, "Anna", "small")
    coordinator = Coordinator(GOOD)
    for _ in range(2):
        assert node.take(coordinator) is None

    approved, accepted = AuditLog(node.folder / "audit.jsonl").read()

    assert approved["event"] == "code-approved"
    assert accepted["event"] == "app-accepted"
    assert (accepted["run"], accepted["hash"], accepted["study"]) == (str(RUN), sha256(GOOD), "small")


def test_an_app_that_cannot_be_written_down_does_not_run(node):
    node.pull.approvals.approve(GOOD, "Anna", "small")
    log = node.folder / "audit.jsonl"
    log.write_text(log.read_text() + "something else\n")

    assert node.take(Coordinator(GOOD)) == "audit.broken"


def test_an_app_that_holds_more_than_ours_does_not_run_though_its_hash_was_approved(node):
    bad = app_of("app = 'reviewed'\n", **{"evil.py": b"app = None\n"})
    node.pull.approvals.approve_unseen(sha256(bad), "Anna")

    assert node.take(Coordinator(bad)) == "site.code-not-approved"
    assert "the app holds 'evil.py', which no app of ours does" in node.log
    assert node.state.get_fab(sha256(bad)) is None


def test_a_refused_run_may_go_on_once_its_app_is_approved(node):
    coordinator = Coordinator(GOOD)
    assert node.take(coordinator) == "site.code-not-approved"

    node.pull.approvals.approve(GOOD, "Anna", "small")

    assert node.take(coordinator) is None


def test_a_state_folder_that_cannot_be_written_still_answers(node, capsys):
    (node.folder / "audit.jsonl").mkdir()

    assert node.take(Coordinator(EVIL)) == "site.code-not-approved"
    assert "the state folder cannot be written" in capsys.readouterr().out


def test_after_an_answer_the_next_question_is_looked_for_at_once(node):
    """And without one Flower makes its pause."""
    coordinator, looks = Coordinator(EVIL), [None, None]
    assert node.look(looks.copy(), coordinator) is None
    assert node.take(coordinator) == "site.code-not-approved"

    assert node.look(looks.copy(), coordinator) == RUN


def test_a_supernode_that_gave_the_coordinator_up_ends_though_a_thread_of_flower_s_goes_on(tmp_path):
    program = """
import threading
from types import SimpleNamespace
import runtime.supernode as supernode
supernode.joined = lambda _: SimpleNamespace(address="127.0.0.1:9")
supernode.command = lambda *_: []
supernode.flower_supernode = threading.Thread(target=threading.Event().wait).start
supernode.main()
"""
    site = {"name": "oslo", "cohort": "cohort", "state": "state", "supernode": {"port": free_port()}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    (tmp_path / "state").mkdir()
    process = start("python", "-c", program, tmp_path / "site.yaml", folder=Path.cwd())

    out, err = process.communicate(timeout=60)

    assert process.returncode == 1, err
    assert "gave up, and ends to be started again" in out
