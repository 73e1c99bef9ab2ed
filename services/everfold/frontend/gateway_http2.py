"""The gateway's own HTTP/2 server: on the event loop, with or without TLS.

It bounds what clients make the process hold, and costs less than any library with a thread or a process of its own,
whose price is the way to it and back. Chosen and measured in docs/decisions/0037-http2-on-the-loop.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import tempfile
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Final

from everfold.frontend.calls import CallContext, CallObserver, Handler, StreamHandler, unknown_path
from everfold.frontend.gateway import (
    CALLS_MAX,
    DESCRIPTORS_MAX,
    GREETING_SECONDS,
    REQUEST_BYTES_MAX,
    SHUTDOWN_GRACE_SECONDS,
    UNKNOWN_PATH,
    shutting_down,
    too_many_calls,
)
from everfold.frontend.http2.bytes_held import ANSWERS_HELD_MAX, REQUESTS_HELD_MAX, Budget, too_much_held
from everfold.frontend.http2.call import Call
from everfold.frontend.http2.connection import LEAVING_SECONDS, Connection
from everfold.frontend.status import status_of
from everfold.frontend.tls_files import TlsFiles
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.eager import start_now
from everfold.runtime.tracebacks import let_go

_log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 1.0
_BACKLOG: Final = 1024
_FLUSH_SECONDS: Final = 1.0
"""For clients to read the last answers when the server stops."""


class Http2Gateway:
    """A `Gateway`.

    Attributes:
        request_bytes_max: the largest message taken, inflated.
        requests: the budget of requests.
        answers: the budget of answers.
    """

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
        tls: TlsFiles | None = None,
        observer: CallObserver | None = None,
    ) -> None:
        self._host = host
        self._asked_port = port
        self._handlers = handlers
        self._streams = dict(streams or {})
        #: what is ended when the server stops
        self._long_polls = long_polls | frozenset(self._streams)
        self._services = {path.lstrip("/").rpartition("/")[0] for path in handlers}
        self.request_bytes_max = request_bytes_max
        self._connections_max = descriptors_max
        self._tls = tls
        self._observer = observer
        self.requests = Budget(REQUESTS_HELD_MAX)
        self.answers = Budget(ANSWERS_HELD_MAX)
        self._connections: set[Connection] = set()
        #: calls whose handler is at work
        self._calls: set[Call] = set()
        self._turned_away = 0
        self._stopping = False
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port that is bound."""
        if self._server is None:
            raise RuntimeError("the gateway has not been started")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Binds and serves.

        Raises:
            OSError: the address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        context = None if self._tls is None else _tls_context(self._tls)
        try:
            self._server = await loop.create_server(
                lambda: Connection(self),
                self._host,
                self._asked_port,
                backlog=_BACKLOG,
                ssl=context,
                ssl_handshake_timeout=None if context is None else GREETING_SECONDS,
                ssl_shutdown_timeout=None if context is None else LEAVING_SECONDS,
            )
        except OSError as error:
            # In the operating system's words alone: event loops add some, and the address.
            raise OSError(error.errno, os.strerror(error.errno) if error.errno else str(error)) from None
        self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep)

    async def stop(self, grace: float = SHUTDOWN_GRACE_SECONDS) -> None:
        """Takes no new calls, cancels long polls, lets the others finish for `grace` seconds, then closes."""
        if self._server is None or self._stopping:
            return
        self._stopping = True
        loop = asyncio.get_running_loop()
        self._server.close()
        for connection in list(self._connections):
            connection.leave(loop.time())
        for call in list(self._calls):
            if call.path in self._long_polls and call.task is not None:
                call.task.cancel()
        tasks = [call.task for call in self._calls if call.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=grace)
        until = loop.time() + _FLUSH_SECONDS
        while self.answers.held and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # their sockets are written to at the end of the loop's turn

    def admit(self, connection: Connection) -> bool:
        """Whether there is room for one more connection."""
        if len(self._connections) >= self._connections_max:
            self._turned_away += 1
            return False
        self._connections.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)

    def refused(self, code: int, seconds: float) -> None:
        """A connection has answered a call by itself."""
        self._observe(UNKNOWN_PATH, code, seconds)

    def serve(self, requests: list[tuple[Call, bytes]]) -> None:
        """Has whole requests answered, those of one client that came together."""
        loop = asyncio.get_running_loop()
        if len(requests) > 1:
            requests.sort(key=self._can_wait)
        for call, message in requests:
            if call.open:
                self._begin(loop, call, message)

    def _can_wait(self, request: tuple[Call, bytes]) -> bool:
        """Workers have few polls, and how fast those are answered bounds what a worker does; the others wait for the
        log.
        """
        return request[0].path not in self._long_polls

    def _begin(self, loop: asyncio.AbstractEventLoop, call: Call, message: bytes) -> None:
        path = call.path
        if self._stopping:
            self._fail(call, shutting_down())
            return
        if len(self._calls) >= CALLS_MAX:
            self._fail(call, too_many_calls())
            return
        deadline = None if call.timeout is None else call.began + call.timeout
        context = CallContext(path, call.metadata, call.connection.peer, deadline)
        self._calls.add(call)
        stream = self._streams.get(path)
        if stream is not None:
            work = self._serve_stream(call, context, stream, message)
        else:
            work = self._serve(call, context, self._handlers.get(path, self._refuse_path), message)
        task = start_now(loop, work)
        if not task.done():
            call.task = task

    async def _refuse_path(self, context: CallContext, request: bytes) -> bytes:
        raise unknown_path(context.method, self._services)

    async def _serve(self, call: Call, context: CallContext, handler: Handler, request: bytes) -> None:
        try:
            response = await handler(context, request)
        except (asyncio.CancelledError, Exception) as error:
            self._broken_off(call, error)
            return
        self._calls.discard(call)
        if call.open:
            if context.undelivered is not None:
                call.undelivered = partial(context.undelivered, response)
            if call.connection.answer(call, response):
                self._observe_call(call, Code.OK)
                return
        if context.undelivered is not None:
            context.undelivered(response)
        if call.open:
            self._fail(call, too_much_held("answers"))
        else:
            self._observe_call(call, Code.CANCELLED)

    async def _serve_stream(self, call: Call, context: CallContext, handler: StreamHandler, request: bytes) -> None:
        try:
            async with aclosing(handler(context, request)) as messages:
                async for message in messages:
                    if not call.connection.message(call, message):
                        raise too_much_held("answers")
                    await call.connection.sent(call)
        except (asyncio.CancelledError, Exception) as error:
            self._broken_off(call, error)
            return
        self._calls.discard(call)
        code = Code.OK if call.open else Code.CANCELLED
        if call.open:
            call.connection.end(call)
        self._observe_call(call, code)

    def _broken_off(self, call: Call, error: asyncio.CancelledError | Exception) -> None:
        self._calls.discard(call)
        # A cancelled one: either its client left, and it is closed, or the server stops and the client must hear of it.
        status = status_of(error, call.path) if isinstance(error, Exception) else shutting_down()
        let_go(error)
        if call.open:
            self._fail(call, status)
        elif not isinstance(error, Exception):
            self._observe_call(call, Code.CANCELLED)

    def _fail(self, call: Call, status: StatusError) -> None:
        call.connection.fail(call, status)
        self._observe_call(call, status.code)

    def _observe_call(self, call: Call, code: int) -> None:
        known = call.path in self._handlers or call.path in self._streams
        # Others under one name: clients must not make up new ones for the metrics.
        self._observe(call.path if known else UNKNOWN_PATH, code, asyncio.get_running_loop().time() - call.began)

    def _observe(self, path: str, code: int, seconds: float) -> None:
        if self._observer is not None:
            self._observer(path, int(code), seconds)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep)
        now = loop.time()
        for connection in list(self._connections):
            connection.sweep(now)
        if self._turned_away:
            _log.warning(
                "%d connections were turned away: %d are open, and more would take descriptors that the engine needs;"
                " raise the limit of open files (ulimit -n)",
                self._turned_away,
                len(self._connections),
            )
            self._turned_away = 0


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    """What the listener speaks TLS with.

    Raises:
        OSError: a file is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    # Python's ssl takes both of them from files alone.
    with tempfile.TemporaryDirectory(prefix="everfold-") as directory:
        chain, key = os.path.join(directory, "chain"), os.path.join(directory, "key")
        for path, data in ((chain, files.certificate_chain), (key, files.private_key)):
            with open(path, "wb") as file:
                file.write(data)
        try:
            context.load_cert_chain(chain, key)
            if files.client_ca is not None:
                context.load_verify_locations(cadata=files.client_ca.decode())
                context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, ValueError) as error:
            raise OSError(f"cannot serve TLS with these certificates and this key: {error}") from None
    return context
