"""The door for depth: protobuf messages inside messages, bounded in the request's bytes before anything parses them.

Only failures nest without a bound of their own, each with another as its cause. A chain of some hundred is legal
protobuf, and Go takes ten thousand, but other parsers stop at a hundred messages inside messages, those of most SDKs
and our own among them. What is stored is read again some messages deeper, inside an event of a history of an answer.
So a chain is cut here, where a request comes in, and short enough that every reader has room.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from everfold.kernel.varint import varint

DEPTH_MAX: Final = 64
"""Messages inside messages in a request. The most that is put around a part of one is some ten, in answers to polls."""

_LEVEL_BYTES_MIN: Final = 2
_VARINT_BYTES_MAX: Final = 10


class Shape:
    """What of a message type may nest.

    Attributes:
        fields: field number -> the type of the message in it; only fields that lead to a type that holds itself.
        by_name: of a google.protobuf.Any: message name -> type of the message in its value.
        stub: what is put in the place of such a message that is too deep.
    """

    __slots__ = ("by_name", "fields", "stub")

    def __init__(self, stub: bytes) -> None:
        self.fields: dict[int, Shape] = {}
        self.by_name: dict[str, Shape] = {}
        self.stub = stub


class _Field(NamedTuple):
    """A field in a message's bytes: where it begins, its number, where its value begins if it is a string of bytes
    (else -1), where it ends.
    """

    start: int
    number: int
    value: int
    end: int


def shallow(data: bytes, shape: Shape, tags: tuple[bytes, ...]) -> bytes:
    """The message, with what is nested deeper than DEPTH_MAX replaced. Malformed bytes stay: parsers refuse them.

    Args:
        data: the message.
        shape: of its type.
        tags: the first bytes of the fields by which types hold themselves: a quick look tells most messages apart.
    """
    if len(data) < DEPTH_MAX * _LEVEL_BYTES_MIN or sum(map(data.count, tags)) < DEPTH_MAX // 2:
        return data
    try:
        cut = _cut(data, 0, len(data), shape, 1)
    except IndexError:
        return data
    return data if cut is None else cut


def _cut(data: bytes, start: int, end: int, shape: Shape, level: int) -> bytes | None:
    """The message between two places, cut; None when it is as it was."""
    parts: list[bytes] = []
    kept = start  # up to here, `parts` has it
    named = ""
    at = start
    while at < end:
        field = _field(data, at)
        at = field.end
        if field.value < 0:
            continue
        if at > end:
            raise IndexError("a field ends behind its message")
        if shape.by_name and field.number == 1:
            named = data[field.value : at].decode(errors="replace").rpartition("/")[2]
        inner = shape.by_name.get(named) if shape.by_name and field.number == 2 else shape.fields.get(field.number)
        if inner is None:
            continue
        new = inner.stub if level > DEPTH_MAX else _cut(data, field.value, at, inner, level + 1)
        if new is not None:
            tag = data[field.start : field.value]
            parts += (data[kept : field.start], _tag(tag), varint(len(new)), new)
            kept = at
    if not parts:
        return None
    parts.append(data[kept:end])
    return b"".join(parts)


def _field(data: bytes, at: int) -> _Field:
    """The field at a place.

    Raises:
        IndexError: there is none, or it is a group, which nothing of ours has.
    """
    tag, value = _number(data, at)
    kind = tag & 7
    if kind == 2:
        length, value = _number(data, value)
        return _Field(at, tag >> 3, value, value + length)
    if kind == 0:
        return _Field(at, tag >> 3, -1, _number(data, value)[1])
    if kind in (1, 5):
        return _Field(at, tag >> 3, -1, value + (8 if kind == 1 else 4))
    raise IndexError("a group, or no kind of field that there is")


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 0x7F:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift >= 7 * _VARINT_BYTES_MAX:
            raise IndexError("a number longer than 64 bits")
    return value | byte << shift, at + 1


def _tag(head: bytes) -> bytes:
    """The tag in front of a length."""
    return head[: _number(head, 0)[1]]
