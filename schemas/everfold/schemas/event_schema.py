"""Generates `avsc/HistoryEvent.avsc` from Temporal's protobuf descriptors: `python -m everfold.schemas.event_schema`.

The file is checked in, and a test holds that it is what this module makes. The rules:

    message              record of the same full name (nested: Outer_Inner, which Java can compile too)
    one message, oneof   null or the value, default null
    scalar               its Avro type, default protobuf's (uint32: a long); with explicit presence, null or the value
    one enum             enum of protobuf's value names and UNKNOWN; behind it, as an int, protobuf's number, which says
                         more where the symbol is UNKNOWN: a value that is newer than the schema
    several enums        their symbols alone: only the engine makes such lists
    repeated, map        array, map
    Timestamp, Duration  record of seconds and nanos: nanoseconds in a long end in 2262, and timeouts may not

The event itself is flattened into the envelope, and its attributes are a union of one record per event type. A union
cannot grow without breaking readers of older schemas, so an event type that came after the first release is an
`OtherAttributes`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1 import message_pb2

from everfold.schemas import registry

EVENT: Final = message_pb2.HistoryEvent.DESCRIPTOR
EVENT_TYPE_PREFIX: Final = "EVENT_TYPE_"
OTHER: Final = "OtherAttributes"
UNKNOWN: Final = "UNKNOWN"
"""The symbol of an enum's value that is newer than the schema."""

ENVELOPE_BY_HAND: Final = frozenset(["event_id", "event_time", "event_type"])
"""Fields of the event that the envelope has in a form of its own."""

_SCALARS: Final[dict[int, tuple[str, Any]]] = {
    FieldDescriptor.TYPE_BOOL: ("boolean", False),
    FieldDescriptor.TYPE_STRING: ("string", ""),
    FieldDescriptor.TYPE_BYTES: ("bytes", ""),
    FieldDescriptor.TYPE_FLOAT: ("float", 0.0),
    FieldDescriptor.TYPE_DOUBLE: ("double", 0.0),
    FieldDescriptor.TYPE_INT32: ("int", 0),
    FieldDescriptor.TYPE_SINT32: ("int", 0),
    FieldDescriptor.TYPE_SFIXED32: ("int", 0),
    FieldDescriptor.TYPE_UINT32: ("long", 0),
    FieldDescriptor.TYPE_FIXED32: ("long", 0),
    FieldDescriptor.TYPE_INT64: ("long", 0),
    FieldDescriptor.TYPE_SINT64: ("long", 0),
    FieldDescriptor.TYPE_SFIXED64: ("long", 0),
}
"""Protobuf type -> Avro type and default. Types that are missing here (unsigned 64-bit) do not fit and do not occur."""


def avro_name(descriptor: Descriptor | EnumDescriptor) -> str:
    """The full Avro name of a message or enum."""
    package = descriptor.file.package
    return f"{package}.{descriptor.full_name[len(package) + 1 :].replace('.', '_')}"


def message_of(field: FieldDescriptor) -> Descriptor:
    """The message type of a field that has one."""
    assert field.message_type is not None, field.full_name
    return field.message_type


def is_map(field: FieldDescriptor) -> bool:
    """Whether a protobuf field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_nullable(field: FieldDescriptor) -> bool:
    """Whether a single field may be absent, as opposed to having its type's default."""
    return not field.is_repeated and (field.message_type is not None or field.has_presence)


def has_number(field: FieldDescriptor) -> bool:
    """Whether a protobuf field is an enum whose number stands behind its symbol."""
    return field.enum_type is not None and not field.is_repeated and not is_nullable(field)


def number_name(field: FieldDescriptor) -> str:
    """The Avro field that holds the number of such an enum."""
    return f"{field.name}_number"


def event_types() -> list[tuple[str, int]]:
    """The symbols of Everfold's EventType and Temporal's numbers, UNKNOWN first."""
    values = event_type_pb2.EventType.DESCRIPTOR.values
    return [(UNKNOWN, 0), *((v.name.removeprefix(EVENT_TYPE_PREFIX), v.number) for v in values if v.number)]


