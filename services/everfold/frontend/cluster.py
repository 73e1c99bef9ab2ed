"""What the server says about itself: version, capabilities, cluster; and its health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from grpc_health.v1 import health_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.calls import OPERATOR_SERVICE, WORKFLOW_SERVICE, CallContext
from everfold.frontend.core import parse
from everfold.kernel.errors import Code, StatusError

_Serving: Final = health_pb2.HealthCheckResponse.ServingStatus

SERVER_VERSION: Final = "1.32.0"
"""The Temporal version whose behaviour is offered. SDKs, CLI and UI compare it with ranges; it must be semver."""

CLUSTER_NAME: Final = "active"
"""What Temporal calls a cluster that replicates to no other."""

SUPPORTED_CLIENTS: Final = {
    "temporal-go": "<2.0.0",
    "temporal-java": "<2.0.0",
    "temporal-php": "<2.0.0",
    "temporal-typescript": "<2.0.0",
    "temporal-cli": "<2.0.0",
    "temporal-ui": "<3.0.0",
    "temporal-server": "<2.0.0",
}

SYSTEM_INFO: Final = ws.GetSystemInfoResponse(
    server_version=SERVER_VERSION,
    capabilities=ws.GetSystemInfoResponse.Capabilities(
        # What is on commits us to its meaning; what is not built is absent.
        signal_and_query_header=True,
        internal_error_differentiation=True,
        activity_failure_include_heartbeat=True,
        encoded_failure_attributes=True,
        upsert_memo=True,
        # Workers stamp their completions with a build id, which goes into the event; no task is routed by it.
        build_id_based_versioning=True,
        eager_workflow_start=True,
        sdk_metadata=True,
        count_group_by_execution_status=True,
    ),
)


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What does not change while a server runs.

    Attributes:
        cluster_id: from Genesis.
        address: where clients reach this frontend.
        visibility_store: the kind of index; the UI asks for an order only from Elasticsearch.
    """

    cluster_id: str
    shard_count: int
    address: str = ""
    persistence_store: str = "kafka"
    visibility_store: str = "sqlite"


class ClusterHandlers:
    """GetSystemInfo, GetClusterInfo, health."""

    def __init__(self, facts: ClusterFacts) -> None:
        self._system_info = SYSTEM_INFO.SerializeToString()
        self._cluster_info = ws.GetClusterInfoResponse(
            supported_clients=SUPPORTED_CLIENTS,
            server_version=SERVER_VERSION,
            cluster_id=facts.cluster_id,
            cluster_name=CLUSTER_NAME,
            history_shard_count=facts.shard_count,
            persistence_store=facts.persistence_store,
            visibility_store=facts.visibility_store,
            initial_failover_version=1,
            failover_version_increment=10,
        ).SerializeToString()
        self._stopping = asyncio.Event()

    async def system_info(self, context: CallContext, request: bytes) -> bytes:
        """GetSystemInfo: the first call of every SDK connection."""
        return self._system_info

    async def cluster_info(self, context: CallContext, request: bytes) -> bytes:
        """GetClusterInfo: the web UI does not load without it."""
        return self._cluster_info

    async def health(self, context: CallContext, request: bytes) -> bytes:
        """grpc.health.v1.Health/Check."""
        status = self._health_of(request)
        if status == _Serving.SERVICE_UNKNOWN:
            raise StatusError(Code.NOT_FOUND, "unknown service")
        return _health(status)

    async def watch_health(self, context: CallContext, request: bytes) -> AsyncGenerator[bytes, None]:
        """grpc.health.v1.Health/Watch: the status now, and again when it changes, until the client leaves."""
        status = self._health_of(request)
        yield _health(status)
        await self._stopping.wait()
        if status == _Serving.SERVING:
            yield _health(_Serving.NOT_SERVING)
        await asyncio.get_running_loop().create_future()

    def stop_serving(self) -> None:
        """From now on the health service says NOT_SERVING."""
        self._stopping.set()

    def _health_of(self, request: bytes) -> health_pb2.HealthCheckResponse.ServingStatus:
        message = parse(health_pb2.HealthCheckRequest, request)
        if message.service not in ("", WORKFLOW_SERVICE, OPERATOR_SERVICE):
            return _Serving.SERVICE_UNKNOWN
        return _Serving.NOT_SERVING if self._stopping.is_set() else _Serving.SERVING


def _health(status: health_pb2.HealthCheckResponse.ServingStatus) -> bytes:
    data: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return data
