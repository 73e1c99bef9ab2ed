"""A process of the cluster: the real shards, history service and matching service, on a fake broker and a fake disk.

A host keeps its stores and is booted again after a crash; a process is one life of it. What the real servers do with
confluent-kafka (take a shard, read its partitions, take it again after a loss) is done here in the same order.

A process can die at any *effect*: each time that it produces, writes to its store, asks for the end of a log, hands a
task on or answers a call, `effect` counts down. It can also be stopped and go on later, when others have long taken
its shards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from everfold.history.giving_up import Aftermath, aftermath, decisive
from everfold.history.ingress import CommandRecord, Ingress
from everfold.history.machine.shard_fold import LogRecord
from everfold.history.machine.step import TaskOffer
from everfold.history.machine_reads import MachineReads
from everfold.history.ports import Delivered, Headers, Identity
from everfold.history.service import HeldShard, HistoryService
from everfold.history.shard import Shard
from everfold.history.skew import ClockSkew
from everfold.history.stopped import Stop
from everfold.history.tail import LogFacts, position_of
from everfold.kernel.errors import UnknownFeatureLevel
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.matching.held import HeldPartition
from everfold.matching.machine.task import ACTIVITY, WORKFLOW
from everfold.matching.server import task_of
from everfold.matching.service import MatchingService
from everfold.runtime.clients import HistoryClient, MatchingClient
from everfold.schemas import codec
from everfold.schemas.topics import ACTIVITY_TASKS, COMMANDS, SHARD_LOG, WORKFLOW_TASKS
from simulation.broker import Producer, Reader, Stored
from simulation.clock import WALL_START_NS
from simulation.store import DiskTrouble, SimStore

if TYPE_CHECKING:
    from simulation.cluster import Cluster

TASK_TOPICS = {WORKFLOW_TASKS.name: WORKFLOW, ACTIVITY_TASKS.name: ACTIVITY}
_DECODE = {WORKFLOW: codec.decode_workflow_task, ACTIVITY: codec.decode_activity_task}


class Crashed(BaseException):
    """Unwinds the stack of a process that has just died."""


class Host:
    """A machine: a disk and a clock, and the process that runs on it, if one does.

    Attributes:
        feature_level: the newest that the build installed there knows.
    """

    def __init__(self, name: str, clock_skew_ns: int, feature_level: int) -> None:
        self.name = name
        self.clock_skew_ns = clock_skew_ns
        self.feature_level = feature_level
        self.stores: dict[int, SimStore] = {}
        self.process: Process | None = None


class Process:
    """See the module."""

    def __init__(self, cluster: Cluster, host: Host) -> None:
        self.cluster = cluster
        self.host = host
        self.loop = cluster.loop
        self.random = cluster.random
        self.feature_level = host.feature_level
        self.alive = True
        self.frozen = False
        self.name = f"{host.name}.{cluster.next_number()}"
        self._deferred: list[Callable[[], None]] = []
        self._thawed: list[asyncio.Future[None]] = []
        #: effects until it dies
        self.effects_left: int | None = None
        self.on_crash: list[Callable[[], None]] = []
        #: in order, so that they end in order
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.producer = Producer(cluster.broker, self, cluster.producer_faults)
        self.namespaces = ProcessNamespaces(self)
        self.skew = ClockSkew()
        self.shards: dict[int, HeldShard] = {}
        self.tenures: dict[int, Tenure] = {}
        self.held_tasks: dict[int, TaskTenure] = {}
        router = cluster.router(self)
        history_client = HistoryClient(router)
        self.matching = MatchingService(
            history_client,
            cluster.task_partitions,
            clock=ProcessClock(self),
            instance=self.name,
            long_poll_s=cluster.long_poll_s,
        )
        self._matching_client = MatchingClient(router, cluster.task_partitions, self.matching)
        self.history = HistoryService(
            self.shards,
            cluster.shard_count,
            self.namespaces,
            MachineReads(),
            self._matching_client,
            long_poll_s=cluster.long_poll_s,
        )
        history_client.local = self.history

    # ---- life and death ---------------------------------------------------------------------------------------------

    def run(self, callback: Callable[[], None]) -> None:
        """Call back in this process: never when it is dead, later when it is stopped."""
        if not self.alive:
            return
        if self.frozen:
            self._deferred.append(callback)
            return
        with suppress(Crashed):
            callback()

    def effect(self) -> None:
        """Something is about to leave the process; it may die first."""
        if not self.alive:
            raise Crashed
        if self.effects_left is not None:
            self.effects_left -= 1
            if self.effects_left < 0:
                self.crash()
                raise Crashed

    def crash(self) -> None:
        """kill -9: nothing is flushed, nothing is said."""
        if not self.alive:
            return
        self.cluster.note(f"{self.name} dies")
        self.alive = False
        self._gone()
        for store in self.host.stores.values():
            store.crash()

    def stop(self) -> None:
        """An orderly end, as far as the stores are concerned: they are flushed."""
        if not self.alive:
            return
        self.cluster.note(f"{self.name} stops")
        for tenure in list(self.tenures.values()):
            tenure.give_up()
        self.alive = False
        self._gone()
        for store in self.host.stores.values():
            store.flush()

    def outdated(self) -> None:
        """Its build is too old for a log. It ends, as the real one does; whoever keeps it running starts it again."""
        if not self.alive:
            return
        self.stop()

        def boot() -> None:
            if self.host.process is None:
                self.cluster.boot(self.host)

        self.loop.after(self.random.randrange(500, 5000) * MILLISECOND_NS, boot)

    def _gone(self) -> None:
        self.producer.die()
        self.host.process = None
        for tenure in self.tenures.values():
            tenure.close_readers()
        for task_tenure in list(self.held_tasks.values()):
            task_tenure.close()
        for task in list(self.tasks):
            task.cancel()
        for future in self._thawed:
            if not future.done():
                future.cancel()
        for hook in self.on_crash:
            hook()
        self.cluster.process_gone(self)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.cluster.note(f"{self.name} is stopped for a while")
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT: everything that came meanwhile is handled now, on the state of then."""
        if not self.frozen:
            return
        self.cluster.note(f"{self.name} goes on")
        self.frozen = False
        thawed, self._thawed = self._thawed, []
        for future in thawed:
            if not future.done():
                future.set_result(None)
        deferred, self._deferred = self._deferred, []
        for callback in deferred:
            self.run(callback)

    async def awake(self) -> None:
        """Return when the process runs; never when it is dead."""
        if not self.alive:
            await asyncio.get_running_loop().create_future()
        if self.frozen:
            future = asyncio.get_running_loop().create_future()
            self._thawed.append(future)
            await future

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that dies with the process."""
        task = self.loop.create_task(work)
        self.tasks[task] = None
        task.add_done_callback(lambda task: self.tasks.pop(task, None))
        return task

    # ---- what it holds ----------------------------------------------------------------------------------------------

    def take_shard(self, number: int) -> None:
        """The group gave it the shard."""
        if self.alive and number not in self.tenures:
            self.tenures[number] = Tenure(self, number)
            self.tenures[number].begin()

    def lose_shard(self, number: int) -> None:
        """The group gave the shard to another."""
        tenure = self.tenures.pop(number, None)
        if tenure is not None and self.alive:
            tenure.give_up()

    def take_tasks(self, number: int) -> None:
        """The group gave it the task partition."""
        if self.alive and number not in self.held_tasks:
            self.held_tasks[number] = TaskTenure(self, number)

    def lose_tasks(self, number: int) -> None:
        """The group gave the task partition to another."""
        tenure = self.held_tasks.pop(number, None)
        if tenure is not None:
            tenure.close()

    def holds(self, role: str, number: int) -> bool:
        """Whether it believes that it holds the partition."""
        return number in (self.shards if role == "history" else self.held_tasks)

    def offer(self, offers: list[TaskOffer]) -> None:
        """The direct hand-off, sometimes forgotten, as it may be."""
        for offer in offers:
            self.effect()
            if self.random.random() >= self.cluster.faults.handoffs_lost:
                self._matching_client.offer(offer)


class Ports:
    """A shard's ports in a process."""

    def __init__(self, process: Process, tenure: Tenure | None) -> None:
        self._process = process
        self._tenure = tenure

    def produce(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers, on_delivery: Delivered
    ) -> None:
        process = self._process
        process.effect()
        at_once = process.cluster.answers_at_once()
        process.producer.produce(topic, partition, key, value, headers, on_delivery, at_once=at_once)

    def propose(self, partition: int, key: bytes, value: bytes, on_delivery: Delivered) -> None:
        # Nothing orders proposals: of two, either may be first in the log (runtime.kafka.prompt).
        process = self._process
        process.effect()
        at_once = process.cluster.answers_at_once()
        process.producer.produce(SHARD_LOG.name, partition, key, value, (), on_delivery, ordered=False, at_once=at_once)

    def now_ns(self) -> int:
        return WALL_START_NS + self._process.loop.now_ns + self._process.host.clock_skew_ns

    def boottime_ns(self) -> int:
        return self._process.loop.now_ns

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._process.loop.after(delay_ns, self._process.run, callback)

    def request_end_offset(self, topic: str, partition: int, done: Callable[[int | None], None]) -> None:
        process = self._process
        process.effect()
        random, broker = process.random, process.cluster.broker

        def answer() -> None:
            failed = random.random() < process.cluster.faults.end_offsets_fail
            end = None if failed else broker.logs[topic, partition].end
            if at_once:
                done(end)
                return
            process.loop.after(random.randrange(100, 2000) * 1000, process.run, lambda: done(end))

        at_once = process.cluster.answers_at_once()
        if at_once:
            answer()
            return
        process.loop.after(random.randrange(100, 2000) * 1000, answer)

    def pause(self) -> None:
        if self._tenure is not None and self._tenure.log_reader is not None:
            self._tenure.log_reader.pause()

    def resume(self) -> None:
        if self._tenure is not None and self._tenure.log_reader is not None:
            self._tenure.log_reader.resume()


