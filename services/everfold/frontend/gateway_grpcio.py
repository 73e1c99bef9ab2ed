"""The grpcio gateway: `grpc.aio` with one generic handler over the table, for TLS and where the native wheel is
missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio

from everfold.frontend.calls import CallContext, CallObserver, Handler, StreamHandler, unknown_path
from everfold.frontend.gateway import (
    AGE_GRACE_SECONDS,
    AGE_SECONDS,
    CALLS_MAX,
    DESCRIPTORS_MAX,
    GREETING_SECONDS,
    IDLE_SECONDS,
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    METADATA_BYTES_MAX,
    REQUEST_BYTES_MAX,
    SHUTDOWN_GRACE_SECONDS,
    STREAMS_PER_CONNECTION_MAX,
    UNKNOWN_PATH,
    shutting_down,
    too_large,
)
from everfold.frontend.status import DETAILS_KEY, details_bytes, status_of
from everfold.frontend.tls_files import TlsFiles
from everfold.kernel.errors import Code
from everfold.runtime.tracebacks import let_go

_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

_OPTIONS: Final = (
    # Without this two processes share the port and half of the calls each, silently.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    # SDKs ping every 10-30 s with no call open; the default answers GOAWAY too_many_pings.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.server_handshake_timeout_ms", int(GREETING_SECONDS * 1000)),
    ("grpc.max_connection_idle_ms", int(IDLE_SECONDS * 1000)),
    ("grpc.max_connection_age_ms", int(AGE_SECONDS * 1000)),
    ("grpc.max_connection_age_grace_ms", int(AGE_GRACE_SECONDS * 1000)),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_SECONDS * 1000)),
)

_RECEIVED_TIMES_MAX: Final = 8
"""grpcio itself cuts a message off at this many times our bound, in words of its own; up to there clients see
Temporal's, by which SDKs know that a task's answer is too large and fail the task."""

_Call: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class GrpcioGateway(grpc.GenericRpcHandler):
    """A `Gateway` on `grpc.aio`."""

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
        self._tls = tls
        self._request_bytes_max = request_bytes_max
        self._connections_max = descriptors_max
        self._observer = observer
        self._services = {path.lstrip("/").rpartition("/")[0] for path in handlers}
        self._methods = {path: self._method(path, handler, path in long_polls) for path, handler in handlers.items()}
        self._methods.update({path: self._stream(path, handler) for path, handler in (streams or {}).items()})
        #: what is cancelled when the server stops: long polls and streams
        self._polls: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._server: grpc.aio.Server | None = None
        self._bound_port = 0

    @property
    def port(self) -> int:
        """The port that is bound."""
        if self._server is None:
            raise RuntimeError("the gateway has not been started")
        return self._bound_port

    async def start(self) -> None:
        """Binds and serves.

        Raises:
            OSError: the address is taken or not ours.
        """
        options = (
            *_OPTIONS,
            ("grpc.max_receive_message_length", _RECEIVED_TIMES_MAX * self._request_bytes_max),
            ("grpc.max_allowed_incoming_connections", self._connections_max),
        )
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=CALLS_MAX)
        server.add_generic_rpc_handlers((self,))
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self._asked_port}"
        try:
            if self._tls is None:
                bound = server.add_insecure_port(address)
            else:
                credentials = grpc.ssl_server_credentials(
                    [(self._tls.private_key, self._tls.certificate_chain)],
                    root_certificates=self._tls.client_ca,
                    require_client_auth=self._tls.client_ca is not None,
                )
                bound = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            await server.stop(None)
            raise OSError(f"cannot serve gRPC on {address}: {error}") from error
        if bound == 0:
            await server.stop(None)
            raise OSError(f"cannot serve gRPC on {address}: the address is taken or not ours")
        await server.start()
        self._bound_port = bound
        self._server = server

    async def stop(self, grace: float = SHUTDOWN_GRACE_SECONDS) -> None:
        """Takes no new calls, cancels long polls, lets the others finish for `grace` seconds, then closes."""
        if self._server is None or self._stopping:
            return
        self._stopping = True
        for task in list(self._polls):
            task.cancel()
        await self._server.stop(grace)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler of a path. There always is one, so that the words of a refusal are ours."""
        path = handler_call_details.method
        method = self._methods.get(path)
        if method is not None:
            return method

        async def refuse(context: CallContext, request: bytes) -> bytes:
            raise unknown_path(path, self._services)

        # Counted under one name: clients must not make up new ones for the metrics.
        return self._method(UNKNOWN_PATH, refuse, False)

    def _method(self, path: str, handler: Handler, long_poll: bool) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def serve(request: bytes, call: _Call) -> bytes:
            began = asyncio.get_running_loop().time()
            task = asyncio.current_task()
            assert task is not None
            if long_poll:
                self._polls.add(task)
            try:
                context = self._context(path, request, call, began)
                response = await handler(context, request)
                if task.cancelling() and context.undelivered is not None:
                    context.undelivered(response)
                self._observe(path, Code.OK, began)
                return response
            except (asyncio.CancelledError, Exception) as error:
                return await self._broken_off(path, error, call, began)
            finally:
                self._polls.discard(task)

        # No (de)serializer: the bytes go through as they are.
        return grpc.unary_unary_rpc_method_handler(serve)

    def _stream(self, path: str, handler: StreamHandler) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def serve(request: bytes, call: _Call) -> AsyncGenerator[bytes, None]:
            began = asyncio.get_running_loop().time()
            task = asyncio.current_task()
            assert task is not None
            self._polls.add(task)
            try:
                async with aclosing(handler(self._context(path, request, call, began), request)) as messages:
                    async for message in messages:
                        yield message
                self._observe(path, Code.OK, began)
            except (asyncio.CancelledError, Exception) as error:
                await self._broken_off(path, error, call, began)
            finally:
                self._polls.discard(task)

        return grpc.unary_stream_rpc_method_handler(serve)

    def _context(self, path: str, request: bytes, call: _Call, now: float) -> CallContext:
        if len(request) > self._request_bytes_max:
            raise too_large(len(request), self._request_bytes_max)
        remaining = call.time_remaining()
        deadline = None if remaining is None else now + remaining
        return CallContext(path, tuple(call.invocation_metadata() or ()), call.peer(), deadline)

    async def _broken_off(
        self, path: str, error: asyncio.CancelledError | Exception, call: _Call, began: float
    ) -> NoReturn:
        if isinstance(error, Exception):
            status = status_of(error, path)
        elif self._stopping:
            status = shutting_down()
        else:
            self._observe(path, Code.CANCELLED, began)
            raise error
        let_go(error)
        self._observe(path, status.code, began)
        details = details_bytes(status)
        await call.abort(
            _STATUS_CODES[int(status.code)], status.message, () if details is None else ((DETAILS_KEY, details),)
        )
        raise AssertionError("unreachable: abort raises")

    def _observe(self, path: str, code: int, began: float) -> None:
        if self._observer is not None:
            self._observer(path, int(code), asyncio.get_running_loop().time() - began)
