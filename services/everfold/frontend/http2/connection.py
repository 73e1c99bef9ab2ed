"""One client's connection: HTTP/2 as a server of gRPC needs it.

Frames come in, whole requests go to the gateway, its answers go out (`answers.py`). Everything that a client can make
the process hold or do is bounded here: bytes by accounts, time by `sweep`, calls by their number.
"""

from __future__ import annotations

import asyncio
import binascii
import random
from itertools import islice
from typing import TYPE_CHECKING, Final, cast

from everfold.frontend.gateway import (
    AGE_GRACE_SECONDS,
    AGE_SECONDS,
    GREETING_SECONDS,
    IDLE_SECONDS,
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    METADATA_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
)
from everfold.frontend.http2 import frames
from everfold.frontend.http2.answers import Answers, Outgoing
from everfold.frontend.http2.bytes_held import Account, too_much_held
from everfold.frontend.http2.call import Call, Malformed, NotGrpc, read_headers
from everfold.frontend.http2.header_blocks import TABLE_BYTES, BadHeaderBlock, Field, HeaderBlocks, fields_bytes
from everfold.frontend.http2.request_body import RequestBody
from everfold.frontend.status import details_bytes
from everfold.kernel.errors import Code, StatusError

if TYPE_CHECKING:
    from everfold.frontend.gateway_http2 import Http2Gateway

STREAM_WINDOW_BYTES: Final = 256 * 1024
CONNECTION_WINDOW_BYTES: Final = 4 * 1024 * 1024
"""What a client may send of a call, and in all, before it hears that it may send more: a request of any usual size goes
without a pause, and most connections never need to be told. What is held is bounded by the accounts, not by these."""

PACED_BYTES: Final = 16 * 1024 * 1024
"""What a connection may hold of requests before the older ones go first: a third of what it may hold at all."""

FIRST_UNFINISHED: Final = 8
"""How many go first."""

CALL_BYTES: Final = 1024
"""About what a call takes, besides its headers and its request."""

LEAVING_SECONDS: Final = 1.0
"""Between GOAWAY and the close of a connection without calls: what the client sent meanwhile still arrives."""

UNFINISHED_SECONDS: Final = 60.0
"""For a request to arrive whole."""

UNREAD_SWEEPS: Final = 60
"""Seconds in which a client takes nothing of the answers that wait for it; then it is cut off."""

DROPPED_STREAMS_MAX: Final = 1_000
"""Refused calls of which something that was on its way may still come; what comes of older ones is an error."""

SETTINGS_MAX: Final = 64
"""Entries of a frame of settings, and such frames within a second; clients send one frame of some six."""

SOCKET_BYTES: Final = 64 * 1024
"""In the socket's buffer, from where on the client is not read and what waits for it is counted."""

_PING: Final = b"everfold"


class _ConnectionFault(Exception):
    """The client breaks HTTP/2's rules in a way that ends the connection; `args` has the error's number."""


