"""The frames of HTTP/2 (RFC 9113) that the gateway reads and sends."""

from __future__ import annotations

import struct
from typing import Final
from urllib.parse import quote

from everfold.kernel.errors import StatusError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

FRAME_BYTES_MAX: Final = 16 * 1024
"""What a frame may carry unless the receiver's settings say more. Ours do not, and more is never sent."""

WINDOW_BYTES: Final = 64 * 1024 - 1
"""What a window is before anybody has said anything."""

WINDOW_BYTES_MAX: Final = 2**31 - 1

HEAD: Final = struct.Struct(">IBI")
"""Length and kind in one word (length << 8 | kind), flags, stream."""
HEAD_BYTES: Final = HEAD.size
STREAM_MASK: Final = 0x7FFFFFFF

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK, END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

PRIORITY_BYTES: Final = 5
PING_BYTES: Final = 8

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5
MAX_HEADER_LIST_SIZE: Final = 6
SETTING: Final = struct.Struct(">HI")

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED = 0, 1, 3, 5
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 7, 8, 9, 11

GRPC_PREFIX: Final = struct.Struct(">BI")
"""In front of a gRPC message: whether it is compressed, and its length."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """What one side tells the other about itself."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(key, value) for key, value in values.items()))


def reset(stream: int, error: int) -> bytes:
    """Ends a stream at once."""
    return frame(RST_STREAM, 0, stream, error.to_bytes(4, "big"))


def go_away(last_stream: int, error: int = NO_ERROR) -> bytes:
    """Streams above `last_stream` will not be served on this connection; clients take them elsewhere by themselves."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, error))


def window(stream: int, count: int) -> bytes:
    """The other side may send so many bytes more, on a stream or (0) on the connection."""
    return frame(WINDOW_UPDATE, 0, stream, count.to_bytes(4, "big"))


def literal(name: bytes, value: bytes) -> bytes:
    """A header for any block: it enters no table (RFC 7541, 6.2.2)."""
    return b"\x00" + _text(name) + _text(value)


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


_STATUS_200: Final = b"\x88"
"""`:status: 200`, in HPACK's static table."""

_CONTENT_TYPE: Final = b"\x0f\x10" + b"\x10application/grpc"
"""`content-type`, whose name is number 31 of the static table."""

_ACCEPTED: Final = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")

_ANSWER: Final = _STATUS_200 + _CONTENT_TYPE
_ANSWER_HEAD: Final = len(_ANSWER) << 8 | HEADERS
_OK: Final = literal(b"grpc-status", b"0")
_OK_HEAD: Final = len(_OK) << 8 | HEADERS

_AS_IT_IS: Final = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"
"""What `grpc-message` need not escape, besides letters, digits and `_.-~`."""


EMPTY_TABLE: Final = b"\x20"
"""In front of a header block: our table of headers is empty, and stays so (RFC 7541, 6.3)."""


def answer_begins(stream: int, prefix: bytes = b"") -> bytes:
    """The headers of an answer that has messages; `prefix` goes before the block's first field."""
    return frame(HEADERS, END_HEADERS, stream, prefix + _ANSWER)


def answer_ends(stream: int) -> bytes:
    """The trailers of an answer that went well."""
    return HEAD.pack(_OK_HEAD, END_HEADERS | END_STREAM, stream) + _OK


def whole_answer(stream: int, response: bytes) -> bytes:
    """An answer of one message that fits into a frame."""
    size = len(response)
    return b"".join(
        (
            HEAD.pack(_ANSWER_HEAD, END_HEADERS, stream),
            _ANSWER,
            HEAD.pack((size + GRPC_PREFIX.size) << 8 | DATA, 0, stream),
            GRPC_PREFIX.pack(0, size),
            response,
            HEAD.pack(_OK_HEAD, END_HEADERS | END_STREAM, stream),
            _OK,
        )
    )


def refusal(
    stream: int, status: StatusError, details: bytes | None = None, *, begun: bool = False, prefix: bytes = b""
) -> bytes:
    """The end of an answer with a status that is not OK.

    Args:
        stream: its number.
        status: code and text.
        details: the value of `grpc-status-details-bin`, in Base64.
        begun: the answer's headers were sent already.
        prefix: goes before the block's first field.
    """
    block = prefix if begun else prefix + _ANSWER + _ACCEPTED
    block += literal(b"grpc-status", str(int(status.code)).encode())
    block += literal(b"grpc-message", quote(status.message, safe=_AS_IT_IS).encode())
    if details is not None:
        block += literal(b"grpc-status-details-bin", details)
    return header_frames(stream, block, ends=True)


def http_status(stream: int, status: int, prefix: bytes = b"") -> bytes:
    """The answer to a request that is not gRPC's."""
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, prefix + literal(b":status", str(status).encode()))


def header_frames(stream: int, block: bytes, *, ends: bool) -> bytes:
    """A header block of any length: HEADERS, and CONTINUATIONs when it is long."""
    pieces = [block[at : at + FRAME_BYTES_MAX] for at in range(0, len(block), FRAME_BYTES_MAX)]
    frames = []
    for number, piece in enumerate(pieces):
        flags = END_HEADERS if number == len(pieces) - 1 else 0
        if number == 0:
            frames.append(frame(HEADERS, flags | (END_STREAM if ends else 0), stream, piece))
        else:
            frames.append(frame(CONTINUATION, flags, stream, piece))
    return b"".join(frames)
