"""Messages as they are on Flower's wire, made in a process that is none of Flower's."""

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity


def be_in_run(number: int) -> None:
    """Let this process make messages of a run, as a ServerApp's does."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = number, 0, 0


def as_bytes(message: Message) -> bytes:
    return message_to_proto(message).SerializeToString()


def over_the_wire(message: Message) -> Message:
    return message_from_proto(ProtoMessage.FromString(as_bytes(message)))