class Tenure:
    """One shard's time with a process: taken, lost, taken again, until the group gives it to another."""

    def __init__(self, process: Process, number: int) -> None:
        self._process = process
        self._cluster = process.cluster
        self.number = number
        self.shard: Shard | None = None
        self.log_reader: Reader | None = None
        self._commands_reader: Reader | None = None
        self._ingress: Ingress | None = None
        self._over = False
        self._spoilt = False
        self._log_facts = LogFacts()
        self._resumed_at = -1

    def begin(self) -> None:
        """Take the shard, a little later."""
        delay = self._process.random.randrange(1, 300) * MILLISECOND_NS
        self._process.loop.after(delay, self._process.run, self._take)

    def give_up(self) -> None:
        """The shard goes to another process."""
        self._over = True
        if self.shard is not None:
            self.shard.close()
        self._release()

    def close_readers(self) -> None:
        """Read nothing more."""
        for reader in (self.log_reader, self._commands_reader):
            if reader is not None:
                reader.close()
        self.log_reader = self._commands_reader = None

    def _take(self) -> None:
        process, cluster, number = self._process, self._cluster, self.number
        if self._over or self.shard is not None:
            return
        if self._spoilt:
            self._spoilt = False
            process.host.stores.pop(number, None)
        store = process.host.stores.setdefault(number, SimStore())
        try:
            fold = cluster.watch.fold(
                number, store, cluster.run_cache_bytes, process.name, feature_level=process.feature_level
            )
        except DiskTrouble:
            self.begin()
            return
        wanted = min(cluster.feature_level_wanted, process.feature_level)
        identity = Identity(
            cluster.cluster_id, cluster.shard_count, wanted, cluster.random.getrandbits(62) + 1, process.name
        )
        ports = Ports(process, self)
        self._log_facts = LogFacts(cluster.positions.get(number))
        self._resumed_at = fold.meta.applied_offset
        shard = Shard(
            number,
            fold,
            EffectStore(store, process),
            ports,
            identity,
            cluster.settings,
            process.namespaces,
            self,
            limits=cluster.limits,
            guards=cluster.shell_guards,
            skew=process.skew,
            log_facts=self._log_facts,
        )
        self.shard = shard
        process.shards[number] = HeldShard(shard, MachineReads())
        self.log_reader = Reader(
            cluster.broker,
            process,
            (SHARD_LOG.name, number),
            shard.resume_position(),
            self._on_log,
            self._log_lost,
            batch=cluster.fetch_batch,
        )
        shard.start()

    def _release(self) -> None:
        self.close_readers()
        self._ingress = None
        self.shard = None
        self._process.shards.pop(self.number, None)

    def _on_log(self, records: Sequence[Stored]) -> None:
        if self.shard is not None:
            self.shard.on_records([LogRecord(r.value or b"", r.offset, r.epoch, r.timestamp_ms) for r in records])

    def _log_lost(self, text: str) -> None:
        if self.shard is not None:
            self._cluster.note(f"{self._process.name} shard {self.number}: log lost: {text}")
            self.shard.on_log_lost(text)

    def _on_commands(self, records: Sequence[Stored]) -> None:
        if self._ingress is not None:
            self._ingress.on_commands([CommandRecord(r.key, r.value, r.offset, r.epoch, r.headers) for r in records])

    # ---- the shard's listener ---------------------------------------------------------------------------------------

    def on_serving(self) -> None:
        cluster, process = self._cluster, self._process
        assert self.shard is not None
        cluster.operator.check_served(self.number, self._log_facts.known, self._resumed_at)
        self._say_position(self.shard)
        flow = Flow()
        self._ingress = Ingress(self.shard, flow, process.namespaces, cluster.shard_count)
        self._commands_reader = flow.reader = Reader(
            cluster.broker,
            process,
            (COMMANDS.name, self.number),
            self._ingress.resume_position(),
            self._on_commands,
            lambda text: None,
            batch=cluster.fetch_batch,
            committed=True,
        )

    def on_lost(self, reason: BaseException) -> None:
        then = aftermath(reason)
        self._cluster.note(f"{self._process.name} shard {self.number} lost: {reason} ({then.value})")
        self._cluster.watch.shard_lost(self.number, reason)
        self._spoilt = self._spoilt or then is Aftermath.SET_ASIDE
        if then is Aftermath.STOPPED:
            assert self.shard is not None
            store = position_of(self.shard.fold.meta, "")
            self._cluster.operator.called(Stop(str(decisive(reason)), store, self._log_facts))
        self._release()
        if isinstance(reason, UnknownFeatureLevel):
            self._process.loop.after(0, self._process.run, self._process.outdated)
        elif not self._over:
            delay = self._process.random.randrange(100, 2000) * MILLISECOND_NS
            self._process.loop.after(delay, self._process.run, self._take)

    def on_offers(self, offers: list[TaskOffer]) -> None:
        self._process.offer(offers)

    def _say_position(self, shard: Shard) -> None:
        """Every second, while the shard serves here."""
        if self.shard is not shard or not shard.serving:
            return
        for position in self._cluster.positions.news([position_of(shard.fold.meta, "")]):
            self._cluster.positions.received(position)
            self._cluster.operator.heard(position)
        self._process.loop.after(SECOND_NS, self._process.run, lambda: self._say_position(shard))


