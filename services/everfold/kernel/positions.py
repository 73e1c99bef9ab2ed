"""How far a shard's log is known to reach: what tells a log that lost its tail from one that never had it (law 8).

Owners say once a second, on the topic `cluster`, how far they have folded. Whoever takes a shard compares the log with
that: a log that ends before the position, or has another record there, has lost what was acknowledged. Then the shard
stops, and an operator decides. Letting the tail go is a record, too: it lowers the position, and names the tail, so
that hosts that were away set their stores of that tail aside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

LOST_TAILS_MAX: Final = 16
"""Tails remembered per shard. A host would have to be away for as many repairs to stop once more than needed."""

EPOCH_MAX: Final = 2**31 - 1


class LostTail(NamedTuple):
    """Records that were acknowledged and that an operator has let go; see ShardPosition.avsc."""

    topic_id: str
    offset: int
    epoch: int
    at_ns: int
    by: str


@dataclass(frozen=True)
class ShardPosition:
    """How far a shard's log was folded; see ShardPosition.avsc.

    Attributes:
        offset, epoch: of the last folded record; an epoch of -1 is not known.
        state_hash: after it; empty when not known.
        clock_ns: shard time after it; 0 when not known.
        topic_id: of the log's topic; empty when the brokers have no ids.
        repairs: how often a tail was let go.
        lost: those tails, the latest last.
    """

    shard: int
    offset: int
    epoch: int = -1
    state_hash: bytes = b""
    clock_ns: int = 0
    topic_id: str = ""
    repairs: int = 0
    lost: tuple[LostTail, ...] = ()

    @property
    def rank(self) -> tuple[int, int]:
        """Of two positions of a shard the one of the higher rank holds."""
        return (self.repairs, self.offset)

    def let_go(self, topic_id: str, offset: int, epoch: int) -> bool:
        """Whether a position that is *not in the log* belongs to a tail that an operator has let go."""
        return any(
            not remade(tail.topic_id, topic_id) and offset >= tail.offset and epoch <= tail.epoch for tail in self.lost
        )


def remade(before: str, now: str) -> bool:
    """Whether a topic was deleted and made again, by its id then and now; False where one is not known."""
    return bool(before and now and before != now)


def without_tail(known: ShardPosition, *, end: int, topic_id: str, at_ns: int, by: str) -> ShardPosition:
    """The position after the tail was let go that `known` stands for and the log does not have.

    Args:
        known: the highest position that somebody has folded.
        end: where the log ends.
        topic_id: the log's topic as it is now.
        at_ns: now.
        by: who does it.
    """
    if remade(known.topic_id, topic_id):
        tail = LostTail(known.topic_id, 0, EPOCH_MAX, at_ns, by)
        offset = -1
    elif known.offset < end:
        # The log has other records there; where they begin to differ is not known.
        tail = LostTail(known.topic_id, 0, known.epoch, at_ns, by)
        offset = -1
    else:
        # After a repair that nobody has served since, the epoch is not known, but it is at most that of the tail then.
        epoch = known.lost[-1].epoch if known.epoch < 0 and known.lost else known.epoch
        tail = LostTail(known.topic_id, end, epoch, at_ns, by)
        offset = end - 1
    lost = (*known.lost, tail)[-LOST_TAILS_MAX:]
    return ShardPosition(known.shard, offset, topic_id=topic_id, repairs=known.repairs + 1, lost=lost)


class Positions:
    """The positions of all shards as far as one process has read them."""

    def __init__(self) -> None:
        self._known: dict[int, ShardPosition] = {}
        #: shards whose last record on the topic is not the one that holds: its owner says it again
        self._covered: set[int] = set()

    def received(self, position: ShardPosition) -> None:
        """A record of the topic. One of a lower rank is a latecomer's."""
        known = self._known.get(position.shard)
        if known is not None and position.rank < known.rank:
            self._covered.add(position.shard)
            return
        self._known[position.shard] = position
        self._covered.discard(position.shard)

    def get(self, shard: int) -> ShardPosition | None:
        """What holds for a shard; None when nobody has said anything yet."""
        return self._known.get(shard)

    def news(self, positions: Iterable[ShardPosition]) -> list[ShardPosition]:
        """Which of these, made by the shards' owner, are to be written, with the shards' repairs."""
        found = []
        for position in positions:
            known = self._known.get(position.shard)
            if known is None:
                found.append(position)
            elif position.offset > known.offset or position.shard in self._covered:
                found.append(replace(position, repairs=known.repairs, lost=known.lost))
        return found
