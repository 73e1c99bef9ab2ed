"""Changes one field of a protobuf message into something that nobody means, as a seeded generator says.

Whatever a parser can be given is in reach: a field that is set, or one that is not, at any depth; the extremes of
numbers and times, numbers of enums of the future, NaN, text that is empty, huge, or no UTF-8, JSON with half a
surrogate pair, chains of causes, another member of a oneof, too many elements, none.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

NO_UTF8: Final = "these-bytes-become-no-utf-8"
"""Stands in a message for what Python's protobuf would not let in; as long as what takes its place."""

INT_EXTREMES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
FLOATS: Final = (math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 0.999, 2.0**65, 1e38)
ENUMS: Final = (99, -1, (1 << 31) - 1, -(1 << 31))
TEXTS: Final = ("", "\0", "x" * 1_001, "y" * 70_000, "\U0001f600" * 300, "/_sys/x", "%s%n{}", " ", NO_UTF8)
DATA: Final = (
    b"",
    b"\xff" * 64,
    b'"\\ud800"',
    b"[" * 5_000,
    b"{" * 50,
    b'"0001-01-01T00:00:00Z"',
    b'"9999-12-31T23:59:59Z"',
    b"NaN",
    b"9" * 400,
    b"null",
    b"z" * 300_000,
)
SPANS: Final = (  # seconds and nanos, of durations and of instants
    (0, 0),
    (-1, 0),
    (0, -1),
    (1, -1),
    (0, (1 << 31) - 1),
    (300 * 365 * 86_400, 0),
    ((1 << 63) - 1, 999_999_999),
    (-(1 << 63), -999_999_999),
)
CAUSES: Final = (30, 70, 99, 300, 2_000)
MANY: Final = 300


class Mutation(NamedTuple):
    """What was changed: the path of the field, and how."""

    path: str
    how: str

    def __str__(self) -> str:
        return f"{self.path} {self.how}"


def mutate(random: Random, message: Message) -> tuple[bytes, Mutation]:
    """The bytes of the message with one field changed. The message itself is changed, too."""
    mutation = _mutate(random, message, message.DESCRIPTOR.name)
    data: bytes = message.SerializeToString()
    return data.replace(NO_UTF8.encode(), b"\xff" * len(NO_UTF8)), mutation


def _mutate(random: Random, message: Message, path: str) -> Mutation:
    kind = message.DESCRIPTOR.full_name
    if kind in ("google.protobuf.Duration", "google.protobuf.Timestamp"):
        span: Any = message
        span.seconds, span.nanos = random.choice(SPANS)
        return Mutation(path, f"is {span.seconds} s and {span.nanos} ns")
    if kind == "temporal.api.failure.v1.Failure" and random.random() < 0.4:
        return _cause(message, random.choice(CAUSES), path)
    fields = [field for field, _ in message.ListFields()]
    if not fields or random.random() < 0.25:
        fields = [*message.DESCRIPTOR.fields]
    if not fields:
        return Mutation(path, "has no fields")
    field = random.choice([field for field in fields for _ in range(1 if field.message_type is None else 3)])
    place = f"{path}.{field.name}"
    if field.is_repeated:
        return _repeated(random, message, field, place)
    if field.message_type is not None:
        return _inner(random, message, field, place)
    value = _scalar(random, field)
    setattr(message, field.name, value)
    return Mutation(place, f"is {_shown(value)}")


def _inner(random: Random, message: Message, field: FieldDescriptor, place: str) -> Mutation:
    chance = random.random()
    if chance < 0.08:
        message.ClearField(field.name)
        return Mutation(place, "is left out")
    inner: Message = getattr(message, field.name)
    if chance < 0.16:
        inner.Clear()
        inner.SetInParent()
        return Mutation(place, "is empty")
    inner.SetInParent()
    return _mutate(random, inner, place)


def _repeated(random: Random, message: Message, field: FieldDescriptor, place: str) -> Mutation:
    values: Any = getattr(message, field.name)
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    chance = random.random()
    if chance < 0.1:
        message.ClearField(field.name)
        return Mutation(place, "has no elements")
    if is_map:
        return _map(random, field, values, place)
    if field.message_type is None:
        values.append(_scalar(random, field))
        return Mutation(place, f"has {_shown(values[-1])} besides")
    if chance < 0.2:
        values.add()
        return Mutation(place, "has an empty element besides")
    if not values:
        return _mutate(random, values.add(), f"{place}[0]")
    at = random.randrange(len(values))
    if chance < 0.3:
        values.extend([values[at]] * (1 if random.random() < 0.7 else MANY))
        return Mutation(place, "has an element again")
    return _mutate(random, values[at], f"{place}[{at}]")


def _map(random: Random, field: FieldDescriptor, values: Any, place: str) -> Mutation:
    assert field.message_type is not None
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    known = sorted(values)
    chosen = random.choice(known) if known and random.random() < 0.7 else _scalar(random, key)
    if value.message_type is None:
        values[chosen] = _scalar(random, value)
        return Mutation(f"{place}[{_shown(chosen)}]", f"is {_shown(values[chosen])}")
    return _mutate(random, values[chosen], f"{place}[{_shown(chosen)}]")


def _scalar(random: Random, field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return random.choice([*ENUMS, *(value.number for value in field.enum_type.values)])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.choice(DATA)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return random.choice(TEXTS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.choice(FLOATS)
    low, high = INT_EXTREMES[field.cpp_type]
    return random.choice([low, high, 0, max(low, -1), 1, random.randint(low, high)])


def _cause(failure: Any, count: int, path: str) -> Mutation:
    failure.message = failure.message or "failed"
    for _ in range(count):
        failure = failure.cause
        failure.message = "because"
    return Mutation(path, f"has {count} causes")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}… ({len(value)})"
