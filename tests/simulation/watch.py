"""What is watched while a run goes on: every fold, wherever it happens, against every other fold of the same record."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from everfold.history.machine.context import StepContext
from everfold.history.machine.rows import RowStore
from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.history.machine.step import Guards, Step
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas.topics import SHARD_LOG
from simulation import runs
from simulation.broker import Place, Stored
from simulation.clock import WALL_START_NS
from simulation.junk import read_or_empty

if TYPE_CHECKING:
    from simulation.cluster import Cluster

CLOCK_LEAD_MAX_NS = SECOND_NS + 400 * MILLISECOND_NS + 2 * MILLISECOND_NS
"""How far a shard's clock may be ahead of true time: a proposer's clock (at most 400 ms ahead here) and a second."""


NEWER_FEATURE_LEVEL = FEATURE_LEVEL + 1
"""Of a build that there will be: it knows all of today's rules, and one more of its own."""

_NEWER_RULE_ROW = b"\xff\xff~newer rule"


class Violation(AssertionError):
    """A law was broken."""


class Watch:
    """See the module. Problems are collected; the run stops at the first."""

    def __init__(self, cluster: Cluster, guards: Guards) -> None:
        self._cluster = cluster
        self._guards = guards
        self.problems: list[str] = []
        self.cause: BaseException | None = None
        #: (shard, offset, epoch) -> state hash of the first fold of that record
        self._hashes: dict[tuple[int, int, int], bytes] = {}
        #: workflow ids with records in a tail that Kafka lost: what their clients were told may be gone
        self.tainted: set[str] = set()
        #: shards whose log lost records
        self.cut_shards: set[int] = set()
        #: workflows that may wait for the end of a child for ever, as on a real server: a run was reset that was
        #: closed, had been reset before or is gone, and another run than the new one has heard of the child's end
        self.lost_children: set[str] = set()
        self.counts: Counter[str] = Counter()
        cluster.broker.on_lost_tail.append(self._lost_tail)

    def fold(
        self, shard: int, store: RowStore, cache_bytes: int, owner: str, *, feature_level: int = NEWER_FEATURE_LEVEL
    ) -> WatchedFold:
        """A fold whose every step is compared."""
        return WatchedFold(
            self, owner, shard, store, cache_bytes, guards=self._guards, feature_level_known=feature_level
        )

    def problem(self, text: str, cause: BaseException | None = None) -> None:
        """A law was broken, or something happened that must not."""
        if not self.problems:
            self.cause = cause
        self.problems.append(text)
        self._cluster.note(f"PROBLEM {text}")

    def shard_lost(self, number: int, reason: BaseException) -> None:
        """An owner gave a shard up."""
        name = type(reason).__name__
        self.counts[f"lost:{name}"] += 1
        of_disk = name in ("DiskTrouble", "StoreFailed")
        losses = ("LogTruncated", "HashMismatch", "StoreOfLostTail", "CommandSkipped")
        of_kafka = name in losses and number in self.cut_shards
        of_age = name == "UnknownFeatureLevel" and self._cluster.feature_level_wanted == NEWER_FEATURE_LEVEL
        if not of_disk and not of_kafka and not of_age:
            self.problem(f"shard {number} was given up without need: {reason!r}", reason)

    def folded(self, fold: WatchedFold, record: LogRecord, step: Step, clock_before: int) -> None:
        """One step, by anybody."""
        meta = fold.meta
        place = (meta.shard, record.offset, record.epoch)
        known = self._hashes.get(place)
        if known is None:
            self._hashes[place] = meta.state_hash
        elif known != meta.state_hash:
            self.problem(f"{fold.owner} folded {place} to another state than the first who did")
        if meta.clock_ns < clock_before:
            self.problem(f"shard clock went back by {clock_before - meta.clock_ns} ns at {place}")
        lead = meta.clock_ns - WALL_START_NS - self._cluster.loop.now_ns
        if lead > CLOCK_LEAD_MAX_NS:
            self.problem(f"shard clock is {lead / SECOND_NS:.3f} s ahead of true time at {place}")
        for key in dict.fromkeys(step.changed):
            for fault in runs.faults(fold, key):
                self.problem(f"{key} at {place}: {fault}")
        for run, reason in step.quarantined:
            self.problem(f"{run} was quarantined at {place}: {reason}")
        self.counts["folded"] += 1
        self.counts["set aside"] += bool(step.set_aside)

    def _lost_tail(self, place: Place, lost: list[Stored]) -> None:
        if place[0] != SHARD_LOG.name:
            return
        self.cut_shards.add(place[1])
        for record in lost:
            assert record.value is not None
            self.tainted.add(read_or_empty(record.value).get("workflow_id", ""))
        self.counts["records lost by Kafka"] += len(lost)


class WatchedFold(ShardFold):
    """The machine's fold; tells the watch of each step."""

    def __init__(
        self,
        watch: Watch,
        owner: str,
        shard: int,
        rows: RowStore,
        run_cache_bytes: int,
        *,
        guards: Guards,
        feature_level_known: int,
    ) -> None:
        super().__init__(shard, rows, run_cache_bytes, guards=guards, feature_level_known=feature_level_known)
        self.owner = owner
        self._watch = watch

    def _do(self, ctx: StepContext, body: dict[str, Any], record: LogRecord) -> None:
        super()._do(ctx, body, record)
        if self.feature_level_known >= NEWER_FEATURE_LEVEL <= self.meta.feature_level:
            # The newer build's rule: it keeps the offset of the latest record in a row.
            self.rows.put(_NEWER_RULE_ROW, str(record.offset).encode())
            self.rows.commit_step()

    def fold(self, record: LogRecord) -> Step:
        before = self.meta.clock_ns
        commands = (self.meta.commands_epoch, self.meta.commands_offset)
        step = super().fold(record)
        self._watch.folded(self, record, step, before)
        if (self.meta.commands_epoch, self.meta.commands_offset) < commands:
            self._watch.problem(f"position on commands went back at offset {record.offset} of shard {self.meta.shard}")
        return step
