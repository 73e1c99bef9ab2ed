"""The one message of a unary call, as it comes in: counted, bounded and inflated."""

from __future__ import annotations

import zlib
from typing import Final

from everfold.frontend.gateway import too_large
from everfold.frontend.http2.bytes_held import Account, too_much_held
from everfold.frontend.http2.frames import GRPC_PREFIX
from everfold.kernel.errors import Code, StatusError

INFLATER_BYTES: Final = 48 * 1024
"""What zlib holds to inflate one message."""

PART_BYTES: Final = 64
"""What a part of a message takes besides its bytes."""

_SLICE_BYTES: Final = 64 * 1024
"""Inflated at once, to be counted before there is more."""

_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS

ENCODINGS: Final = ("", "identity", "gzip", "deflate")
"""Values of `grpc-encoding` that are understood."""


class RequestBody:
    """Takes the bytes of a request's DATA frames.

    Args:
        account: counts what is held.
        limit: the largest message taken, inflated.

    Attributes:
        held: bytes counted.
    """

    __slots__ = ("_account", "_declared", "_inflated", "_inflater", "_limit", "_parts", "_prefix", "_received", "held")

    def __init__(self, account: Account, limit: int) -> None:
        self._account = account
        self._limit = limit
        #: the first bytes, until there are as many as the prefix has
        self._prefix = b""
        #: the length that the prefix has announced; meaningless before
        self._declared = 0
        #: bytes of the message as it was sent, without the prefix
        self._received = 0
        #: the message, inflated if it has to be
        self._parts: list[bytes] = []
        self._inflater: zlib._Decompress | None = None
        self._inflated = 0
        self.held = 0

    def hold(self, count: int) -> bool:
        """Counts `count` bytes for the call; False when there is no room for them."""
        if not self._account.take(count):
            return False
        self.held += count
        return True

    def take(self, data: bytes) -> StatusError | None:
        """Takes what came. Returns why the call is refused; None while it may go on."""
        missing = GRPC_PREFIX.size - len(self._prefix)
        if missing:
            if missing == GRPC_PREFIX.size and len(data) >= missing:
                self._prefix = data[:missing]
            else:
                self._prefix += data[:missing]
            data = data[missing:]
            if len(self._prefix) < GRPC_PREFIX.size:
                return None
            if (refused := self._announced()) is not None:
                return refused
        if not data:
            return None
        self._received += len(data)
        if self._received > self._declared:
            return StatusError(Code.INTERNAL, "expected one message in a unary call, found more")
        if self._inflater is not None and (refused := self._inflate(data)) is not None:
            return refused
        if not self.hold(len(data) + PART_BYTES):
            return too_much_held("requests")
        if self._inflater is None:
            self._parts.append(data)
        return None

    def whole(self, *, encoding: str) -> bytes | StatusError:
        """The message, when all has come; or why there is none. It is counted until `release`.

        Args:
            encoding: what the request's headers say of compressed messages.
        """
        if len(self._prefix) < GRPC_PREFIX.size:
            return StatusError(Code.INTERNAL, "expected one message in a unary call, found none")
        if self._received < self._declared:
            return StatusError(
                Code.INTERNAL, f"expected a message of {self._declared} bytes, found {self._received} and the end"
            )
        if self._prefix[0] and self._declared and encoding in ("", "identity"):
            return StatusError(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
        if self._inflater is not None and not self._inflater.eof:
            return StatusError(Code.INTERNAL, "grpc: failed to decompress the received message: unexpected EOF")
        parts, self._parts = self._parts, []
        self._inflater = None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self) -> None:
        """Gives back all that is counted."""
        self._account.give_back(self.held)
        self.held = 0
        self._parts = []
        self._inflater = None

    def _announced(self) -> StatusError | None:
        compressed, self._declared = GRPC_PREFIX.unpack(self._prefix)
        if self._declared > self._limit:
            return too_large(self._declared, self._limit)
        # The SDKs' Rust half marks an empty message as compressed without having compressed it.
        if compressed and self._declared:
            if not self.hold(INFLATER_BYTES):
                return too_much_held("requests")
            self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        return None

    def _inflate(self, data: bytes) -> StatusError | None:
        try:
            while True:
                assert self._inflater is not None
                if self._inflater.eof:
                    # Files of several members are one to some libraries.
                    self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
                part = self._inflater.decompress(data, _SLICE_BYTES)
                if not self.hold(len(part) + PART_BYTES):
                    return too_much_held("requests")
                self._parts.append(part)
                self._inflated += len(part)
                if self._inflated > self._limit:
                    return StatusError(
                        Code.RESOURCE_EXHAUSTED,
                        f"grpc: received message after decompression larger than max {self._limit}",
                    )
                data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
                if not data and (self._inflater.eof or len(part) < _SLICE_BYTES):
                    break
        except zlib.error as error:
            return StatusError(Code.INTERNAL, f"grpc: failed to decompress the received message: {error}")
        return None
