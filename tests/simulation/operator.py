"""Who is called when a shard is stopped: looks at the log, and after a while lets go what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everfold.history.stopped import Stop
from everfold.kernel.positions import ShardPosition, without_tail
from everfold.kernel.time import MILLISECOND_NS
from everfold.schemas.topics import SHARD_LOG

if TYPE_CHECKING:
    from simulation.cluster import Cluster


class Operator:
    """See the module. `everfold shard repair N --keep-log` is what is done here."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._coming: set[int] = set()
        #: what owners said when the log had lost it already: others may have served without it before
        self._late: set[ShardPosition] = set()

    def called(self, stop: Stop) -> None:
        """An owner has stopped: other hosts hear how far the log reached, and the operator comes."""
        cluster, shard = self._cluster, stop.store.shard
        cluster.positions.received(stop.lost)
        if shard not in self._coming:
            self._coming.add(shard)
            cluster.loop.after(cluster.random.randrange(500, 10_000) * MILLISECOND_NS, lambda: self._repair(shard))

    def heard(self, position: ShardPosition) -> None:
        """An owner has said how far it is."""
        if self._lacks(position):
            self._late.add(position)

    def check_served(self, shard: int, told: ShardPosition | None, resumed_at: int) -> None:
        """A shard begins to serve: no operator may have to be asked first.

        Args:
            shard: its number.
            told: what its owner had read on `cluster` when the taking began. A word that comes later is missed, as one
                is that was never written: owners say how far they are once a second.
            resumed_at: the offset up to which its store had folded then. Of what lies before, a store does not know
                any more which record it had.
        """
        known = self._cluster.positions.get(shard)
        if known is None or known != told or known in self._late or resumed_at > known.offset:
            return
        if self._lacks(known):
            self._cluster.watch.problem(
                f"shard {shard} is served from a log that lacks offset {known.offset} (epoch {known.epoch}), which an "
                "owner had folded, and nobody was asked"
            )

    def _repair(self, shard: int) -> None:
        cluster = self._cluster
        self._coming.discard(shard)
        known = cluster.positions.get(shard)
        if known is None or not self._lacks(known):
            return
        end = cluster.broker.logs[SHARD_LOG.name, shard].end
        cluster.note(f"the operator lets the tail of shard {shard} go, behind offset {end}")
        cluster.watch.counts["repairs"] += 1
        cluster.positions.received(
            without_tail(known, end=end, topic_id="", at_ns=cluster.loop.now_ns, by="the operator")
        )

    def _lacks(self, known: ShardPosition) -> bool:
        records = self._cluster.broker.logs[SHARD_LOG.name, known.shard].records
        if known.offset >= len(records):
            return True
        return known.offset >= 0 and known.epoch >= 0 and records[known.offset].epoch != known.epoch
