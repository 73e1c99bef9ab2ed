"""A broker, clocks and timers in memory, in virtual time on one thread: what a shard's ports lead to in these tests."""

from __future__ import annotations

import heapq
import random
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from everfold.history.ingress import CommandRecord, Ingress
from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.history.machine.step import TaskOffer
from everfold.history.ports import Delivered, Headers, Identity, NoMetrics, ProducerFull, ShellGuards, ShellLimits
from everfold.history.proposals import Verdict
from everfold.history.shard import Shard
from everfold.history.tail import LogFacts
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas import codec
from everfold.schemas.topics import COMMANDS, SHARD_LOG

CLUSTER = "cluster-1"
NAMESPACE_ID = "namespace-1"
NAMESPACE = "default"
WORKFLOW = (NAMESPACE_ID, "w")
WALL_NS = 1_800_000_000 * SECOND_NS


@dataclass
class Stored:
    value: bytes | None
    key: bytes
    headers: list[tuple[str, bytes]]
    epoch: int
    timestamp_ms: int


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class DictStore:
    """Rows in a dictionary, with the order of their keys."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.order: list[bytes] = []
        self.fail_with: Exception | None = None

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        keys = [key for key in self.order if start <= key < end]
        for key in reversed(keys) if reverse else keys:
            yield key, self.rows[key]

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        if self.fail_with is not None:
            raise self.fail_with
        for key, value in rows.items():
            if value is None:
                if self.rows.pop(key, None) is not None:
                    self.order.remove(key)
            else:
                if key not in self.rows:
                    insort(self.order, key)
                self.rows[key] = value


class Namespaces:
    def __init__(self) -> None:
        self.known: dict[str, tuple[str, int]] = {NAMESPACE_ID: (NAMESPACE, 1)}
        self.readable = True
        #: how its answers come: at once, unless told otherwise
        self.answer: Callable[[Callable[[], None]], None] = lambda answer: answer()
        self.refreshes = 0
        self.after_refresh: dict[str, tuple[str, int]] = {}

    def get(self, namespace_id: str) -> tuple[int, bytes] | None:
        if namespace_id not in self.known:
            return None
        name, version = self.known[namespace_id]
        return version, namespace_row(namespace_id, name, version)

    def name_of(self, namespace_id: str) -> str | None:
        return self.known[namespace_id][0] if namespace_id in self.known else None

    def id_of(self, name: str) -> str | None:
        return next((key for key, (found, _) in self.known.items() if found == name), None)

    def refresh(self, done: Callable[[bool], None]) -> None:
        self.refreshes += 1
        if self.readable:
            self.known.update(self.after_refresh)
        self.answer(lambda: done(self.readable))


def namespace_row(namespace_id: str, name: str, version: int) -> bytes:
    return codec.encode_namespace(
        {
            "namespace_id": namespace_id,
            "name": name,
            "version": version,
            "state": 1,
            "description": "",
            "owner_email": "",
            "data": {},
            "retention_ns": 86_400 * SECOND_NS,
            "search_attributes": {},
            "created_at_ns": 0,
            "deleted": False,
            "config": b"",
            "origin": None,
            "predecessor": None,
        }
    )


class World:
    """Time moves only in `run`. A produce takes a millisecond to arrive, and its report another."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.epoch = 0
        self.broker_ahead_ns = 0
        self._events: list[tuple[int, int, Timer, Callable[[], None]]] = []
        self._count = 0
        self.logs: dict[tuple[str, int], list[Stored]] = defaultdict(list)
        self.readers: list[Reader] = []
        #: topic -> what happens to its next produces: "lost" (error, not appended), "unknown" (error, appended), "ok"
        self.fates: dict[str, list[str]] = defaultdict(list)
        #: kinds of shard records that arrive 20 ms late, behind what is sent after them
        self.held_up: list[str] = []
        self.full = False
        #: what is asked of the ports is done and answered inside of the call that asks
        self.at_once = False
        self.questions = 0
        self.answers_ends = True
        self.produced: list[tuple[str, int, bytes | None]] = []

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        timer = Timer()
        self._count += 1
        heapq.heappush(self._events, (self.now_ns + max(delay_ns, 0), self._count, timer, callback))
        return timer

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back in a millisecond, or now."""
        if self.at_once:
            callback()
        else:
            self.call_later(MILLISECOND_NS, callback)

    def run(self, for_ns: int = SECOND_NS) -> None:
        until = self.now_ns + for_ns
        while self._events and self._events[0][0] <= until:
            self.step()
        self.now_ns = until

    def run_until(self, condition: Callable[[], Any], within_ns: int = 60 * SECOND_NS) -> None:
        until = self.now_ns + within_ns
        while not condition():
            assert self._events, "nothing more happens, and the condition does not hold"
            assert self._events[0][0] <= until, "the condition does not hold in time"
            self.step()

    def step(self) -> bool:
        if not self._events:
            return False
        at, _, timer, callback = heapq.heappop(self._events)
        self.now_ns = max(self.now_ns, at)
        if not timer.cancelled:
            callback()
        return True

    def next_within(self, distance_ns: int) -> bool:
        """Whether something happens that soon; cancelled timers are forgotten."""
        while self._events and self._events[0][2].cancelled:
            heapq.heappop(self._events)
        return bool(self._events) and self._events[0][0] - self.now_ns <= distance_ns

    def append(self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers = ()) -> int:
        log = self.logs[topic, partition]
        stamp = (WALL_NS + self.now_ns + self.broker_ahead_ns) // MILLISECOND_NS
        log.append(Stored(value, key, list(headers), self.epoch, stamp))
        for reader in self.readers:
            reader.wake()
        return len(log) - 1

    def records(self, topic: str, partition: int = 0) -> list[dict[str, Any]]:
        return [codec.decode(r.value)[1] for r in self.logs[topic, partition] if r.value is not None]

    def kinds(self, partition: int = 0) -> list[str]:
        return [record["kind"] for record in self.records(SHARD_LOG.name, partition)]


class Reader:
    """A consumer of one partition; records come a millisecond after they were appended, at most `batch` at a time."""

    def __init__(
        self, world: World, topic: str, partition: int, position: int, deliver: Callable[[list[Any]], None], batch: int
    ) -> None:
        self.world = world
        self.place = (topic, partition)
        self.position = position
        self.deliver = deliver
        self.batch = batch
        self.paused = False
        self.closed = False
        self._due = False
        world.readers.append(self)
        self.wake()

    def wake(self) -> None:
        if not self._due and not self.closed and not self.paused and self.position < len(self.world.logs[self.place]):
            self._due = True
            self.world.call_later(MILLISECOND_NS, self._go)

    def _go(self) -> None:
        self._due = False
        if self.closed or self.paused:
            return
        log = self.world.logs[self.place]
        found = list(enumerate(log[self.position : self.position + self.batch], self.position))
        self.position += len(found)
        if self.place[0] == COMMANDS.name:
            self.deliver([CommandRecord(r.key, r.value, at, r.epoch, r.headers) for at, r in found])
        else:
            self.deliver([LogRecord(r.value or b"", at, r.epoch, r.timestamp_ms) for at, r in found])
        self.wake()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.wake()

    def close(self) -> None:
        self.closed = True


class Ports:
    def __init__(self, world: World) -> None:
        self.world = world
        self.clock_ahead_ns = 0
        self.reader: Reader | None = None

    def produce(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers, on_delivery: Delivered
    ) -> None:
        world = self.world
        if world.full:
            raise ProducerFull("full")
        fate = world.fates[topic].pop(0) if world.fates[topic] else "ok"
        world.produced.append((topic, partition, value))

        def arrive() -> None:
            offset = -1 if fate == "lost" else world.append(topic, partition, key, value, headers)
            error = None if fate == "ok" else RuntimeError(f"delivery {fate}")
            world.soon(lambda: on_delivery(error, -1 if error else offset))

        late = topic == SHARD_LOG.name and codec.decode_shard_record(value or b"")["kind"] in world.held_up
        if late:
            world.call_later(20 * MILLISECOND_NS, arrive)
        else:
            world.soon(arrive)

    def propose(self, partition: int, key: bytes, value: bytes, on_delivery: Delivered) -> None:
        self.produce(SHARD_LOG.name, partition, key, value, (), on_delivery)

    def now_ns(self) -> int:
        return WALL_NS + self.world.now_ns + self.clock_ahead_ns

    def boottime_ns(self) -> int:
        return self.world.now_ns

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        return self.world.call_later(delay_ns, callback)

    def request_end_offset(self, topic: str, partition: int, done: Callable[[int | None], None]) -> None:
        world = self.world
        world.questions += 1

        def answer() -> None:
            end = len(world.logs[topic, partition]) if world.answers_ends else None
            world.soon(lambda: done(end))

        world.soon(answer)

    def pause(self) -> None:
        assert self.reader is not None
        self.reader.pause()

    def resume(self) -> None:
        assert self.reader is not None
        self.reader.resume()


_instances = random.Random(1)


class Counts(NoMetrics):
    """Counters by name, whatever their labels but a reason."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        self.of["/".join(filter(None, (name, labels.get("reason"))))] += amount


