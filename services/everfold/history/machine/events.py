"""Facts about history events: which are buffered, which close a run, how they look as bytes.

Events are Temporal's own protobuf messages (`temporal.api.history.v1.HistoryEvent`), serialized deterministically;
there is no second model of them. A stored batch is a serialized `History`, so batches concatenate into a longer
`History`. Temporal: service/history/historybuilder/event_store.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.kernel.search_attributes import unsets
from everfold.kernel.time import SECOND_NS
from everfold.kernel.varint import varint

_type = event_type_pb2.EventType.Value

STARTED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_STARTED")
COMPLETED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED")
FAILED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_FAILED")
TIMED_OUT: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT")
CANCELED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED")
TERMINATED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED")
CONTINUED_AS_NEW: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW")
TASK_SCHEDULED: Final = _type("EVENT_TYPE_WORKFLOW_TASK_SCHEDULED")
TASK_STARTED: Final = _type("EVENT_TYPE_WORKFLOW_TASK_STARTED")
TASK_COMPLETED: Final = _type("EVENT_TYPE_WORKFLOW_TASK_COMPLETED")
TASK_FAILED: Final = _type("EVENT_TYPE_WORKFLOW_TASK_FAILED")
TASK_TIMED_OUT: Final = _type("EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT")
ACTIVITY_SCHEDULED: Final = _type("EVENT_TYPE_ACTIVITY_TASK_SCHEDULED")
ACTIVITY_STARTED: Final = _type("EVENT_TYPE_ACTIVITY_TASK_STARTED")
ACTIVITY_COMPLETED: Final = _type("EVENT_TYPE_ACTIVITY_TASK_COMPLETED")
ACTIVITY_FAILED: Final = _type("EVENT_TYPE_ACTIVITY_TASK_FAILED")
ACTIVITY_TIMED_OUT: Final = _type("EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT")
ACTIVITY_CANCEL_REQUESTED: Final = _type("EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED")
ACTIVITY_CANCELED: Final = _type("EVENT_TYPE_ACTIVITY_TASK_CANCELED")
TIMER_STARTED: Final = _type("EVENT_TYPE_TIMER_STARTED")
TIMER_FIRED: Final = _type("EVENT_TYPE_TIMER_FIRED")
TIMER_CANCELED: Final = _type("EVENT_TYPE_TIMER_CANCELED")
CANCEL_REQUESTED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED")
MARKER_RECORDED: Final = _type("EVENT_TYPE_MARKER_RECORDED")
SIGNALED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED")
SEARCH_ATTRIBUTES_UPSERTED: Final = _type("EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES")
PROPERTIES_MODIFIED: Final = _type("EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED")
CANCEL_EXTERNAL_INITIATED: Final = _type("EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED")
CANCEL_EXTERNAL_FAILED: Final = _type("EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED")
EXTERNAL_CANCEL_REQUESTED: Final = _type("EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED")
SIGNAL_EXTERNAL_INITIATED: Final = _type("EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED")
SIGNAL_EXTERNAL_FAILED: Final = _type("EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED")
EXTERNAL_SIGNALED: Final = _type("EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED")
CHILD_INITIATED: Final = _type("EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED")
CHILD_START_FAILED: Final = _type("EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED")
CHILD_STARTED: Final = _type("EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED")
CHILD_COMPLETED: Final = _type("EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED")
CHILD_FAILED: Final = _type("EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED")
CHILD_CANCELED: Final = _type("EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED")
CHILD_TIMED_OUT: Final = _type("EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT")
CHILD_TERMINATED: Final = _type("EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED")
UPDATE_ACCEPTED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED")
UPDATE_ADMITTED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED")
UPDATE_COMPLETED: Final = _type("EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED")

CHILD_CLOSED: Final = frozenset((CHILD_COMPLETED, CHILD_FAILED, CHILD_CANCELED, CHILD_TIMED_OUT, CHILD_TERMINATED))
"""How a child ends, seen by its parent."""

CLOSING: Final = frozenset((COMPLETED, FAILED, TIMED_OUT, CANCELED, TERMINATED, CONTINUED_AS_NEW))
"""After one of these a run takes no further event."""

BUFFERED: Final = frozenset(
    (
        SIGNALED,
        CANCEL_REQUESTED,
        ACTIVITY_STARTED,
        ACTIVITY_COMPLETED,
        ACTIVITY_FAILED,
        ACTIVITY_TIMED_OUT,
        ACTIVITY_CANCELED,
        TIMER_FIRED,
        CANCEL_EXTERNAL_FAILED,
        EXTERNAL_CANCEL_REQUESTED,
        SIGNAL_EXTERNAL_FAILED,
        EXTERNAL_SIGNALED,
        CHILD_START_FAILED,
        CHILD_STARTED,
        *CHILD_CLOSED,
    )
)
"""Events from outside: while a workflow task is started they wait, without ids, until it ends."""

ACTIVITY_CLOSED: Final = frozenset((ACTIVITY_COMPLETED, ACTIVITY_FAILED, ACTIVITY_TIMED_OUT, ACTIVITY_CANCELED))
"""How an activity ends."""

FLUSHED_LAST: Final = CHILD_CLOSED | ACTIVITY_CLOSED
"""Among buffered events these go behind the others when they get their ids (event_store.go, reorderBuffer)."""

TYPE_NAMES: Final[dict[int, str]] = {
    number: name.removeprefix("EVENT_TYPE_") for name, number in event_type_pb2.EventType.items()
}
"""Event type -> the symbol of the Avro enum, e.g. 10 -> ACTIVITY_TASK_SCHEDULED."""


def serialize(message: Message) -> bytes:
    """The canonical bytes of a message: map entries sorted, the same on every host (law 2)."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def attributes_of(event: history_pb2.HistoryEvent) -> Any:
    """The attributes of an event, whatever its type."""
    return getattr(event, str(event.WhichOneof("attributes")))


