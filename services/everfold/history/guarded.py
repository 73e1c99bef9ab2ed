"""What calls back into a shard: nothing that goes wrong there stays unseen, and nothing comes too early.

A callback runs on its own: above it is an event loop, a consumer or a producer, none of which knows what it was for. An
exception that reaches them is a line in a log at best; what the callback was about to do is never done, and the shard
stands still while it looks healthy. So whatever a shard registers with the world is guarded: an exception gives the
shard up, with no position moved, and whoever takes it next begins at what is written.

And a callback that comes inside of the call that registers it would find its owner in the middle of a change, and let
the stack grow with the input where its owner registers the next one. So the ports of a shard never do that
(`ports.ShardPorts`): here that is made true of whatever is behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec

from everfold.history.ports import Cancellable, Delivered, Headers, ShardPorts

P = ParamSpec("P")

Fail = Callable[[Exception], None]
"""Gives the shard up."""


def guarded(callback: Callable[P, None], fail: Fail) -> Callable[P, None]:
    """The same callback, whose exceptions give the shard up."""

    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as trouble:
            fail(trouble)

    return run


class GuardedPorts:
    """A `ShardPorts` over another one, that keeps what is promised there of callbacks.

    Args:
        guard: makes a guarded callback of one (`Shard.guarded`).
    """

    def __init__(self, ports: ShardPorts, guard: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
        self._ports = ports
        self.guard = guard
        self.now_ns = ports.now_ns
        self.boottime_ns = ports.boottime_ns
        self.pause = ports.pause
        self.resume = ports.resume

    def produce(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers, on_delivery: Delivered
    ) -> None:
        """See `ShardPorts.produce`."""
        answer = _Answer(self, on_delivery)
        self._ports.produce(topic, partition, key, value, headers, answer)
        answer.registered = True

    def propose(self, partition: int, key: bytes, value: bytes, on_delivery: Delivered) -> None:
        """See `ShardPorts.propose`."""
        answer = _Answer(self, on_delivery)
        self._ports.propose(partition, key, value, answer)
        answer.registered = True

    def request_end_offset(self, topic: str, partition: int, done: Callable[[int | None], None]) -> None:
        """See `ShardPorts.request_end_offset`."""
        answer = _Answer(self, done)
        self._ports.request_end_offset(topic, partition, answer)
        answer.registered = True

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Cancellable:
        """See `ShardPorts.call_later`."""
        return self._ports.call_later(delay_ns, self.guard(callback))


class _Answer:
    """A guarded callback that waits for the next turn when it is called before it is registered."""

    __slots__ = ("_callback", "_ports", "registered")

    def __init__(self, ports: GuardedPorts, callback: Callable[..., None]) -> None:
        self._ports = ports
        self._callback = callback
        self.registered = False

    def __call__(self, *outcome: object) -> None:
        if self.registered:
            self._ports.guard(self._callback)(*outcome)
        else:
            self._ports.call_later(0, partial(self._callback, *outcome))
