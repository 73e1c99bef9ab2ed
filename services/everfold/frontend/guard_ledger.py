"""What the guard knows of a call, and the bytes that it counts for it.

A request is counted from its first byte until its answer is complete, a compressed one by what it inflates to; an
answer from when a handler gave it until it was handed to the client's socket. Each of the two has a budget for the
process, and a connection may take a part of it.
"""

from __future__ import annotations

import zlib
from typing import Final

from everfold.frontend.gateway import too_large
from everfold.kernel.errors import Code, StatusError

PREFIX_BYTES: Final = 5
"""In front of a gRPC message: whether it is compressed, and its length."""

STREAM_BYTES: Final = 1024
"""About what a call takes here and in the library, besides its headers."""

INFLATER_BYTES: Final = 48 * 1024
"""What zlib holds to inflate one message."""

_SLICE_BYTES: Final = 64 * 1024
"""Inflated at once, to be counted and dropped."""

_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS


class Budget:
    """Bytes that a process may hold at once.

    Attributes:
        most: how many.
        held: how many are.
    """

    __slots__ = ("held", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0


class Account:
    """A connection's part of a budget: at most half of it, so that no single client can take everything.

    Attributes:
        held: bytes taken.
    """

    __slots__ = ("_budget", "held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, count: int) -> bool:
        """Takes `count` bytes; False, and nothing is taken, when that is more than there is."""
        budget = self._budget
        if budget.held + count > budget.most or self.held + count > budget.most // 2:
            return False
        self.held += count
        budget.held += count
        return True

    def give_back(self, count: int) -> None:
        """Gives back what was taken."""
        self.held -= count
        self._budget.held -= count


class Stream:
    """One call on one connection.

    Attributes:
        number: the stream's number on its connection.
        key: what the library knows the call by.
        peer: the client's address.
        began: when its headers came.
        refused: the guard has answered it; whatever still comes is dropped.
    """

    __slots__ = (
        "_answer",
        "_answers",
        "_declared",
        "_held",
        "_inflated",
        "_inflater",
        "_limit",
        "_prefix",
        "_received",
        "_requests",
        "began",
        "key",
        "number",
        "peer",
        "refused",
    )

    def __init__(
        self, number: int, key: bytes, peer: str, began: float, requests: Account, answers: Account, limit: int
    ) -> None:
        self.number = number
        self.key = key
        self.peer = peer
        self.began = began
        self.refused = False
        self._requests = requests
        self._answers = answers
        self._limit = limit
        #: the first bytes of the message, until there are `PREFIX_BYTES`
        self._prefix = b""
        #: the length that the prefix has announced; meaningless before
        self._declared = 0
        #: bytes of the message, without the prefix
        self._received = 0
        self._inflater: zlib._Decompress | None = None
        self._inflated = 0
        #: what is taken from the two accounts
        self._held = 0
        self._answer = 0

    def admit(self, data: bytes) -> StatusError | None:
        """Counts what came of the request. Returns why it is refused, None when it may go on."""
        if len(self._prefix) < PREFIX_BYTES:
            missing = PREFIX_BYTES - len(self._prefix)
            self._prefix += data[:missing]
            data = data[missing:]
            if len(self._prefix) < PREFIX_BYTES:
                return None
            self._declared = int.from_bytes(self._prefix[1:], "big")
            if self._declared > self._limit:
                return too_large(self._declared, self._limit)
            if self._prefix[0]:
                if not self.hold(INFLATER_BYTES):
                    return too_much_held("requests")
                self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._received += len(data)
        if self._received > self._declared:
            return StatusError(Code.INTERNAL, "expected one message in a unary call, found more")
        if self._inflater is not None and (refused := self._inflate(data)) is not None:
            return refused
        return None if self.hold(len(data)) else too_much_held("requests")

    def hold(self, count: int) -> bool:
        """Counts `count` bytes for the request; False when the budget has no room for them."""
        if not self._requests.take(count):
            return False
        self._held += count
        return True

    def answer(self, count: int) -> bool:
        """Counts an answer of `count` bytes; False when too much is waiting to be read already."""
        if not self._answers.take(count):
            return False
        self._answer += count
        return True

    def passed_on(self, count: int) -> None:
        """So much of the answer is on its way to the client."""
        count = min(count, self._answer)
        self._answer -= count
        self._answers.give_back(count)

    def close(self) -> None:
        """Gives back all that is counted."""
        self._requests.give_back(self._held)
        self._answers.give_back(self._answer)
        self._held = self._answer = 0
        self._inflater = None

    def _inflate(self, data: bytes) -> StatusError | None:
        """Inflates for the size alone, a slice at a time, and keeps nothing. The library inflates what passed here."""
        try:
            while data:
                assert self._inflater is not None
                out = len(self._inflater.decompress(data, _SLICE_BYTES))
                if not self.hold(out):
                    return too_much_held("requests")
                self._inflated += out
                if self._inflated > self._limit:
                    return StatusError(
                        Code.RESOURCE_EXHAUSTED,
                        f"grpc: received message after decompression larger than max {self._limit}",
                    )
                data = self._inflater.unconsumed_tail
                if self._inflater.eof:
                    # Files of several members are one to some libraries.
                    data = self._inflater.unused_data
                    self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        except zlib.error as error:
            return StatusError(Code.INTERNAL, f"grpc: failed to decompress the received message: {error}")
        return None


def too_much_held(what: str) -> StatusError:
    """What answers a call for which the budget of requests, or of answers, has no room."""
    return StatusError(
        Code.RESOURCE_EXHAUSTED,
        f"too many bytes of {what} are held already: send less at once, read what is answered",
    )