@dataclass
class Owner:
    """A shard with its store, as one process runs it."""

    world: World
    shard_number: int = 0
    shard_count: int = 1
    store: DictStore = field(default_factory=DictStore)
    namespaces: Namespaces = field(default_factory=Namespaces)
    settings: dict[str, int] = field(default_factory=dict)
    feature_level: int = 0
    feature_level_known: int = FEATURE_LEVEL
    limits: ShellLimits = field(default_factory=ShellLimits)
    guards: ShellGuards = field(default_factory=ShellGuards)
    batch: int = 100
    log_facts: LogFacts = field(default_factory=LogFacts)
    lost: BaseException | None = None
    offers: list[TaskOffer] = field(default_factory=list)
    served: bool = False
    ingress: Ingress | None = None
    metrics: Counts = field(default_factory=Counts)

    def take(self, *, wait: bool = True) -> Owner:
        world = self.world
        self.ports = Ports(world)
        self.fold = ShardFold(self.shard_number, self.store, 1 << 20, feature_level_known=self.feature_level_known)
        identity = Identity(CLUSTER, self.shard_count, self.feature_level, _instances.getrandbits(62), "test")
        self.shard = Shard(
            self.shard_number,
            self.fold,
            self.store,
            self.ports,
            identity,
            self.settings,
            self.namespaces,
            self,
            limits=self.limits,
            guards=self.guards,
            metrics=self.metrics,
            log_facts=self.log_facts,
        )
        offset, _ = self.shard.resume_position()
        self.reader = Reader(world, SHARD_LOG.name, self.shard_number, offset, self.shard.on_records, self.batch)
        self.ports.reader = self.reader
        self.shard.start()
        if wait:
            world.run_until(lambda: self.shard.serving or self.lost)
        return self

    def open_ingress(self) -> Ingress:
        flow = Flow()
        self.ingress = Ingress(self.shard, flow, self.namespaces, self.shard_count, topic="test.commands")
        offset, _ = self.ingress.resume_position()
        flow.reader = Reader(self.world, COMMANDS.name, self.shard_number, offset, self.ingress.on_commands, self.batch)
        self.commands = flow.reader
        return self.ingress

    def crash(self) -> None:
        """The process is gone: nothing is flushed, nothing is said."""
        self.reader.close()
        if self.ingress is not None:
            self.commands.close()
        self.shard.close()

    def propose(
        self, kind: str, message: bytes, workflow_id: str = "w", run_id: str = "", **more: Any
    ) -> list[Verdict]:
        verdicts: list[Verdict] = []
        self.shard.propose(kind, NAMESPACE_ID, workflow_id, run_id, {"message": message}, verdicts.append, **more)
        return verdicts

    def on_serving(self) -> None:
        self.served = True

    def on_lost(self, reason: BaseException) -> None:
        self.lost = reason
        self.reader.close()

    def on_offers(self, offers: list[TaskOffer]) -> None:
        self.offers.extend(offers)


class Flow:
    reader: Reader | None = None

    def pause(self) -> None:
        assert self.reader is not None
        self.reader.pause()

    def resume(self) -> None:
        assert self.reader is not None
        self.reader.resume()
