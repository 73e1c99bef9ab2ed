"""Records to bytes and back: Avro in Confluent framing (a zero byte, the schema's id, big-endian, then the binary record)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import fastavro

from everfold.schemas import registry

Record = dict[str, Any]

NAMESPACE: Final = "everfold."
_BODY: Final = {
    "GENESIS": "Genesis",
    "SHARD_TAKEN": "ShardTaken",
    "SETTINGS_CHANGED": "SettingsChanged",
    "NAMESPACE_CHANGED": "NamespaceChanged",
    "OUTPUTS_SENT": "OutputsSent",
    "COMMAND_REJECTED": "CommandRejected",
    "COMMANDS_PASSED": "CommandsPassed",
    "RELEASE_WORKFLOW": "Empty",
    "REPUBLISH_VISIBILITY": "Empty",
    "FIRE_TIMER": "FireTimer",
    "START_WORKFLOW_TASK": "StartTask",
    "START_ACTIVITY_TASK": "StartTask",
    "STICKY_WORKER_GONE": "StickyWorkerGone",
    "RETURN_TASK": "ReturnTask",
    "CROSS_RUN": "CrossRun",
}


def body_of(kind: str) -> str:
    """The branch of a shard record's body that goes with its kind."""
    return _BODY.get(kind, "Request")


class Undecodable(Exception):
    """Bytes that are not a record that this build can read.

    Attributes:
        reason: why, in words for an operator.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownSchema(Undecodable):
    """Well framed, but the schema id is not in the lock file: a newer build's record, or a foreign registry's.

    Attributes:
        schema_id: the id.
    """

    def __init__(self, schema_id: int) -> None:
        super().__init__(f"unknown schema id {schema_id}")
        self.schema_id = schema_id


@cache
def _writer(name: str) -> tuple[bytes, Any]:
    schema = registry.current(name)
    return b"\0" + schema.id.to_bytes(4, "big"), fastavro.parse_schema(schema.raw)


def encode(name: str, record: Mapping[str, Any]) -> bytes:
    """The record in Confluent framing. Branches of unions of records are given as `(branch name, dict)`."""
    head, parsed = _writer(name)
    if "body" in record:
        body = record["body"]
        branch, fields = body if isinstance(body, tuple) else (body_of(record["kind"]), body)
        record = {**record, "body": (branch if "." in branch else NAMESPACE + branch, fields)}
    out = io.BytesIO()
    out.write(head)
    fastavro.schemaless_writer(out, parsed, record)
    return out.getvalue()


def decode(data: bytes) -> tuple[str, Record]:
    """The record's name and fields.

    Raises:
        Undecodable: not framed, truncated, too long, or otherwise not what its schema says.
        UnknownSchema: the id is not in the lock file.
    """
    if len(data) < 5 or data[0] != 0:
        raise Undecodable("not in Confluent framing: expected a zero byte and a 4-byte schema id")
    schema_id = int.from_bytes(data[1:5], "big")
    known = registry.ids().get(schema_id)
    if known is None:
        raise UnknownSchema(schema_id)
    _, parsed = _writer(known[0])
    stream = io.BytesIO(data)
    stream.seek(5)
    try:
        record: Any = fastavro.schemaless_reader(stream, parsed, None, return_record_name=known[0] == "Command", return_record_name_override=True)
    except Exception as error:
        raise Undecodable(f"not a {known[0]}: {error}") from error
    if stream.tell() != len(data):
        raise Undecodable(f"{len(data) - stream.tell()} bytes after the end of the {known[0]}")
    return known[0], record


def _encoder(name: str) -> Callable[[Mapping[str, Any]], bytes]:
    return lambda record: encode(name, record)


def _decoder(name: str) -> Callable[[bytes], Record]:
    def decode_one(data: bytes) -> Record:
        found, record = decode(data)
        if found != name:
            raise Undecodable(f"expected a {name}, found a {found}")
        return record

    return decode_one


encode_shard_record = _encoder("ShardRecord")
decode_shard_record = _decoder("ShardRecord")
encode_history_batch = _encoder("HistoryBatch")
decode_history_batch = _decoder("HistoryBatch")
encode_workflow_task = _encoder("WorkflowTask")
decode_workflow_task = _decoder("WorkflowTask")
encode_activity_task = _encoder("ActivityTask")
decode_activity_task = _decoder("ActivityTask")
encode_visibility = _encoder("VisibilityRecord")
decode_visibility = _decoder("VisibilityRecord")
encode_namespace = _encoder("Namespace")
decode_namespace = _decoder("Namespace")
encode_member = _encoder("Member")
decode_member = _decoder("Member")
encode_rejected_command = _encoder("RejectedCommand")
decode_rejected_command = _decoder("RejectedCommand")
decode_command = _decoder("Command")
