"""The native gateway: HTTP/2 and gRPC framing in Rust, outside the GIL; Python sees batches of finished requests.

The library bounds no bytes, so clients reach it through the guard (`guard.py`).

Threads: one thread of ours blocks in `recv_batch_details` while nothing happens; while something does, the loop takes
the batches itself (`runtime/handover.py`). Everything else (`respond`, `fail`, the table of open calls) happens on the
loop. The library's own I/O threads never run Python.

A call is open while its id is in `_calls`. Whoever takes the id out answers it, so that a cancellation by the client
and the end of the handler cannot both do so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Final

from pygrpc_native import EVENT_CANCEL, STREAM_FULL, STREAM_SENT, NativeGrpcFront

from everfold.frontend.calls import CallContext, CallObserver, Handler, Metadata, StreamHandler
from everfold.frontend.gateway import (
    CALLS_MAX,
    DESCRIPTORS_MAX,
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    METADATA_BYTES_MAX,
    REQUEST_BYTES_MAX,
    SHUTDOWN_GRACE_SECONDS,
    STREAMS_PER_CONNECTION_MAX,
    UNKNOWN_PATH,
    too_many_calls,
)
from everfold.frontend.guard import DESCRIPTORS_PER_CONNECTION, Guard
from everfold.frontend.guard_ledger import Stream, too_much_held
from everfold.frontend.status import DETAILS_KEY, details_bytes, status_of
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.eager import start_now
from everfold.runtime.handover import Handover
from everfold.runtime.scheduling import starting_threads_that_give_way
from everfold.runtime.tracebacks import let_go

_log = logging.getLogger(__name__)

_BATCH_MAX: Final = 256
"""Requests per hand-over to the loop: above the calls that arrive in one turn of a busy loop, below what would starve
it."""

_IO_THREADS: Final = 2

_FLUSH_SECONDS: Final = 0.1
"""Between the last answer and `close`, which drops what the library's threads have not written; it offers nothing to
wait on."""

_FULL_SECONDS: Final = 0.01
"""Between two attempts to send to a stream that is not read as fast; the library tells nobody when it has been."""

_SHUTTING_DOWN: Final = "the server is shutting down"

_Details = tuple[Metadata, str, float | None]
_Event = tuple[int, int, int, bytes | None, bytes | str | None, _Details | None]
"""(kind, call id, method id, payload, client key, (metadata, peer, seconds left))"""


class NativeGateway:
    """A `Gateway` on `pygrpc_native.NativeGrpcFront`. Plaintext only."""

    def __init__(
        self,
        host: str,
        port: int,
        handlers: Mapping[str, Handler],
        *,
        streams: Mapping[str, StreamHandler] | None = None,
        long_polls: frozenset[str] = frozenset(),
        request_bytes_max: int = REQUEST_BYTES_MAX,
        descriptors_max: int = DESCRIPTORS_MAX,
        observer: CallObserver | None = None,
    ) -> None:
        self._host = host
        self._asked_port = port
        #: method id (the place in the list that the front was given) -> (path, handler, is a long poll)
        self._methods = [(path, handler, path in long_polls) for path, handler in handlers.items()]
        self._streams = dict(streams or {})
        self._request_bytes_max = request_bytes_max
        self._connections_max = descriptors_max // DESCRIPTORS_PER_CONNECTION
        self._observer = observer
        #: call id -> (the task that answers it, None during its first step; is a long poll); empty once answered
        self._calls: dict[int, tuple[asyncio.Task[None] | None, bool]] = {}
        self._stopping = False
        self._front: NativeGrpcFront | None = None
        self._guard: Guard | None = None
        self._receiver: threading.Thread | None = None
        self._handover: Handover | None = None

    @property
    def port(self) -> int:
        """The port that is bound."""
        if self._guard is None:
            raise RuntimeError("the gateway has not been started")
        return self._guard.bound_port

    async def start(self) -> None:
        """Binds and serves.

        Raises:
            OSError: the address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        guard = Guard(
            self._host,
            self._asked_port,
            request_bytes_max=self._request_bytes_max,
            connections_max=self._connections_max,
            refused=self._refused,
        )
        try:
            with starting_threads_that_give_way():
                front = NativeGrpcFront(
                    f"unix:{guard.inner_path}",
                    [(path, path in self._streams) for path, _, _ in self._methods],
                    io_threads=_IO_THREADS,
                    client_key_metadata=guard.key_name,
                    call_details=True,
                    keepalive_time_ms=int(KEEPALIVE_SECONDS * 1000),
                    keepalive_timeout_ms=int(KEEPALIVE_TIMEOUT_SECONDS * 1000),
                    keepalive_permit_without_calls=True,
                    max_concurrent_streams=STREAMS_PER_CONNECTION_MAX,
                    max_metadata_size=METADATA_BYTES_MAX,
                )
                front.start()
            await guard.start()
        except (RuntimeError, ValueError) as error:
            await guard.stop()
            raise OSError(f"cannot serve gRPC on {self._host}:{self._asked_port}: {error}") from error
        except OSError:
            await asyncio.to_thread(front.close)
            await guard.stop()
            raise
        self._front = front
        self._guard = guard
        self._handover = handover = Handover(loop, self._look)
        self._receiver = threading.Thread(
            target=self._receive, args=(front, handover), name="grpc-receive", daemon=True
        )
        self._receiver.start()

    async def stop(self, grace: float = SHUTDOWN_GRACE_SECONDS) -> None:
        """Takes no new calls, cancels long polls, lets the others finish for `grace` seconds, then closes."""
        front, receiver, handover, guard = self._front, self._receiver, self._handover, self._guard
        if front is None or receiver is None or handover is None or guard is None or self._stopping:
            return
        self._stopping = True
        for task, long_poll in list(self._calls.values()):
            if long_poll and task is not None:
                task.cancel()
        tasks = [task for task, _ in self._calls.values() if task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=grace)
        if tasks:
            await asyncio.sleep(_FLUSH_SECONDS)
        handover.take_back()
        await asyncio.to_thread(front.close)
        await asyncio.to_thread(receiver.join)
        await guard.stop()

    def _receive(self, front: NativeGrpcFront, handover: Handover) -> None:
        """The receiving thread: ends when the front is closed."""
        while True:
            events = front.recv_batch_details(_BATCH_MAX)
            if events is None:
                return
            if not events:
                continue
            try:
                handover.give(partial(self._on_events, events))
            except RuntimeError:
                # The loop was closed without `stop`: nobody is left to answer.
                return

    def _look(self) -> bool:
        front = self._front
        assert front is not None
        events = front.recv_batch_details(_BATCH_MAX, 0)
        if not events:
            return False
        self._on_events(events)
        return True

    def _on_events(self, events: list[_Event]) -> None:
        guard = self._guard
        assert guard is not None
        loop = asyncio.get_running_loop()
        now = loop.time()
        if len(events) > 1:
            events.sort(key=self._can_wait)
        for kind, call_id, method_id, payload, key, details in events:
            if kind == EVENT_CANCEL:
                task, _ = self._calls.pop(call_id, (None, False))
                if task is not None:
                    task.cancel()
                continue
            assert payload is not None
            assert details is not None
            path, handler, long_poll = self._methods[method_id]
            if self._stopping:
                self._fail(call_id, path, StatusError(Code.UNAVAILABLE, _SHUTTING_DOWN), now)
                continue
            if len(self._calls) >= CALLS_MAX:
                self._fail(call_id, path, too_many_calls(), now)
                continue
            metadata, _, remaining = details
            call = guard.call(key)
            if call is None:
                continue  # its client has left
            metadata = metadata[:-1] if metadata[-1][0] == guard.key_name else metadata
            if not call.hold(_size(metadata)):
                self._fail(call_id, path, too_much_held("requests"), now)
                continue
            context = CallContext(path, metadata, call.peer, None if remaining is None else now + remaining)
            stream = self._streams.get(path)
            if stream is None:
                work = self._serve(call_id, context, call, handler, payload, now)
            else:
                work, long_poll = self._serve_stream(call_id, context, stream, payload, now), True
            self._calls[call_id] = (None, long_poll)
            task = start_now(loop, work)
            if call_id in self._calls:
                self._calls[call_id] = (task, long_poll)

    def _can_wait(self, event: _Event) -> bool:
        """Workers have few polls, and how fast those are answered bounds what a worker does; the others wait for the
        log. A cancellation stays behind its call.
        """
        return event[0] == EVENT_CANCEL or not self._methods[event[2]][2]

    async def _serve(
        self, call_id: int, context: CallContext, call: Stream, handler: Handler, payload: bytes, began: float
    ) -> None:
        try:
            response = await handler(context, payload)
        except (asyncio.CancelledError, Exception) as error:
            self._broken_off(call_id, context.method, error, began)
            return
        front = self._front
        assert front is not None
        open_still = self._calls.pop(call_id, None) is not None
        too_much = open_still and not call.answer(len(response))
        if open_still and not too_much and front.respond(call_id, response):
            self._observe(context.method, Code.OK, began)
            return
        if context.undelivered is not None:
            context.undelivered(response)
        if too_much:
            self._fail(call_id, context.method, too_much_held("answers"), began)
        else:
            self._observe(context.method, Code.CANCELLED, began)

    async def _serve_stream(
        self, call_id: int, context: CallContext, handler: StreamHandler, payload: bytes, began: float
    ) -> None:
        front = self._front
        assert front is not None
        try:
            async with aclosing(handler(context, payload)) as messages:
                async for message in messages:
                    while (sent := front.stream_try_send(call_id, message)) == STREAM_FULL:  # noqa: ASYNC110
                        await asyncio.sleep(_FULL_SECONDS)
                    if sent != STREAM_SENT:
                        break
        except (asyncio.CancelledError, Exception) as error:
            self._broken_off(call_id, context.method, error, began)
            return
        open_still = self._calls.pop(call_id, None) is not None
        if open_still:
            front.stream_end(call_id)
        self._observe(context.method, Code.OK if open_still else Code.CANCELLED, began)

    def _broken_off(self, call_id: int, path: str, error: asyncio.CancelledError | Exception, began: float) -> None:
        open_still = self._calls.pop(call_id, None) is not None
        if isinstance(error, Exception):
            status = status_of(error, path)
        else:
            # Either the client left, and the id is gone, or the server stops and the client must hear of it.
            status = StatusError(Code.UNAVAILABLE, _SHUTTING_DOWN)
        let_go(error)
        if open_still:
            self._fail(call_id, path, status, began)
        elif not isinstance(error, Exception):
            self._observe(path, Code.CANCELLED, began)

    def _fail(self, call_id: int, path: str, status: StatusError, began: float) -> None:
        front = self._front
        assert front is not None
        details = details_bytes(status)
        front.fail(call_id, int(status.code), status.message, None if details is None else [(DETAILS_KEY, details)])
        self._observe(path, status.code, began)

    def _refused(self, code: int, seconds: float) -> None:
        if self._observer is not None:
            self._observer(UNKNOWN_PATH, code, seconds)

    def _observe(self, path: str, code: int, began: float) -> None:
        if self._observer is not None:
            self._observer(path, int(code), asyncio.get_running_loop().time() - began)


def _size(metadata: Metadata) -> int:
    """What a call's headers take: a client may have sent a byte for each of them."""
    return sum([len(name) + len(value) for name, value in metadata])