class Connection(asyncio.Protocol):
    """Speaks with one client. `Call.open` tells a handler whether there still is somebody to answer."""

    def __init__(self, gateway: Http2Gateway) -> None:
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self._requests = Account(gateway.requests)
        self._answers = Account(gateway.answers)
        self._transport: asyncio.Transport
        self._out: Answers
        self.peer = ""
        self.closed = False
        self._greeted = False
        #: what came of the preface, then of a frame
        self._rest = b""
        self._blocks = HeaderBlocks(METADATA_BYTES_MAX)
        #: the block under way, from a HEADERS without its end: stream, whether the request ends with it, its bytes
        self._block: tuple[int, bool, bytearray] | None = None
        self._calls: dict[int, Call] = {}
        #: those whose request is not whole, the oldest first
        self._unfinished: dict[int, Call] = {}
        #: whole requests of the bytes that are being read
        self._whole: list[tuple[Call, bytes]] = []
        self._last_stream = 0
        #: refused calls whose rest may still come, the oldest first
        self._dropped: dict[int, None] = {}
        self._client_window = frames.WINDOW_BYTES
        #: bytes taken since the client was last told that it may send more on the connection
        self._taken = 0
        #: bytes of large requests that are whole and being answered
        self._answering = 0
        #: of the block under way: bytes that are counted, and when it began
        self._block_held = 0
        self._block_began = 0.0
        #: frames of settings since the last sweep
        self._settings_heard = 0
        #: cuts a connection off whose client does not let it close
        self._aborting: asyncio.TimerHandle | None = None
        #: unfinished calls whose clients wait to be told that they may send more
        self._starved: set[int] = set()
        now = self._loop.time()
        self._began = self._idle_since = self._heard = now
        self._pinged = False
        # Apart, so that clients who came together do not go together.
        self._old_at = now + AGE_SECONDS * random.uniform(0.9, 1.1)
        self._leaving_since: float | None = None
        #: (bytes of answers passed on, bytes in the socket's buffer) at the last sweep
        self._passed_before = (0, 0)
        self._unread_sweeps = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop; beyond the bound of connections it ends at once."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=SOCKET_BYTES)
        self._out = Answers(self._transport, self._answers, lambda: self._loop.call_soon(self.close))
        address = transport.get_extra_info("peername") or ("", 0)
        family = "ipv6" if len(address) > 2 else "ipv4"
        self.peer = f"{family}:{address[0]}:{address[1]}"
        if not self._gateway.admit(self):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.close()
        if self._aborting is not None:
            self._aborting.cancel()
        self._give_back_block()
        self._gateway.leave(self)

    def eof_received(self) -> None:
        """Called by the loop, which closes the connection: gRPC has no half-closed ones."""

    def pause_writing(self) -> None:
        """Called by the loop: the client does not read. What would make more answers is not read meanwhile."""
        self._transport.pause_reading()
        self._out.pause()

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._out.resume()
        if self.closed or self._out.paused:
            return
        self._take(b"")  # what had come before reading was paused
        if not (self.closed or self._out.paused):
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self.closed:
            return
        self._heard = self._loop.time()
        self._take(data)

    def _take(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        try:
            self._rest = self._read(data)
        except _ConnectionFault as fault:
            self._out.send(frames.go_away(self._last_stream, fault.args[0]))
            self.close()
            return
        if self._whole:
            whole, self._whole = self._whole, []
            self._gateway.serve(whole)

    def _read(self, data: bytes) -> bytes:
        """Takes whole frames. Returns what is left: a part of one."""
        at, end = 0, len(data)
        if not self._greeted:
            preface = frames.PREFACE
            if end < len(preface) + frames.HEAD_BYTES:
                if not preface.startswith(data[: len(preface)]):
                    self.close()
                return data
            if not data.startswith(preface) or data[len(preface) + 3] != frames.SETTINGS:
                self.close()
                return b""
            self._greet()
            at = len(preface)
        while end - at >= frames.HEAD_BYTES and not self._out.paused:
            word, flags, number = frames.HEAD.unpack_from(data, at)
            size = word >> 8
            if size > frames.FRAME_BYTES_MAX:
                raise _ConnectionFault(frames.FRAME_SIZE_ERROR)
            at += frames.HEAD_BYTES
            if at + size > end:
                at -= frames.HEAD_BYTES
                break
            self._frame(word & 0xFF, flags, number & frames.STREAM_MASK, data[at : at + size])
            if self.closed:
                return b""
            at += size
        return data[at:]

    def _greet(self) -> None:
        self._greeted = True
        own = {
            frames.MAX_CONCURRENT_STREAMS: STREAMS_PER_CONNECTION_MAX,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            frames.MAX_HEADER_LIST_SIZE: METADATA_BYTES_MAX,
        }
        wider = CONNECTION_WINDOW_BYTES - frames.WINDOW_BYTES
        self._out.send(frames.settings(own) + frames.window(0, wider))

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None:
            if kind != frames.CONTINUATION or number != self._block[0]:
                raise _ConnectionFault(frames.PROTOCOL_ERROR)
            self._more_of_block(flags, payload)
        elif kind == frames.DATA:
            self._data(flags, number, payload)
        elif kind == frames.HEADERS:
            self._headers(flags, number, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._wider(number, payload)
        elif kind == frames.PING:
            if number or len(payload) != frames.PING_BYTES:
                raise _ConnectionFault(frames.PROTOCOL_ERROR if number else frames.FRAME_SIZE_ERROR)
            if not flags & frames.ACK:
                self._out.send(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.RST_STREAM:
            if len(payload) != 4:
                raise _ConnectionFault(frames.FRAME_SIZE_ERROR)
            self._expect_begun(number)
            self._dropped.pop(number, None)
            self._left(number)
        elif kind == frames.SETTINGS:
            self._settings(flags, number, payload)
        elif kind == frames.PRIORITY:
            if number == 0 or len(payload) != frames.PRIORITY_BYTES:
                raise _ConnectionFault(frames.FRAME_SIZE_ERROR if number else frames.PROTOCOL_ERROR)
        elif kind == frames.GOAWAY:
            if number:
                raise _ConnectionFault(frames.PROTOCOL_ERROR)
        elif kind in (frames.PUSH_PROMISE, frames.CONTINUATION):
            raise _ConnectionFault(frames.PROTOCOL_ERROR)
        # Kinds that are not known are passed over (RFC 9113, 4.1).

    def _expect_begun(self, number: int) -> None:
        if number == 0 or number > self._last_stream:
            raise _ConnectionFault(frames.PROTOCOL_ERROR)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise _ConnectionFault(frames.PROTOCOL_ERROR)
        if len(payload) % frames.SETTING.size or (flags & frames.ACK and payload):
            raise _ConnectionFault(frames.FRAME_SIZE_ERROR)
        if flags & frames.ACK:
            return
        self._settings_heard += 1
        if self._settings_heard > SETTINGS_MAX or len(payload) > SETTINGS_MAX * frames.SETTING.size:
            raise _ConnectionFault(frames.ENHANCE_YOUR_CALM)
        window = self._client_window
        for key, value in frames.SETTING.iter_unpack(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                if value > frames.WINDOW_BYTES_MAX:
                    raise _ConnectionFault(frames.FLOW_CONTROL_ERROR)
                window = value
            elif key == frames.HEADER_TABLE_SIZE:
                if value < TABLE_BYTES:
                    self._out.prefix = frames.EMPTY_TABLE
            elif (key == frames.ENABLE_PUSH and value > 1) or (
                key == frames.MAX_FRAME_SIZE and not frames.FRAME_BYTES_MAX <= value < 2**24
            ):
                raise _ConnectionFault(frames.PROTOCOL_ERROR)
        change, self._client_window = window - self._client_window, window
        if change:
            for call in self._calls.values():
                if not self._out.widen(call.out, change):
                    raise _ConnectionFault(frames.FLOW_CONTROL_ERROR)
        self._out.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._out.go_on()

    def _wider(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _ConnectionFault(frames.FRAME_SIZE_ERROR)
        count = int.from_bytes(payload, "big") & frames.STREAM_MASK
        if number == 0:
            if count == 0:
                raise _ConnectionFault(frames.PROTOCOL_ERROR)
            if not self._out.widen_all(count):
                raise _ConnectionFault(frames.FLOW_CONTROL_ERROR)
            self._out.go_on()
            return
        self._expect_begun(number)
        call = self._calls.get(number)
        if call is None:
            return
        if count == 0 or not self._out.widen(call.out, count):
            self._break_off(number, frames.FLOW_CONTROL_ERROR if count else frames.PROTOCOL_ERROR)
        else:
            self._out.go_on()

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & frames.PADDED:
            payload = _without_padding(payload)
        if flags & frames.WITH_PRIORITY:
            if len(payload) < frames.PRIORITY_BYTES:
                raise _ConnectionFault(frames.FRAME_SIZE_ERROR)
            payload = payload[frames.PRIORITY_BYTES :]
        if not number & 1:
            raise _ConnectionFault(frames.PROTOCOL_ERROR)
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._whole_block(number, ends, payload)
        else:
            self._block = (number, ends, bytearray())
            self._block_began = self._loop.time()
            self._more_of_block(0, payload)

    def _more_of_block(self, flags: int, payload: bytes) -> None:
        assert self._block is not None
        number, ends, block = self._block
        block += payload
        if len(block) > METADATA_BYTES_MAX or not self._requests.take(len(payload)):
            raise _ConnectionFault(frames.ENHANCE_YOUR_CALM)
        self._block_held += len(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._give_back_block()
            self._whole_block(number, ends, bytes(block))

    def _give_back_block(self) -> None:
        self._requests.give_back(self._block_held)
        self._block_held = 0

    def _whole_block(self, number: int, ends: bool, block: bytes) -> None:
        try:
            fields = self._blocks.read(block)
        except BadHeaderBlock:
            raise _ConnectionFault(frames.COMPRESSION_ERROR) from None
        if number > self._last_stream:
            self._last_stream = number
            self._open(number, ends, fields)
            return
        # A request's trailers: they say nothing to us, but end it.
        call = self._unfinished.get(number)
        if call is None and number not in self._dropped:
            raise _ConnectionFault(frames.STREAM_CLOSED)
        if not ends:
            raise _ConnectionFault(frames.PROTOCOL_ERROR)
        self._dropped.pop(number, None)
        if call is not None:
            self._finished(call)

    def _open(self, number: int, ends: bool, fields: list[Field] | None) -> None:
        if len(self._calls) >= STREAMS_PER_CONNECTION_MAX:
            self._out.send(frames.reset(number, frames.REFUSED_STREAM))
            if not ends:
                self._drop(number)
            return
        out = Outgoing(number, self._client_window)
        call = Call(self, out, RequestBody(self._requests, self._gateway.request_bytes_max), self._loop.time())
        self._calls[number] = self._unfinished[number] = call
        size = CALL_BYTES + (METADATA_BYTES_MAX if fields is None else fields_bytes(fields))
        if fields is None:
            text = f"received header list size exceeds limit of {METADATA_BYTES_MAX} bytes"
            self._refuse(call, StatusError(Code.RESOURCE_EXHAUSTED, text), ended=ends)
            return
        try:
            refused = read_headers(call, fields) if call.body.hold(size) else too_much_held("requests")
        except Malformed:
            self._break_off(number, frames.PROTOCOL_ERROR)
            if not ends:
                self._drop(number)
        except NotGrpc as other:
            self._end(call)
            self._out.send(frames.http_status(number, other.args[0], self._out.take_prefix()))
            if not ends:
                self._drop(number)
        else:
            if refused is not None:
                self._refuse(call, refused, ended=ends)
            elif ends:
                self._finished(call)

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        ends = flags & frames.END_STREAM
        if flags & frames.PADDED:
            payload = _without_padding(payload)
        self._taken += size
        if self._taken >= CONNECTION_WINDOW_BYTES // 2:
            self._out.send(frames.window(0, self._taken))
            self._taken = 0
        call = self._unfinished.get(number)
        if call is None:
            self._expect_begun(number)
            if number not in self._dropped:
                self._break_off(number, frames.STREAM_CLOSED)
            elif ends:
                self._dropped.pop(number, None)
            return
        refused = call.body.take(payload)
        if refused is not None:
            self._refuse(call, refused, ended=bool(ends))
        elif ends:
            self._finished(call)
        else:
            call.taken += size
            if call.taken >= STREAM_WINDOW_BYTES // 2 and number not in self._starved:
                self._grant(call)

    def _grant(self, call: Call) -> None:
        """Tells the client that it may send more of a request, or does so later (`_may_go_on`)."""
        number = call.out.number
        if self._requests.held <= PACED_BYTES or self._may_go_on(number):
            self._out.send(frames.window(number, call.taken))
            call.taken = 0
            self._starved.discard(number)
        else:
            self._starved.add(number)

    def _may_go_on(self, number: int) -> bool:
        """Whether a request may grow although much is held.

        All of them would otherwise grow side by side until there is room for none. So the older ones go first, and none
        grows while many bytes of large ones, which are whole, are being answered.
        """
        return self._answering <= PACED_BYTES and number in islice(self._unfinished, FIRST_UNFINISHED)

    def _grant_others(self) -> None:
        crowded = self._requests.held > PACED_BYTES
        looked_at = islice(self._unfinished, FIRST_UNFINISHED) if crowded else self._unfinished
        for number in [number for number in looked_at if number in self._starved]:
            self._grant(self._unfinished[number])

    def _finished(self, call: Call) -> None:
        """The request is whole."""
        number = call.out.number
        del self._unfinished[number]
        self._starved.discard(number)
        if self._starved:
            self._grant_others()
        self._answering += _large(call)
        message = call.body.whole(encoding=call.encoding)
        if isinstance(message, bytes):
            self._whole.append((call, message))
        else:
            self._refuse(call, message, ended=True)

    def _refuse(self, call: Call, status: StatusError, *, ended: bool) -> None:
        """Answers a call that no handler has seen."""
        self.fail(call, status)
        if not ended:
            number = call.out.number
            self._out.send(frames.reset(number, frames.NO_ERROR))
            self._drop(number)
        self._gateway.refused(status.code, self._loop.time() - call.began)

    def _drop(self, number: int) -> None:
        """What still comes of the call is passed over."""
        self._dropped[number] = None
        if len(self._dropped) > DROPPED_STREAMS_MAX:
            del self._dropped[next(iter(self._dropped))]

    def _break_off(self, number: int, error: int) -> None:
        """The client broke a rule that concerns one call."""
        self._left(number)
        self._out.send(frames.reset(number, error))

    def _left(self, number: int) -> None:
        """The client does not want the answer any more."""
        call = self._calls.get(number)
        if call is not None:
            self._end(call)
            if call.task is not None:
                call.task.cancel()

    def _end(self, call: Call) -> None:
        """The call is over."""
        number = call.out.number
        call.open = False
        del self._calls[number]
        if self._unfinished.pop(number, None) is None:
            self._answering -= _large(call)
        self._starved.discard(number)
        if call.out.parts and call.undelivered is not None:
            call.undelivered()
        self._out.drop(call.out)
        call.body.release()
        if self._starved:
            self._grant_others()
        self._idle_since = self._loop.time()

    def answer(self, call: Call, response: bytes) -> bool:
        """Answers an open call and ends it; False, and it stays open, when too much waits for the client already."""
        if not self._out.answer(call.out, response):
            return False
        self._end_when_sent(call)
        return True

    def message(self, call: Call, message: bytes) -> bool:
        """Sends one message of several; False when too much waits for the client already."""
        return self._out.message(call.out, message)

    def end(self, call: Call) -> None:
        """Ends an answer of several messages."""
        begin = b"" if call.out.begun else frames.answer_begins(call.out.number, self._out.take_prefix())
        self._out.end(call.out, begin + frames.answer_ends(call.out.number))
        self._end_when_sent(call)

    def fail(self, call: Call, status: StatusError) -> None:
        """Ends an open call with a status."""
        details = details_bytes(status)
        encoded = None if details is None else binascii.b2a_base64(details, newline=False).rstrip(b"=")
        prefix = b"" if call.out.begun else self._out.take_prefix()
        ends = frames.refusal(call.out.number, status, encoded, begun=call.out.begun, prefix=prefix)
        self._out.end(call.out, ends)
        self._end_when_sent(call)

    def _end_when_sent(self, call: Call) -> None:
        """The handler is done; the call is over when the client has been sent all of its answer."""
        call.open = False
        call.task = None
        if not call.out.parts:
            self._end(call)
            return
        call.out.drained = drained = self._loop.create_future()
        drained.add_done_callback(lambda _: self._end(call) if call.out.number in self._calls else None)

    async def sent(self, call: Call) -> None:
        """Waits until the client has been sent all of the call's messages so far."""
        if call.out.parts:
            call.out.drained = drained = self._loop.create_future()
            await drained

    def sweep(self, now: float) -> None:
        """Once a second: ends what has taken too long."""
        self._settings_heard = 0
        if self.closed:
            return
        if self._block is not None and now - self._block_began > GREETING_SECONDS:
            self.close()
            return
        if not self._greeted:
            if now - self._began > GREETING_SECONDS:
                self.close()
            return
        while self._unfinished:
            oldest = next(iter(self._unfinished.values()))
            if now - oldest.began < UNFINISHED_SECONDS:
                break
            late = f"the request was not whole after {UNFINISHED_SECONDS:.0f} s"
            self._refuse(oldest, StatusError(Code.DEADLINE_EXCEEDED, late), ended=False)
        passed = (self._out.passed_bytes, self._transport.get_write_buffer_size())
        unread = self._answers.held > 0 and passed == self._passed_before
        self._unread_sweeps = self._unread_sweeps + 1 if unread else 0
        self._passed_before = passed
        if self._unread_sweeps >= UNREAD_SWEEPS:
            self.close()
        elif self._leaving_since is not None:
            waited = now - self._leaving_since
            if waited > AGE_GRACE_SECONDS or (waited > LEAVING_SECONDS and not self._calls):
                self._out.send(frames.go_away(self._last_stream))
                self.close()
        elif now > self._old_at or (not self._calls and now - self._idle_since > IDLE_SECONDS):
            self.leave(now)
        if not (self.closed or self._out.paused):  # while it is, a client is not read, and its answer is not heard
            self._keep_alive(now)

    def leave(self, now: float) -> None:
        """Tells the client to take its next calls elsewhere."""
        if self._leaving_since is None and self._greeted:
            self._leaving_since = now
            self._out.send(frames.go_away(frames.STREAM_MASK))

    def _keep_alive(self, now: float) -> None:
        silent = now - self._heard
        if silent < KEEPALIVE_SECONDS:
            self._pinged = False
        elif not self._pinged:
            self._pinged = True
            self._out.send(frames.frame(frames.PING, 0, 0, _PING))
        elif silent > KEEPALIVE_SECONDS + KEEPALIVE_TIMEOUT_SECONDS:
            self.close()

    def close(self) -> None:
        """Ends the connection; what was written to the client still goes out, if it reads."""
        if self.closed:
            return
        self.closed = True
        self._starved.clear()
        for number in list(self._calls):
            self._left(number)
        self._out.close()
        self._aborting = self._loop.call_later(LEAVING_SECONDS, self._transport.abort)
        self._transport.close()


def _large(call: Call) -> int:
    """What a call holds, if that is much; thousands of polls that wait must not hold up a large request."""
    return call.body.held if call.body.held > STREAM_WINDOW_BYTES else 0


def _without_padding(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _ConnectionFault(frames.PROTOCOL_ERROR)
    return payload[1 : len(payload) - payload[0]]
