"""A shard whose log lacks what was acknowledged: what is said about it, what is waited for, how the tail is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Final, NamedTuple, Protocol

import structlog

from everfold.history.tail import LogFacts
from everfold.kernel.positions import ShardPosition, without_tail

log = structlog.get_logger("history.owner")

LOOK_AGAIN_S: Final = 30.0
"""How often a stopped shard is taken anew: Kafka may have the log again, from a broker that was away."""

_REPAIR_LOOK_S: Final = 0.5


class OnLostTail(Enum):
    """What to do when a log lacks what was acknowledged."""

    STOP = "stop"
    """The shard waits for an operator, the others go on."""

    END = "end"
    """The process ends and says how to start it again: where it is all there is."""

    KEEP_LOG = "keep-log"
    """The operator has decided already: the tail is let go."""


class PositionTopic(Protocol):
    """Where owners say how far they have folded, for whoever takes the shard next."""

    async def position(self, shard: int) -> ShardPosition | None:
        """What holds for a shard as of this call. Raises KafkaUnavailable."""
        ...

    def latest(self, shard: int) -> ShardPosition | None:
        """The same as far as it has been read."""
        ...

    def news(self, positions: Iterable[ShardPosition]) -> list[ShardPosition]:
        """Which of an owner's positions the topic does not have yet, as they are to be written."""
        ...

    def say(self, position: ShardPosition) -> None:
        """Write a position; it may be lost on the way."""
        ...

    async def settle(self, position: ShardPosition) -> None:
        """Write a position that must not be lost. Raises KafkaTrouble."""
        ...


class Stop(NamedTuple):
    """Why a shard is stopped, and what was known then.

    Attributes:
        reason: in a sentence.
        store: how far the store has folded.
        facts: what else was known of the log.
    """

    reason: str
    store: ShardPosition
    facts: LogFacts

    @property
    def lost(self) -> ShardPosition:
        """The highest position that somebody has folded."""
        known = self.facts.known
        if known is None:
            return self.store
        ours = replace(self.store, repairs=known.repairs, lost=known.lost)
        given_up = known.let_go(ours.topic_id, ours.offset, ours.epoch)
        return known if given_up or ours.offset <= known.offset else ours

    def words(self, topic: str, end: int, what_to_do: str) -> str:
        """What an operator is told."""
        return (
            f"{self.reason}. The log of {topic} ends at offset {end}. Nothing was changed; the shard is not served. "
            "Where Kafka can get the missing records back (from a broker that is down, from a copy of its disk), do "
            f"that, and the shard goes on by itself. Otherwise let them go: {what_to_do}. Then the store is set aside "
            "(renamed and kept), the log is folded as it is, and what was acknowledged in the missing records is gone."
        )

    def without_tail(self, end: int, at_ns: int, by: str) -> ShardPosition:
        """What lets the tail go."""
        return without_tail(self.lost, end=end, topic_id=self.facts.topic_id, at_ns=at_ns, by=by)

    async def wait(self, positions: PositionTopic | None, over: asyncio.Event) -> None:
        """Return when an operator has decided, when it is time to look at the log again, or when all is over."""
        repairs = self.lost.repairs
        if positions is not None and self.lost is not self.facts.known:
            positions.say(self.lost)  # so that other hosts stop, too, and an operator sees how far the log reached
        deadline = asyncio.get_running_loop().time() + LOOK_AGAIN_S
        while not over.is_set() and asyncio.get_running_loop().time() < deadline:
            latest = None if positions is None else positions.latest(self.store.shard)
            if latest is not None and latest.repairs > repairs:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _REPAIR_LOOK_S)
