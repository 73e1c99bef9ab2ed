"""One call: its request as it comes in, and what its headers say."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from everfold.frontend.calls import Metadata
from everfold.frontend.http2.answers import Outgoing
from everfold.frontend.http2.header_blocks import Field
from everfold.frontend.http2.request_body import ENCODINGS, RequestBody
from everfold.kernel.errors import Code, StatusError

if TYPE_CHECKING:
    from everfold.frontend.http2.connection import Connection

_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT_DIGITS_MAX: Final = 8

BINARIES_MAX: Final = 128
"""Values of headers whose names end in -bin. A comma in one is a byte, and a value of its own."""

SHOWN_CHARS_MAX: Final = 100

_PSEUDO_HEADERS: Final = frozenset({":method", ":scheme", ":path", ":authority"})
_OF_HTTP_1: Final = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"})


class Malformed(Exception):
    """A request's headers break HTTP/2's rules (RFC 9113, 8.1.1)."""


class NotGrpc(Exception):
    """A request that HTTP answers; `args` has its status."""


class Call:
    """One request, from its headers to its answer's end.

    Attributes:
        out: its answer; it has the stream's number.
        path: the method's.
        metadata: its headers, as handlers see them.
        timeout: seconds that the client gives it, from its headers on; None is for ever.
        encoding: of compressed messages.
        body: its message, as it comes in.
        began: when its headers came.
        taken: bytes of it since the client was last told that it may send more.
        open: the client still waits for its answer.
        task: what answers it, once it is whole.
        undelivered: called when the client leaves before it was sent all of the answer.
    """

    __slots__ = (
        "began",
        "body",
        "connection",
        "encoding",
        "metadata",
        "open",
        "out",
        "path",
        "taken",
        "task",
        "timeout",
        "undelivered",
    )

    def __init__(self, connection: Connection, out: Outgoing, body: RequestBody, began: float) -> None:
        self.connection = connection
        self.out = out
        self.body = body
        self.began = began
        self.path = ""
        self.metadata: Metadata = ()
        self.timeout: float | None = None
        self.encoding = ""
        self.taken = 0
        self.open = True
        self.task: asyncio.Task[None] | None = None
        self.undelivered: Callable[[], None] | None = None


def read_headers(call: Call, fields: list[Field]) -> StatusError | None:
    """Takes a request's headers apart. Returns why it is refused, in the words of Go's server where that has some.

    Raises:
        Malformed: it is no request, by the rules of HTTP/2.
        NotGrpc: it is none of gRPC's.
    """
    pseudo: dict[str, str] = {}
    metadata: list[tuple[str, str | bytes]] = []
    binaries = 0
    content_type = ""
    refused: StatusError | None = None
    for field in fields:
        name, value = field
        if name[:1] == ":":
            if metadata or name in pseudo or name not in _PSEUDO_HEADERS:
                raise Malformed
            pseudo[name] = value
        elif name[-4:] == "-bin":
            binaries += value.count(",") + 1
            if binaries > BINARIES_MAX:
                text = f"expected at most {BINARIES_MAX} values of binary headers, found more"
                refused = StatusError(Code.RESOURCE_EXHAUSTED, text)
                continue
            try:
                metadata += [(name, _binary(part)) for part in value.split(",")]
            except ValueError:
                text = f"malformed binary metadata in header {_shown(name)}: expected Base64"
                refused = StatusError(Code.INTERNAL, text)
        else:
            metadata.append(field)
            if name == "content-type":
                content_type = value
            elif name == "grpc-timeout":
                digits, unit = value[:-1], _SECONDS.get(value[-1:])
                if unit is None or not digits.isdecimal() or len(digits) > _TIMEOUT_DIGITS_MAX:
                    refused = StatusError(Code.INTERNAL, f"malformed grpc-timeout: {_shown(value)}")
                else:
                    call.timeout = int(digits) * unit
            elif name == "grpc-encoding":
                call.encoding = value
                if value not in ENCODINGS:
                    text = f"grpc: Decompressor is not installed for grpc-encoding {_shown(value)}"
                    refused = StatusError(Code.UNIMPLEMENTED, text)
            elif name in _OF_HTTP_1 or name != name.lower() or (name == "te" and value != "trailers"):
                raise Malformed
    call.path = pseudo.get(":path", "")
    if not call.path or ":method" not in pseudo or ":scheme" not in pseudo:
        raise Malformed
    call.metadata = tuple(metadata)
    if pseudo[":method"] != "POST":
        raise NotGrpc(405)
    if not content_type.startswith("application/grpc"):
        raise NotGrpc(415)
    return refused


def _shown(value: str) -> str:
    """A client's value in a text of ours, cut: an answer must not be many times what asked for it."""
    return repr(value[:SHOWN_CHARS_MAX])


def _binary(value: str) -> bytes:
    """A value of a header whose name ends in -bin: Base64, often without padding."""
    digits = value.rstrip("=")
    return binascii.a2b_base64(digits + "=" * (-len(digits) % 4), strict_mode=True)
