"""Header blocks, against the library's own encoder and against bytes that no encoder makes."""

from __future__ import annotations

import contextlib
import random

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from everfold.frontend.http2.header_blocks import TABLE_BYTES, BadHeaderBlock, HeaderBlocks

ROOM = 64 * 1024

text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200)
fields = st.lists(st.tuples(text.filter(bool), text), max_size=12)


@given(st.lists(fields, max_size=12), st.booleans())
def test_what_an_encoder_writes_is_read_block_after_block(blocks: list[list[tuple[str, str]]], huffman: bool) -> None:
    encoder, reader = Encoder(), HeaderBlocks(ROOM)
    for block in blocks:
        assert reader.read(encoder.encode(block, huffman=huffman)) == block


def test_the_table_forgets_the_oldest_first_and_may_shrink() -> None:
    encoder, reader = Encoder(), HeaderBlocks(ROOM)
    sequence = random.Random(1)
    for number in range(2_000):
        if number % 500 == 0:
            encoder.header_table_size = (number // 2) % TABLE_BYTES
        block = [(f"name-{sequence.randrange(40)}", "x" * sequence.randrange(300)) for _ in range(6)]
        assert reader.read(encoder.encode(block)) == block


def test_what_unfolds_to_too_much_is_not_kept_and_the_table_goes_on() -> None:
    encoder, reader = Encoder(), HeaderBlocks(4_000)
    first = [("pad", "x" * 2_000)]
    assert reader.read(encoder.encode(first)) == first
    assert reader.read(encoder.encode(first * 1_000)) is None
    assert reader.read(encoder.encode(first)) == first


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # entry 0
        b"\xff\xff\xff\xff\xff\xff",  # an integer without end
        b"\xff\x80\x80\x80\x80\x01",  # one that is too large
        b"\xff",  # one that is cut off
        b"\xbe",  # an entry that is not there
        b"\x00\x05abc",  # a text that is cut off
        b"\x00\x01a\x84\xff\xff\xff\xff",  # the end of Huffman's code within a text
        b"\x82\x20",  # a new table size behind a field
        b"\x3f\xe2\x1f",  # a table of 4,097 bytes
        b"\x00",
        b"\x40",
    ],
)
def test_what_cannot_be_read_is_said(block: bytes) -> None:
    with pytest.raises(BadHeaderBlock):
        HeaderBlocks(ROOM).read(block)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(block: bytes) -> None:
    with contextlib.suppress(BadHeaderBlock):
        HeaderBlocks(ROOM).read(block)
