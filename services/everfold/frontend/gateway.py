"""The gRPC port: raw request bytes in, raw response bytes out.

Two implementations stand behind one interface and one contract suite (`tests/contract/test_gateway.py`): our own, whose
cost per call is a tenth and which bounds bytes (docs/decisions/0037-http2-on-the-loop.md), and grpcio's, by which it is
measured. They own no semantics: a call becomes a handler's coroutine, a `StatusError` becomes a status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from everfold.frontend.calls import CallObserver, Handler, StreamHandler
from everfold.frontend.tls_files import TlsFiles
from everfold.kernel.errors import Code, StatusError

REQUEST_BYTES_MAX: Final = 4 * 1024 * 1024
"""gRPC's own default for a received message, which Temporal's frontend keeps; a blob may be 2 MiB."""

METADATA_BYTES_MAX: Final = 64 * 1024
"""Request headers of one call. Room for a JWT with many claims; gRPC libraries default to 8-16 KiB."""

CALLS_MAX: Final = 50_000
"""Calls under way in a process, streams and waiting polls among them; beyond it callers get RESOURCE_EXHAUSTED. Room
for every poll of a few busy namespaces; each holds its request and some KiB."""

STREAMS_PER_CONNECTION_MAX: Final = 16 * 1024
"""Calls open on one connection. A client that awaits thousands of results holds a long poll for each on one connection;
gRPC libraries queue what is over this, so that it only bounds memory (some KiB per call)."""

DESCRIPTORS_MAX: Final = 30_000
"""File descriptors of clients' connections, where whoever composes the service has not counted what is left."""

GREETING_SECONDS: Final = 10.0
"""A connection that has not sent HTTP/2's preface by then is closed."""

IDLE_SECONDS: Final = 120.0
"""How long a connection may stay without a call, as Temporal's frontend.keepAliveMaxConnectionIdle."""

AGE_SECONDS: Final = 300.0
"""Then the client is asked to connect anew, as Temporal's frontend.keepAliveMaxConnectionAge."""

AGE_GRACE_SECONDS: Final = 70.0
"""For the calls that are open then, as frontend.keepAliveMaxConnectionAgeGrace: longer than a poll waits."""

KEEPALIVE_SECONDS: Final = 60.0
"""Between pings to a client that is silent, as frontend.keepAliveTime."""

KEEPALIVE_TIMEOUT_SECONDS: Final = 10.0
"""For the answer to one, as frontend.keepAliveTimeout."""

SHUTDOWN_GRACE_SECONDS: Final = 2.0
"""How long calls that are being answered may finish when the server stops. Long polls are ended at once."""


UNKNOWN_PATH: Final = "/unknown"
"""The one name under which an observer hears of calls whose method is not known, or not read."""


class Gateway(Protocol):
    """A gRPC server over a table of handlers."""

    @property
    def port(self) -> int:
        """The port that is bound; the one asked for, or the kernel's choice when that was 0."""

    async def start(self) -> None:
        """Binds and serves.

        Raises:
            OSError: the address is taken or not ours.
        """

    async def stop(self, grace: float = SHUTDOWN_GRACE_SECONDS) -> None:
        """Takes no new calls, cancels long polls, lets the others finish for `grace` seconds, then closes."""


def too_large(size: int, limit: int) -> StatusError:
    """What answers a request over the limit. core (the SDKs' Rust half) recognises it by its first words."""
    return StatusError(Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. {limit})")


def shutting_down() -> StatusError:
    """What answers a call that the server's stop has ended, or that comes after it."""
    return StatusError(Code.UNAVAILABLE, "the server is shutting down")


def too_many_calls() -> StatusError:
    """What answers a call that comes while CALLS_MAX others are under way."""
    return StatusError(Code.RESOURCE_EXHAUSTED, f"the process has {CALLS_MAX} calls under way; start another frontend")


def open_gateway(
    kind: str,
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
) -> Gateway:
    """Makes the gateway of a kind; `start` binds it.

    Args:
        kind: "http2" or "grpcio".
        host: the address to bind.
        port: the port to bind; 0 lets the kernel choose.
        handlers: method path to handler; paths that are not in it answer UNIMPLEMENTED.
        streams: method path to stream handler, instead of what `handlers` has; it ends like a long poll.
        long_polls: the paths whose calls wait for work; they are not waited for when the server stops.
        request_bytes_max: the largest request taken, decompressed.
        descriptors_max: file descriptors that the connections of clients may take.
        tls: serve TLS with these; None serves plaintext.
        observer: told of every finished call.
    """
    make: Callable[..., Gateway]
    if kind == "http2":
        from everfold.frontend.gateway_http2 import Http2Gateway

        make = Http2Gateway
    elif kind == "grpcio":
        from everfold.frontend.gateway_grpcio import GrpcioGateway

        make = GrpcioGateway
    else:
        raise ValueError(f"expected gateway 'http2' or 'grpcio', found {kind!r}")
    return make(
        host,
        port,
        handlers,
        streams=streams,
        long_polls=long_polls,
        request_bytes_max=request_bytes_max,
        descriptors_max=descriptors_max,
        tls=tls,
        observer=observer,
    )
