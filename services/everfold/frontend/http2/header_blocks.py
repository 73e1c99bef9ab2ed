"""Header blocks as clients compress them (HPACK, RFC 7541).

The static table and Huffman's code are the library's (`hpack`). Its decoder takes 50 microseconds for the headers of a
call, a third of what a call costs in all; the loop here takes a fifth of that. It bounds what a block unfolds to: one
byte may stand for a header of 4 KB.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

TABLE_BYTES: Final = 4096
"""The dynamic table's size, RFC 7541's own; our settings do not ask for another."""

_ENTRY_BYTES: Final = 32
"""What an entry counts for besides its name and value."""

_INTEGER_BYTES_MAX: Final = 4
"""Of an integer's further bytes: enough for 2^28."""

Field = tuple[str, str]

_STATIC: Final[list[Field]] = [
    (name.decode("ascii"), value.decode("ascii")) for name, value in HeaderTable.STATIC_TABLE
]


class BadHeaderBlock(Exception):
    """The block cannot be read, and so none of the connection's later ones can."""


class HeaderBlocks:
    """Reads the blocks of one connection, in their order: each builds on the table that those before it left.

    Args:
        bytes_max: what a block may unfold to; 32 bytes are counted besides each field.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._table: deque[Field] = deque()
        self._size = 0
        self._size_max = TABLE_BYTES

    def read(self, block: bytes) -> list[Field] | None:
        """The fields of a block, each byte of theirs as a character of Latin-1.

        Returns:
            None when they are more than `bytes_max`; the next block can be read all the same.

        Raises:
            BadHeaderBlock: it cannot be read.
        """
        fields: list[Field] = []
        left = self._bytes_max
        at, end = 0, len(block)
        try:
            while at < end:
                byte = block[at]
                if byte & 0x80:
                    index = byte & 0x7F
                    at += 1
                    if index == 0x7F:
                        index, at = _integer(block, at, index)
                    field = self._field(index)
                elif byte & 0x40:
                    field, at = self._literal(block, at, 0x3F)
                    self._add(field)
                elif byte & 0x20:
                    if fields:
                        raise BadHeaderBlock("the table's size changes within a block")
                    at = self._resize(block, at)
                    continue
                else:
                    field, at = self._literal(block, at, 0x0F)
                left -= len(field[0]) + len(field[1]) + _ENTRY_BYTES
                if left >= 0:
                    fields.append(field)
        except IndexError:
            raise BadHeaderBlock("the block ends within a field, or names an entry that is not there") from None
        return fields if left >= 0 else None

    def _field(self, index: int) -> Field:
        if index == 0:
            raise BadHeaderBlock("the table has no entry 0")
        return _STATIC[index - 1] if index <= len(_STATIC) else self._table[index - len(_STATIC) - 1]

    def _literal(self, block: bytes, at: int, mask: int) -> tuple[Field, int]:
        index = block[at] & mask
        at += 1
        if index == mask:
            index, at = _integer(block, at, mask)
        if index:
            name = self._field(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _add(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + _ENTRY_BYTES
        self._size += size
        self._table.appendleft(field)
        if self._size > self._size_max:
            self._shrink()

    def _resize(self, block: bytes, at: int) -> int:
        size = block[at] & 0x1F
        at += 1
        if size == 0x1F:
            size, at = _integer(block, at, size)
        if size > TABLE_BYTES:
            raise BadHeaderBlock(f"expected a table of at most {TABLE_BYTES} bytes, found {size}")
        self._size_max = size
        self._shrink()
        return at

    def _shrink(self) -> None:
        while self._size > self._size_max:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _ENTRY_BYTES


def fields_bytes(fields: list[Field]) -> int:
    """What they take in memory: a client may have sent a byte for each of them."""
    return sum([len(name) + len(value) for name, value in fields])


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """An integer that did not fit into its prefix, and where it ends (RFC 7541, 5.1)."""
    value, shift = prefix, 0
    for _ in range(_INTEGER_BYTES_MAX):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
    raise BadHeaderBlock("an integer is too large")


def _string(block: bytes, at: int) -> tuple[str, int]:
    """A string and where it ends (RFC 7541, 5.2)."""
    length = block[at] & 0x7F
    huffman = block[at] & 0x80
    at += 1
    if length == 0x7F:
        length, at = _integer(block, at, length)
    end = at + length
    data = block[at:end]
    if len(data) < length:
        raise BadHeaderBlock("the block ends within a string")
    if huffman:
        try:
            data = decode_huffman(data)
        except Exception:
            raise BadHeaderBlock("a string is not in Huffman's code") from None
    return data.decode("latin-1"), end
