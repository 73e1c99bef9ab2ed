"""Protobuf's numbers of variable length, for bytes that are put together without a message."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """A number that is not negative, as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
