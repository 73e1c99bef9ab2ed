"""Histories and answers in a normal form: what must be equal between two servers, as readable lines.

A message becomes a list of `path = value` lines in field-number order. Masked, as they differ from run to run:
times, task ids, run ids and other uuids (numbered by first appearance, so that *which* id stands where still counts),
namespace ids, request ids and identities that the script did not choose itself, sizes in bytes, how long a cron run
waits for its time. Everything else counts.
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.enums.v1.workflow_pb2 import CONTINUE_AS_NEW_INITIATOR_RETRY
from temporalio.api.history.v1.message_pb2 import HistoryEvent, WorkflowExecutionStartedEventAttributes

OURS: Final = "script:"
"""Identities and request ids that begin so were chosen by the script and are compared."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_RUN_ID: Final = re.compile(r"(^|_)run_id$")
_MASKED: Final = {
    "task_id": "<task id>",
    "namespace_id": "<namespace id>",
    "parent_workflow_namespace_id": "<namespace id>",
    "history_size_bytes": "<bytes>",
    "task_token": "<token>",
    "next_page_token": "<token>",
}
_CHOSEN: Final = {"request_id", "identity", "start_request_id", "create_request_id"}
_LEFT_OUT: Final = {"poller_scaling_decision", "poller_group_id", "poller_group_infos", "backlog_count_hint"}
"""Hints for pollers: optional, and they depend on load."""
_YEAR_1: Final = -62_135_596_800


class Normaliser:
    """Normal forms of one script's messages on one server; numbers the ids as they first appear.

    Args:
        nonce: what the script put into its workflow ids and task queues to keep them apart from those of other runs.
    """

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._ids: dict[str, str] = {}

    def lines(self, message: Message, prefix: str = "") -> list[str]:
        """The message as `path = value` lines."""
        return list(self._message(message, prefix))

    def text(self, value: str) -> str:
        """A text with its nonce and ids masked."""
        return _UUID.sub(lambda found: self._id(found.group()), value.replace(self._nonce, "NONCE"))

    def _id(self, value: str) -> str:
        return self._ids.setdefault(value, f"<id {len(self._ids) + 1}>")

    def _message(self, message: Message, prefix: str) -> Iterator[str]:
        fields = message.ListFields()
        for field, value in sorted(fields, key=lambda pair: pair[0].number):
            if field.name in _LEFT_OUT or _is_no_time(value):
                continue
            path = f"{prefix}.{field.name}" if prefix else field.name
            if field.name == "first_workflow_task_backoff" and _by_cron(message):
                yield f"{path} = <until due>"
            elif _is_map(field):
                for key in sorted(value):
                    shown = self._string("request_id" if field.name == "request_id_infos" else "", key)
                    yield from self._value(_map_value(field), value[key], f"{path}[{shown}]")
            elif field.is_repeated:
                for index, item in enumerate(value):
                    yield from self._value(field, item, f"{path}[{index}]")
            else:
                yield from self._value(field, value, path)

    def _value(self, field: FieldDescriptor, value: Any, path: str) -> Iterator[str]:
        if field.name in _MASKED:
            yield f"{path} = {_MASKED[field.name]}"
        elif field.message_type is not None:
            yield from self._nested(field, value, path)
        elif field.enum_type is not None:
            known = field.enum_type.values_by_number.get(value)
            yield f"{path} = {known.name if known else value}"
        elif field.type == FieldDescriptor.TYPE_BYTES:
            yield f"{path} = {self._bytes(value)}"
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield f"{path} = {self._string(field.name, value)}"
        else:
            yield f"{path} = {value}"

    def _nested(self, field: FieldDescriptor, value: Message, path: str) -> Iterator[str]:
        full_name = value.DESCRIPTOR.full_name
        if full_name == "google.protobuf.Timestamp":
            yield f"{path} = <time>"
        elif full_name == "google.protobuf.Duration":
            yield f"{path} = {value.ToTimedelta().total_seconds():g} s"  # type: ignore[attr-defined]
        elif lines := list(self._message(value, path)):
            yield from lines
        else:
            yield f"{path} = {{}}"

    def _string(self, name: str, value: str) -> str:
        if name in _CHOSEN and not value.startswith(OURS):
            return f"<{name}>"
        if _RUN_ID.search(name):
            return self._id(value)
        return repr(self.text(value))

    def _bytes(self, value: bytes) -> str:
        try:
            return repr(self.text(value.decode()))
        except UnicodeDecodeError:
            return f"base64 {base64.b64encode(value).decode()}"


def _is_no_time(value: Any) -> bool:
    """Go's zero time, of the year 1, which a real server writes where it has none."""
    return isinstance(value, Timestamp) and value.seconds == _YEAR_1


def _by_cron(message: Message) -> bool:
    """Whether a run begins at its cron schedule's time: its wait depends on the second in which the last one closed."""
    if not isinstance(message, WorkflowExecutionStartedEventAttributes):
        return False
    return bool(message.cron_schedule) and message.initiator != CONTINUE_AS_NEW_INITIATOR_RETRY


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]


def history_lines(normaliser: Normaliser, events: Iterable[HistoryEvent]) -> list[str]:
    """A history, one heading line per event and its attributes indented below."""
    out: list[str] = []
    for event in events:
        kind = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
        out.append(f"{event.event_id:3} {kind}")
        for line in normaliser.lines(event):
            path, _, rest = line.partition(" = ")
            if path not in ("event_id", "event_type"):
                # workflow_execution_started_event_attributes.input… says no more than input… below that heading
                out.append(f"      {re.sub(r'^[a-z_]+_event_attributes[.]', '', path)} = {rest}")
    return out


def difference(expected: list[str], got: list[str], expected_name: str, got_name: str) -> str:
    """A unified diff with enough around it to read which event is meant; empty when equal."""
    return "\n".join(difflib.unified_diff(expected, got, expected_name, got_name, lineterm="", n=4))