class _Generator:
    def __init__(self) -> None:
        self.done: set[str] = set()

    def fields(self, descriptor_fields: Iterable[FieldDescriptor]) -> list[dict[str, Any]]:
        fields: list[dict[str, Any]] = []
        for field in descriptor_fields:
            fields.append(self.field(field))
            if has_number(field):
                doc = f"Temporal's number of {field.name}."
                fields.append({"name": number_name(field), "type": "int", "default": 0, "doc": doc})
        return fields

    def field(self, field: FieldDescriptor) -> dict[str, Any]:
        if is_map(field):
            values, _ = self.single(message_of(field).fields_by_name["value"])
            return {"name": field.name, "type": {"type": "map", "values": values}, "default": {}}
        kind, default = self.single(field)
        if field.is_repeated:
            return {"name": field.name, "type": {"type": "array", "items": kind}, "default": []}
        if is_nullable(field):
            return {"name": field.name, "type": ["null", kind], "default": None}
        return {"name": field.name, "type": kind, "default": default}

    def single(self, field: FieldDescriptor) -> tuple[Any, Any]:
        if field.message_type is not None:
            return self.record(field.message_type), None
        if field.enum_type is not None:
            return self.enum(field.enum_type), field.enum_type.values_by_number[0].name
        return _SCALARS[field.type]

    def record(self, descriptor: Descriptor) -> Any:
        name = avro_name(descriptor)
        if name in self.done:
            return name
        self.done.add(name)
        namespace, _, short = name.rpartition(".")
        fields = self.fields(descriptor.fields)
        return {
            "type": "record",
            "name": short,
            "namespace": namespace,
            "doc": f"Protobuf message {descriptor.full_name}.",
            "fields": fields,
        }

    def enum(self, descriptor: EnumDescriptor) -> Any:
        name = avro_name(descriptor)
        if name in self.done:
            return name
        self.done.add(name)
        namespace, _, short = name.rpartition(".")
        return {
            "type": "enum",
            "name": short,
            "namespace": namespace,
            "doc": f"Protobuf enum {descriptor.full_name}.",
            "default": UNKNOWN,
            "symbols": [*(value.name for value in descriptor.values), UNKNOWN],
        }


def _attribute_fields() -> list[FieldDescriptor]:
    fields = list(EVENT.oneofs_by_name["attributes"].fields)
    released = registry.lock()["released"]
    if not released:
        return fields
    latest = json.loads(registry.avsc_text("HistoryEvent", list(released)[-1]))
    union = next(field["type"] for field in latest["fields"] if field["name"] == "attributes")
    closed = [f"{b['namespace']}.{b['name']}" for b in union if isinstance(b, dict) and b["name"] != OTHER]
    by_name = {avro_name(message_of(field)): field for field in fields}
    return [by_name[name] for name in closed]


def _text(name: str, doc: str) -> dict[str, Any]:
    return {"name": name, "type": "string", "default": "", "doc": doc}


def generate() -> dict[str, Any]:
    """The schema of the record HistoryEvent, as JSON."""
    generator = _Generator()
    origin = next(f for f in json.loads(registry.avsc_text("HistoryBatch"))["fields"] if f["name"] == "origin")
    number = {"type": "int", "doc": "Temporal's number of the event type."}
    event = {"type": "bytes", "doc": "The whole event: temporal.api.history.v1.HistoryEvent."}
    other = {
        "type": "record",
        "name": OTHER,
        "doc": "Attributes of an event type that is newer than this schema.",
        "fields": [{"name": "event_type_number", **number}, {"name": "event", **event}],
    }
    symbols = [symbol for symbol, _ in event_types()]
    envelope = [
        _text("namespace_id", "Id of the namespace."),
        _text("namespace", "Name of the namespace."),
        {"name": "workflow_id", "type": "string", "doc": "Id of the workflow."},
        {"name": "run_id", "type": "string", "doc": "Id of the run."},
        _text("workflow_type", "Name of the workflow type."),
        {**origin, "doc": "Where the batch that the event came in was made."},
        {"name": "event_id", "type": "long", "doc": "Event id, from 1, gapless within a run."},
        {
            "name": "event_type",
            "type": {
                "type": "enum",
                "name": "EventType",
                "doc": "Temporal's event types, without their prefix. UNKNOWN is a type newer than the schema.",
                "default": UNKNOWN,
                "symbols": symbols,
            },
            "doc": "Type of the event.",
        },
        {
            "name": "event_time",
            "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}],
            "default": None,
            "doc": "Time of the event.",
        },
        {"name": "event_time_nanos", "type": "int", "default": 0, "doc": "Nanoseconds beyond event_time, 0 to 999."},
    ]
    attributes = {field.name for field in EVENT.oneofs_by_name["attributes"].fields}
    rest = [f for f in EVENT.fields if f.name not in attributes and f.name not in ENVELOPE_BY_HAND]
    envelope += generator.fields(rest)
    union = ["null", *(generator.record(message_of(field)) for field in _attribute_fields()), other]
    envelope.append({"name": "attributes", "type": union, "default": None, "doc": "What the event says, by its type."})
    return {
        "type": "record",
        "name": "HistoryEvent",
        "namespace": "everfold",
        "doc": "One event of a workflow's history, fully typed. Key: namespace/workflow_id. "
        "Generated from Temporal's protobuf descriptors by everfold.schemas.event_schema.",
        "fields": envelope,
    }


def render(schema: dict[str, Any]) -> str:
    """The text of the `.avsc` file."""
    return json.dumps(schema, indent=1) + "\n"


def main() -> int:
    """Writes the file."""
    path = Path(__file__).parent / "avsc" / "HistoryEvent.avsc"
    path.write_text(render(generate()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
