"""Every metric of Everfold, declared once, so that names, labels and units agree and the reference page is complete.

A service keeps the labelled child that it increments on a hot path (`RECORDS_FOLDED.labels(shard)` looks a child up
under a lock each time). Labels have few values: never a workflow id, a run id, or text from outside.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def _counter(name: str, help: str, *labels: str) -> Counter:
    return Counter(f"everfold_{name}", help, labels, registry=REGISTRY)


def _gauge(name: str, help: str, *labels: str) -> Gauge:
    return Gauge(f"everfold_{name}", help, labels, registry=REGISTRY)


def _histogram(name: str, help: str, *labels: str) -> Histogram:
    return Histogram(f"everfold_{name}", help, labels, registry=REGISTRY, buckets=_SECONDS)


# History ------------------------------------------------------------------------------------------------------------
RECORDS_FOLDED: Final = _counter("records_folded", "Shard-log records folded as their owner.", "shard")
RECORDS_REFOLDED: Final = _counter("records_refolded", "Shard-log records folded again while catching up.", "shard")
RECORDS_REJECTED: Final = _counter("records_rejected", "Records of `commands` refused, by reason.", "reason")
RECORDS_SET_ASIDE: Final = _counter(
    "records_set_aside", "Records on the shard log that no Everfold wrote, met by a fold.", "shard"
)
RUNS_QUARANTINED: Final = _counter("runs_quarantined", "Runs put aside because the machine met an impossible state.")
SHARDS_OWNED: Final = _gauge("shards_owned", "History shards that this process owns.")
SHARDS_LOST: Final = _counter("shards_lost", "Shards given up because of trouble, by reason.", "reason")
SHARD_LAG: Final = _gauge("shard_lag_records", "Records between the end of a shard's log and its fold.", "shard")
SHARD_TAKE_SECONDS: Final = _histogram("shard_take_seconds", "From the assignment of a shard to serving it.")
FOLD_BATCH_SECONDS: Final = _histogram("fold_batch_seconds", "Folding and storing one polled batch.")
HASH_MISMATCHES: Final = _counter("hash_mismatches", "State hashes that differ from the recorded ones.", "shard")
OUTBOX_DEPTH: Final = _gauge("outbox_depth", "Outputs not yet acknowledged by Kafka.", "shard")
OUTPUTS_SENT: Final = _counter("outputs_sent", "Outputs sent, by topic.", "topic")
OUTPUTS_RESENT: Final = _counter(
    "outputs_resent", "Outputs sent again after a failure or a takeover, by topic.", "topic"
)
TIMER_LATENESS_SECONDS: Final = _histogram(
    "timer_lateness_seconds", "From a timer's due time to the fold of its firing."
)
SHARDS_STOPPED: Final = _gauge(
    "shards_stopped", "Shards of this process whose log lacks what was acknowledged: an operator has to decide."
)
STORES_SET_ASIDE_BYTES: Final = _gauge(
    "stores_set_aside_bytes",
    "Size on disk of stores that were set aside; nothing deletes them.",
)
RUN_CACHE_HITS: Final = _counter("run_cache_hits", "Runs found decoded in memory.")
RUN_CACHE_MISSES: Final = _counter("run_cache_misses", "Runs loaded from RocksDB.")
IN_FLIGHT: Final = _gauge("in_flight_records", "Records of RPCs proposed and not yet folded.", "shard")
WAITERS: Final = _gauge("waiters", "Calls and long polls waiting in history.")
CLOCK_SKEW_SECONDS: Final = _gauge("clock_skew_seconds", "Best bound of this machine's clock against the brokers'.")

# Kafka --------------------------------------------------------------------------------------------------------------
TOPIC_LAG: Final = _gauge(
    "topic_lag_records", "Records not yet read by this process, by topic and partition.", "topic", "partition"
)
PARTITION_STANDSTILL: Final = _gauge(
    "partition_standstill_seconds",
    "How long a partition of `commands` or `shard-log` has had records and has not moved.",
    "topic",
    "partition",
)
CHAIN_REPEATS: Final = _counter("chain_repeats", "Outputs dropped as repeats by a reader, by topic.", "topic")
CHAIN_GAPS: Final = _counter("chain_gaps", "Gaps seen in chains of outputs, by topic.", "topic")
BROKER_RESTARTS: Final = _counter("broker_restarts", "Times that the embedded broker died and was started again.")

# Matching -----------------------------------------------------------------------------------------------------------
PARKED_POLLS: Final = _gauge("parked_polls", "Polls waiting for a task, by task type.", "type")
BACKLOG_TASKS: Final = _gauge("backlog_tasks", "Tasks waiting for a poller, by task type.", "type")
BACKLOG_TASKS_ON_DISK: Final = _gauge("backlog_tasks_on_disk", "Those of them that wait on disk, by type.", "type")
TASK_QUEUES: Final = _gauge("task_queues", "Task queues in memory, by task type.", "type")
TASK_PARTITIONS_OWNED: Final = _gauge("task_partitions_owned", "Task partitions that this process holds.")
TASK_PARTITIONS_LOADING: Final = _gauge(
    "task_partitions_loading", "Those of them whose topics are still being read; their tasks wait."
)
QUERIES_WAITING: Final = _gauge("queries_waiting", "Queries waiting for a worker or its answer.")
TASKS_DISPATCHED: Final = _counter(
    "tasks_dispatched", "Tasks given to a poller, by type and kind of queue (normal, sticky).", "type", "queue"
)
TASKS_DROPPED: Final = _counter("tasks_dropped", "Tasks found to be over when started, by type.", "type")
SCHEDULE_TO_START_SECONDS: Final = _histogram("schedule_to_start_seconds", "From a task's making to its start.", "type")

# Frontend -----------------------------------------------------------------------------------------------------------
RPCS: Final = _counter("rpcs", "RPCs answered, by method and gRPC code.", "method", "code")
RPC_SECONDS: Final = _histogram("rpc_seconds", "Duration of RPCs that do not wait for work, by method.", "method")

# Topology -----------------------------------------------------------------------------------------------------------
PROJECTED: Final = _counter("projected_records", "Records applied by a processor.", "processor")
PROJECTION_LAG: Final = _gauge(
    "projection_lag_records", "Records not yet applied by a processor.", "processor", "partition"
)
DEAD_LETTERS: Final = _counter("dead_letters", "Records that a processor put aside.", "processor")


class NamedMetrics:
    """The metrics of this module by their names without the prefix, for code that is written against an interface.

    Children are remembered, so a call costs two dictionary look-ups. A name that is not declared here is dropped with
    one warning: a missing metric must not cost a shard.
    """

    def __init__(self) -> None:
        #: (name, label values) -> the child to increment, or None for an unknown name
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter."""
        if (child := self._child(name, labels)) is not None:
            child.inc(amount)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        if (child := self._child(name, labels)) is not None:
            child.set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a sample to a histogram."""
        if (child := self._child(name, labels)) is not None:
            child.observe(value)

    def _child(self, name: str, labels: dict[str, str]) -> Any:
        key = (name, tuple(labels.values()))
        try:
            return self._children[key]
        except KeyError:
            metric = _by_name().get(name)
            if metric is None:
                structlog.get_logger("metrics").warning("no such metric", name=name)
            child = metric.labels(**labels) if metric is not None and labels else metric
            self._children[key] = child
            return child


class MetricsServer:
    """Serves /metrics. `port` 0 serves nothing."""

    def __init__(self, ip: str, port: int) -> None:
        self.address = f"{ip}:{port}" if port else ""
        self._ip = ip
        self._port = port
        self._stop: Callable[[], None] | None = None

    async def start(self) -> None:
        """Listen; raises OSError when the port is taken."""
        if not self._port:
            return
        server: WSGIServer
        thread: threading.Thread
        server, thread = start_http_server(self._port, self._ip, registry=REGISTRY)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(1)

        self._stop = stop

    async def stop(self) -> None:
        """Close the port."""
        if self._stop is not None:
            with contextlib.suppress(OSError):
                self._stop()
            self._stop = None


def _by_name() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in list(globals().values()):
        if isinstance(value, (Counter, Gauge, Histogram)):
            metric: Any = value
            found[str(metric._name).removeprefix("everfold_")] = metric
    return found


def reference() -> list[tuple[str, str, tuple[str, ...], str]]:
    """(name, kind, labels, help) of every metric declared here, for the documentation."""
    rows = []
    for metric in _by_name().values():
        suffix = "_total" if isinstance(metric, Counter) else ""
        kind = type(metric).__name__.lower()
        rows.append((f"{metric._name}{suffix}", kind, tuple(metric._labelnames), str(metric._documentation)))
    return rows
