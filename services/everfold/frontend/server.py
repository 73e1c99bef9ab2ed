"""The frontend service: the table of handlers behind a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from everfold.frontend.activity import ActivityHandlers
from everfold.frontend.backend import Backend, Router
from everfold.frontend.calls import (
    EVERFOLD_SERVICE,
    HEALTH_SERVICE,
    OPERATOR_SERVICE,
    WORKFLOW_SERVICE,
    CallObserver,
    Handler,
    complete_table,
    method_path,
)
from everfold.frontend.cluster import ClusterFacts, ClusterHandlers
from everfold.frontend.core import Core
from everfold.frontend.depth import bounded
from everfold.frontend.freshness import Freshness
from everfold.frontend.gateway import DESCRIPTORS_MAX, SHUTDOWN_GRACE_SECONDS, Gateway, open_gateway
from everfold.frontend.limits import FrontendLimits
from everfold.frontend.namespace import NamespaceHandlers
from everfold.frontend.operator import OperatorHandlers
from everfold.frontend.polls import PollHandlers
from everfold.frontend.query import QueryHandlers
from everfold.frontend.taskqueue import TaskQueueHandlers
from everfold.frontend.tasks import WorkflowTaskHandlers
from everfold.frontend.tls_files import TlsFiles
from everfold.frontend.updates import UpdateHandlers
from everfold.frontend.visibility import VisibilityHandlers, VisibilityIndex
from everfold.frontend.workflow import WorkflowHandlers
from everfold.runtime.namespaces import NamespaceRegistry

LONG_POLLS: Final = frozenset(
    method_path(WORKFLOW_SERVICE, name)
    for name in (
        "PollWorkflowTaskQueue",
        "PollActivityTaskQueue",
        "GetWorkflowExecutionHistory",
        "UpdateWorkflowExecution",
        "PollWorkflowExecutionUpdate",
        "ExecuteMultiOperation",
    )
)
"""Calls that may wait for work or news: a server that stops does not wait for them, and their duration says nothing."""


class FrontendServer:
    """One frontend: `start` binds the port and serves, `stop` ends polls and lets the rest finish.

    Attributes:
        handlers: method path -> handler, every method that clients can name.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        namespaces: NamespaceRegistry,
        router: Router,
        shard_count: int,
        task_partitions: int,
        cluster: ClusterFacts,
        visibility: VisibilityIndex | None = None,
        freshness: Freshness | None = None,
        gateway: str = "http2",
        descriptors_max: int = DESCRIPTORS_MAX,
        tls: TlsFiles | None = None,
        limits: FrontendLimits | None = None,
        observer: CallObserver | None = None,
    ) -> None:
        """Wires the handlers; nothing is bound yet.

        Args:
            host: the address to bind.
            port: the port to bind; 0 lets the kernel choose.
            namespaces: the registry, started by whoever made it.
            router: the way to history and matching.
            shard_count: history shards of the cluster.
            task_partitions: partitions of each task topic.
            cluster: what GetClusterInfo says; its address is filled in when it is empty and the port is known.
            visibility: the index behind List and Count; without one they answer UNAVAILABLE.
            freshness: how far the index is, where that is known; without it lists do not wait for the index.
            gateway: "http2" or "grpcio".
            descriptors_max: file descriptors that the connections of clients may take.
            tls: serve TLS.
            limits: bounds; Temporal's defaults if None.
            observer: told of every finished call (method path, gRPC code, seconds).
        """
        limits = limits or FrontendLimits()
        self._core = Core(namespaces, Backend(router, shard_count, task_partitions, limits.id_bytes_max), limits)
        if port and not cluster.address:
            cluster = replace(cluster, address=f"{host}:{port}")
        self._cluster = ClusterHandlers(cluster)
        self._visibility = VisibilityHandlers(self._core, visibility, freshness)
        self.handlers: Mapping[str, Handler] = complete_table(self._handlers(cluster))
        self._gateway: Gateway = open_gateway(
            gateway,
            host,
            port,
            self.handlers,
            streams={method_path(HEALTH_SERVICE, "Watch"): self._cluster.watch_health},
            long_polls=LONG_POLLS,
            request_bytes_max=limits.request_bytes_max,
            descriptors_max=descriptors_max,
            tls=tls,
            observer=observer,
        )

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self._gateway.port

    async def start(self) -> None:
        """Binds and serves.

        Raises:
            OSError: the address is taken or not ours.
        """
        await self._gateway.start()

    async def stop(self, grace: float = SHUTDOWN_GRACE_SECONDS) -> None:
        """Takes no new calls, ends polls and gives back their tasks; lets the others finish for `grace` seconds."""
        self._cluster.stop_serving()
        await asyncio.sleep(0)  # whoever watches the health is told before streams are ended
        await self._gateway.stop(grace)
        await self._core.stop(grace)
        self._visibility.stop()

    def _handlers(self, cluster: ClusterFacts) -> dict[str, Handler]:
        core = self._core
        workflow, task, activity = WorkflowHandlers(core), WorkflowTaskHandlers(core), ActivityHandlers(core)
        poll, query, queue = PollHandlers(core), QueryHandlers(core), TaskQueueHandlers(core)
        namespace, operator, update = NamespaceHandlers(core), OperatorHandlers(core, cluster), UpdateHandlers(core)
        visibility, this = self._visibility, self._cluster
        of_workflows: dict[str, Handler] = {
            "GetSystemInfo": this.system_info,
            "GetClusterInfo": this.cluster_info,
            "GetSearchAttributes": operator.get_search_attributes,
            "RegisterNamespace": namespace.register,
            "DescribeNamespace": namespace.describe,
            "ListNamespaces": namespace.list,
            "UpdateNamespace": namespace.update,
            "DeprecateNamespace": namespace.deprecate,
            "StartWorkflowExecution": workflow.start,
            "SignalWorkflowExecution": workflow.signal,
            "SignalWithStartWorkflowExecution": workflow.signal_with_start,
            "RequestCancelWorkflowExecution": workflow.request_cancel,
            "TerminateWorkflowExecution": workflow.terminate,
            "ResetWorkflowExecution": workflow.reset,
            "DeleteWorkflowExecution": workflow.delete,
            "UpdateWorkflowExecution": update.update,
            "PollWorkflowExecutionUpdate": update.poll,
            "ExecuteMultiOperation": update.multi_operation,
            "DescribeWorkflowExecution": workflow.describe,
            "GetWorkflowExecutionHistory": workflow.history,
            "GetWorkflowExecutionHistoryReverse": workflow.history_reverse,
            "ResetStickyTaskQueue": workflow.reset_sticky,
            "QueryWorkflow": query.query,
            "RespondQueryTaskCompleted": query.completed,
            "PollWorkflowTaskQueue": poll.workflow_task,
            "RespondWorkflowTaskCompleted": task.completed,
            "RespondWorkflowTaskFailed": task.failed,
            "PollActivityTaskQueue": poll.activity_task,
            "RespondActivityTaskCompleted": activity.completed,
            "RespondActivityTaskCompletedById": activity.completed_by_id,
            "RespondActivityTaskFailed": activity.failed,
            "RespondActivityTaskFailedById": activity.failed_by_id,
            "RespondActivityTaskCanceled": activity.canceled,
            "RespondActivityTaskCanceledById": activity.canceled_by_id,
            "RecordActivityTaskHeartbeat": activity.heartbeat,
            "RecordActivityTaskHeartbeatById": activity.heartbeat_by_id,
            "ResetActivity": activity.reset,
            "ResetActivityExecution": activity.reset_execution,
            "ShutdownWorker": poll.shutdown_worker,
            "DescribeTaskQueue": queue.describe,
            "ListWorkflowExecutions": visibility.list,
            "ScanWorkflowExecutions": visibility.scan,
            "CountWorkflowExecutions": visibility.count,
        }
        of_operators: dict[str, Handler] = {
            "AddSearchAttributes": operator.add_search_attributes,
            "RemoveSearchAttributes": operator.remove_search_attributes,
            "ListSearchAttributes": operator.list_search_attributes,
            "DeleteNamespace": operator.delete_namespace,
            "ListClusters": operator.list_clusters,
        }
        return {
            **{method_path(WORKFLOW_SERVICE, name): bounded(handler, name) for name, handler in of_workflows.items()},
            **{method_path(OPERATOR_SERVICE, name): handler for name, handler in of_operators.items()},
            method_path(EVERFOLD_SERVICE, "ReleaseWorkflow"): workflow.release,
            method_path(HEALTH_SERVICE, "Check"): this.health,
        }
