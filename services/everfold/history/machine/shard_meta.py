"""The shard's meta row: all of its state that is not about one run."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgpack

from everfold.kernel.errors import UnknownFeatureLevel
from everfold.kernel.limits import Limits


@dataclass(slots=True)
class ShardMeta:
    """The shard's meta row: everything that is not about one run.

    Attributes:
        applied_offset, applied_epoch: the last folded record; -1 before the first.
        clock_ns: shard time.
        commands_offset, commands_epoch: position on `commands`; -1 before the first.
        chains: "topic/partition" -> place of the last output sent there by this shard.
        received: "SOURCE/partition" -> place of the last message taken from there.
        outputs_sent: place up to which outputs are acknowledged; None before the first.
        namespaces: namespace id -> version known to this shard.
        offered_epoch: all tasks of earlier leader epochs have been offered since this one began; see `offer_again`.
        offering_epoch, offer_cursor: how far that is for a later one.
    """

    shard: int
    applied_offset: int = -1
    applied_epoch: int = -1
    clock_ns: int = 0
    cluster_id: str = ""
    shard_count: int = 0
    feature_level: int = 0
    commands_offset: int = -1
    commands_epoch: int = -1
    outputs_sent: tuple[int, int, int] | None = None
    settings: dict[str, int] = field(default_factory=dict)
    namespaces: dict[str, int] = field(default_factory=dict)
    chains: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    received: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    state_hash: bytes = b""
    offered_epoch: int = -1
    offering_epoch: int = -1
    offer_cursor: bytes = b""
    limits: Limits = field(default_factory=Limits)

    def encode(self) -> bytes:
        """The row."""
        packed: bytes = msgpack.packb(
            [
                1,
                self.applied_offset,
                self.applied_epoch,
                self.clock_ns,
                self.cluster_id,
                self.shard_count,
                self.feature_level,
                self.commands_offset,
                self.commands_epoch,
                self.outputs_sent,
                self.settings,
                self.namespaces,
                self.chains,
                self.received,
                self.state_hash,
                self.offered_epoch,
                self.offering_epoch,
                self.offer_cursor,
            ]
        )
        return packed

    @classmethod
    def decode(cls, shard: int, row: bytes | None) -> ShardMeta:
        """From its row; a new shard's where there is none."""
        if row is None:
            return cls(shard)
        values = msgpack.unpackb(row)
        if values[0] != 1:
            raise UnknownFeatureLevel(f"expected meta row layout 1, found {values[0]}; use the version that wrote it")
        meta = cls(shard, *values[1:9])
        sent, meta.settings, meta.namespaces, chains, received, meta.state_hash = values[9:15]
        if len(values) > 15:
            meta.offered_epoch, meta.offering_epoch, meta.offer_cursor = values[15:]
        meta.outputs_sent = None if sent is None else (sent[0], sent[1], sent[2])
        meta.chains = {key: (place[0], place[1], place[2]) for key, place in chains.items()}
        meta.received = {key: (place[0], place[1], place[2]) for key, place in received.items()}
        meta.limits = Limits(meta.settings)
        return meta
