"""What `start-dev` starts when its broker is there: the services in its own process, the processors in a child's."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

import structlog
from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.table import Table
from temporalio.api.enums.v1 import common_pb2
from temporalio.api.operatorservice.v1 import request_response_pb2 as op
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.cli import nodes, topics
from everfold.cli.processors import child_command, child_environment
from everfold.cli.version import version
from everfold.frontend.tls_files import TlsFiles
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.broker.write_through import WriteThrough
from everfold.runtime.config import Settings
from everfold.runtime.datadir import DataDir
from everfold.runtime.lifecycle import Fatal, Supervisor
from everfold.worker.server import WorkerServer

DEFAULT_NAMESPACE: Final = "default"

SERVED_S: Final = 120.0
"""How long the shards may take at the start: they refold what their stores had not flushed when the last run died."""

NAMESPACE_S: Final = 30.0
"""How long shard 0 may take to register a namespace."""

_SEARCH_ATTRIBUTE_TYPES: Final = {
    "Bool": common_pb2.INDEXED_VALUE_TYPE_BOOL,
    "Datetime": common_pb2.INDEXED_VALUE_TYPE_DATETIME,
    "Double": common_pb2.INDEXED_VALUE_TYPE_DOUBLE,
    "Int": common_pb2.INDEXED_VALUE_TYPE_INT,
    "Keyword": common_pb2.INDEXED_VALUE_TYPE_KEYWORD,
    "KeywordList": common_pb2.INDEXED_VALUE_TYPE_KEYWORD_LIST,
    "Text": common_pb2.INDEXED_VALUE_TYPE_TEXT,
}

log = structlog.get_logger("everfold")


class DevServices:
    """Everything but the broker.

    Args:
        settings: all of them, with a cluster to talk to.
        data: the directory, held.
        tls: what the frontend serves TLS with; None for plaintext.
        embedded: the broker is start-dev's own.
        write_through: of that broker.
    """

    def __init__(
        self,
        settings: Settings,
        data: DataDir,
        tls: TlsFiles | None,
        *,
        embedded: bool,
        write_through: WriteThrough | None,
    ) -> None:
        self._settings = settings
        self._data = data
        self._tls = tls
        self._embedded = embedded
        self._write_through = write_through
        self._broker_s = 0.0
        self._node: nodes.Node

    async def start(self, supervisor: Supervisor, *, began: float, broker_s: float) -> None:
        """Start the services, have the processors started when those serve, and say where everything is.

        Args:
            supervisor: starts and watches them.
            began: when the program did, in time.monotonic's seconds.
            broker_s: how long the broker took.
        """
        settings = self._settings
        self._broker_s = broker_s
        kafka = topics.kafka_settings(settings)
        alone = self._embedded  # nobody else is told of that broker
        through = None if self._write_through is None else self._write_through.on
        cluster = await nodes.look_at(kafka, settings, self._data, create=True, alone=alone, write_through=through)
        served = asyncio.Event()
        if settings.topology.enabled:
            child = WorkerServer(child_command(), child_environment(settings), after=served)
            await supervisor.start("topology", child)
            supervisor.watch("topology stop", self._end_early(supervisor, child))
        node = self._node = nodes.Node(
            settings,
            kafka,
            cluster,
            self._data,
            ("matching", "history", "frontend"),
            alone=alone,
            keeps_index=settings.topology.enabled,
            whole=True,
            tls=self._tls,
        )
        await node.start(supervisor, before_frontend=self._prepare)
        served.set()
        self._banner(settings, cluster, time.monotonic() - began)

    @staticmethod
    async def _end_early(supervisor: Supervisor, child: WorkerServer) -> None:
        """Lets the child stop while the services do, as both have 5 s together."""
        await supervisor.wait_ended()
        child.end_soon()

    async def _prepare(self) -> None:
        """What must be there before the first client: served shards and the namespaces."""
        await self._node.wait_served(SERVED_S)
        names = dict.fromkeys((DEFAULT_NAMESPACE, *self._settings.setup.namespace))
        await asyncio.gather(*(self._register(name) for name in names))

    async def _register(self, name: str) -> None:
        registry = self._node.registry
        if registry.by_name(name) is None:
            days = self._settings.frontend.default_retention_days
            request = ws.RegisterNamespaceRequest(
                namespace=name, workflow_execution_retention_period=Duration(seconds=days * 86_400)
            )
            try:
                await self._decide("REGISTER_NAMESPACE", "", request.SerializeToString())
            except StatusError as error:
                if error.code != Code.ALREADY_EXISTS:
                    raise Fatal(f"The namespace {name} could not be registered: {error.message}") from None
        await registry.wait_until(lambda: registry.by_name(name) is not None, NAMESPACE_S)
        namespace = registry.by_name(name)
        if namespace is None:
            raise Fatal(f"The namespace {name} was registered, but its record did not come within {NAMESPACE_S:.0f} s.")
        wanted = self._settings.setup.search_attribute
        new = {
            key: _SEARCH_ATTRIBUTE_TYPES[kind] for key, kind in wanted.items() if key not in namespace.search_attributes
        }
        for key, kind in wanted.items():
            known = namespace.search_attributes.get(key, kind)
            if known != kind:
                raise Fatal(
                    f"The search attribute {key} of {name} is a {known}, not a {kind}: a type cannot be changed. "
                    "Drop --search-attribute, or take another name."
                )
        if new:
            change = op.AddSearchAttributesRequest(namespace=name, search_attributes=new)
            await self._decide("ADD_SEARCH_ATTRIBUTES", namespace.namespace_id, change.SerializeToString())
            await registry.wait_until(
                lambda: (found := registry.by_name(name)) is not None and new.keys() <= found.search_attributes.keys(),
                NAMESPACE_S,
            )

    async def _decide(self, kind: str, namespace_id: str, message: bytes) -> None:
        args = [kind, namespace_id, "", "", message, NAMESPACE_S]
        await self._node.router.call("history", 0, "execute", args, NAMESPACE_S)

    def _phases(self, seconds: float) -> str:
        """Where the time of the start went."""
        history = self._node.history
        times = None if history is None else history.slowest_taking
        shown = {"broker": self._broker_s, **({} if times is None else times._asdict())}
        shown["the rest"] = seconds - sum(shown.values())
        return ", ".join(f"{name} {taken:.1f} s" for name, taken in shown.items())

    def _banner(self, settings: Settings, cluster: nodes.Cluster, seconds: float) -> None:
        addresses = self._node.addresses()
        broker = f"{settings.kafka.bootstrap}{' (embedded)' if self._embedded else ''}"
        rows = {
            "gRPC": f"{addresses['grpc']}{_tls_words(self._tls)}",
            "Kafka": f"{broker}, topics {settings.kafka.prefix}*",
            "Metrics": addresses.get("metrics", "none (--metrics-port)"),
            **({"Processors": processors} if (processors := _processors_at(settings)) else {}),
            "Data": f"{self._data.path}{' (goes away at the end)' if self._data.ephemeral else ''}",
            "Visibility": settings.visibility.url or self._data.visibility_url,
            "Namespaces": ", ".join(namespace.name for namespace in self._node.registry if not namespace.deleted),
            "Shards": f"{cluster.shape.shards}, task partitions {cluster.shape.task_partitions}",
            "Start": self._phases(seconds),
            "Durability": _durability(cluster, self._write_through),
        }
        if sys.stdout.isatty():
            table = Table(
                title=f"Everfold {version()}, ready in {seconds:.1f} s", show_header=False, title_justify="left"
            )
            for name, value in rows.items():
                table.add_row(name, value)
            Console().print(table)
        else:
            print(f"Everfold {version()}, ready in {seconds:.1f} s")
            for name, value in rows.items():
                print(f"  {name + ':':<12}{value}")
        sys.stdout.flush()


def _tls_words(tls: TlsFiles | None) -> str:
    if tls is None:
        return ""
    return " (TLS)" if tls.client_ca is None else " (TLS; clients must show a certificate)"


def _processors_at(settings: Settings) -> str:
    """Where the processors show what they do; empty for nowhere."""
    port = settings.topology.metrics_port
    if not settings.topology.enabled or not port:
        return ""
    address = f"http://{settings.metrics.ip}:{port}"
    return f"metrics at {address}/metrics, lag at {address}/lag"


def _durability(cluster: nodes.Cluster, embedded: WriteThrough | None) -> str:
    if embedded is not None:
        survived = "and the loss of power, not of the disk" if embedded.on else "not the loss of power"
        return f"survives the kill of any process, {survived}: one broker, one copy; {embedded.why}"
    if cluster.shape.single_broker:
        return f"{cluster.brokers} broker(s), {cluster.shape.replication} copy of each record: a lost disk loses data"
    return f"{cluster.shape.replication} copies of each record, two of them before anything is answered"
