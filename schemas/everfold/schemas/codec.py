"""Records to bytes and back: Avro in Confluent framing (a zero byte, the schema's id in four, then the record).

`encode` and `decode` take any record; the functions named for a record (`encode_shard_record`, …) are the same without
the look-up. A reader takes the bytes of every version ever released and of no other; `Undecodable` says what is wrong
with the rest.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import fastavro

from everfold.schemas import compiler, registry

Record = dict[str, Any]

_BODY: Final = {
    # kind -> branch; every other kind has a Request
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
    "OFFER_TASKS_AGAIN": "Empty",
    "FEATURE_LEVEL_RAISED": "FeatureLevelRaised",
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

    @property
    def is_newer(self) -> bool:
        """Whether a later Everfold may have given the id out: it is of our range, and beyond what this build knows."""
        return max(registry.ids()) < self.schema_id <= registry.ID_LAST


@dataclass(frozen=True)
class _Codec:
    """How this build writes one record, and how it reads one with the bytes of the same schema."""

    head: bytes
    write: compiler.Writer
    read: compiler.Reader


@cache
def _codec(name: str) -> _Codec:
    schema = registry.current(name)
    begin = head(schema.id)
    if name == "ShardRecord":
        writer = compiler.compile_writer(schema.raw, begin, branch_of=lambda record: body_of(record["kind"]))
        return _Codec(begin, writer, compiler.compile_reader(schema.raw, tagged=False))
    return _Codec(begin, compiler.compile_writer(schema.raw, begin), compiler.compile_reader(schema.raw))


def head(schema_id: int) -> bytes:
    """What a record of that schema begins with."""
    return b"\0" + schema_id.to_bytes(4, "big")


def encode(name: str, record: Mapping[str, Any]) -> bytes:
    """The record in Confluent framing, with the schema of this build.

    Fields that have a default may be left out. A value of a union of records is `(branch name, dict)`; the body of a
    ShardRecord may also be the dict alone, since its branch follows from the kind.

    Raises:
        KeyError, OverflowError, TypeError, AttributeError: the record is not what the schema says, a defect of the
        caller.
    """
    return _codec(name).write(record)


def decode(data: bytes) -> tuple[str, Record]:
    """The record's name, and its fields as the current schema has them, whatever version wrote it.

    A value of a union of records is `(branch name, dict)`, without Avro namespace; the body of a ShardRecord is the
    dict alone.

    Raises:
        Undecodable: not framed, truncated, too long, nested too deeply, or otherwise not what its schema says.
        UnknownSchema: the id is not in the lock file.
    """
    if len(data) < 5 or data[0] != 0:
        raise Undecodable("not in Confluent framing: expected a zero byte and a 4-byte schema id")
    schema_id = int.from_bytes(data[1:5], "big")
    known = registry.ids().get(schema_id)
    if known is None:
        raise UnknownSchema(schema_id)
    name, version = known
    if not version:
        return name, _read(_codec(name).read, name, data)
    return name, _older(schema_id, name)(data)


def _read(read: compiler.Reader, name: str, data: bytes) -> Record:
    try:
        record, end = read(data, 5)
    except MemoryError:
        raise
    except IndexError as error:
        raise Undecodable(
            f"not a {name}: it is cut off, or has a symbol or branch that its schema does not know"
        ) from error
    except Exception as error:
        raise Undecodable(f"not a {name}: {error}") from error
    if end != len(data):
        raise Undecodable(
            f"not a {name}: it " + ("is cut off" if end > len(data) else f"goes on for {len(data) - end} bytes")
        )
    return record


@cache
def _older(schema_id: int, name: str) -> Callable[[bytes], Record]:
    """A reader for a released schema: checked with the writer's schema first, then resolved to the current one by
    fastavro.
    """
    written = registry.by_id(schema_id).raw
    check = compiler.compile_reader(written)
    writer = fastavro.parse_schema(_plain(written))
    reader = fastavro.parse_schema(_plain(registry.current(name).raw))

    def read(data: bytes) -> Record:
        _read(check, name, data)
        stream = io.BytesIO(data)
        stream.seek(5)
        try:
            record: Any = fastavro.schemaless_reader(
                stream, writer, reader, return_record_name=name != "ShardRecord", return_record_name_override=True
            )
        except MemoryError:
            raise
        except Exception as error:
            raise Undecodable(f"a {name} of an older version that cannot be brought up to date: {error}") from error
        shortened: Record = _short(record)
        return shortened

    return read


def _plain(schema: Any) -> Any:
    """The schema without logical types, so that a timestamp stays a number."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if isinstance(schema, dict):
        return {
            key: value if key == "default" else _plain(value) for key, value in schema.items() if key != "logicalType"
        }
    return schema


def _short(value: Any) -> Any:
    """The value with branch names as everywhere here, without their Avro namespace."""
    if isinstance(value, tuple):
        return value[0].rpartition(".")[2], _short(value[1])
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value


@cache
def _body_fields() -> dict[str, frozenset[str]]:
    """Kind of a shard record -> the fields of its body; by them the branches differ."""
    fields = {field["name"]: field["type"] for field in registry.current("ShardRecord").raw["fields"]}
    branches = {branch["name"]: frozenset(field["name"] for field in branch["fields"]) for branch in fields["body"]}
    return {kind: branches[body_of(kind)] for kind in fields["kind"]["symbols"] if kind != "UNKNOWN"}


def decode_shard_record(data: bytes) -> Record:
    """A ShardRecord with a kind that this build knows, and the body that goes with it."""
    record = _decode_shard_record(data)
    kind = record["kind"]
    if record["body"].keys() != _body_fields().get(kind):
        raise Undecodable(f"a ShardRecord of kind {kind} has a {body_of(kind)}, this one has {sorted(record['body'])}")
    return record


def _decoder(name: str) -> Callable[[bytes], Record]:
    codec = _codec(name)
    head, read = codec.head, codec.read

    def decode_one(data: bytes) -> Record:
        if data[:5] == head:
            return _read(read, name, data)
        found, record = decode(data)
        if found != name:
            raise Undecodable(f"expected a {name}, found a {found}")
        return record

    return decode_one


encode_shard_record: Final = _codec("ShardRecord").write
_decode_shard_record: Final = _decoder("ShardRecord")
encode_history_batch: Final = _codec("HistoryBatch").write
decode_history_batch: Final = _decoder("HistoryBatch")
encode_workflow_task: Final = _codec("WorkflowTask").write
decode_workflow_task: Final = _decoder("WorkflowTask")
encode_activity_task: Final = _codec("ActivityTask").write
decode_activity_task: Final = _decoder("ActivityTask")
encode_visibility: Final = _codec("VisibilityRecord").write
decode_visibility: Final = _decoder("VisibilityRecord")
encode_namespace: Final = _codec("Namespace").write
decode_namespace: Final = _decoder("Namespace")
encode_member: Final = _codec("Member").write
decode_member: Final = _decoder("Member")
encode_shard_position: Final = _codec("ShardPosition").write
encode_rejected_command: Final = _codec("RejectedCommand").write
decode_rejected_command: Final = _decoder("RejectedCommand")
encode_command: Final = _codec("Command").write
decode_command: Final = _decoder("Command")
