"""One Everfold process: the parts that every role shares, and the roles wired to them.

Started in this order, stopped in the reverse, so that whoever is asked still has whom to ask:

    metrics · namespaces · calls between processes and membership · matching · history · frontend
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from confluent_kafka.admin import AdminClient

from everfold.cli.ports import cannot_listen
from everfold.frontend.cluster import ClusterFacts
from everfold.frontend.freshness import Freshness
from everfold.frontend.limits import FrontendLimits
from everfold.frontend.server import LONG_POLLS, FrontendServer
from everfold.frontend.tls_files import TlsFiles
from everfold.history.config import HistoryConfig
from everfold.history.machine_reads import MachineReads
from everfold.history.namespaces import RegistryNamespaces
from everfold.history.owner import HistoryServer
from everfold.history.ports import ShellLimits
from everfold.history.stopped import OnLostTail
from everfold.kernel.errors import Code
from everfold.kernel.limits import DEFAULTS
from everfold.kernel.time import SECOND_NS
from everfold.matching.server import MatchingServer
from everfold.matching.service import MatchingService
from everfold.runtime import descriptors, metrics
from everfold.runtime.clients import HistoryClient, MatchingClient
from everfold.runtime.cluster_topic import ClusterTopic
from everfold.runtime.config import SHARDS_DEFAULT, SHARDS_EMBEDDED, TASK_PARTITIONS_DEFAULT, Settings
from everfold.runtime.datadir import DataDir
from everfold.runtime.kafka import EndOffsets, KafkaSettings, KafkaUnavailable, Metadata, Producer, ask_metadata
from everfold.runtime.lifecycle import Fatal, Supervisor
from everfold.runtime.membership import Member, new_member_id
from everfold.runtime.namespace_log import NamespaceLog
from everfold.runtime.namespaces import NamespaceRegistry
from everfold.runtime.router import Router
from everfold.runtime.rpc import RpcPool, RpcServer
from everfold.runtime.topics_admin import REPLICATION_MIN, ClusterShape, apply_topics, require_topics
from everfold.schemas.topics import SHARD_LOG, TOPICS, VISIBILITY, WORKFLOW_TASKS
from everfold.visibility.found import FoundIndex
from everfold.visibility.store import IndexUnusable, VisibilityStore, open_visibility

LOOK_S: Final = 30.0
"""How long a broker may take to say what cluster it is: it may be starting, too."""

_LOOK_AGAIN_S: Final = 0.02

log = structlog.get_logger("everfold")


@dataclass(frozen=True)
class Cluster:
    """What Kafka says of the cluster.

    Attributes:
        cluster_id: Everfold's: of Kafka's own id and the topics' prefix, so that two of them can share a Kafka.
        kafka_cluster_id: Kafka's own id.
        brokers: how many there are.
        shape: as the topics have it, or as they are to be made.
    """

    cluster_id: str
    kafka_cluster_id: str
    brokers: int
    shape: ClusterShape


async def look_at(
    kafka: KafkaSettings,
    settings: Settings,
    data: DataDir,
    *,
    create: bool = False,
    alone: bool = False,
    write_through: bool | None = None,
) -> Cluster:
    """Find out what cluster this is, and check its topics; with `create`, make those that are missing.

    Args:
        kafka: how to reach it.
        settings: what is wanted of the topics.
        data: bound to the cluster here.
        create: make the missing topics.
        alone: this process is the only one that will ever serve the cluster; what `create` finds unsafe it may set.
        write_through: see `ClusterShape`.

    Raises:
        Fatal: the data directory is another cluster's, or the settings contradict the topics.
        KafkaTrouble: no broker answered, or the topics are not as they must be.
    """
    found = await asyncio.to_thread(_ask, kafka)
    partitions = {name: len(topic.partitions) for name, topic in found.topics.items()}
    # start-dev takes what there is, and its banner says so; a service alone insists on --single-broker.
    single = settings.kafka.single_broker or (create and _copies(found, kafka.topic(SHARD_LOG)) < REPLICATION_MIN)
    shape = ClusterShape(
        shards=_count(
            "history.shards",
            settings.history.shards,
            SHARDS_EMBEDDED if alone else SHARDS_DEFAULT,
            partitions.get(kafka.topic(SHARD_LOG), 0),
        ),
        task_partitions=_count(
            "matching.partitions",
            settings.matching.partitions,
            TASK_PARTITIONS_DEFAULT,
            partitions.get(kafka.topic(WORKFLOW_TASKS), 0),
        ),
        replication=settings.kafka.replication or (1 if single else REPLICATION_MIN),
        single_broker=single,
        write_through=write_through,
    )
    cluster_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"everfold/{found.cluster_id}/{kafka.prefix}"))
    data.bind(cluster_id)
    if create:
        for difference in await asyncio.to_thread(apply_topics, kafka, shape, create_only=not alone):
            log.debug("topics", deed=difference.deed, about=str(difference))
    else:
        await asyncio.to_thread(require_topics, kafka, shape)
    return Cluster(cluster_id, found.cluster_id, found.brokers, shape)


def _ask(kafka: KafkaSettings) -> Metadata:
    names = [kafka.topic(topic) for topic in TOPICS]
    try:
        return ask_metadata(AdminClient(kafka.client("look")), names, kafka.bootstrap, LOOK_S)
    except KafkaUnavailable as error:
        raise Fatal(str(error)) from None


def _copies(found: Metadata, topic: str) -> int:
    """How many copies of each record the cluster keeps, or can keep: a broker that is away now does not count, so only
    a cluster without topics is judged by the brokers that are there.
    """
    if topic not in found.topics:
        return found.brokers
    return min(len(partition.replicas) for partition in found.topics[topic].partitions.values())


def _count(path: str, wanted: int, default: int, found: int) -> int:
    """The count that the topics have, else the wanted one; a setting that says otherwise is a contradiction."""
    if found and wanted and wanted != found:
        raise Fatal(
            f"{path} is {wanted}, but the topics were created with {found}. It is fixed for the life of a cluster: "
            f"drop the setting, or take another --kafka-prefix for a new cluster."
        )
    return found or wanted or default


class Node:
    """One process's parts, wired; `start` starts them through the supervisor.

    Attributes:
        frontend: the gRPC front, when this process has one and is started.
        history: the shards' owner, when this process is one and is started.
        router: the way to every service, once started.
        registry: the namespaces, once started.
    """

    def __init__(
        self,
        settings: Settings,
        kafka: KafkaSettings,
        cluster: Cluster,
        data: DataDir,
        roles: tuple[str, ...],
        *,
        alone: bool = False,
        keeps_index: bool = False,
        whole: bool = False,
        tls: TlsFiles | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            settings: all of them.
            kafka: how to reach the cluster.
            cluster: what it is.
            data: this process's directory.
            roles: what this process is: "matching", "history", "frontend".
            alone: promises that no other process serves the cluster.
            keeps_index: promises that a worker of this very program writes the frontend's visibility index.
            whole: with a shard that cannot be served the process is of no use, and ends.
            tls: what the frontend serves TLS with; None for plaintext.
        """
        self._tls = tls
        self._alone = alone
        self._keeps_index = keeps_index
        self._whole = whole
        self._settings = settings
        self._limits = settings.limits
        self._kafka = kafka
        self._cluster = cluster
        self._data = data
        self._roles = roles
        self._metrics = metrics.NamedMetrics()
        self._rpc: RpcServer | None = None
        self._clients: _Clients
        self._stopped_last: list[_Stoppable] = []
        self.frontend: FrontendServer | None = None
        self.history: HistoryServer | None = None
        self.router: Router
        self.registry: NamespaceRegistry

    async def start(self, supervisor: Supervisor, before_frontend: Callable[[], Awaitable[None]] | None = None) -> None:
        """Start everything; the frontend last, after `before_frontend`. Shards may still be being taken then."""
        settings, kafka, cluster = self._settings, self._kafka, self._cluster
        await supervisor.start("metrics", metrics.MetricsServer(settings.metrics.ip, settings.metrics.port))
        clients = self._clients = _Clients(kafka)
        await supervisor.start("kafka clients", clients)
        namespaces = NamespaceLog(kafka, clients.ends)
        await supervisor.start("namespaces", namespaces)
        self.registry = namespaces.registry

        name = settings.node.name or new_member_id()
        topic = ClusterTopic(kafka, clients.producer, clients.ends, Member(name, roles=self._roles))
        pool = RpcPool(cluster.cluster_id)
        self.router = Router(topic.membership, pool)
        services = self._make_services(supervisor, topic)
        if services:
            self._rpc = RpcServer(services, settings.node.rpc_ip, settings.node.rpc_port, cluster=cluster.cluster_id)
            await supervisor.start("rpc", self._rpc)
        topic.membership.set_addresses(self._reached_at(), self._frontend_at())
        await supervisor.start("membership", topic)
        await supervisor.start("connections", _Stopping(pool, *self._stopped_last))
        for role, server in self._servers.items():
            await supervisor.start(role, server)
        if before_frontend is not None:
            await before_frontend()
        if "frontend" in self._roles:
            await self._start_frontend(supervisor)
            topic.membership.set_addresses(self._reached_at(), self._frontend_at())

    def _make_services(self, supervisor: Supervisor, topic: ClusterTopic) -> dict[str, object]:
        """The services of this process, known to the router; their servers are started afterwards."""
        settings, shape = self._settings, self._cluster.shape
        session_ms = round(settings.kafka.session_timeout_s * 1000)
        # The lock on the data directory keeps a second one from living at the same time.
        instance = "alone" if self._alone else ""
        services: dict[str, object] = {}
        self._servers: dict[str, MatchingServer | HistoryServer] = {}
        local_matching: MatchingService | None = None
        history_client = HistoryClient(self.router)
        if "matching" in self._roles:
            local_matching = services["matching"] = MatchingService(
                history_client,
                shape.task_partitions,
                spill_dir=_made(self._data.matching),
                long_poll_s=self._limits.service.poll_ns / SECOND_NS,
                query_window_ns=self._limits.service.query_poller_window_ns,
                polls_max=settings.matching.pollers_max,
                memory_tasks_max=settings.matching.backlog_max,
            )
            self._servers["matching"] = MatchingServer(
                self._kafka,
                local_matching,
                topic.membership,
                self._clients.ends,
                session_ms=session_ms,
                instance=instance,
                handed_over=self._alone,
            )
        if "history" in self._roles:
            matching = MatchingClient(self.router, shape.task_partitions, local_matching)
            self.history = HistoryServer(
                self._kafka,
                HistoryConfig(
                    cluster_id=self._cluster.cluster_id,
                    shard_count=shape.shards,
                    data_dir=self._data.history,
                    owner=topic.membership.me.member_id,
                    feature_level=settings.history.feature_level,
                    settings={**self._limits.folded, "matching.partitions": shape.task_partitions},
                    run_cache_bytes=settings.history.run_cache_bytes,
                    run_cache_runs=settings.history.run_cache_runs,
                    block_cache_bytes=settings.history.block_cache_bytes,
                    write_buffer_bytes=settings.history.write_buffer_bytes,
                    flush_interval_s=settings.history.flush_interval_s,
                    producer_bytes_max=settings.kafka.queue_bytes,
                    outputs_linger_ms=settings.kafka.linger_ms,
                    tasks_linger=self._alone,
                    session_ms=session_ms,
                    instance=instance,
                    on_lost_tail=self._on_lost_tail(),
                    limits=ShellLimits(
                        in_flight_max=settings.history.in_flight_max,
                        outbox_entries_max=settings.history.outbox_max,
                        waiters_max=settings.history.waiters_max,
                    ),
                ),
                RegistryNamespaces(self.registry),
                MachineReads(),
                matching,
                membership=topic.membership,
                positions=topic,
                metrics=self._metrics,
                on_fatal=supervisor.end,
            )
            self._servers["history"] = self.history
            self._stopped_last.append(matching)
            services["history"] = history_client.local = self.history.service
        for role, service in services.items():
            self.router.add_local(role, service)
        return services

    async def _start_frontend(self, supervisor: Supervisor) -> None:
        settings, shape, service = self._settings, self._cluster.shape, self._limits.service
        index = await asyncio.to_thread(self._open_index)
        folded = {**DEFAULTS, **self._limits.folded}
        limits = FrontendLimits(
            request_bytes_max=settings.frontend.message_bytes_max,
            id_bytes_max=folded["limit.maxIDLength"],
            blob_bytes_max=folded["limit.blobSize.error"],
            memo_bytes_max=folded["limit.memoSize.error"],
            search_attributes_max=folded["limit.numberOfSearchAttributeKeys"],
            search_attribute_bytes_max=folded["limit.searchAttributeSizeOfValue"],
            search_attributes_bytes_max=folded["limit.searchAttributeTotalSize"],
            history_page_events_max=service.history_page_events_max,
            visibility_page_max=service.visibility_page_max,
            poll_seconds=service.poll_ns / SECOND_NS,
            history_poll_seconds=service.history_poll_ns / SECOND_NS,
            long_polls_max=service.long_polls_max,
            rps=service.rps,
            visibility_rps=service.visibility_rps,
            namespace_writes_rps=service.namespace_writes_rps,
        )
        self.frontend = FrontendServer(
            host=settings.frontend.ip,
            port=settings.frontend.port,
            namespaces=self.registry,
            router=self.router,
            shard_count=shape.shards,
            task_partitions=shape.task_partitions,
            cluster=ClusterFacts(self._cluster.cluster_id, shape.shards),
            visibility=index,
            freshness=self._freshness(index),
            gateway=settings.frontend.gateway,
            descriptors_max=descriptors.for_clients(),
            tls=self._tls,
            limits=limits,
            observer=_observe_call,
        )
        try:
            await supervisor.start("frontend", self.frontend)
        except OSError as error:
            raise cannot_listen(settings.frontend.ip, settings.frontend.port, error, "--port") from None

    def _open_index(self) -> VisibilityStore | FoundIndex:
        url = self._settings.visibility.url or self._data.visibility_url
        try:
            if self._keeps_index:
                return open_visibility(url)
            index = FoundIndex(url)
            if missing := index.look():
                log.warning("lists and counts are refused", reason=missing)
        except IndexUnusable as error:
            raise Fatal(str(error)) from None
        return index

    def _freshness(self, index: VisibilityStore | FoundIndex) -> Freshness | None:
        """Where every shard is of this process, it is known what the index has to reach."""
        history = self.history
        if not self._alone or history is None or not isinstance(index, VisibilityStore):
            return None
        return Freshness(
            lambda: history.newest_outputs(VISIBILITY), lambda shards: index.reached(VISIBILITY.name, shards)
        )

    async def wait_served(self, timeout: float) -> None:
        """Return when somebody serves each shard and each task partition. Raises Fatal when that takes too long."""
        shape, membership = self._cluster.shape, self.router.membership
        deadline = asyncio.get_running_loop().time() + timeout
        for role, count in (("history", shape.shards), ("matching", shape.task_partitions)):
            for number in range(count):
                while True:
                    left = deadline - asyncio.get_running_loop().time()
                    owner = await membership.wait_owner(role, number, max(left, 0.01))
                    if owner is not None and (not self._alone or owner.member_id == membership.me.member_id):
                        break
                    if left <= 0:
                        raise Fatal(f"{role} partition {number} is not served after {timeout:.0f} s; the log says why.")
                    # What this process owned in a life that was ended by a kill is still said of its former self.
                    await asyncio.sleep(_LOOK_AGAIN_S)

    def _on_lost_tail(self) -> OnLostTail:
        chosen = OnLostTail(self._settings.history.on_lost_tail)
        return OnLostTail.END if chosen is OnLostTail.STOP and self._whole else chosen

    def _reached_at(self) -> str:
        if self._rpc is None:
            return ""
        return self._settings.node.advertise or self._rpc.address

    def _frontend_at(self) -> str:
        return "" if self.frontend is None else f"{self._settings.frontend.ip}:{self.frontend.port}"

    def addresses(self) -> dict[str, str]:
        """What listens where, for logs and banners; only what there is."""
        metrics_port = self._settings.metrics.port
        found = {
            "grpc": self._frontend_at(),
            "rpc": self._reached_at(),
            "metrics": f"http://{self._settings.metrics.ip}:{metrics_port}/metrics" if metrics_port else "",
        }
        return {name: address for name, address in found.items() if address}


