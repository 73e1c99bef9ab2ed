"""Calls between processes: msgpack frames over one TCP connection per pair of processes, many calls at a time.

    frame       4 bytes of length (big endian), then one msgpack array, its first element the kind:
    HELLO       [0, protocol version, cluster]            client to server, first on a connection
    REQUEST     [1, call id, service, method, args, timeout in seconds]
    RESULT      [2, call id, result]
    STATUS      [3, call id, code, message, [[protobuf name, bytes], …]]
    NOT_OWNER   [4, call id, partition]
    CANCEL      [5, call id]                              the caller does not wait any more

A call is cancelled in the server when its caller cancels it, when its deadline has passed, and when the connection
breaks. A result that cannot be sent any more is reported to the service (`undelivered`), so that a task in it is not
lost. Only methods on a service's explicit list can be called. There is no authentication: the address belongs on a
private network, as Kafka's does.
"""

from __future__ import annotations

import asyncio
import inspect
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgpack
import structlog

from everfold.kernel.errors import OWNER_MOVES, Code, ShardLost, StatusError
from everfold.runtime.defects import defect_in
from everfold.runtime.tracebacks import let_go

PROTOCOL_VERSION: Final = 1

FRAME_BYTES_MAX: Final = 128 * 1024 * 1024
"""Temporal's bound for internal messages: far above a history page with its largest payloads, below what one bad
length may make a process allocate."""

CALLS_MAX: Final = 65_536
"""Calls under way on one connection: above all the polls that a frontend may park, each some kilobytes in the
server."""

CONNECTIONS_MAX: Final = 1_024
"""Peers of a server: a process has one connection to each of the others."""

GREETING_TIMEOUT_S: Final = 5.0
GREETING_BYTES_MAX: Final = 4 * 1024
"""Who has not said who it is by then, or sends more than that first, is no peer."""

