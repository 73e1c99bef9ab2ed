"""What a shard needs of the world, as interfaces: no thread, no sleep and no clock of its own.

The same `Shard`, outbox, timers and ingress run in a server (asyncio and confluent-kafka behind the ports, `owner.py`)
and in the simulator (a fake broker and virtual time behind them). Everything here is called on one thread, and every
callback comes back on that thread. From the ports that a shard uses (`guarded.GuardedPorts`) none comes from inside the
call that registers it, whatever is behind them; one from `Namespaces` may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from everfold.history.machine.rows import RowStore
from everfold.history.machine.step import TaskOffer
from everfold.kernel.errors import StatusError

Headers = Sequence[tuple[str, bytes]]
"""Kafka record headers."""

Delivered = Callable[[BaseException | None, int], None]
"""Outcome of a produce: (None, offset), or (error, -1), which leaves open whether the record is in the log."""


class ProducerFull(Exception):
    """The producer takes no more for now; nothing was queued. Try again after some deliveries."""


class Cancellable(Protocol):
    """A timer that can be called off."""

    def cancel(self) -> None:
        """Forget it; harmless when it has run."""
        ...


class ShardPorts(Protocol):
    """One shard's way to Kafka and to the clocks."""

    def produce(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers, on_delivery: Delivered
    ) -> None:
        """Append a record; `topic` is without the cluster's prefix. Raises ProducerFull.

        Records of one partition arrive in the order of these calls, unless a delivery fails.
        """
        ...

    def propose(self, partition: int, key: bytes, value: bytes, on_delivery: Delivered) -> None:
        """Append a record that somebody waits for to the shard log. Raises ProducerFull.

        In no order, neither among themselves nor with what `produce` sends: the log's order is the only one that
        counts, so a proposal that needs another one folded first is made when that one is.
        """
        ...

    def now_ns(self) -> int:
        """Wall clock, UTC: what a proposer stamps into its records."""
        ...

    def boottime_ns(self) -> int:
        """Elapsed time including suspend; never goes back."""
        ...

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Cancellable:
        """Call back after a delay."""
        ...

    def request_end_offset(self, topic: str, partition: int, done: Callable[[int | None], None]) -> None:
        """Ask the broker for the partition's end as of some time after this call; None when that failed."""
        ...

    def pause(self) -> None:
        """Stop delivering this shard's log records until `resume`. Those already handed over still come."""
        ...

    def resume(self) -> None:
        """Deliver log records again."""
        ...


class BatchStore(RowStore, Protocol):
    """Rows that are written a batch at a time."""

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Put (None: delete) all rows at once: after a crash either all or none are there."""
        ...


class Namespaces(Protocol):
    """The process's view of the `namespaces` topic. May be behind; `refresh` reads to its end."""

    def get(self, namespace_id: str) -> tuple[int, bytes] | None:
        """(version, Namespace as framed Avro bytes), deleted ones included, or None when not known here."""
        ...

    def name_of(self, namespace_id: str) -> str | None:
        """The name that routes: slots are made of namespace names."""
        ...

    def id_of(self, name: str) -> str | None:
        """The id of a namespace that is not deleted."""
        ...

    def refresh(self, done: Callable[[bool], None]) -> None:
        """Call back with True once everything that was on the topic at the time of the call has been read.

        False when it could not be: then nobody may conclude that a namespace does not exist.
        """
        ...


class Metrics(Protocol):
    """Counters, gauges and histograms by name."""

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter."""
        ...

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a sample to a histogram."""
        ...


class NoMetrics:
    """Metrics that go nowhere."""

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Nothing."""

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Nothing."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Nothing."""


class ShardListener(Protocol):
    """Who is told what a shard does."""

    def on_serving(self) -> None:
        """The shard is taken: it answers, sends, fires."""
        ...

    def on_lost(self, reason: BaseException) -> None:
        """The shard gave itself up and has answered everybody; what follows is `giving_up.aftermath` of the reason."""
        ...

    def on_offers(self, offers: list[TaskOffer]) -> None:
        """Tasks for the direct hand-off; may be dropped, as every one has another way."""
        ...


class Matching(Protocol):
    """What history asks of matching (through the router, or in process)."""

    async def query(self, namespace_id: str, queue: str, sticky_queue: str, query_task: bytes, timeout: float) -> bytes:
        """Give a query to a poller and return its RespondQueryTaskCompletedRequest. Raises StatusError."""
        ...

    def offer(self, task: TaskOffer) -> None:
        """Direct hand-off; never blocks."""
        ...


@dataclass(frozen=True, slots=True)
class ShellLimits:
    """What bounds a shard's shell: each number protects this process, none changes an outcome of the fold.

    Attributes:
        in_flight_max: own records produced and not folded yet, beyond which RPCs get RESOURCE_EXHAUSTED. At 5 ms a hop
            this is 200 000 records a second per shard, far above what one core folds: only trouble reaches it.
        in_flight_bytes_max: the same in bytes of their requests, which are held until they are folded.
        outbox_entries_max: outputs held in memory between store and acknowledgement; the rest stay in the store, and
            the shard stops consuming until the sender has caught up.
        outbox_bytes_max: the same in bytes.
        outputs_sent_every_ns: shortest distance of two OutputsSent records (architecture, law 5).
        timers_in_flight_max: FireTimer records on their way.
        ingress_in_flight_max: records from `commands` on their way into the log, and as many again waiting for it.
        waiters_max: parked long polls and reads per shard.
        queries_per_run_max: queries that wait for one run's next workflow task. Temporal keeps one; core sends queries
            of a UI and of a client at once, so a few save retries.
        queries_max: the same over the shard.
        hash_ring: remembered state hashes, by offset; bounds how late an OutputsSent may come and still be checked.
    """

    in_flight_max: int = 1000
    in_flight_bytes_max: int = 64 * 1024 * 1024
    outbox_entries_max: int = 4096
    outbox_bytes_max: int = 16 * 1024 * 1024
    outputs_sent_every_ns: int = 1_000_000_000
    timers_in_flight_max: int = 256
    ingress_in_flight_max: int = 256
    waiters_max: int = 10_000
    queries_per_run_max: int = 8
    queries_max: int = 2_000
    hash_ring: int = 16_384


@dataclass(frozen=True, slots=True)
class ShellGuards:
    """The shell's checks that the laws rest on. All on; the simulator switches one off to prove that it would notice.

    Attributes:
        outbox_resend: send again from the first unacknowledged output on (law 6).
        read_barrier: reads wait for the end of the log (law 7).
        epoch_check: resume with the leader epoch, and refuse a log that ends before the applied offset (law 8).
        position_check: refuse a log that lacks what the shard's owners say that they had folded (law 8).
    """

    outbox_resend: bool = True
    read_barrier: bool = True
    epoch_check: bool = True
    position_check: bool = True


class Identity(NamedTuple):
    """Who owns the shard, and in which cluster.

    Attributes:
        feature_level: what the shard is raised to if it is lower; 0 leaves a log as it is, and begins a new one at the
            newest that this build knows.
        instance: proposer instance, unique to this taking of the shard (a random 63-bit number in a server).
        owner: for people, e.g. host:port.
    """

    cluster_id: str
    shard_count: int
    feature_level: int
    instance: int
    owner: str


OnReply = Callable[[bytes | StatusError], None]
"""The end of an RPC: response bytes, or the status."""
