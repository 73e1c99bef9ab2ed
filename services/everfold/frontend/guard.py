"""The guard: what strangers reach first. It bounds the bytes and the time that they can make the process spend.

The native library takes messages of any size, inflates them to any size and keeps answers until they are read. So it
listens on a socket of its own that only this process can reach, and the guard on the port. The guard reads the nine
bytes in front of each HTTP/2 frame and the five in front of each gRPC message, counts (`guard_ledger.py`), and passes
the bytes on as they are; what is over a bound it answers itself. It decodes no headers and holds no messages.

Chosen and measured in docs/decisions/0035-a-guard-before-the-gateway.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from everfold.frontend import http2
from everfold.frontend.guard_connection import Connection
from everfold.frontend.guard_ledger import Account, Budget, Stream

_log = logging.getLogger(__name__)

REQUESTS_HELD_MAX: Final = 96 * 1024 * 1024
"""Bytes of requests from their first byte to their answer's last: a shard takes 64 MiB at once."""

ANSWERS_HELD_MAX: Final = 64 * 1024 * 1024
"""Bytes of answers that clients have not read: a page of history has 4 MiB at most."""

DESCRIPTORS_PER_CONNECTION: Final = 3
"""The client's, and both ends of the way to the library."""

SWEEP_SECONDS: Final = 1.0
_BACKLOG: Final = 1024


class Guard:
    """Listens for clients and leads them to the library.

    Args:
        host: the address to bind.
        port: the port to bind; 0 lets the kernel choose.
        request_bytes_max: the largest message taken, inflated.
        connections_max: connections of clients at once.
        refused: told the code and the seconds of each call that the guard answers itself.

    Attributes:
        inner_path: where the library is to listen.
        key_name: the header that carries a call's key to the library. Its name is random, so that no client can
            send one.
        key_header: its beginning in a header block; the key's length and the key follow.
        requests: the budget of requests.
        answers: the budget of answers.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        request_bytes_max: int,
        connections_max: int,
        refused: Callable[[int, float], None],
    ) -> None:
        self._host = host
        self._port = port
        self._request_bytes_max = request_bytes_max
        self._connections_max = connections_max
        self.refused = refused
        self._directory = Path(tempfile.mkdtemp(prefix="everfold-"))
        self.inner_path = str(self._directory / "grpc")
        self.key_name = f"call-{secrets.token_hex(8)}"
        self.key_header = http2.literal(self.key_name.encode(), b"")[:-1]
        self.requests = Budget(REQUESTS_HELD_MAX)
        self.answers = Budget(ANSWERS_HELD_MAX)
        self._connections: set[Connection] = set()
        self._streams: dict[bytes, Stream] = {}
        self._opened = 0
        self._turned_away = 0
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def bound_port(self) -> int:
        """The port that is bound."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Binds; the library listens already.

        Raises:
            OSError: the address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: Connection(self), self._host, self._port, backlog=_BACKLOG)
        except OSError as error:
            # In the operating system's words alone: event loops add some, and the address.
            raise OSError(error.errno, os.strerror(error.errno) if error.errno else str(error)) from None
        self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep)

    async def stop(self) -> None:
        """Closes every connection and removes the library's socket."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._directory)

    def call(self, key: bytes | str | None) -> Stream | None:
        """The call that the library has by this key; None when its client has left."""
        return self._streams.get(key) if isinstance(key, bytes) else None

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

    def stream(self, number: int, peer: str, began: float, requests: Account, answers: Account) -> Stream:
        """A call begins."""
        self._opened += 1
        key = b"%d" % self._opened
        stream = self._streams[key] = Stream(number, key, peer, began, requests, answers, self._request_bytes_max)
        return stream

    def forget(self, stream: Stream) -> None:
        """A call has ended, for the client or for the library."""
        stream.close()
        self._streams.pop(stream.key, None)

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