class Flow:
    """Holds the commands reader up."""

    reader: Reader | None = None

    def pause(self) -> None:
        if self.reader is not None:
            self.reader.pause()

    def resume(self) -> None:
        if self.reader is not None:
            self.reader.resume()


class EffectStore:
    """A store whose writes are effects: the process may die before or behind one."""

    def __init__(self, store: SimStore, process: Process) -> None:
        self._store = store
        self._process = process
        self.get = store.get
        self.scan = store.scan

    def write(self, rows: Any) -> None:
        self._process.effect()
        self._store.write(rows)
        self._process.effect()


class TaskTenure:
    """A task partition's time with a process."""

    def __init__(self, process: Process, number: int) -> None:
        self._process = process
        self._number = number
        self.held: HeldPartition = process.matching.take(number)
        compacted = process.random.random() < 0.5
        self._readers = [
            Reader(
                process.cluster.broker,
                process,
                (topic, number),
                (0, -1),
                partial(self._on_records, type_),
                lambda text: None,
                compacted=compacted,
                on_end=partial(self.held.read_to_end, type_),
            )
            for topic, type_ in TASK_TOPICS.items()
        ]

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._process.matching.lose(self._number)

    def _on_records(self, type_: str, records: Sequence[Stored]) -> None:
        for record in records:
            assert record.key is not None
            if record.value is None:
                self.held.machine.tombstone(record.key.decode())
            else:
                self.held.record(
                    record.key.decode(), task_of(type_, _DECODE[type_](record.value), self.held.machine.number)
                )
        self.held.perform()


