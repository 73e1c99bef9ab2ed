"""The way out of a connection: the library's bytes go on as they come, frames of our own between two of its frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from everfold.frontend import http2


class Answers:
    """What the client is sent.

    Args:
        outer: the client's transport.
        passed: told of bytes of a call's answer that go on: the stream's number, how many.
        ended: told that the library has ended a stream.

    Attributes:
        passed_bytes: of answers, so far.
    """

    def __init__(
        self, outer: asyncio.Transport, passed: Callable[[int, int], None], ended: Callable[[int], None]
    ) -> None:
        self._outer = outer
        self._passed = passed
        self._ended = ended
        self.passed_bytes = 0
        #: of the frame under way: a part of its head, or bytes of its payload to come
        self._head = b""
        self._payload_left = 0
        self._in_block = False
        self._ours: list[bytes] = []

    def pass_on(self, data: bytes) -> None:
        """Passes on what the library sent."""
        if self._head:
            data = self._head + data
        at, end = 0, len(data)
        while at < end:
            if self._payload_left:
                step = min(self._payload_left, end - at)
                self._payload_left -= step
                at += step
                continue
            if end - at < http2.HEAD_BYTES:
                break
            word, flags, number = http2.HEAD.unpack_from(data, at)
            at += http2.HEAD_BYTES
            self._payload_left = word >> 8
            self._begin(word & 0xFF, flags, number & http2.STREAM_MASK, word >> 8)
        self._head = data[at:]
        self._outer.write(data[:at])
        if self._ours:
            self.send(b"")

    def send(self, frames: bytes) -> None:
        """Sends frames of our own, as soon as that does not come in between a frame or a header block."""
        self._ours.append(frames)
        if not (self._payload_left or self._head or self._in_block):
            self._outer.write(b"".join(self._ours))
            self._ours.clear()

    def _begin(self, kind: int, flags: int, number: int, length: int) -> None:
        if kind == http2.DATA:
            self.passed_bytes += length
            self._passed(number, length)
        elif kind in (http2.HEADERS, http2.CONTINUATION):
            self._in_block = not flags & http2.END_HEADERS
        if kind == http2.RST_STREAM or (kind in (http2.DATA, http2.HEADERS) and flags & http2.END_STREAM):
            self._ended(number)
