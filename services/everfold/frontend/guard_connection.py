"""One client's connection: its frames are counted and passed on to the library, and those of a refused call are not.

Only whole frames go on, so that one can be left out. What one side does not read, the other side is not read for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from everfold.frontend import http2
from everfold.frontend.gateway import AGE_GRACE_SECONDS, AGE_SECONDS, GREETING_SECONDS, IDLE_SECONDS
from everfold.frontend.guard_answers import Answers
from everfold.frontend.guard_ledger import STREAM_BYTES, Account, Stream, too_much_held
from everfold.kernel.errors import Code, StatusError

if TYPE_CHECKING:
    from everfold.frontend.guard import Guard

LEAVING_SECONDS: Final = 1.0
"""Between GOAWAY and the close of a connection without calls: what the client sent meanwhile still arrives."""

UNFINISHED_SECONDS: Final = 60.0
"""For a request to arrive whole."""

UNREAD_SWEEPS: Final = 60
"""Seconds in which a client reads nothing of the answers that wait for it; then it is cut off."""

DROPPED_STREAMS_MAX: Final = 1_000
"""Refused calls whose rest is still to come; a client with more does not stop when told to."""


class Connection(asyncio.Protocol):
    """The client's side; `_Library` is the other one."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._requests = Account(guard.requests)
        self._answers = Account(guard.answers)
        self._outer: asyncio.Transport
        self._out: Answers
        self._inner: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self._peer = ""
        #: what came of the preface, then of a frame
        self._rest = b""
        self._streams: dict[int, Stream] = {}
        #: those whose request is not whole, the oldest first
        self._unfinished: dict[int, Stream] = {}
        self._last_stream = 0
        #: the call whose header block has not ended, and the block's bytes
        self._opening: Stream | None = None
        self._block_bytes = 0
        self._dropped: set[int] = set()
        #: bytes that the client's socket does not take, while it takes none
        self._waiting = 0
        now = self._loop.time()
        self._began = self._idle_since = now
        # Apart, so that clients who came together do not go together.
        self._old_at = now + AGE_SECONDS * random.uniform(0.9, 1.1)
        self._leaving_since: float | None = None
        self._passed_before = 0
        self._unread_sweeps = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop; beyond the bound of connections it ends at once."""
        self._outer = cast(asyncio.Transport, transport)
        self._out = Answers(self._outer, self._answered, self._end)
        address = transport.get_extra_info("peername") or ("", 0)
        family = "ipv6" if len(address) > 2 else "ipv4"
        self._peer = f"{family}:{address[0]}:{address[1]}"
        if not self._guard.admit(self):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.close()

    def eof_received(self) -> None:
        """Called by the loop, which closes the connection: gRPC has no half-closed ones."""

    def pause_writing(self) -> None:
        """Called by the loop: the client does not read."""
        if self._inner is not None:
            self._inner.pause_reading()
        waiting = self._outer.get_write_buffer_size()
        if self._answers.take(waiting):
            self._waiting += waiting
        else:
            self._loop.call_soon(self.close)

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._answers.give_back(self._waiting)
        self._waiting = 0
        if self._inner is not None and not self._inner.is_closing():
            self._inner.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._rest:
            data = self._rest + data
        if self._inner is not None:
            self._rest = self._pass_inward(data)
        elif self._connecting is not None:
            self._rest = data
        else:
            self._rest = data
            self._greet(data)

    def _greet(self, data: bytes) -> None:
        """The library's end is opened only for a client that speaks HTTP/2: the preface and a frame of settings."""
        preface = http2.PREFACE
        if not data.startswith(preface[: len(data)]):
            self.close()
        elif len(data) >= len(preface) + http2.HEAD_BYTES:
            if data[len(preface) + 3] != http2.SETTINGS:
                self.close()
                return
            self._outer.pause_reading()
            self._connecting = self._loop.create_task(self._open_inner())

    def _library(self) -> asyncio.Protocol:
        return _Library(self._outer, self._out, self.close)

    async def _open_inner(self) -> None:
        try:
            inner, _ = await self._loop.create_unix_connection(self._library, self._guard.inner_path)
        except OSError:
            self.close()
            return
        if self._closed:
            inner.abort()
            return
        self._inner = inner
        inner.write(http2.PREFACE)
        self._rest = self._pass_inward(self._rest[len(http2.PREFACE) :])
        if not self._closed:
            self._outer.resume_reading()

    def _pass_inward(self, data: bytes) -> bytes:
        """Passes whole frames on. Returns what is left: a part of one."""
        inner = self._inner
        assert inner is not None
        at = passed = 0
        end = len(data)
        out: list[bytes] = []
        while end - at >= http2.HEAD_BYTES:
            word, flags, number = http2.HEAD.unpack_from(data, at)
            after = at + http2.HEAD_BYTES + (word >> 8)
            if word >> 8 > http2.FRAME_BYTES_MAX:
                self.close()
                return b""
            if after > end:
                break
            instead = self._inward_frame(word & 0xFF, flags, number & http2.STREAM_MASK, data, at, after)
            if self._closed:
                return b""
            if instead is not None:
                out += (data[passed:at], instead)
                passed = after
            at = after
        out.append(data[passed:at])
        inner.write(b"".join(out))
        return data[at:]

    def _inward_frame(self, kind: int, flags: int, number: int, data: bytes, at: int, after: int) -> bytes | None:
        """What goes on instead of the client's frame; None: the frame itself."""
        if kind == http2.DATA:
            return self._request_data(flags, number, data[at + http2.HEAD_BYTES : after])
        if kind == http2.HEADERS:
            if number > self._last_stream:
                self._last_stream = number
                self._opening = self._open(number)
                self._block_bytes = STREAM_BYTES
            if flags & http2.END_STREAM:
                self._unfinished.pop(number, None)
        elif kind == http2.RST_STREAM:
            self._end(number)
            self._dropped.discard(number)
            return None
        elif kind != http2.CONTINUATION:
            return None
        stream = self._opening
        if stream is None:
            return None
        self._block_bytes += after - at
        if not flags & http2.END_HEADERS:
            return None
        self._opening = None
        # The call's key becomes the last of its headers, in a frame of its own: so nothing of the block is touched.
        key = self._guard.key_header + bytes((len(stream.key),)) + stream.key
        head = http2.HEAD.pack((after - at - http2.HEAD_BYTES) << 8 | kind, flags & ~http2.END_HEADERS, number)
        block = head + data[at + http2.HEAD_BYTES : after]
        block += http2.frame(http2.CONTINUATION, http2.END_HEADERS, number, key)
        if stream.hold(self._block_bytes):
            return block
        # The block goes on all the same, as the compression of the next ones builds on it.
        return block + self._refuse(stream, too_much_held("requests"), ended=number not in self._unfinished)

    def _request_data(self, flags: int, number: int, payload: bytes) -> bytes | None:
        if number in self._dropped:
            if flags & http2.END_STREAM:
                self._dropped.discard(number)
            if payload:
                self._out.send(http2.window(len(payload)))
            return b""
        stream = self._streams.get(number)
        if stream is None:
            return None
        size = len(payload)
        if flags & http2.PADDED and payload:
            payload = payload[1 : size - payload[0]]
        refused = stream.admit(payload)
        if refused is None:
            if flags & http2.END_STREAM:
                self._unfinished.pop(number, None)
            return None
        if size:
            self._out.send(http2.window(size))
        return self._refuse(stream, refused, ended=bool(flags & http2.END_STREAM))

    def _refuse(self, stream: Stream, status: StatusError, *, ended: bool) -> bytes:
        """Answers the call in the library's place. Returns what tells the library that the call is gone."""
        number = stream.number
        self._end(number)
        self._out.send(http2.refusal(number, status))
        if not ended:
            self._out.send(http2.reset(number, http2.NO_ERROR))
            self._dropped.add(number)
            if len(self._dropped) > DROPPED_STREAMS_MAX:
                self._out.send(http2.go_away(self._last_stream, http2.ENHANCE_YOUR_CALM))
                self.close()
        self._guard.refused(status.code, self._loop.time() - stream.began)
        return http2.reset(number, http2.CANCEL)

    def _answered(self, number: int, count: int) -> None:
        if (stream := self._streams.get(number)) is not None:
            stream.passed_on(count)

    def _open(self, number: int) -> Stream:
        stream = self._guard.stream(number, self._peer, self._loop.time(), self._requests, self._answers)
        self._streams[number] = self._unfinished[number] = stream
        return stream

    def _end(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        self._unfinished.pop(number, None)
        self._guard.forget(stream)
        if not self._streams:
            self._idle_since = self._loop.time()

    def sweep(self, now: float) -> None:
        """Once a second: ends what has taken too long."""
        if self._connecting is None:
            if now - self._began > GREETING_SECONDS:
                self.close()
            return
        while self._unfinished:
            oldest = next(iter(self._unfinished.values()))
            if now - oldest.began < UNFINISHED_SECONDS:
                break
            late = StatusError(Code.DEADLINE_EXCEEDED, f"the request was not whole after {UNFINISHED_SECONDS:.0f} s")
            gone = self._refuse(oldest, late, ended=False)
            if self._inner is not None:
                self._inner.write(gone)
        unread = self._answers.held > 0 and self._out.passed_bytes == self._passed_before
        self._unread_sweeps = self._unread_sweeps + 1 if unread else 0
        self._passed_before = self._out.passed_bytes
        if self._unread_sweeps >= UNREAD_SWEEPS:
            self.close()
        elif self._leaving_since is not None:
            waited = now - self._leaving_since
            if waited > AGE_GRACE_SECONDS or (waited > LEAVING_SECONDS and not self._streams):
                self._out.send(http2.go_away(self._last_stream))
                self.close()
        elif now > self._old_at or (not self._streams and now - self._idle_since > IDLE_SECONDS):
            self._leaving_since = now
            self._out.send(http2.go_away(http2.STREAM_MASK))

    def close(self) -> None:
        """Ends both sides; what was written to the client still goes out, if it reads."""
        if self._closed:
            return
        self._closed = True
        for number in list(self._streams):
            self._end(number)
        self._answers.give_back(self._waiting)
        self._waiting = 0
        self._guard.leave(self)
        if self._inner is not None:
            self._inner.abort()
        if self._outer.get_write_buffer_size():
            self._loop.call_later(LEAVING_SECONDS, self._outer.abort)
        self._outer.close()


class _Library(asyncio.Protocol):
    """The library's side of a connection."""

    def __init__(self, outer: asyncio.Transport, out: Answers, close: Callable[[], None]) -> None:
        self._outer = outer
        self._close = close
        self.data_received = out.pass_on  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        self._close()

    def pause_writing(self) -> None:
        if not self._outer.is_closing():
            self._outer.pause_reading()

    def resume_writing(self) -> None:
        if not self._outer.is_closing():
            self._outer.resume_reading()
