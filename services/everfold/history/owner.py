"""The history process: which shards it holds, and what feeds them.

Kafka's group protocol says which partitions of `shard-log` are ours. For each, `_Tenure` opens the store, makes the
shard, feeds it from a consumer, and when the shard gave itself up cleans up and takes it again after a pause: trouble
may pass, and nobody else gets the shard while the group says that it is ours.

Records come in batches from consumer threads to the event loop, where everything else happens. A shard far behind the
end of its log reads through a consumer of its own until it serves, in small batches, so that it does not hold up the
shards that serve already.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

import structlog

from everfold.history.config import HistoryConfig
from everfold.history.fetched import by_partition, command_record, log_record
from everfold.history.giving_up import (
    Aftermath,
    StoreCorrupt,
    StoreOfLostTail,
    StoreRefused,
    StoreTrouble,
    aftermath,
    decisive,
)
from everfold.history.ingress import Ingress
from everfold.history.interventions import read_skips
from everfold.history.keeping import StoreKeeper, measure_set_aside
from everfold.history.log_holes import LogHoles, look_at
from everfold.history.machine.shard_fold import ShardFold
from everfold.history.machine.step import TaskOffer
from everfold.history.ports import Identity, Matching, Metrics, Namespaces, NoMetrics
from everfold.history.ports_kafka import Flow, KafkaPorts
from everfold.history.reading import Reads
from everfold.history.service import HeldShard, HistoryService
from everfold.history.shard import Shard
from everfold.history.skew import BOUND_MAX_NS, ClockSkew
from everfold.history.standstill import Standstill
from everfold.history.stopped import OnLostTail, PositionTopic, Stop
from everfold.history.store import StoreMemory
from everfold.history.tail import LogFacts, position_of
from everfold.history.taking_times import TakingTimes
from everfold.kernel.errors import ShardLost, UnknownFeatureLevel
from everfold.kernel.positions import ShardPosition
from everfold.kernel.time import SECOND_NS
from everfold.runtime.clock import Clock, SystemClock
from everfold.runtime.kafka import (
    EndOffsets,
    GroupMembership,
    KafkaSettings,
    KafkaTrouble,
    KafkaUnavailable,
    LogConsumer,
    PartitionTrouble,
    Producer,
    PromptProducer,
)
from everfold.runtime.lifecycle import Fatal
from everfold.schemas.topics import ACTIVITY_TASKS, COMMANDS, SHARD_LOG, WORKFLOW_TASKS, Topic

if TYPE_CHECKING:
    from confluent_kafka import Message

log = structlog.get_logger("history.owner")

SIGHT_EVERY_S: Final = 5.0
"""How often lags and depths are measured."""

POSITIONS_EVERY_S: Final = 1.0
"""How often owners say how far they have folded: more than that a host without the store may miss."""

OWN_CONSUMER_LAG: Final = 2000
"""A shard further behind than this reads through a consumer of its own. About half a second of folding."""

CATCH_UP_BATCH: Final = 100
"""Records per batch then: some 20 ms of folding between two looks at the shards that serve."""

_PAUSE_FIRST_S: Final = 0.5
_PAUSE_MAX_S: Final = 30.0


class Membership(Protocol):
    """Where the process says what it holds."""

    def set_partitions(self, role: str, partitions: Iterable[int]) -> None:
        """This process serves these partitions of a role now."""
        ...


class HistoryServer:
    """History in one process.

    Args:
        matching: for the direct hand-off and queries.
        membership: told which shards serve here.
        positions: told how far they have folded; without it only the store says how far the log once reached.
        on_fatal: called when the process must not go on: a store that it may not open, a log of a newer version.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        config: HistoryConfig,
        namespaces: Namespaces,
        reads: Reads,
        matching: Matching,
        *,
        membership: Membership | None = None,
        positions: PositionTopic | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.config = config
        self.namespaces = namespaces
        self.reads = reads
        self.matching = matching
        self.metrics = metrics or NoMetrics()
        self.skew = ClockSkew()
        self.clock = clock or SystemClock()
        self.shards: dict[int, HeldShard] = {}
        self.service = HistoryService(self.shards, config.shard_count, namespaces, reads, matching)
        self.kafka = kafka
        self.log_topic = kafka.topic(SHARD_LOG)
        self.commands_topic = kafka.topic(COMMANDS)
        self.on_fatal = on_fatal or (lambda error: log.critical("history cannot go on", error=str(error)))
        self._membership = membership
        self.positions = positions
        #: shards whose log lacks what was acknowledged
        self.stopped: set[int] = set()
        self._log_topic_id: str | None = None
        self._tenures: dict[int, _Tenure] = {}
        self._cache_seen: WeakKeyDictionary[Shard, tuple[int, int]] = WeakKeyDictionary()
        self._standstill = Standstill(self.metrics)
        #: (full topic, partition) -> its end, when Kafka was last asked
        self._ends: dict[tuple[str, int], int] = {}
        #: asyncio keeps only weak references to tasks
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Join the group. Shards are taken in the background; `serving` says which are."""
        config = self.config
        config.data_dir.mkdir(parents=True, exist_ok=True)
        await measure_set_aside(config.data_dir, self.metrics)
        self.memory = StoreMemory(config.block_cache_bytes, config.write_buffer_bytes)
        self._proposals = PromptProducer(
            self.kafka, name="history-proposals", queue_bytes_max=config.producer_bytes_max // 4
        )
        self._prompt_outputs = Producer(
            self.kafka, name="history-prompt-outputs", queue_bytes_max=config.producer_bytes_max // 4
        )
        self._outputs = Producer(
            self.kafka,
            name="history-outputs",
            queue_bytes_max=config.producer_bytes_max // 4,
            linger_ms=config.outputs_linger_ms,
        )
        self.end_offsets = EndOffsets(self.kafka, name="history-offsets")
        prompt_topics = (
            {SHARD_LOG.name, COMMANDS.name}
            if config.tasks_linger
            else {SHARD_LOG.name, COMMANDS.name, WORKFLOW_TASKS.name, ACTIVITY_TASKS.name}
        )
        self.ports = KafkaPorts(
            self.kafka.prefix,
            self._proposals,
            self._prompt_outputs,
            self._outputs,
            prompt_topics,
            self.end_offsets,
            self.clock,
        )
        self.log_consumer = LogConsumer(
            self.kafka, name="history-log", on_batch=self._on_log, on_trouble=self.on_log_trouble
        )
        self.commands_consumer = LogConsumer(
            self.kafka,
            name="history-commands",
            on_batch=self._on_commands,
            on_trouble=self._on_commands_trouble,
            on_end=self._on_commands_end,
            read_committed=True,
        )
        self._group = GroupMembership(
            self.kafka,
            group="history",
            topic=self.log_topic,
            on_assigned=self._assigned,
            on_revoked=self._revoked,
            session_ms=config.session_ms,
            instance=config.instance,
        )
        await self.log_consumer.start()
        await self.commands_consumer.start()
        self.joining_since_ns = self.clock.boot_ns()
        await self._group.start()
        self.in_background(self._flush_for_ever())
        self.in_background(self._watch_for_ever())
        if self.positions is not None:
            self.in_background(self._say_positions_for_ever(self.positions))

    async def stop(self) -> None:
        """Leave the group, answer everybody, flush and close the stores."""
        for task in list(self._tasks):
            task.cancel()
        if hasattr(self, "_group"):
            await self._group.stop()  # revokes what is held
        await self._revoked(frozenset(self._tenures))
        if hasattr(self, "ports"):
            await self.commands_consumer.stop()
            await self.log_consumer.stop()
            self.ports.close()
            self.end_offsets.close()
            await asyncio.gather(self._proposals.close(0.5), self._prompt_outputs.close(1.0), self._outputs.close(1.0))

    @property
    def serving(self) -> list[int]:
        """The shards that answer here."""
        return sorted(number for number, held in self.shards.items() if held.shard.serving)

    def newest_outputs(self, topic: Topic) -> dict[int, tuple[int, int, int]]:
        """Shard -> place in its log of the last output for a topic. Shards that have made none yet are left out."""
        made = ((number, held.shard.outbox.newest.get(topic.name)) for number, held in self.shards.items())
        return {number: (last.epoch, last.offset, last.index) for number, last in made if last is not None}

    @property
    def slowest_taking(self) -> TakingTimes | None:
        """Of the shards that serve here, how long the one that served last took."""
        times = [tenure.times for tenure in self._tenures.values() if tenure.times is not None]
        return max(times, key=sum, default=None)

    def announce(self) -> None:
        """Say what is served here, after a change."""
        if self._membership is not None:
            self._membership.set_partitions("history", self.serving)
        self.metrics.gauge("shards_owned", len(self.serving))

    async def log_topic_id(self) -> str:
        """Kafka's id of `shard-log`. Asked once, and again when a log was not what it should be: a takeover while a
        broker hangs must not wait for one question more.
        """
        if self._log_topic_id is None:
            self._log_topic_id = await self.end_offsets.topic_id(self.log_topic)
        return self._log_topic_id

    def doubt_log_topic(self) -> None:
        """The topic may have been deleted and made again."""
        self._log_topic_id = None

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the rest, until it ends or the process stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def run_cache_share(self) -> tuple[int, int]:
        """One shard's part of the run cache, (bytes, runs): as if the shards were spread over no other process."""
        shards, runs = self.config.shard_count, self.config.run_cache_runs
        return max(self.config.run_cache_bytes // shards, 64 * 1024), runs and max(runs // shards, 1)

    # ---- the group --------------------------------------------------------------------------------------------------

    async def _assigned(self, partitions: frozenset[int]) -> None:
        for number in partitions:
            if number not in self._tenures:
                tenure = self._tenures[number] = _Tenure(self, number)
                tenure.begin()

    async def _revoked(self, partitions: frozenset[int]) -> None:
        ending = [tenure for number in partitions if (tenure := self._tenures.pop(number, None)) is not None]
        # All answer their callers before the first store is closed, which takes time.
        for tenure in ending:
            tenure.give_up()
            self._standstill.forget(tenure.number)
        self.announce()
        await asyncio.gather(*(tenure.end() for tenure in ending))

    # ---- records ----------------------------------------------------------------------------------------------------

    def _on_log(self, messages: list[Message]) -> None:
        for number, batch in by_partition(messages).items():
            tenure = self._tenures.get(number)
            if tenure is not None:
                tenure.on_log(batch)

    def on_log_trouble(self, trouble: PartitionTrouble) -> None:
        """A partition of the log cannot be read on."""
        tenure = self._tenures.get(trouble.partition)
        if tenure is None or tenure.holes is None:
            return
        if trouble.position_lost or trouble.unreadable:
            tenure.holes.look(trouble.text if trouble.position_lost else "")
        else:
            log.warning("shard log", shard=trouble.partition, error=trouble.text)

    def _on_commands(self, messages: list[Message]) -> None:
        for number, batch in by_partition(messages).items():
            tenure = self._tenures.get(number)
            if tenure is not None:
                tenure.on_commands(batch)

    def _on_commands_trouble(self, trouble: PartitionTrouble) -> None:
        tenure = self._tenures.get(trouble.partition)
        if tenure is None:
            return
        if trouble.position_lost:
            tenure.commands_lost(trouble.text)
        else:
            log.warning("commands", partition=trouble.partition, error=trouble.text)

    def _on_commands_end(self, _topic: str, partition: int, offset: int) -> None:
        tenure = self._tenures.get(partition)
        if tenure is not None and tenure.ingress is not None:
            tenure.ingress.reached_end(offset)

    def on_offers(self, offers: list[TaskOffer]) -> None:
        """The direct hand-off. Trouble there must not cost the shard: each task has another way."""
        for offer in offers:
            try:
                self.matching.offer(offer)
            except Exception:
                log.exception("direct hand-off failed", shard=offer.shard)

    # ---- in the background ------------------------------------------------------------------------------------------

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.config.flush_interval_s)
            for tenure in list(self._tenures.values()):
                await tenure.flush()

    async def _say_positions_for_ever(self, topic: PositionTopic) -> None:
        while True:
            await asyncio.sleep(POSITIONS_EVERY_S)
            served = [found for tenure in self._tenures.values() if (found := tenure.position()) is not None]
            for position in topic.news(served):
                topic.say(position)

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SIGHT_EVERY_S)
            held = dict(self.shards)
            bound = self.skew.bound_ns(self.clock.wall_ns())
            self.metrics.gauge("clock_skew_seconds", bound / SECOND_NS)
            if abs(bound) > BOUND_MAX_NS:
                log.error("this machine's clock and the brokers' disagree", seconds=bound / SECOND_NS)
            waiting = 0
            for number, one in held.items():
                shard, label = one.shard, str(number)
                waiting += len(shard.waiters) + len(shard.barrier) + len(one.queries) + len(shard.updates)
                self.metrics.gauge("outbox_depth", shard.outbox.depth, shard=label)
                self.metrics.gauge("in_flight_records", shard.in_flight, shard=label)
                self._count_cache(shard)
                shard.guarded(self._tell_of_namespaces)(shard)
            self.metrics.gauge("waiters", waiting)
            topics = (self.log_topic, self.commands_topic)
            unavailable: KafkaUnavailable | None = None
            try:
                self._ends |= await self.end_offsets.end_offsets(
                    [(topic, number) for topic in topics for number in held]
                )
            except KafkaUnavailable as error:
                unavailable = error
            try:
                self._look_for_standstill(held, unavailable)
            except Exception:  # whoever watches must not be the first to fall asleep
                log.exception("standstill not looked for")

    def _look_for_standstill(self, held: dict[int, HeldShard], unavailable: KafkaUnavailable | None) -> None:
        """Measures how far the shards are behind their partitions, and says which stand still."""
        now_s = self.clock.boot_ns() / SECOND_NS
        why = f"Kafka does not answer: {unavailable}; " if unavailable is not None else ""
        for number, one in held.items():
            shard, label = one.shard, str(number)
            meta = shard.fold.meta
            lag = max(self._ends.get((self.log_topic, number), 0) - meta.applied_offset - 1, 0)
            self.metrics.gauge("shard_lag_records", lag, shard=label)
            self._standstill.look(SHARD_LOG.name, number, meta.applied_offset, lag, why + shard.waits_for, now_s)
            tenure = self._tenures.get(number)
            if tenure is not None and tenure.holes is not None:
                tenure.holes.look_if_still(self._ends.get((self.log_topic, number), 0))
            ingress = None if tenure is None else tenure.ingress
            next_offset = meta.commands_offset + 1 if ingress is None else ingress.next_offset
            lag = max(self._ends.get((self.commands_topic, number), 0) - next_offset, 0)
            self.metrics.gauge("topic_lag_records", lag, topic=self.commands_topic, partition=label)
            read, reason = (0, shard.waits_for) if ingress is None else (ingress.waiting, ingress.waits_for)
            self._standstill.look(
                COMMANDS.name,
                number,
                next_offset - 1,
                max(lag, read),
                why + reason,
                now_s,
            )

    def _tell_of_namespaces(self, shard: Shard) -> None:
        """Tells a shard of its namespaces' changes.

        A request does that before it is decided. But a deleted namespace gets no requests, and some workflows are moved
        by timers alone.
        """
        for namespace_id in list(shard.fold.meta.namespaces):
            shard.tell_namespace(namespace_id, lambda _error: None)

    def _count_cache(self, shard: Shard) -> None:
        """The run cache counts for itself; what came since the last look goes to the metrics."""
        cache = shard.fold.cache
        hits, misses = self._cache_seen.get(shard, (0, 0))
        self.metrics.count("run_cache_hits", cache.hits - hits)
        self.metrics.count("run_cache_misses", cache.misses - misses)
        self._cache_seen[shard] = (cache.hits, cache.misses)


