"""What a worker shows of itself over HTTP: `/metrics` for Prometheus, and `/lag`, records not yet applied as JSON.

A dozen lines of HTTP/1.1 rather than Faust's web server: that one costs 10 MB and serves tables and statistics besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Final

from prometheus_client import generate_latest

from everfold.runtime.metrics import REGISTRY

Lag = dict[str, dict[int, int]]

REQUEST_BYTES_MAX: Final = 16 * 1024
"""Longest request head taken; a scraper's is under 1 KiB."""

REQUEST_WITHIN_S: Final = 5.0
"""A connection that sends no request for so long is closed."""


class Sight:
    """The server; `port` 0 serves nothing."""

    def __init__(self, ip: str, port: int, lag: Callable[[], Lag]) -> None:
        self._ip = ip
        self._port = port
        self._lag = lag
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens; raises OSError when the port is taken."""
        if self._port:
            self._server = await asyncio.start_server(self._serve, self._ip, self._port, limit=REQUEST_BYTES_MAX)

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_WITHIN_S)
            status, kind, body = self._answer(head.split(b" ", 2)[1:2])
            lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            await writer.drain()
        writer.close()

    def _answer(self, path: list[bytes]) -> tuple[str, str, bytes]:
        if path == [b"/lag"]:
            return "200 OK", "application/json", json.dumps(self._lag()).encode()
        if path == [b"/metrics"]:
            self._lag()
            return "200 OK", "text/plain; version=0.0.4; charset=utf-8", generate_latest(REGISTRY)
        return "404 Not Found", "text/plain", b"/metrics and /lag\n"