class _Clients:
    """The Kafka clients that the parts of a process share."""

    ends: EndOffsets
    producer: Producer

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka

    async def start(self) -> None:
        self.ends = EndOffsets(self._kafka, name="offsets")
        self.producer = Producer(self._kafka, name="membership")

    async def stop(self) -> None:
        self.ends.close()
        await self.producer.close(0.5)


class _Stoppable(Protocol):
    async def stop(self) -> None: ...


class _Stopping:
    """What only needs to be stopped."""

    def __init__(self, *parts: _Stoppable) -> None:
        self._parts = parts

    async def start(self) -> None:
        """Nothing: connections are made when first needed."""

    async def stop(self) -> None:
        for part in reversed(self._parts):
            await part.stop()


_RPC_CHILDREN: Final[dict[tuple[str, int], Any]] = {}


def _observe_call(method: str, code: int, seconds: float) -> None:
    key = (method, code)
    children = _RPC_CHILDREN.get(key)
    if children is None:
        name = method.rpartition("/")[2]
        children = _RPC_CHILDREN[key] = (
            metrics.RPCS.labels(name, Code(code).name),
            None if method in LONG_POLLS else metrics.RPC_SECONDS.labels(name),
        )
    children[0].inc()
    if children[1] is not None:
        children[1].observe(seconds)


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