class _Tenure:
    """One shard's time with this process, from assignment to revocation; the listener of its `Shard`."""

    def __init__(self, server: HistoryServer, number: int) -> None:
        self._server = server
        self.number = number
        config = server.config
        self._keeper = StoreKeeper(number, config.data_dir, config.cluster_id, server.metrics, self._store_corrupt)
        self._held: HeldShard | None = None
        self.ingress: Ingress | None = None
        self.holes: LogHoles | None = None
        self._own_consumer: LogConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._log_facts = LogFacts()
        self._given_up = asyncio.Event()
        self._over = asyncio.Event()
        #: the log lacks what was acknowledged
        self._stop: Stop | None = None
        #: the consumer has said once that the position is not in the log
        self._doubted = False
        self._paused_by_shard = False
        self._assigned_at_ns = server.clock.boot_ns()
        self._opened_at_ns = 0
        #: of the latest taking
        self.times: TakingTimes | None = None

    # ---- life -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take the shard, in the background, again and again until the tenure ends."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"shard-{self.number}")

    def give_up(self) -> None:
        """The shard goes to somebody else: answer everybody now. Loop thread, at once."""
        self._over.set()
        if self._held is not None:
            self._held.shard.close()
        self._given_up.set()

    async def end(self) -> None:
        """Wait until nothing is held any more. After `give_up`."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = _PAUSE_FIRST_S
        while not self._over.is_set():
            began = asyncio.get_running_loop().time()
            self._given_up.clear()
            try:
                await self._take()
                await self._given_up.wait()
            except (StoreRefused, UnknownFeatureLevel) as refused:
                await self._release()
                self._server.on_fatal(refused)
                return
            except (StoreCorrupt, StoreTrouble, OSError, KafkaUnavailable) as trouble:
                log.error("could not take the shard", shard=self.number, reason=str(trouble))
                self._server.metrics.count("shards_lost", reason=type(trouble).__name__)
                self._keeper.judge(trouble)
            except Exception as trouble:
                log.exception("could not take the shard", shard=self.number)
                self._keeper.judge(trouble)
            await self._release()
            if self._stop is not None:
                stop, self._stop = self._stop, None
                await self._be_stopped(stop)
            if self._over.is_set():
                return
            # A shard that served for a while was lost to something new; one that fails at once will fail again.
            pause = _PAUSE_FIRST_S if asyncio.get_running_loop().time() - began > _PAUSE_MAX_S else pause
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, _PAUSE_MAX_S)

    async def _take(self) -> None:
        server, config = self._server, self._server.config
        while abs(bound := server.skew.bound_ns(server.clock.wall_ns())) > BOUND_MAX_NS and not self._over.is_set():
            log.error("shard not taken: this machine's clock is wrong", shard=self.number, seconds=bound / SECOND_NS)
            await asyncio.sleep(SIGHT_EVERY_S)
        if self._over.is_set():
            return
        known = None if server.positions is None else await server.positions.position(self.number)
        topic_id = await server.log_topic_id()
        store = await self._keeper.open(server.memory, topic_id)
        self._log_facts = LogFacts(known, topic_id, store.topic_id)
        read = partial(read_skips, server.kafka, server.end_offsets, self.number)
        look = partial(look_at, server.kafka, server.log_topic, self.number)
        skips = await read()
        if self._over.is_set():
            return
        cache_bytes, cache_runs = server.run_cache_share()
        fold = ShardFold(self.number, store, cache_bytes)
        fold.cache.runs_max = cache_runs
        instance = random.SystemRandom().getrandbits(62) + 1
        identity = Identity(config.cluster_id, config.shard_count, config.feature_level, instance, config.owner)
        shard = Shard(
            self.number,
            fold,
            store,
            server.ports.for_shard(partial(self._switch, True), partial(self._switch, False)),
            identity,
            config.settings,
            server.namespaces,
            self,
            limits=config.limits,
            metrics=server.metrics,
            skew=server.skew,
            log_facts=self._log_facts,
        )
        self.holes = LogHoles(shard, look, skips, read, self._read_on, self.log_lost, server.in_background)
        self._opened_at_ns = server.clock.boot_ns()
        self._held = HeldShard(shard, server.reads)
        server.shards[self.number] = self._held
        offset, epoch = shard.resume_position()
        end = await server.end_offsets.end_offset(server.log_topic, self.number)
        if self._over.is_set():
            return
        if end - offset > OWN_CONSUMER_LAG:
            log.info("shard catches up", shard=self.number, records=end - offset)
            self._own_consumer = LogConsumer(
                server.kafka,
                name=f"history-catch-up-{self.number}",
                on_batch=self._on_own,
                on_trouble=server.on_log_trouble,
                batch_records_max=CATCH_UP_BATCH,
            )
            await self._own_consumer.start()
        (self._own_consumer or server.log_consumer).assign(server.log_topic, self.number, offset, epoch)
        shard.start()
        self.holes.look_if_still(end)  # remembers where it begins: the next one may find that it still stands there

    async def _release(self) -> None:
        """Nothing of the shard stays: neither consumers nor an open store, which is set aside if need be."""
        server = self._server
        server.shards.pop(self.number, None)
        server.announce()
        server.log_consumer.unassign(server.log_topic, self.number)
        server.commands_consumer.unassign(server.commands_topic, self.number)
        self.ingress = self.holes = None
        if self._held is not None:
            self._held.shard.close()
            self._held = None
        if self._own_consumer is not None:
            consumer, self._own_consumer = self._own_consumer, None
            await consumer.stop()
        await self._keeper.close()

    def position(self) -> ShardPosition | None:
        """How far the shard has folded, while it is served here."""
        if self._held is None or not self._held.shard.serving:
            return None
        return position_of(self._held.shard.fold.meta, self._log_facts.topic_id)

    async def _be_stopped(self, stop: Stop) -> None:
        """The shard is not served and its store stays as it is, until an operator decides."""
        server, config = self._server, self._server.config
        topic, how = server.log_topic, config.on_lost_tail
        server.stopped.add(self.number)
        server.metrics.gauge("shards_stopped", len(server.stopped))
        try:
            end = await server.end_offsets.end_offset(topic, self.number)
            if how is OnLostTail.KEEP_LOG:
                await self._let_go(stop, end)
            elif how is OnLostTail.END:
                server.on_fatal(Fatal(stop.words(topic, end, "start again, once, with --on-lost-tail keep-log")))
                await self._over.wait()
            else:
                command = f"`everfold shard repair {self.number} --keep-log`"
                log.error("shard stopped", shard=self.number, reason=stop.words(topic, end, command))
                await stop.wait(server.positions, self._over)
        except KafkaTrouble as trouble:
            log.warning("a stopped shard is looked at again", shard=self.number, reason=str(trouble))
        finally:
            server.stopped.discard(self.number)
            server.metrics.gauge("shards_stopped", len(server.stopped))

    async def _let_go(self, stop: Stop, end: int) -> None:
        server = self._server
        log.error("the log's tail is let go, as asked for", shard=self.number, reason=stop.reason, log_ends_at=end)
        if server.positions is None:
            self._keeper.judge(StoreOfLostTail(stop.reason))
        else:
            await server.positions.settle(stop.without_tail(end, server.clock.wall_ns(), server.config.owner))

    def _store_corrupt(self, corrupt: StoreCorrupt) -> None:
        if self._held is not None:
            self._held.shard.fail(corrupt)

    async def flush(self) -> None:
        """Write the memtables to disk."""
        trouble = await self._keeper.flush()
        if trouble is not None and self._held is not None:
            self._held.shard.fail(trouble)

    # ---- the shard's listener ---------------------------------------------------------------------------------------

    def on_serving(self) -> None:
        """See `ShardListener`."""
        server = self._server
        assert self._held is not None
        shard = self._held.shard
        self._doubted = False
        self.times = TakingTimes.between(
            server.joining_since_ns,
            self._assigned_at_ns,
            self._opened_at_ns,
            shard.caught_up_at_ns,
            server.clock.boot_ns(),
        )
        server.metrics.observe("shard_take_seconds", self.times.own)
        log.info("shard serves", shard=self.number, offset=shard.fold.meta.applied_offset, **self.times.shown())
        if self._own_consumer is not None:
            # After this batch: its consumer is the one that is calling.
            asyncio.get_running_loop().call_soon(shard.guarded(self._join_others))
        self.ingress = Ingress(
            shard,
            Flow(server.commands_consumer, server.commands_topic, self.number),
            server.namespaces,
            server.config.shard_count,
            server.metrics,
            topic=server.commands_topic,
        )
        offset, epoch = self.ingress.resume_position()
        server.commands_consumer.assign(server.commands_topic, self.number, offset, epoch)
        server.announce()

    def on_lost(self, reason: BaseException) -> None:
        """See `ShardListener`."""
        self._keeper.judge(reason)
        if aftermath(reason) is Aftermath.STOPPED:
            assert self._held is not None
            store = position_of(self._held.shard.fold.meta, self._log_facts.store_topic_id)
            self._server.doubt_log_topic()
            self._stop = Stop(str(decisive(reason)), store, self._log_facts)
        self._given_up.set()
        if isinstance(reason, UnknownFeatureLevel):
            # Only a newer build can do better, and it gets the shard when this process is gone.
            self._server.on_fatal(reason)

    def on_offers(self, offers: list[TaskOffer]) -> None:
        """See `ShardListener`."""
        self._server.on_offers(offers)

    # ---- records ----------------------------------------------------------------------------------------------------

    def on_log(self, messages: list[Message]) -> None:
        """Records of the shard's log, from the consumer that all shards share."""
        if self._held is not None and self.holes is not None:
            self._held.shard.on_records(self.holes.unbroken([log_record(message) for message in messages]))

    def _on_own(self, messages: list[Message]) -> None:
        if self._own_consumer is not None:
            self.on_log(messages)

    def _join_others(self) -> None:
        """From the consumer of its own to the shared one, at the position reached."""
        server = self._server
        if self._own_consumer is None or self._held is None or not self._held.shard.serving:
            return
        consumer, self._own_consumer = self._own_consumer, None
        consumer.unassign(server.log_topic, self.number)
        self._read_on()
        server.in_background(consumer.stop())

    def _read_on(self) -> None:
        """Read from the shard's position again."""
        if self._held is None:
            return
        topic, consumer = self._server.log_topic, self._own_consumer or self._server.log_consumer
        consumer.unassign(topic, self.number)
        consumer.assign(topic, self.number, *self._held.shard.resume_position())
        if self._paused_by_shard:
            consumer.pause(topic, self.number)

    def _switch(self, pause: bool) -> None:
        self._paused_by_shard = pause
        consumer = self._own_consumer or self._server.log_consumer
        (consumer.pause if pause else consumer.resume)(self._server.log_topic, self.number)

    def log_lost(self, text: str) -> None:
        """The position is not in the log any more, or the log was rewritten behind it."""
        if self._held is not None:
            if self._doubted:
                self._held.shard.on_log_lost(text)
                return
            # librdkafka hands over errors of an assignment that has ended: said twice, it is about this one.
            self._doubted = True
            self._held.shard.fail(ShardLost(f"shard {self.number}: {text}; it is taken again to be sure"))

    def on_commands(self, messages: list[Message]) -> None:
        """Records of the shard's partition of `commands`."""
        if self.ingress is not None:
            self.ingress.on_commands(map(command_record, messages))

    def commands_lost(self, text: str) -> None:
        """Commands were trimmed before they were taken, or the topic's tail was lost: go on with what there is."""
        if self.ingress is None:
            return
        offset, epoch = self.ingress.resume_position()
        log.error("commands lost", partition=self.number, offset=offset, epoch=epoch, reason=text)
        self._server.metrics.count("records_rejected", reason="LOST")
        server = self._server
        server.commands_consumer.unassign(server.commands_topic, self.number)
        server.in_background(self._resume_commands(offset))

    async def _resume_commands(self, wanted: int) -> None:
        server = self._server
        while self.ingress is not None:
            with suppress(KafkaUnavailable):
                end = await server.end_offsets.end_offset(server.commands_topic, self.number)
                # Behind the end: the tail was lost, what comes next is new. Otherwise the start was trimmed.
                start = end if wanted > end else _EARLIEST
                if self.ingress is not None:
                    server.commands_consumer.assign(server.commands_topic, self.number, start)
                return
            await asyncio.sleep(1.0)


_EARLIEST: Final = -2
"""librdkafka's logical offset for the first record that is there."""
