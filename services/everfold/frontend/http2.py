"""The little of HTTP/2 that the guard speaks (RFC 9113): heads of frames, and the frames that it sends itself.

Header blocks are never read: their compression has a state that belongs to the client and the library. What is added to
one is a literal that enters no table (RFC 7541, 6.2.2), which no state needs to know of.
"""

from __future__ import annotations

import struct
from typing import Final
from urllib.parse import quote

from everfold.kernel.errors import StatusError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

FRAME_BYTES_MAX: Final = 16 * 1024
"""What a frame to a server may carry unless the server's settings say more; the library's do not."""

HEAD: Final = struct.Struct(">IBI")
"""Length and kind in one word (length << 8 | kind), flags, stream."""
HEAD_BYTES: Final = HEAD.size
STREAM_MASK: Final = 0x7FFFFFFF

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 7, 8, 9
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8

NO_ERROR, CANCEL, ENHANCE_YOUR_CALM = 0, 8, 11

_STATUS_200: Final = b"\x88"
"""`:status: 200`, in HPACK's static table."""

_AS_IT_IS: Final = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"
"""What `grpc-message` need not escape, besides letters, digits and `_.-~`."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def reset(stream: int, error: int) -> bytes:
    """Ends a stream at once."""
    return frame(RST_STREAM, 0, stream, error.to_bytes(4, "big"))


def go_away(last_stream: int, error: int = NO_ERROR) -> bytes:
    """Streams above `last_stream` will not be served on this connection; clients take them elsewhere by themselves."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, error))


def window(count: int) -> bytes:
    """The client may send so many bytes more on the connection."""
    return frame(WINDOW_UPDATE, 0, 0, count.to_bytes(4, "big"))


def literal(name: bytes, value: bytes) -> bytes:
    """A header for the end of any block."""
    return b"\x00" + _text(name) + _text(value)


def refusal(stream: int, status: StatusError) -> bytes:
    """An answer that is a gRPC status alone; it ends the server's half of the stream."""
    block = (
        _STATUS_200
        + literal(b"content-type", b"application/grpc")
        + literal(b"grpc-status", str(int(status.code)).encode())
        + literal(b"grpc-message", quote(status.message, safe=_AS_IT_IS).encode())
    )
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, block)


def _text(text: bytes) -> bytes:
    """A string as HPACK has them: its length, from 127 on in further bytes of seven bits, and its bytes."""
    length = len(text)
    if length < 127:
        return bytes((length,)) + text
    head, length = bytearray((127,)), length - 127
    while length >= 128:
        head.append(length % 128 + 128)
        length //= 128
    head.append(length)
    return bytes(head) + text
