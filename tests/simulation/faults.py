"""What goes wrong in a run: a schedule of faults drawn from the seed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from everfold.history.machine.shard_fold import LogRecord
from everfold.kernel.errors import ShardLost
from everfold.kernel.time import HOUR_NS, MILLISECOND_NS, SECOND_NS
from everfold.schemas.topics import (
    ACTIVITY_TASKS,
    COMMANDS,
    COMMANDS_REJECTED,
    HISTORY,
    SHARD_LOG,
    VISIBILITY,
    WORKFLOW_TASKS,
)
from simulation.broker import ProducerFaults, Stored
from simulation.clients import command
from simulation.cluster import NAMESPACE_ID, Faults
from simulation.junk import read_or_empty
from simulation.process import Host, Process
from simulation.program import payloads
from simulation.store import SimStore
from simulation.watch import NEWER_FEATURE_LEVEL

if TYPE_CHECKING:
    from simulation.cluster import Cluster
    from simulation.ledger import Ledger
    from simulation.workers import Worker

_OUTPUT_TOPICS = (
    HISTORY.name,
    VISIBILITY.name,
    WORKFLOW_TASKS.name,
    ACTIVITY_TASKS.name,
    COMMANDS_REJECTED.name,
)


_STARTS = ("START_WORKFLOW_TASK", "START_ACTIVITY_TASK")
_TAIL_MAX = 60


class Nemesis:
    """Breaks things until told to stop, then mends them."""

    def __init__(self, cluster: Cluster, ledger: Ledger, new_worker: Callable[[], Worker]) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._random = cluster.random
        self._new_worker = new_worker
        self.workers: list[Worker] = []
        self._stopped = False
        #: fault -> weight; which faults a run has, and how often, differs from seed to seed
        self._weights: dict[Callable[[], Awaitable[None]], float] = {}
        for fault in (
            self._crash,
            self._crash_at_effect,
            self._stop_orderly,
            self._freeze,
            self._move,
            self._zombie,
            self._disk_trouble,
            self._lose_tail,
            self._wrong_broker_clock,
            self._close_topic,
            self._change_leader,
            self._new_namespace_version,
            self._upgrade,
            self._raise_feature_level,
            self._foreign_transaction,
            self._new_worker_instead,
            self._promote,
            self._flush,
        ):
            self._weights[fault] = self._random.choice((0.0, 1.0, 1.0, 3.0))
        self._weights[self._lose_tail] = self._random.choice((0.0, 0.0, 0.0, 1.0))
        self._weights[self._junk] = self._random.choice((0.0, 1.0))
        self._gap_s = self._random.choice((0.3, 0.8, 2.0))

    def begin(self) -> None:
        """Chances of small faults, for the whole run."""
        random = self._random
        rate = random.choice((0.0, 0.01, 0.05))
        self._cluster.producer_faults.__dict__.update(
            ProducerFaults(
                lost=rate * random.random(),
                unknown=rate * random.random(),
                late=rate * random.random(),
                twice=rate * random.random(),
                slow=rate * random.random(),
            ).__dict__
        )
        self._cluster.faults.__dict__.update(
            Faults(
                end_offsets_fail=random.choice((0.0, 0.05)),
                handoffs_lost=random.choice((0.0, 0.2, 1.0)),
                calls_lost=random.choice((0.0, 0.01, 0.05)),
                stale_routes=random.choice((0.0, 0.1, 0.5)),
            ).__dict__
        )
        for worker in self.workers:
            worker.mischief = random.choice((0.0, 0.05, 0.15))

    async def run(self) -> None:
        """One fault after another."""
        faults, weights = list(self._weights), list(self._weights.values())
        if not any(weights):
            return
        while not self._stopped:
            await asyncio.sleep(self._random.expovariate(1 / self._gap_s))
            if not self._stopped:
                await self._random.choices(faults, weights)[0]()

    async def heal(self) -> None:
        """Everything works from now on, and whoever lost something has heard of it."""
        self._stopped = True
        cluster = self._cluster
        cluster.healed = True
        cluster.note("healing")
        cluster.producer_faults.__dict__.update(ProducerFaults().__dict__)
        cluster.faults.__dict__.update(Faults().__dict__)
        cluster.broker.ahead_ns = 0
        cluster.broker.closed_until.clear()
        for worker in self.workers:
            worker.mischief = 0.0
        for partition in range(cluster.shard_count):
            cluster.broker.end_transaction((COMMANDS.name, partition), commit=self._random.random() < 0.5)
        if cluster.feature_level_wanted:
            self._finish_upgrade()
        for process in list(cluster.processes):
            process.effects_left = None
            process.thaw()
            for store in process.host.stores.values():
                store.reads_until_trouble = store.writes_until_trouble = None
        await asyncio.sleep(8)
        for host in cluster.hosts:
            if host.process is None:
                cluster.boot(host)
        await asyncio.sleep(8)

    # ---- processes --------------------------------------------------------------------------------------------------

    def _some_process(self) -> Process | None:
        return self._random.choice(self._cluster.processes) if self._cluster.processes else None

    def _owner(self, shard: int) -> Process | None:
        owner = self._cluster.owners.get(("history", shard))
        return owner if owner is not None and owner.alive else None

    async def _crash(self) -> None:
        process = self._some_process()
        if process is not None:
            process.crash()
            self._boot_later(process.host)

    async def _crash_at_effect(self) -> None:
        process = self._some_process()
        if process is not None and process.effects_left is None:
            process.effects_left = self._random.randrange(40)
            process.on_crash.append(lambda: self._boot_later(process.host))

    async def _stop_orderly(self) -> None:
        process = self._some_process()
        if process is not None:
            process.stop()
            self._boot_later(process.host)

    async def _upgrade(self) -> None:
        """A host gets the newer build, while others run the old one."""
        old = [host for host in self._cluster.hosts if host.feature_level < NEWER_FEATURE_LEVEL]
        if old:
            self._install(self._random.choice(old))

    async def _raise_feature_level(self) -> None:
        """An operator has newer processes raise the shards that they take, whether old ones still run or not."""
        if any(host.feature_level == NEWER_FEATURE_LEVEL for host in self._cluster.hosts):
            self._cluster.note("the feature level is to be raised")
            self._cluster.feature_level_wanted = NEWER_FEATURE_LEVEL

    def _finish_upgrade(self) -> None:
        for host in self._cluster.hosts:
            if host.feature_level < NEWER_FEATURE_LEVEL:
                self._install(host)

    def _install(self, host: Host) -> None:
        self._cluster.note(f"{host.name} gets the newer build")
        host.feature_level = NEWER_FEATURE_LEVEL
        if host.process is not None:
            host.process.stop()
            self._boot_later(host)

    def _boot_later(self, host: Host) -> None:
        if self._random.random() < 0.15:
            self._cluster.note(f"{host.name} loses its disk")
            host.stores.clear()

        def boot() -> None:
            if host.process is None and not self._stopped:
                self._cluster.boot(host)

        self._cluster.loop.after(self._random.randrange(100, 6000) * MILLISECOND_NS, boot)

    async def _freeze(self) -> None:
        """SIGSTOP until others have what it had; then it goes on, on the state of then, until it hears of it."""
        process = self._some_process()
        others = [p for p in self._cluster.processes if p is not process and not p.frozen]
        if process is None or process.frozen or not others:
            return
        process.freeze()
        lasts = self._random.randrange(500, 9000) * MILLISECOND_NS
        if self._random.random() < 0.8:
            await asyncio.sleep(self._random.random() * 2)
            for place in self._cluster.partitions:
                if self._cluster.owners.get(place) is process:
                    # The revocation reaches it some time after it went on.
                    later = lasts + self._random.randrange(0, 3000) * MILLISECOND_NS
                    living = [p for p in others if p.alive]
                    if living:
                        self._cluster.assign(place, self._random.choice(living), later)
        self._cluster.loop.after(lasts, process.thaw)

    async def _move(self) -> None:
        self._assign_one(self._random.randrange(0, 200) * MILLISECOND_NS)

    async def _zombie(self) -> None:
        """A former owner that goes on for long: it folds, proposes, sends and answers."""
        self._assign_one(self._random.randrange(1000, 20_000) * MILLISECOND_NS)

    def _assign_one(self, tell_old_after_ns: int) -> None:
        place = self._random.choice(self._cluster.partitions)
        process = self._some_process()
        if process is not None and not process.frozen:
            self._cluster.assign(place, process, tell_old_after_ns)

    async def _new_worker_instead(self) -> None:
        if self.workers:
            worker = self._random.choice(self.workers)
            worker.stop()
            self.workers.remove(worker)
        fresh = self._new_worker()
        fresh.mischief = self._random.choice((0.0, 0.1))
        self.workers.append(fresh)

    # ---- disks ------------------------------------------------------------------------------------------------------

    async def _disk_trouble(self) -> None:
        process = self._some_process()
        if process is not None and process.host.stores:
            store = self._random.choice(list(process.host.stores.values()))
            if self._random.random() < 0.5:
                store.writes_until_trouble = self._random.randrange(4)
            else:
                store.reads_until_trouble = self._random.randrange(30)

    async def _flush(self) -> None:
        process = self._some_process()
        if process is not None:
            for store in process.host.stores.values():
                store.flush()

    async def _promote(self) -> None:
        """A follower that folded and performed nothing becomes the owner: its outbox is full."""
        cluster = self._cluster
        shard = self._random.randrange(cluster.shard_count)
        idle = [h for h in cluster.hosts if h.process is not None and not h.process.holds("history", shard)]
        if not idle:
            return
        host = self._random.choice(idle)
        if host.process is None or host.process.frozen or shard in host.process.tenures:
            return
        store = SimStore()
        fold = cluster.watch.fold(
            shard, store, 1 << 18, f"a follower on {host.name}", feature_level=host.process.feature_level
        )
        records = cluster.broker.logs[SHARD_LOG.name, shard].records
        try:
            for record in records[: self._random.randint(0, len(records))]:
                assert record.value is not None
                fold.fold(LogRecord(record.value, record.offset, record.epoch, record.timestamp_ms))
        except ShardLost:
            return
        writes = fold.take_writes()
        store.write(writes)
        store.flush()
        host.stores[shard] = store
        cluster.assign(("history", shard), host.process, self._random.choice((0, 3000)) * MILLISECOND_NS)

    # ---- Kafka ------------------------------------------------------------------------------------------------------

    async def _lose_tail(self) -> None:
        """An unclean leader change on a shard's log, while the owner is away with all that it had folded on disk."""
        cluster = self._cluster
        shard = self._random.randrange(cluster.shard_count)
        owner = self._owner(shard)
        if owner is None:
            return
        place = (SHARD_LOG.name, shard)
        host = owner.host
        how = self._random.random()
        if how < 0.4:
            owner.stop()
        elif how < 0.6:
            owner.freeze()
            cluster.loop.after(self._random.randrange(1000, 8000) * MILLISECOND_NS, owner.thaw)
        count = self._random.randint(1, 12)
        if self._random.random() < 0.5:
            count = _from_a_late_start(cluster.broker.logs[place].records) or count
        cluster.note(f"shard {shard} loses the last {count} records of {cluster.broker.logs[place].end}")
        cluster.broker.lose_tail(place, count)
        others = [p for p in cluster.processes if p is not owner and not p.frozen]
        if others:
            cluster.assign(("history", shard), self._random.choice(others), 5 * SECOND_NS)
        if how < 0.4:
            await asyncio.sleep(self._random.random() * 8)
            if host.process is None and not self._stopped:
                cluster.assign(("history", shard), cluster.boot(host))

    async def _wrong_broker_clock(self) -> None:
        broker = self._cluster.broker
        broker.ahead_ns = HOUR_NS if broker.ahead_ns == 0 else 0

    async def _close_topic(self) -> None:
        topic = self._random.choice((*_OUTPUT_TOPICS, SHARD_LOG.name))
        self._cluster.note(f"{topic} takes nothing for a while")
        self._cluster.broker.close_topic(topic, self._random.randrange(100, 5000) * MILLISECOND_NS)

    async def _change_leader(self) -> None:
        topic = self._random.choice((SHARD_LOG.name, COMMANDS.name, HISTORY.name))
        self._cluster.broker.change_leader((topic, self._random.randrange(self._cluster.shard_count)))

    async def _junk(self) -> None:
        """Somebody's producer is wrong about where it writes: junk, or a damaged copy of a real record."""
        cluster, random = self._cluster, self._random
        place = (SHARD_LOG.name, random.randrange(cluster.shard_count))
        records = cluster.broker.logs[place].records
        for _ in range(random.choice((1, 1, 10, 1000))):
            value = (random.choice(records).value if records and random.random() < 0.3 else None) or b"hello, topic"
            cluster.broker.append(place, b"foreign", value[: random.randrange(len(value))])

    async def _new_namespace_version(self) -> None:
        """Processes hear of it one after another, while starts go on."""
        cluster = self._cluster
        cluster.add_namespace(NAMESPACE_ID, cluster.namespace_names[NAMESPACE_ID])
        for process in cluster.processes:
            delay = self._random.randrange(0, 3000) * MILLISECOND_NS
            cluster.loop.after(delay, process.run, process.namespaces.learn)

    async def _foreign_transaction(self) -> None:
        """Somebody else's transaction stays open on `commands`: nothing behind it is read until it ends."""
        cluster, random = self._cluster, self._random
        partition = random.randrange(cluster.shard_count)
        place = (COMMANDS.name, partition)
        if cluster.broker.logs[place].open_from is not None:
            return
        token = self._ledger.token("foreign")
        value = command("nobody", token, "SignalWorkflow", {"signal_name": "go", "input": [_avro(token)]})
        cluster.broker.begin_transaction(place, b"default/nobody", value)
        self._ledger.aborted.append(token)
        commit = random.random() < 0.5
        cluster.loop.after(
            random.randrange(100, 10_000) * MILLISECOND_NS,
            lambda: cluster.broker.end_transaction(place, commit=commit),
        )


def _from_a_late_start(records: list[Stored]) -> int:
    """How many records there are from the latest start of a task whose record was known to be sent; 0 for none.

    When that tail is lost, nobody sends the task again, and its tombstone may be on the topic.
    """
    sent: tuple[int, int, int] | None = None
    found = 0
    for left, stored in zip(range(min(_TAIL_MAX, len(records)), 0, -1), records[-_TAIL_MAX:], strict=True):
        assert stored.value is not None
        record = read_or_empty(stored.value)
        kind, body = record.get("kind"), record.get("body", {})
        if kind == "OUTPUTS_SENT":
            position = body["position"]
            sent = (position["epoch"], position["offset"], position["index"])
        elif kind in _STARTS and body["task_id"] and sent is not None:
            _, epoch, offset, index = map(int, body["task_id"].split("-"))
            if (epoch, offset, index) <= sent:
                found = left
    return found


def _avro(text: str) -> dict[str, object]:
    payload = payloads(text).payloads[0]
    return {"metadata": dict(payload.metadata), "data": payload.data}
