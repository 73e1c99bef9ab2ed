"""The way out of a connection: what is answered, as far as the client lets it out.

A client bounds what it is sent by windows (RFC 9113, 5.2), one for the connection and one for each call, and by what
its socket takes. An answer that fits goes out in one piece and is never held. What does not fit waits here, counted,
and goes out in turns of a frame per call, so that a large answer does not hold up a small one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from everfold.frontend.http2 import frames
from everfold.frontend.http2.bytes_held import Account


class Outgoing:
    """One call's answer.

    Attributes:
        number: of the call's stream.
        window: bytes of messages that the client takes for this call; it may be negative (RFC 9113, 6.9.2).
        begun: its headers were sent.
        parts: what waits.
        end: the frames after it, None while more may come.
        drained: done when `parts` is empty; for whoever sends message after message.
    """

    __slots__ = ("begun", "drained", "end", "number", "parts", "window")

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = window
        self.begun = False
        self.parts: deque[memoryview] = deque()
        self.end: bytes | None = None
        self.drained: asyncio.Future[None] | None = None


class Answers:
    """What a client is sent.

    Args:
        transport: the client's.
        account: counts what waits, here and, while the socket takes no more, in its buffer.
        overflowed: called when the client's part of the account is used up by what it does not read.

    Attributes:
        paused: the socket takes no more for now.
        passed_bytes: of answers that waited, so far; whether it grows tells whether the client reads.
        prefix: what the next header block has to begin with; take it by `take_prefix`.
    """

    def __init__(self, transport: asyncio.Transport, account: Account, overflowed: Callable[[], object]) -> None:
        self._transport = transport
        self._account = account
        self._overflowed = overflowed
        self._window = frames.WINDOW_BYTES
        self.paused = False
        #: bytes in the socket's buffer that are counted, while it takes no more
        self._in_socket = 0
        #: those with parts that wait and a window of their own that is open, in the order of their turns
        self._waiting: OrderedDict[int, Outgoing] = OrderedDict()
        #: those whose own window is used up
        self._stuck: dict[int, Outgoing] = {}
        self.passed_bytes = 0
        self.prefix = b""

    def take_prefix(self) -> bytes:
        """What the header block that is sent now has to begin with."""
        prefix, self.prefix = self.prefix, b""
        return prefix

    def send(self, data: bytes) -> None:
        """Sends frames that no window counts."""
        if self.paused and not self._count_in_socket(len(data)):
            return
        self._transport.write(data)

    def answer(self, out: Outgoing, response: bytes) -> bool:
        """Sends an answer of one message; False, and nothing is sent, when too much waits already."""
        size = frames.GRPC_PREFIX.size + len(response)
        fits = size <= frames.FRAME_BYTES_MAX and size <= out.window and size <= self._window
        if fits and not (self.paused or self.prefix):
            self._window -= size
            self._transport.write(frames.whole_answer(out.number, response))
            return True
        if not self.message(out, response):
            return False
        self.end(out, frames.answer_ends(out.number))
        return True

    def message(self, out: Outgoing, message: bytes) -> bool:
        """Sends one message of several; False, and nothing is sent, when too much waits already."""
        size = frames.GRPC_PREFIX.size + len(message)
        if not self._account.take(size):
            return False
        if not out.begun:
            out.begun = True
            self.send(frames.answer_begins(out.number, self.take_prefix()))
        out.parts.append(memoryview(frames.GRPC_PREFIX.pack(0, len(message))))
        if message:
            out.parts.append(memoryview(message))
        self._queue(out)
        self.go_on()
        return True

    def end(self, out: Outgoing, data: bytes) -> None:
        """Ends an answer with these frames, behind all that waits of it."""
        if out.parts:
            out.end = data
        else:
            self.send(data)

    def drop(self, out: Outgoing) -> None:
        """The call is gone: what waits of it is not sent any more."""
        self._waiting.pop(out.number, None)
        self._stuck.pop(out.number, None)
        self._account.give_back(sum(map(len, out.parts)))
        out.parts.clear()
        _wake(out)

    def widen(self, out: Outgoing, count: int) -> bool:
        """The client takes `count` bytes more (or fewer) of a call; False when that is too many. `go_on` sends."""
        out.window += count
        if out.number in self._stuck or out.number in self._waiting:
            self._waiting.pop(out.number, None)
            self._stuck.pop(out.number, None)
            self._queue(out)
        return out.window <= frames.WINDOW_BYTES_MAX

    def widen_all(self, count: int) -> bool:
        """The client takes `count` bytes more on the connection; False when that is too many. `go_on` sends."""
        self._window += count
        return self._window <= frames.WINDOW_BYTES_MAX

    def pause(self) -> None:
        """The socket takes no more."""
        self.paused = True
        self._count_in_socket(self._transport.get_write_buffer_size())

    def resume(self) -> None:
        """The socket takes more again."""
        self.paused = False
        self._account.give_back(self._in_socket)
        self._in_socket = 0
        self.go_on()

    def close(self) -> None:
        """The connection has ended."""
        self.paused = True
        self._account.give_back(self._in_socket)
        self._in_socket = 0
        for out in [*self._waiting.values(), *self._stuck.values()]:
            self.drop(out)

    def go_on(self) -> None:
        """Sends of what waits as much as is taken, a frame of each call in turns."""
        while self._waiting and self._window > 0 and not self.paused:
            number, out = self._waiting.popitem(last=False)
            piece = _piece(out.parts, min(frames.FRAME_BYTES_MAX, out.window, self._window))
            out.window -= len(piece)
            self._window -= len(piece)
            self.passed_bytes += len(piece)
            self._account.give_back(len(piece))
            data = frames.frame(frames.DATA, 0, number, piece)
            if out.parts:
                self._queue(out)
            else:
                if out.end is not None:
                    data += out.end
                _wake(out)
            self._transport.write(data)

    def _queue(self, out: Outgoing) -> None:
        (self._waiting if out.window > 0 else self._stuck)[out.number] = out

    def _count_in_socket(self, count: int) -> bool:
        """Counts what the socket does not take. False when the client's part is used up, and it is to be cut off."""
        if self._account.take(count):
            self._in_socket += count
        elif self._account.is_over(count):
            self._overflowed()
            return False
        return True


def _piece(parts: deque[memoryview], most: int) -> bytes:
    """Takes at most so many bytes from the front of the parts, and at least one."""
    taken: list[memoryview] = []
    while parts and most:
        part = parts.popleft()
        if len(part) > most:
            parts.appendleft(part[most:])
            part = part[:most]
        taken.append(part)
        most -= len(part)
    return b"".join(taken)


def _wake(out: Outgoing) -> None:
    if out.drained is not None and not out.drained.done():
        out.drained.set_result(None)
