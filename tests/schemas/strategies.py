"""Hypothesis strategies made from schemas: every value that an Avro record or a Temporal event can have."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from everfold.schemas.compiler import PRIMITIVES, resolved

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
LONG = st.one_of(st.integers(-5, 20_000), st.integers(-(2**63), 2**63 - 1))
INT = st.one_of(st.integers(-5, 20_000), st.integers(-(2**31), 2**31 - 1))
FLOAT = st.floats(allow_nan=False, width=32)
BYTES = st.binary(max_size=200)
AVRO: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": INT,
    "long": LONG,
    "float": FLOAT,
    "double": st.floats(allow_nan=False),
    "bytes": BYTES,
    "string": TEXT,
}


def records(schema: Any, untagged: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """Values of a record whose schema is not recursive; of a union of records as `(short name, dict)`."""
    root, names = resolved(schema)

    def values(kind: Any) -> st.SearchStrategy[Any]:
        if isinstance(kind, str) and kind in PRIMITIVES:
            return AVRO[kind]
        if isinstance(kind, list):
            if len(kind) == 2 and kind[0] == "null":
                return st.none() | values(kind[1])
            return st.one_of([st.tuples(st.just(branch.rpartition(".")[2]), values(branch)) for branch in kind])
        if isinstance(kind, str):
            entry = names[kind]
            if entry["type"] == "enum":
                return st.sampled_from(entry["symbols"])
            return st.fixed_dictionaries({field["name"]: values(field["type"]) for field in entry["fields"]})
        if kind["type"] == "array":
            return st.lists(values(kind["items"]), max_size=3)
        return st.dictionaries(TEXT, values(kind["values"]), max_size=3)

    return values(root)


_PROTOBUF: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_INT32: INT,
    FieldDescriptor.CPPTYPE_INT64: LONG,
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_FLOAT: FLOAT,
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
}


def _value(draw: st.DrawFn, field: FieldDescriptor, depth: int) -> Any:
    if field.message_type is not None:
        return _message(draw, field.message_type, depth + 1)
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values]
        return draw(st.sampled_from(known if field.is_repeated else [*known, 99, -1, (1 << 31) - 1]))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(BYTES)
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw(TEXT)
    return draw(_PROTOBUF[field.cpp_type])


def _message(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Any:
    message: Any = GetMessageClass(descriptor)()
    if descriptor.full_name == "google.protobuf.Timestamp":
        message.seconds = draw(st.integers(-62_135_596_800, 253_402_300_799))
        message.nanos = draw(st.integers(0, 999_999_999))
        return message
    fields = list(descriptor.fields)
    size = min(len(fields), 4 if depth else 0)
    chosen = draw(st.lists(st.sampled_from(fields), max_size=size, unique_by=lambda f: f.name)) if size else []
    for field in chosen:
        if depth > 4 and field.message_type is not None:
            continue
        fill(draw, message, field, depth)
    return message


def fill(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int) -> None:
    """Sets a field of a message to something."""
    target = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_field = field.message_type.fields_by_name["value"]
        for key in draw(st.lists(TEXT, max_size=3)):
            value = _value(draw, value_field, depth)
            if value_field.message_type is not None:
                target[key].CopyFrom(value)
            else:
                target[key] = value
    elif field.is_repeated:
        for _ in range(draw(st.integers(1, 3))):
            target.append(_value(draw, field, depth))
    elif field.message_type is not None:
        target.CopyFrom(_value(draw, field, depth))
        target.SetInParent()
    else:
        setattr(message, field.name, _value(draw, field, depth))


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """Messages of a type with every kind of field set now and then, nested up to four deep."""
    message: Message = _message(draw, descriptor, 1)
    return message