class ProcessClock:
    """Matching's clock."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def wall_ns(self) -> int:
        return WALL_START_NS + self._process.loop.now_ns + self._process.host.clock_skew_ns

    def monotonic_ns(self) -> int:
        return self._process.loop.now_ns


class ProcessNamespaces:
    """What a process knows of the namespaces: behind the truth until told, or until it asks."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._known = dict(process.cluster.namespaces)

    def get(self, namespace_id: str) -> tuple[int, bytes] | None:
        return self._known.get(namespace_id)

    def name_of(self, namespace_id: str) -> str | None:
        return self._process.cluster.namespace_names[namespace_id] if namespace_id in self._known else None

    def id_of(self, name: str) -> str | None:
        names = self._process.cluster.namespace_names
        return next((key for key in self._known if names[key] == name), None)

    def refresh(self, done: Callable[[bool], None]) -> None:
        process = self._process

        def read() -> None:
            ok = process.random.random() >= process.cluster.faults.end_offsets_fail
            if ok:
                self.learn()
            done(ok)

        if process.cluster.answers_at_once():
            read()
            return
        process.loop.after(process.random.randrange(1, 50) * MILLISECOND_NS, process.run, read)

    def learn(self) -> None:
        """Read to the end of the topic."""
        self._known = dict(self._process.cluster.namespaces)
