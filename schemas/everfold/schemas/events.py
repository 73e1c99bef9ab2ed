"""History events between protobuf and the typed Avro record HistoryEvent, without loss for every field that is known.

Writing goes from the protobuf message straight to Avro's bytes: of a message with forty fields few are set, so each
record starts as a copy of its encoded defaults, in which the fields that are set replace theirs. That costs a fraction
of building a dict and encoding it. Reading gives the dict, as for every record (`codec.decode`), and `to_protobuf` goes
on from it.

An event type that the schema does not know, or an event without attributes of its own, travels whole, as
`OtherAttributes`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from temporalio.api.history.v1 import message_pb2

from everfold.schemas import codec, compiler, registry
from everfold.schemas.event_schema import (
    ENVELOPE_BY_HAND,
    EVENT,
    OTHER,
    avro_name,
    event_types,
    has_number,
    is_map,
    is_nullable,
    message_of,
    number_name,
)
from everfold.schemas.varint import long, text

Encode = Callable[[Any], bytes]
Fill = Callable[[Any, Mapping[str, Any]], None]

_FLOAT: Final = struct.Struct("<f").pack
_DOUBLE: Final = struct.Struct("<d").pack
_SYMBOL_OF: Final = {number: symbol for symbol, number in event_types()}
_NUMBER_OF: Final = dict(event_types())
_ATTRIBUTES: Final = EVENT.oneofs_by_name["attributes"].fields
_ATTRIBUTES_BY_NAME: Final = {avro_name(message_of(f)).rpartition(".")[2]: f for f in _ATTRIBUTES}
_REST: Final = [
    f
    for f in EVENT.fields
    if f.name not in ENVELOPE_BY_HAND and f.containing_oneof is not _ATTRIBUTES[0].containing_oneof
]


class EventContext(NamedTuple):
    """Whose events they are: what the envelope says besides the event.

    Attributes:
        origin: where the batch was made, as a dict of Origin's fields.
    """

    namespace_id: str
    namespace: str
    workflow_id: str
    run_id: str
    workflow_type: str
    origin: Mapping[str, Any] | None


def _bytes(value: bytes) -> bytes:
    return long(len(value)) + value


def _true(value: bool) -> bytes:
    return b"\1" if value else b"\0"


_SCALARS: Final[dict[int, tuple[Encode, bytes]]] = {
    FieldDescriptor.CPPTYPE_BOOL: (_true, b"\0"),
    FieldDescriptor.CPPTYPE_STRING: (text, b"\0"),
    FieldDescriptor.CPPTYPE_FLOAT: (_FLOAT, _FLOAT(0.0)),
    FieldDescriptor.CPPTYPE_DOUBLE: (_DOUBLE, _DOUBLE(0.0)),
    FieldDescriptor.CPPTYPE_INT32: (long, b"\0"),
    FieldDescriptor.CPPTYPE_INT64: (long, b"\0"),
    FieldDescriptor.CPPTYPE_UINT32: (long, b"\0"),
}
"""How a scalar is written -> and its default, written."""


def _single(field: FieldDescriptor) -> tuple[Encode, bytes]:
    if field.message_type is not None:
        return _message(field.message_type), b""
    if field.enum_type is not None:
        return _enum(field)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes, b"\0"
    return _SCALARS[field.cpp_type]


def _enum(field: FieldDescriptor) -> tuple[Encode, bytes]:
    """An enum's symbol, and its number behind it where the schema has that."""
    assert field.enum_type is not None
    numbered = has_number(field)
    unknown = long(len(field.enum_type.values))
    known = {
        value.number: long(index) + (long(value.number) if numbered else b"")
        for index, value in enumerate(field.enum_type.values)
    }

    def encode(number: int) -> bytes:
        return known.get(number) or (unknown + long(number) if numbered else unknown)

    return encode, known[0]


def _nullable(inner: Encode) -> Encode:
    return lambda value: b"\2" + inner(value)


def _array(inner: Encode) -> Encode:
    return lambda values: b"".join((long(len(values)), *map(inner, values), b"\0"))


