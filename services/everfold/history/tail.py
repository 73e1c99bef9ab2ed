"""Whether a log still has all that was acknowledged (architecture, law 8), and what a shard does when it has not.

Two things say how far a log once reached: the store, which has folded it, and the shard's owners, who say on the topic
`cluster` how far they have come. Whoever takes a shard compares the log with both, so that no host serves a log that
lost its tail from a store that is older than the loss.

A log that lacks something stops the shard, with the store untouched: it may be the only copy of what is missing, and
what a program cannot decide is whether the log can be brought back. When an operator lets the tail go, stores of that
tail are set aside wherever they turn up.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from everfold.history.giving_up import HashMismatch, StoreOfLostTail
from everfold.history.machine.shard_meta import ShardMeta
from everfold.kernel.errors import LogTruncated, ShardLost
from everfold.kernel.positions import ShardPosition, remade
from everfold.kernel.time import SECOND_NS


class LogFacts(NamedTuple):
    """What is known of a shard's log besides its records.

    Attributes:
        known: how far owners say that it was folded; None when nobody has said anything.
        topic_id: of its topic; empty when the brokers have no ids.
        store_topic_id: of the topic that the store is a fold of; empty when the store does not say.
    """

    known: ShardPosition | None = None
    topic_id: str = ""
    store_topic_id: str = ""


def position_of(meta: ShardMeta, topic_id: str) -> ShardPosition:
    """A fold's position."""
    return ShardPosition(
        meta.shard, meta.applied_offset, meta.applied_epoch, meta.state_hash, meta.clock_ns, topic_id=topic_id
    )


class Tail:
    """The checks, each of which returns why the shard cannot be taken, or None.

    Args:
        meta: the fold's, as the store has it; read while records are folded.
        enabled: off in the simulator, to prove that the checks are needed.
    """

    def __init__(self, meta: ShardMeta, log: LogFacts, *, enabled: bool) -> None:
        self._meta = meta
        self._log = log
        self._enabled = enabled
        self._store = store = position_of(meta, log.store_topic_id)
        known = log.known
        #: store and owner had different records at the same offset: the consumer, which resumes behind the store's,
        #: says whether that is the store's fault, before it delivers anything
        self._differs = known is not None and known.offset == store.offset and -1 < known.epoch != store.epoch

    def of_topic(self) -> ShardLost | None:
        """Whether the topic is the one that was folded."""
        for said, position in self._said():
            if remade(position.topic_id, self._log.topic_id):
                text = (
                    f"the topic was deleted and made again: {said} offset {position.offset} of the topic with id "
                    f"{position.topic_id}, which has the id {self._log.topic_id} now"
                )
                return self._verdict(position, text)
        store = self._store
        return None if self._differs else self.folded(store.offset, store.epoch, store.state_hash)

    def of_end(self, end: int) -> ShardLost | None:
        """Whether the log, which ends there, reaches as far as it was folded."""
        for said, position in self._said():
            if (lost := position.offset + 1 - end) > 0:
                text = (
                    f"the log ends at offset {end}, {said} offset {position.offset} (epoch {position.epoch}"
                    f"{_time(position.clock_ns)}): {lost} acknowledged record{'s' if lost > 1 else ''} lost by Kafka"
                )
                return self._verdict(position, text)
        return None

    def folded(self, offset: int, epoch: int, state_hash: bytes) -> ShardLost | None:
        """Whether the record just folded is the one that an owner had there."""
        known = self._log.known
        if not self._enabled or known is None or known.epoch < 0:
            return None
        if self._differs and offset > known.offset:
            return self._written_anew(known, self._store.epoch)
        if offset != known.offset:
            return None
        if epoch != known.epoch:
            return self._written_anew(known, epoch)
        if state_hash != known.state_hash:
            return HashMismatch(
                f"shard {known.shard}: its owner had state hash {known.state_hash.hex()} at offset {offset} (epoch "
                f"{epoch}), this fold has {state_hash.hex()}"
            )
        return None

    def of_consumer(self, text: str) -> ShardLost:
        """The consumer of the log was told that the fold's position is not there any more."""
        meta = self._meta
        return self._verdict(
            position_of(meta, self._log.store_topic_id),
            f"Kafka does not have the log behind offset {meta.applied_offset} (epoch {meta.applied_epoch}"
            f"{_time(meta.clock_ns)}), up to which the store has applied it: {text}",
        )

    def _written_anew(self, known: ShardPosition, epoch: int) -> ShardLost:
        text = (
            f"the log was written anew: it has a record of epoch {epoch} at offset {known.offset}, where the shard's "
            f"owner had folded one of epoch {known.epoch}{_time(known.clock_ns)}"
        )
        return self._verdict(known, text)

    def _said(self) -> list[tuple[str, ShardPosition]]:
        if not self._enabled:
            return []
        # What the owner said first: a store may be what has been let go, or passed by, but an owner's word is not.
        found = [] if self._log.known is None else [("its owner had folded", self._log.known)]
        found.append(("the store has applied", self._store))
        return [one for one in found if one[1].offset >= 0]

    def _verdict(self, position: ShardPosition, text: str) -> ShardLost:
        known = self._log.known
        text = f"shard {position.shard}: {text}"
        if known is not None and position is not known:
            if known.let_go(*_place(position)):
                return StoreOfLostTail(f"{text}; an operator has let that tail go")
            moved = remade(position.topic_id, known.topic_id) and known.topic_id == self._log.topic_id
            if moved or known.epoch > position.epoch:
                # Stopping would protect nothing any more: the log went on without what this store has.
                return StoreOfLostTail(
                    f"{text}; the shard has been served without it since, up to offset {known.offset} (epoch "
                    f"{known.epoch})"
                )
        return LogTruncated(text)


def _place(position: ShardPosition) -> tuple[str, int, int]:
    return position.topic_id, position.offset, position.epoch


def _time(clock_ns: int) -> str:
    if not clock_ns:
        return ""
    return f", {datetime.fromtimestamp(clock_ns // SECOND_NS, UTC):%Y-%m-%dT%H:%M:%SZ}"
