"""Every setting of Everfold. Services take plain parameters; the command line reads them from here.

The limits here bound a process (memory, connections, records in flight). Limits that decide what happens to a workflow
have Temporal's dynamic-configuration names and live in `everfold.runtime.dynamic`: they travel in records (law 2).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from everfold.kernel.features import FEATURE_LEVEL
from everfold.runtime.dynamic import Parsed
from everfold.runtime.dynamic import parse as parse_dynamic
from everfold.runtime.settings import Option, Resolved, SettingError, build, options_of, resolve, setting

MIB: Final = 1024 * 1024
ANY_PORT: Final = 0


@dataclass(frozen=True)
class KafkaSettings:
    """How to reach Kafka."""

    bootstrap: str = setting(
        "",
        "Kafka brokers to use; start-dev starts its own broker when this is empty.",
        unit="host:port,…",
        flag="--kafka",
    )
    prefix: str = setting("everfold.", "What every topic and consumer group name begins with.")
    properties: dict[str, str] = setting(
        {}, "Further librdkafka properties, such as security.protocol, for every client.", flag="--kafka-property"
    )
    replication: int = setting(0, "Replicas of each topic created; 0 means 3, or 1 with --single-broker.", minimum=0)
    single_broker: bool = setting(
        False, "Accept a cluster that cannot keep three replicas; a lost disk then loses data.", flag="--single-broker"
    )
    session_timeout_s: float = setting(
        6.0,
        "How long a silent process keeps its shards and task partitions; Kafka's brokers, the embedded one too, refuse "
        "a consumer with less than their group.min.session.timeout.ms, 6 s by default.",
        unit="s",
        minimum=6,
        maximum=60,
    )
    linger_ms: float = setting(
        100.0,
        "How long records wait for company that no workflow waits for: history, visibility and, with the embedded "
        "broker, tasks, which are handed over directly there.",
        unit="ms",
        minimum=0,
        maximum=1000,
    )
    queue_bytes: int = setting(
        64 * MIB,
        "Most bytes waiting in the producers; beyond it shards stop taking commands.",
        unit="bytes",
        minimum=40 * MIB,
    )


@dataclass(frozen=True)
class BrokerSettings:
    """The embedded broker of start-dev."""

    port: int = setting(
        0,
        "Port of the embedded Kafka broker on 127.0.0.1; 0 picks a free one and keeps it.",
        flag="--broker-port",
        minimum=0,
        maximum=65535,
    )
    heap_bytes: int = setting(256 * MIB, "Java heap of the embedded broker.", unit="bytes", minimum=96 * MIB)
    fsync: bool = setting(
        True,
        "Have what the embedded broker acknowledges on the disk, where the disk is quick about that: then a loss of "
        "power loses nothing.",
        flag="--fsync",
    )


@dataclass(frozen=True)
class NodeSettings:
    """This process."""

    data_dir: str = setting("", "Where state is kept; empty means the user's data directory.", flag="--data-dir")
    ephemeral: bool = setting(
        False, "Keep everything in a temporary directory that goes away at the end.", flag="--ephemeral"
    )
    rpc_ip: str = setting(
        "127.0.0.1", "Address on which this process answers other Everfold processes.", flag="--rpc-ip"
    )
    rpc_port: int = setting(
        0,
        "Port on which this process answers other Everfold processes; 0 picks a free one.",
        flag="--rpc-port",
        minimum=0,
        maximum=65535,
    )
    advertise: str = setting(
        "", "host:port by which other processes reach this one, when it is not what it listens on.", flag="--advertise"
    )
    name: str = setting("", "A name for this process in logs and in the cluster topic; empty makes one.", flag="--name")


TASK_PARTITIONS_DEFAULT: Final = 2
SHARDS_DEFAULT: Final = 4
SHARDS_EMBEDDED: Final = 1
"""One process folds them all there, so more shards only mean more and smaller requests to the broker. A Temporal dev
server has one, too. Measured in docs/decisions/0015-latency-and-requests.md."""


@dataclass(frozen=True)
class HistorySettings:
    """History: shards and their stores."""

    shards: int = setting(
        0,
        "History shards: a power of two, fixed when the topics are created. 0: as many as the topics have; "
        f"{SHARDS_EMBEDDED} for new ones on the embedded broker, {SHARDS_DEFAULT} elsewhere.",
        flag="--shards",
        minimum=0,
        maximum=4096,
    )
    feature_level: int = setting(
        0,
        "Raise the shards' logs to this feature level, when no process of an older version runs any more: those stop "
        "at it, and it never goes back. 0: as the logs are, and the newest for new ones.",
        flag="--feature-level",
        minimum=0,
        maximum=FEATURE_LEVEL,
    )
    run_cache_bytes: int = setting(
        128 * MIB, "Memory for the runs kept decoded, least recently used first out.", unit="bytes", minimum=MIB
    )
    run_cache_runs: int = setting(
        0, "Most runs kept decoded, whatever their size; 0 leaves it to the bytes.", minimum=0
    )
    block_cache_bytes: int = setting(
        32 * MIB, "RocksDB's block cache, one for all shards of the process.", unit="bytes", minimum=8 * MIB
    )
    write_buffer_bytes: int = setting(
        32 * MIB, "RocksDB's memtables, one budget for all shards of the process.", unit="bytes", minimum=4 * MIB
    )
    in_flight_max: int = setting(
        2000, "Records of RPCs on their way per shard; beyond it callers get RESOURCE_EXHAUSTED.", minimum=16
    )
    outbox_max: int = setting(
        20_000, "Unacknowledged outputs per shard; beyond it the shard stops taking commands.", minimum=256
    )
    waiters_max: int = setting(20_000, "Parked long polls and waiting reads per shard.", minimum=64)
    on_lost_tail: str = setting(
        "stop",
        "What to do with a shard whose log lacks records that its store or its former owner had folded. stop: it is "
        "not served until an operator decides (everfold shard repair); start-dev ends and says so. keep-log: decided "
        "already: the store is set aside, the log folded as it is; what was acknowledged in the lost records is gone.",
        choices=("stop", "keep-log"),
        flag="--on-lost-tail",
    )
    flush_interval_s: float = setting(
        5.0,
        "How often stores are flushed: bounds what is folded again after a crash.",
        unit="s",
        minimum=1,
        maximum=60,
    )


@dataclass(frozen=True)
class MatchingSettings:
    """Matching: task queues."""

    partitions: int = setting(
        0,
        "Partitions of each task topic, fixed when the topics are created. 0: as many as there are; "
        f"{TASK_PARTITIONS_DEFAULT} for new ones.",
        flag="--task-partitions",
        minimum=0,
        maximum=1024,
    )
    pollers_max: int = setting(10_000, "Parked polls per process; beyond it polls get RESOURCE_EXHAUSTED.", minimum=16)
    backlog_max: int = setting(
        20_000,
        "Tasks of one task partition kept in memory, at about a kilobyte each; the rest is on disk.",
        minimum=100,
    )


@dataclass(frozen=True)
class FrontendSettings:
    """The gRPC front door."""

    ip: str = setting("127.0.0.1", "Address to listen on.", flag="--ip")
    port: int = setting(7233, "Port to listen on; 0 picks a free one.", flag="--port", minimum=0, maximum=65535)
    gateway: str = setting(
        "http2",
        "gRPC implementation: http2 is Everfold's own; grpcio is the reference, whose calls take ten times as long and "
        "whose bytes have no budget.",
        choices=("http2", "grpcio"),
        flag="--gateway",
    )
    tls_cert_path: str = setting(
        "",
        "Certificate chain, a PEM file read at the start: the frontend then serves TLS and refuses plaintext. It is "
        "for clients; what Everfold's processes say to one another stays plain.",
        flag="--tls-cert-path",
    )
    tls_key_path: str = setting("", "Private key of that certificate, an unencrypted PEM file.", flag="--tls-key-path")
    tls_client_ca_path: str = setting(
        "",
        "Authorities, a PEM file: clients must show a certificate that one of them signed.",
        flag="--tls-client-ca-path",
    )
    message_bytes_max: int = setting(
        4 * MIB, "Largest request taken, as in Temporal.", unit="bytes", minimum=MIB, maximum=7 * MIB
    )
    default_retention_days: int = setting(1, "Retention of the namespaces made by --namespace.", unit="days", minimum=1)


@dataclass(frozen=True)
class VisibilitySettings:
    """The index behind List, Count and Scan."""

    url: str = setting(
        "",
        "Where the index is, e.g. sqlite:////var/lib/everfold/index.db; empty means visibility.db in the process's own "
        "data directory, which is right for start-dev. Frontends and workers that are processes of their own need the "
        "same file; a frontend without a worker's index refuses lists and counts.",
    )


@dataclass(frozen=True)
class TopologySettings:
    """The stream processors."""

    enabled: bool = setting(
        True, "Whether start-dev runs the processors (typed events, visibility index).", flag="--topology"
    )
    metrics_port: int = setting(
        0,
        "Port for the Prometheus metrics of the processors, which are a process of their own in start-dev; 0 means "
        "none there, and metrics.port in a worker alone.",
        flag="--topology-metrics-port",
        minimum=0,
        maximum=65535,
    )


@dataclass(frozen=True)
class MetricsSettings:
    """Prometheus."""

    port: int = setting(
        0, "Port for Prometheus metrics; 0 means none.", flag="--metrics-port", minimum=0, maximum=65535
    )
    ip: str = setting("127.0.0.1", "Address for Prometheus metrics.", flag="--metrics-ip")


@dataclass(frozen=True)
class LogSettings:
    """Logs, on standard error."""

    level: str = setting(
        "info",
        "Least level written.",
        choices=("debug", "info", "warning", "warn", "error", "never"),
        flag="--log-level",
    )
    format: str = setting(
        "auto",
        "auto is text on a terminal and JSON elsewhere.",
        choices=("auto", "text", "pretty", "json"),
        flag="--log-format",
    )


@dataclass(frozen=True)
class SetupSettings:
    """What start-dev creates when it is missing."""

    namespace: tuple[str, ...] = setting(
        (), "A namespace to create, besides `default`; may be repeated.", flag="--namespace"
    )
    search_attribute: dict[str, str] = setting(
        {},
        "A search attribute NAME=TYPE to register in every namespace created; may be repeated.",
        flag="--search-attribute",
    )


@dataclass(frozen=True)
class DynamicSettings:
    """Temporal's dynamic configuration."""

    value: dict[str, str] = setting(
        {},
        "A limit or timeout by Temporal's name, e.g. limit.historyCount.suggestContinueAsNew=50; may be repeated.",
        flag="--dynamic-config-value",
    )