def copy_fields(source: Message, target: Message, names: Iterable[str]) -> None:
    """Copies the fields of those names that are set, empty messages included.

    As on a real server (1.32), search attributes that are null or an empty list are dropped, and a memo and search
    attributes without an entry are left out.
    """
    for name in names:
        if not source.HasField(name):
            continue
        value = getattr(source, name)
        if name == "search_attributes":
            for key in sorted(value.indexed_fields):
                if not unsets(value.indexed_fields[key]):
                    getattr(target, name).indexed_fields[key].CopyFrom(value.indexed_fields[key])
        elif name != "memo" or value.ByteSize():
            getattr(target, name).CopyFrom(value)


def serialize_field(message: Message, name: str) -> bytes | None:
    """A field's message as bytes; None where it is not set. An empty message is set."""
    return serialize(getattr(message, name)) if message.HasField(name) else None


def set_field(message: Message, name: str, data: bytes | None) -> None:
    """The opposite of `serialize_field`."""
    if data is not None:
        field = getattr(message, name)
        field.ParseFromString(data)
        field.SetInParent()


def framed(event: bytes) -> bytes:
    """A serialized event as an element of `History.events` (field 1, length-delimited)."""
    return b"\x0a" + varint(len(event)) + event


def frame_ends(events: bytes) -> Iterator[int]:
    """Where each of the framed events ends."""
    at = 0
    while at < len(events):
        at += 1
        length = shift = 0
        while (byte := events[at]) > 0x7F:
            length |= (byte & 0x7F) << shift
            shift += 7
            at += 1
        at += 1 + (length | byte << shift)
        yield at


def parse_history(data: bytes) -> history_pb2.History:
    """A `History` from its bytes."""
    history = history_pb2.History()
    history.ParseFromString(data)
    return history


def set_time(field: Timestamp, at_ns: int) -> None:
    """Sets a Timestamp to UTC nanoseconds."""
    field.seconds, field.nanos = divmod(at_ns, SECOND_NS)


def time_ns(field: Timestamp) -> int:
    """A Timestamp as UTC nanoseconds; 0 when unset."""
    return field.seconds * SECOND_NS + field.nanos
