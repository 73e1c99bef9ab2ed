"""Avro's numbers: zig-zag varints, and the length that begins a string, an array block or a map block.

The functions here are the slow paths; the code that `compiler` makes handles one-byte numbers itself.
"""

from __future__ import annotations

import struct
from typing import Final

SMALL: Final = 8192
"""Numbers below this are encoded by a table: lengths, event ids, attempts. They take one or two bytes."""


def _zigzag(number: int) -> bytes:
    rest = number << 1 if number >= 0 else ~(number << 1)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


TABLE: Final = [_zigzag(number) for number in range(SMALL)]
"""number -> its encoding."""

_EIGHT_BYTES: Final = struct.Struct("<Q").unpack_from


def long(number: int) -> bytes:
    """A 64-bit number.

    Raises:
        OverflowError: it does not fit.
    """
    if number < 0:
        if number < -(1 << 63):
            raise OverflowError(f"{number} does not fit into an Avro long")
        return _zigzag(number)
    if number < SMALL:
        return TABLE[number]
    low = number << 1 & 0xFFFFFFFF
    if number < 1 << 20:
        return bytes((low & 127 | 128, low >> 7 & 127 | 128, low >> 14))
    if number < 1 << 27:
        return bytes((low & 127 | 128, low >> 7 & 127 | 128, low >> 14 & 127 | 128, low >> 21))
    if 1 << 55 <= number < 1 << 62:  # where nanoseconds since the epoch are, until the year 2116
        high = number >> 27
        return bytes(
            (
                low & 127 | 128,
                low >> 7 & 127 | 128,
                low >> 14 & 127 | 128,
                low >> 21 & 127 | 128,
                high & 127 | 128,
                high >> 7 & 127 | 128,
                high >> 14 & 127 | 128,
                high >> 21 & 127 | 128,
                high >> 28,
            )
        )
    if number >= 1 << 63:
        raise OverflowError(f"{number} does not fit into an Avro long")
    return _zigzag(number)


def int32(number: int) -> bytes:
    """A 32-bit number.

    Raises:
        OverflowError: it does not fit.
    """
    if not -(1 << 31) <= number < 1 << 31:
        raise OverflowError(f"{number} does not fit into an Avro int")
    return _zigzag(number)


def more(data: bytes, position: int, first: int) -> tuple[int, int]:
    """The rest of a varint whose first byte, already taken, had its high bit set: (unsigned value, position after it).

    Raises:
        ValueError: it does not end within ten bytes or 64 bits.
    """
    if len(data) - position >= 8:
        rest: int = _EIGHT_BYTES(data, position)[0]
        if rest & 0x8080808080808080 == 0x0080808080808080:  # nine bytes in all, an instant: close the gaps pairwise
            rest = rest & 0x007F007F007F007F | (rest & 0x7F007F007F007F00) >> 1
            rest = rest & 0x00003FFF00003FFF | (rest & 0x3FFF00003FFF0000) >> 2
            rest = rest & 0x000000000FFFFFFF | (rest & 0x0FFFFFFF00000000) >> 4
            return first & 0x7F | rest << 7, position + 8
    value = first & 0x7F
    shift = 7
    while shift < 70:
        byte = data[position]
        position += 1
        if byte < 0x80:
            value |= byte << shift
            if value >> 64:
                break
            return value, position
        value |= (byte & 0x7F) << shift
        shift += 7
    raise ValueError("a number longer than 64 bits")


def length(data: bytes, position: int, first: int) -> tuple[int, int]:
    """A length or an index whose first byte, already taken, was not a plain one-byte one: (twice its value, position).

    Raises:
        ValueError: it is negative, or not a 64-bit number.
    """
    if first & 0x80:
        first, position = more(data, position, first)
    if first & 1:
        raise ValueError("a negative length or index")
    return first, position


def block(data: bytes, position: int) -> tuple[int, int]:
    """The head of a block of an array or map: (number of items, 0 at the end; position of the first).

    Raises:
        ValueError: it claims more items than there are bytes left; an item takes one at least.
    """
    first = data[position]
    position += 1
    if first & 0x80:
        first, position = more(data, position, first)
    count = (first >> 1) ^ -(first & 1)
    if count < 0:  # such a block says its size in bytes too, so that a reader can skip it
        count = -count
        first = data[position]
        position += 1
        if first & 0x81:
            first, position = length(data, position, first)
    if count > len(data) - position:
        raise ValueError("an array or map longer than the record")
    return count, position


def text(value: str) -> bytes:
    """A string."""
    data = value.encode()
    return long(len(data)) + data


def text_from(data: bytes, position: int) -> tuple[str, int]:
    """The string at a position, and the position after it."""
    first = data[position]
    position += 1
    if first & 0x81:
        first, position = length(data, position, first)
    end = position + (first >> 1)
    return data[position:end].decode(), end