@dataclass(frozen=True)
class Settings:
    """All of them. A frozen value: nothing changes a setting in a running process."""

    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    node: NodeSettings = field(default_factory=NodeSettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    matching: MatchingSettings = field(default_factory=MatchingSettings)
    frontend: FrontendSettings = field(default_factory=FrontendSettings)
    visibility: VisibilitySettings = field(default_factory=VisibilitySettings)
    topology: TopologySettings = field(default_factory=TopologySettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    setup: SetupSettings = field(default_factory=SetupSettings)
    dynamic: DynamicSettings = field(default_factory=DynamicSettings)

    @property
    def limits(self) -> Parsed:
        """What the dynamic-configuration names give: to the fold, and to the services."""
        return parse_dynamic(self.dynamic.value)


OPTIONS: Final[dict[str, Option]] = options_of(Settings)
SECTIONS: Final = tuple(dict.fromkeys(option.section for option in OPTIONS.values()))
CONFIG_ENV: Final = "EVERFOLD_CONFIG"
RESERVED_PROPERTIES: Final = frozenset(
    (
        "acks",
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "enable.idempotence",
        "group.id",
        "transactional.id",
    )
)
"""librdkafka properties that users may not set: the laws rest on the engine's own values."""
_SEARCH_ATTRIBUTE_TYPES: Final = ("Bool", "Datetime", "Double", "Int", "Keyword", "KeywordList", "Text")


@dataclass(frozen=True)
class Loaded:
    """Settings with where each came from.

    Attributes:
        settings: the values.
        sources: `section.name` -> "default", an environment variable, the file, or a flag.
        warnings: what looks like a mistake but stops nothing.
    """

    settings: Settings
    sources: dict[str, str]
    warnings: tuple[str, ...]


def load(flags: Mapping[str, Any], env: Mapping[str, str] | None = None, file: str | Path | None = None) -> Loaded:
    """Read flags (by `section.name`), environment and file. Raises SettingError on a bad value or a contradiction."""
    env = os.environ if env is None else env
    chosen = file or env.get(CONFIG_ENV) or None
    resolved = resolve(OPTIONS, flags, env, Path(chosen) if chosen else None)
    settings = build(Settings, resolved.values)
    if wrong := contradictions(settings, resolved):
        raise SettingError("\n".join(wrong))
    parsed = parse_dynamic(settings.dynamic.value)
    return Loaded(settings, resolved.sources, (*resolved.warnings, *parsed.warnings))


def contradictions(settings: Settings, resolved: Resolved) -> list[str]:
    """What cannot be meant together, each with what to do about it."""
    given = {path for path, source in resolved.sources.items() if source != "default"}
    wrong: list[str] = []
    if settings.history.shards & (settings.history.shards - 1):
        wrong.append(f"history.shards is {settings.history.shards}: it must be a power of two.")
    if settings.node.ephemeral and settings.node.data_dir:
        wrong.append("node.ephemeral and node.data_dir are both given: an ephemeral server keeps nothing. Drop one.")
    if settings.kafka.bootstrap:
        wrong += [
            f"kafka.bootstrap names a cluster, so there is no embedded broker: {path} has no meaning. Drop one."
            for path in ("broker.port", "broker.heap_bytes", "broker.fsync")
            if path in given
        ]
    frontend = settings.frontend
    if bool(frontend.tls_cert_path) != bool(frontend.tls_key_path):
        one, other = ("cert", "key") if frontend.tls_cert_path else ("key", "cert")
        wrong.append(f"frontend.tls_{one}_path is given without frontend.tls_{other}_path: TLS needs both.")
    elif frontend.tls_client_ca_path and not frontend.tls_cert_path:
        wrong.append(
            "frontend.tls_client_ca_path is given without frontend.tls_cert_path: only TLS knows certificates."
        )
    if reserved := RESERVED_PROPERTIES & settings.kafka.properties.keys():
        names = ", ".join(sorted(reserved))
        wrong.append(f"kafka.properties sets {names}: the engine's guarantees rest on its own values. Drop it.")
    ports = {
        "frontend.port": settings.frontend.port,
        "node.rpc_port": settings.node.rpc_port,
        "metrics.port": settings.metrics.port,
        "topology.metrics_port": settings.topology.metrics_port,
        "broker.port": 0 if settings.kafka.bootstrap else settings.broker.port,
    }
    taken: dict[int, str] = {}
    for path, port in ports.items():
        if port != ANY_PORT and port in taken:
            wrong.append(f"{taken[port]} and {path} are both {port}: give one of them another port.")
        taken[port] = path
    for name, kind in settings.setup.search_attribute.items():
        if kind not in _SEARCH_ATTRIBUTE_TYPES:
            allowed = ", ".join(_SEARCH_ATTRIBUTE_TYPES)
            wrong.append(f"search attribute {name}={kind}: the type must be one of {allowed}.")
    wrong += parse_dynamic(settings.dynamic.value).errors
    return wrong