WRITE_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Beyond it a client waits before it sends, and a server stops reading requests, until the peer has caught up."""

CONNECT_TIMEOUT_S: Final = 2.0
"""A member that does not answer a connect this long is treated as gone; the caller looks for the owner again."""

DEADLINE_MARGIN_S: Final = 0.5
"""A server cancels a call this long after its deadline: by then nobody waits, whatever the network did to the
cancel."""

_HELLO, _REQUEST, _RESULT, _STATUS, _NOT_OWNER, _CANCEL = range(6)
_LENGTH = struct.Struct(">I")

log = structlog.get_logger("rpc")


class NotOwner(Exception):
    """The partition (or shard) that a call is about is not held by the process that was asked."""

    def __init__(self, partition: int) -> None:
        super().__init__(f"partition {partition} is not held by this process")
        self.partition = partition


class ConnectionLost(Exception):
    """The connection broke, or could not be made. Whether the call took effect is not known."""


class Method:
    """A method of a service, and where it wants the time that is left.

    The parameter called `timeout` is set to the seconds left of the call, or to what the caller gave when that is less.
    """

    __slots__ = ("_function", "_timeout_at", "name")

    def __init__(self, service: object, name: str) -> None:
        self.name = name
        self._function: Callable[..., Any] = getattr(service, name)
        names = list(inspect.signature(self._function).parameters)
        self._timeout_at = names.index("timeout") if "timeout" in names else -1

    def __call__(self, args: list[Any], timeout: float) -> Any:
        """The result, or an awaitable of it."""
        at = self._timeout_at
        if at < 0:
            return self._function(*args)
        if len(args) > at:
            if args[at] > timeout:
                args = [*args[:at], timeout, *args[at + 1 :]]
            return self._function(*args)
        return self._function(*args, timeout=timeout)


def methods_of(service: object) -> dict[str, Method]:
    """What may be called of a service, by name: the methods on its `METHODS` list, and no others.

    Raises:
        TypeError: the service has no such list.
        AttributeError: it lacks a method that is on it.
    """
    names = getattr(service, "METHODS", None)
    if names is None:
        raise TypeError(f"expected {type(service).__name__} to list what may be called in METHODS, found no such list")
    return {name: Method(service, name) for name in names}


class _Frames(asyncio.Protocol):
    """Splits the byte stream into frames and keeps what both sides need of a connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._frame_bytes_max = FRAME_BYTES_MAX
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance: uvloop's transports have the methods of asyncio.Transport, but not its class.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= 4:
                (size,) = _LENGTH.unpack_from(buffer, at)
                if size > self._frame_bytes_max:
                    raise ValueError(f"expected a frame of at most {self._frame_bytes_max} bytes, found {size}")
                if len(buffer) - at - 4 < size:
                    break
                with memoryview(buffer) as view:
                    frame = msgpack.unpackb(view[at + 4 : at + 4 + size], strict_map_key=False)
                at += 4 + size
                self.frame_received(frame)
                if self.transport is None:
                    return
        except Exception as error:
            log.warning("a peer sent what cannot be read; the connection is closed", reason=repr(error))
            self.abort()
            return
        if at:
            del buffer[:at]

    def frame_received(self, frame: list[Any]) -> None:
        """One frame has arrived."""
        raise NotImplementedError

    def send(self, frame: list[Any]) -> bool:
        """Queue a frame; False when the connection is gone.

        Raises:
            StatusError: RESOURCE_EXHAUSTED for a frame that the other side would refuse.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        data: bytes = msgpack.packb(frame)
        if len(data) > FRAME_BYTES_MAX:
            text = f"grpc: received message larger than max ({len(data)} vs. {FRAME_BYTES_MAX})"
            raise StatusError(Code.RESOURCE_EXHAUSTED, text)
        transport.write(_LENGTH.pack(len(data)) + data)
        return True

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()
            self.transport = None


class _ServerConnection(_Frames):
    """A client's connection, in the server."""

    def __init__(self, server: RpcServer) -> None:
        super().__init__()
        self._server = server
        #: closes the connection unless the client says in time who it is; None when it has
        self._greeting: asyncio.TimerHandle | None = None
        self._frame_bytes_max = GREETING_BYTES_MAX
        #: call id -> the task that works on it
        self.calls: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._greeting = asyncio.get_running_loop().call_later(GREETING_TIMEOUT_S, self.abort)
        if len(self._server.connections) >= CONNECTIONS_MAX:
            log.warning("a peer is turned away", connections=len(self._server.connections))
            self.abort()
            return
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._greeted()
        self._server.connections.discard(self)
        for task in list(self.calls.values()):
            task.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport is not None:
            self.transport.resume_reading()

    def frame_received(self, frame: list[Any]) -> None:
        kind = frame[0]
        if self._greeting is not None:
            if kind != _HELLO or frame[1] != PROTOCOL_VERSION or frame[2] != self._server.cluster:
                raise ValueError(f"expected a greeting of protocol {PROTOCOL_VERSION}, found {frame[:3]}")
            self._greeted()
        elif kind == _REQUEST:
            _, call_id, role, name, args, timeout = frame
            method = self._server.methods.get((role, name))
            if method is None:
                self.send([_STATUS, call_id, int(Code.UNIMPLEMENTED), f"unknown method {name} for service {role}", []])
            elif len(self.calls) >= CALLS_MAX:
                self.send([_STATUS, call_id, int(Code.RESOURCE_EXHAUSTED), "too many calls on one connection", []])
            else:
                work = self._run(call_id, role, method, args, timeout)
                self.calls[call_id] = asyncio.get_running_loop().create_task(work)
        elif kind == _CANCEL:
            task = self.calls.get(frame[1])
            if task is not None:
                task.cancel()
        else:
            raise ValueError(f"expected a request, found a frame of kind {kind}")

    def _greeted(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None
            self._frame_bytes_max = FRAME_BYTES_MAX

    async def _run(self, call_id: int, role: str, method: Method, args: list[Any], timeout: float) -> None:
        task = self.calls[call_id]
        timer = asyncio.get_running_loop().call_later(timeout + DEADLINE_MARGIN_S, task.cancel)
        answer: list[Any]
        try:
            result = method(args, timeout)
            if inspect.isawaitable(result):
                result = await result
            answer = [_RESULT, call_id, result]
        except NotOwner as error:
            let_go(error)
            answer = [_NOT_OWNER, call_id, error.partition]
        except StatusError as error:
            let_go(error)
            answer = [_STATUS, call_id, int(error.code), error.message, error.details]
        except asyncio.CancelledError as error:
            let_go(error)
            answer = [_STATUS, call_id, int(Code.CANCELLED), "the call was cancelled", []]
        except ShardLost as error:
            let_go(error)
            answer = [_STATUS, call_id, int(Code.UNAVAILABLE), OWNER_MOVES, []]
        except Exception as error:
            defect = defect_in(f"{role}/{method.name}", error)
            answer = [_STATUS, call_id, int(defect.code), defect.message, []]
            let_go(error)
        finally:
            timer.cancel()
            del self.calls[call_id]
        try:
            sent = self.send(answer)
        except StatusError as error:
            sent = False
            self.send([_STATUS, call_id, int(error.code), error.message, []])
        if not sent and answer[0] == _RESULT:
            self._server.undelivered(role, method.name, args)


class RpcServer:
    """Serves the calls of other processes.

    Args:
        services: role -> service object, e.g. {"matching": matching}; see `methods_of` for what can be called.
        host: to listen on.
        port: 0 for any.
        cluster: what a client must name; keeps two clusters apart that share a network.
    """

    def __init__(
        self,
        services: Mapping[str, object],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        cluster: str = "",
    ) -> None:
        self.cluster = cluster
        self.connections: set[_ServerConnection] = set()
        self.methods: dict[tuple[str, str], Method] = {}
        self._services = dict(services)
        for role, service in services.items():
            for name, method in methods_of(service).items():
                self.methods[role, name] = method
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port listened on, once started."""
        assert self._server is not None, "the port is known once the server has started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def address(self) -> str:
        """host:port listened on, once started."""
        return f"{self._host}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _ServerConnection(self), self._host, self._port)

    async def stop(self) -> None:
        """Close all connections; calls under way are cancelled."""
        if self._server is not None:
            self._server.close()
        tasks = [task for connection in self.connections for task in connection.calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.close()

    def undelivered(self, role: str, method: str, args: list[Any]) -> None:
        """A result did not reach its caller: the service may want to take it back."""
        hook = getattr(self._services[role], "undelivered", None)
        if hook is not None:
            hook(method, args)


class _ClientConnection(_Frames):
    """A connection to a server, in the client."""

    def __init__(self) -> None:
        super().__init__()
        #: call id -> the future of its result
        self.calls: dict[int, asyncio.Future[Any]] = {}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lose(exc)

    def abort(self) -> None:
        super().abort()
        self._lose(None)

    def _lose(self, exc: Exception | None) -> None:
        calls, self.calls = self.calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(ConnectionLost(str(exc or "the connection was closed")))

    def frame_received(self, frame: list[Any]) -> None:
        future = self.calls.pop(frame[1], None)
        if future is None or future.done():
            return  # the caller was faster
        if frame[0] == _RESULT:
            future.set_result(frame[2])
        elif frame[0] == _STATUS:
            future.set_exception(StatusError(frame[2], frame[3], tuple((name, data) for name, data in frame[4])))
        elif frame[0] == _NOT_OWNER:
            future.set_exception(NotOwner(frame[2]))
        else:
            raise ValueError(f"expected an answer, found a frame of kind {frame[0]}")


class RpcPool:
    """Calls other processes, over one connection to each, made when first needed. See the module for `cluster`."""

    def __init__(self, cluster: str = "") -> None:
        self._cluster = cluster
        #: address -> connection, or the attempt to make it
        self._connections: dict[str, asyncio.Task[_ClientConnection]] = {}
        self._call_id = 0

    async def call(self, address: str, role: str, method: str, args: list[Any], timeout: float) -> Any:
        """Call a method in another process.

        Raises:
            StatusError: what the method raised; DEADLINE_EXCEEDED when no answer came within `timeout` seconds.
            NotOwner: the other process does not hold the partition.
            ConnectionLost: see there.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout
        connection = await self._connection(address, timeout)
        if not connection.writable.is_set():
            try:
                await asyncio.wait_for(connection.writable.wait(), max(ends_at - loop.time(), 0))
            except TimeoutError:
                raise ConnectionLost(f"{address} takes no more requests") from None
        self._call_id += 1
        call_id = self._call_id
        future: asyncio.Future[Any] = loop.create_future()
        connection.calls[call_id] = future
        timer: asyncio.TimerHandle | None = None
        try:
            left = max(ends_at - loop.time(), 0.0)
            if not connection.send([_REQUEST, call_id, role, method, args, left]):
                raise ConnectionLost(f"the connection to {address} was closed")
            timer = loop.call_at(ends_at, _out_of_time, future, method)
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            if connection.calls.pop(call_id, None) is not None:
                # No answer has come: the caller was cancelled, or ran out of time.
                connection.send([_CANCEL, call_id])

    def drop(self, address: str) -> None:
        """That process is gone: break the connection, and with it the calls that wait on it."""
        attempt = self._connections.pop(address, None)
        if attempt is None:
            return
        if attempt.done() and not attempt.cancelled() and attempt.exception() is None:
            attempt.result().abort()
        else:
            attempt.cancel()

    async def stop(self) -> None:
        """Break all connections."""
        for address in list(self._connections):
            self.drop(address)

    async def _connection(self, address: str, timeout: float) -> _ClientConnection:
        attempt = self._connections.get(address)
        if attempt is not None and attempt.done() and not _usable(attempt):
            attempt = None
        if attempt is None:
            attempt = asyncio.get_running_loop().create_task(self._connect(address))
            attempt.add_done_callback(_retrieve)
            self._connections[address] = attempt
        if attempt.done():
            return attempt.result()
        try:
            # Shielded: others wait for the same connection.
            return await asyncio.wait_for(asyncio.shield(attempt), min(timeout, CONNECT_TIMEOUT_S))
        except (OSError, TimeoutError) as error:
            raise ConnectionLost(f"cannot connect to {address}: {error or 'no answer'}") from None
        except asyncio.CancelledError:
            if attempt.cancelled():
                raise ConnectionLost(f"{address} is gone") from None
            raise

    async def _connect(self, address: str) -> _ClientConnection:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(_ClientConnection, host.strip("[]"), int(port))
        connection.send([_HELLO, PROTOCOL_VERSION, self._cluster])
        return connection


def _usable(attempt: asyncio.Task[_ClientConnection]) -> bool:
    return not attempt.cancelled() and attempt.exception() is None and attempt.result().transport is not None


def _retrieve(attempt: asyncio.Task[_ClientConnection]) -> None:
    if not attempt.cancelled():
        attempt.exception()


def _out_of_time(future: asyncio.Future[Any], method: str) -> None:
    if not future.done():
        future.set_exception(StatusError(Code.DEADLINE_EXCEEDED, f"no answer to {method} in time"))