def _map(inner: Encode) -> Encode:
    def encode(values: Mapping[str, Any]) -> bytes:
        parts = [long(len(values))]
        for key in sorted(values):  # protobuf's maps have no order; equal events are to be equal bytes
            parts.append(text(key))
            parts.append(inner(values[key]))
        parts.append(b"\0")
        return b"".join(parts)

    return encode


def _field(field: FieldDescriptor) -> tuple[Encode, bytes]:
    """How a field that is set is written, and what stands for it while it is not."""
    if is_map(field):
        return _map(_single(message_of(field).fields_by_name["value"])[0]), b"\0"
    inner, default = _single(field)
    if field.is_repeated:
        return _array(inner), b"\0"
    return (_nullable(inner), b"\0") if is_nullable(field) else (inner, default)


@cache
def _message(descriptor: Descriptor) -> Encode:
    """From a message of that type to the encoding of its record. Compiled at the first call: types may be recursive."""
    defaults: list[bytes] = []
    encoders: dict[int, tuple[int, Encode]] = {}  # field number -> place in the record, encoder

    def prepare() -> None:
        for place, field in enumerate(descriptor.fields):
            encode, default = _field(field)
            encoders[field.number] = (place, encode)
            defaults.append(default)

    def encode(message: Message) -> bytes:
        if not defaults:
            prepare()
        parts = defaults.copy()
        for field, value in message.ListFields():
            place, encoder = encoders[field.number]
            parts[place] = encoder(value)
        return b"".join(parts)

    return encode if descriptor.fields else lambda message: b""


@cache
def _envelope() -> tuple[bytes, compiler.Writer, dict[int, bytes], dict[int, tuple[bytes, Encode]], bytes]:
    """The frame's head, the writer of the context, symbol and attribute tables by number, and the head of
    OtherAttributes.
    """
    schema = registry.current("HistoryEvent")
    fields = schema.raw["fields"]
    context = {**schema.raw, "fields": fields[: len(EventContext._fields)]}
    by_name = {field["name"]: field["type"] for field in fields}
    symbols = {number: long(by_name["event_type"]["symbols"].index(symbol)) for number, symbol in _SYMBOL_OF.items()}
    branches = {branch["name"]: long(i) for i, branch in enumerate(by_name["attributes"]) if i}
    attributes = {
        field.number: (branches[name], _message(message_of(field)))
        for name, field in _ATTRIBUTES_BY_NAME.items()
        if name in branches
    }
    return codec.head(schema.id), compiler.compile_writer(context), symbols, attributes, branches[OTHER]


def _event_time(event: message_pb2.HistoryEvent) -> bytes:
    if not event.HasField("event_time"):
        return b"\0\0"
    micros, nanos = divmod(event.event_time.nanos, 1000)
    return b"\2" + long(event.event_time.seconds * 1_000_000 + micros) + long(nanos)


@cache
def _rest() -> tuple[list[bytes], dict[int, tuple[int, Encode]]]:
    written = [_field(field) for field in _REST]
    places = {field.number: (place, written[place][0]) for place, field in enumerate(_REST)}
    return [default for _, default in written], places


def prefix(context: EventContext) -> bytes:
    """What all the records of one context begin with; made once for a batch."""
    head, write, _, _, _ = _envelope()
    return head + write(context._asdict())


def encode_event(begin: bytes, event: message_pb2.HistoryEvent) -> bytes:
    """One event as a HistoryEvent record in Confluent framing. `begin` is the context's `prefix`."""
    _, _, symbols, attributes, other = _envelope()
    defaults, places = _rest()
    parts = defaults.copy()
    said = b"\0"
    for field, value in event.ListFields():
        number = field.number
        if number in attributes:
            branch, encode = attributes[number]
            said = branch + encode(value)
        elif number in places:
            place, encode = places[number]
            parts[place] = encode(value)
    symbol = symbols.get(event.event_type)
    if symbol is None or said == b"\0":
        symbol = symbol or symbols[0]
        said = other + long(event.event_type) + _bytes(event.SerializeToString(deterministic=True))
    return b"".join((begin, long(event.event_id), symbol, _event_time(event), *parts, said))


def encode_batch(batch: Mapping[str, Any]) -> list[tuple[int, bytes]]:
    """The events of a HistoryBatch as (event id, HistoryEvent record), in order."""
    begin = prefix(EventContext(*(batch[name] for name in EventContext._fields)))
    parse = message_pb2.HistoryEvent.FromString
    return [(thin["event_id"], encode_event(begin, parse(thin["event"]))) for thin in batch["events"]]


def _set_scalar(name: str) -> Callable[[Any, Any], None]:
    return lambda message, value: setattr(message, name, value)


def _setter(field: FieldDescriptor) -> Callable[[Any, Any], None]:
    """How a value of the Avro record, of the field `_source`, gets into the message."""
    name = field.name
    if has_number(field):
        return _set_scalar(name)
    numbers = {value.name: value.number for value in field.enum_type.values} if field.enum_type is not None else None
    if is_map(field):
        value_type = message_of(field).fields_by_name["value"].message_type
        if value_type is None:
            return lambda message, value: getattr(message, name).update(value)
        fill_value = _filler(value_type)

        def set_map(message: Any, value: Mapping[str, Any]) -> None:
            target = getattr(message, name)
            for key, item in value.items():
                fill_value(target[key], item)

        return set_map
    if field.message_type is not None:
        fill = _filler(field.message_type)
        if field.is_repeated:

            def set_messages(message: Any, value: list[Any]) -> None:
                target = getattr(message, name)
                for item in value:
                    fill(target.add(), item)

            return set_messages

        def set_message(message: Any, value: Mapping[str, Any]) -> None:
            target = getattr(message, name)
            target.SetInParent()
            fill(target, value)

        return set_message
    if field.is_repeated:
        if numbers is not None:
            return lambda message, value: getattr(message, name).extend(numbers.get(item, 0) for item in value)
        return lambda message, value: getattr(message, name).extend(value)
    if numbers is not None:
        return lambda message, value: setattr(message, name, numbers[value])
    return _set_scalar(name)


def _source(field: FieldDescriptor) -> str:
    """The field of the Avro record from which a field of the message is read."""
    return number_name(field) if has_number(field) else field.name


def _is_kept(field: FieldDescriptor) -> bool:
    """Whether a value that Python takes for false is still to be set: where there is presence, and minus zero."""
    return is_nullable(field) or (
        not field.is_repeated and field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)
    )


@cache
def _filler(descriptor: Descriptor) -> Fill:
    """From the record of a message type to the message. Compiled at the first call: types may be recursive."""
    setters: list[tuple[str, bool, Callable[[Any, Any], None]]] = []

    def fill(message: Any, record: Mapping[str, Any]) -> None:
        if not setters:
            setters.extend((_source(field), _is_kept(field), _setter(field)) for field in descriptor.fields)
        for name, kept, setter in setters:
            value = record[name]
            if value is not None if kept else value:
                setter(message, value)

    return fill


def to_protobuf(record: Mapping[str, Any]) -> message_pb2.HistoryEvent:
    """The protobuf event of a decoded HistoryEvent record."""
    said = record["attributes"]
    if said is not None and said[0] == OTHER:
        return message_pb2.HistoryEvent.FromString(said[1]["event"])
    event = message_pb2.HistoryEvent(event_id=record["event_id"])
    event.event_type = _NUMBER_OF[record["event_type"]]  # type: ignore[assignment]
    if record["event_time"] is not None:
        seconds, micros = divmod(record["event_time"], 1_000_000)
        event.event_time.seconds = seconds
        event.event_time.nanos = micros * 1000 + record["event_time_nanos"]
    for field, setter in _rest_setters():
        value = record[_source(field)]
        if value is not None if _is_kept(field) else value:
            setter(event, value)
    if said is not None:
        name, attributes = said
        field = _ATTRIBUTES_BY_NAME[name]
        target = getattr(event, field.name)
        target.SetInParent()
        _filler(message_of(field))(target, attributes)
    return event


@cache
def _rest_setters() -> list[tuple[FieldDescriptor, Callable[[Any, Any], None]]]:
    return [(field, _setter(field)) for field in _REST]
