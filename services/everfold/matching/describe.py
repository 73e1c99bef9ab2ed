"""DescribeTaskQueue: the response of a queue's statistics, in the plain form and in the older ENHANCED one."""

from __future__ import annotations

from collections.abc import Callable

from temporalio.api.enums.v1 import task_queue_pb2 as enums
from temporalio.api.taskqueue.v1 import message_pb2 as tq
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.matching.machine.pollers import Poller
from everfold.matching.machine.queue import PriorityStats, QueueStats
from everfold.matching.machine.task import ACTIVITY, WORKFLOW

RATE_WITHOUT_LIMIT = 100_000.0
"""What Temporal shows as `rate_per_second` of a queue that nobody limits (matching's default dispatch rate)."""

_NOTHING = QueueStats(PriorityStats(0, 0, 0.0, 0.0), {}, None, False, [])

StatsOf = Callable[[str], QueueStats | None]
"""The statistics of the queue of that type (WORKFLOW or ACTIVITY); None when it has none."""


def _poller(poller: Poller) -> tq.PollerInfo:
    info = tq.PollerInfo(identity=poller.identity, rate_per_second=poller.rate_per_second or RATE_WITHOUT_LIMIT)
    info.last_access_time.FromNanoseconds(poller.last_access_at_ns)
    if poller.capabilities:
        info.worker_version_capabilities.ParseFromString(poller.capabilities)
    if poller.deployment_options:
        info.deployment_options.ParseFromString(poller.deployment_options)
    return info


def _stats(stats: PriorityStats, rate_limited: bool) -> tq.TaskQueueStats:
    message = tq.TaskQueueStats(
        approximate_backlog_count=stats.backlog_count,
        tasks_add_rate=stats.add_rate,
        tasks_dispatch_rate=stats.dispatch_rate,
        rate_limiting_active=rate_limited,
    )
    message.approximate_backlog_age.FromNanoseconds(stats.backlog_age_ns)
    return message


def _type_name(type: int) -> str:
    return ACTIVITY if type == enums.TASK_QUEUE_TYPE_ACTIVITY else WORKFLOW


def describe(request: ws.DescribeTaskQueueRequest, stats_of: StatsOf) -> ws.DescribeTaskQueueResponse:
    """The response for a queue. A queue nobody has used is described as an empty one, as Temporal does.

    Nexus queues (type 3) are always empty: there are none yet.
    """
    if request.api_mode == enums.DESCRIBE_TASK_QUEUE_MODE_ENHANCED:
        return _enhanced(request, stats_of)
    nexus = request.task_queue_type == enums.TASK_QUEUE_TYPE_NEXUS
    stats = None if nexus else stats_of(_type_name(request.task_queue_type))
    stats = stats or _NOTHING
    response = ws.DescribeTaskQueueResponse(pollers=[_poller(p) for p in stats.pollers])
    if request.include_task_queue_status:
        response.task_queue_status.CopyFrom(
            tq.TaskQueueStatus(
                backlog_count_hint=stats.total.backlog_count,
                rate_per_second=RATE_WITHOUT_LIMIT if stats.rate_limit is None else stats.rate_limit,
                # Read and ack levels, and id blocks, are places in Temporal's task tables; there is no such place here.
                task_id_block=tq.TaskIdBlock(),
            )
        )
    if request.report_stats:
        response.stats.CopyFrom(_stats(stats.total, stats.rate_limited))
        for priority, one in stats.by_priority.items():
            response.stats_by_priority_key[priority].CopyFrom(_stats(one, stats.rate_limited))
    if request.report_config:
        response.config.SetInParent()
    limited = stats.rate_limit is not None
    response.effective_rate_limit.requests_per_second = stats.rate_limit or 0.0 if limited else RATE_WITHOUT_LIMIT
    response.effective_rate_limit.rate_limit_source = (
        enums.RATE_LIMIT_SOURCE_WORKER if limited else enums.RATE_LIMIT_SOURCE_SYSTEM
    )
    return response


def _enhanced(request: ws.DescribeTaskQueueRequest, stats_of: StatsOf) -> ws.DescribeTaskQueueResponse:
    response = ws.DescribeTaskQueueResponse()
    types = request.task_queue_types or [enums.TASK_QUEUE_TYPE_WORKFLOW, enums.TASK_QUEUE_TYPE_ACTIVITY]
    # All workers are unversioned here, which the API calls version "".
    info = response.versions_info[""]
    for type in types:
        stats = None if type == enums.TASK_QUEUE_TYPE_NEXUS else stats_of(_type_name(type))
        stats = stats or _NOTHING
        of_type = info.types_info[type]
        if request.report_pollers:
            of_type.pollers.extend(_poller(p) for p in stats.pollers)
        if request.report_stats:
            of_type.stats.CopyFrom(_stats(stats.total, stats.rate_limited))
        of_type.SetInParent()
    if request.report_task_reachability:
        info.task_reachability = enums.BUILD_ID_TASK_REACHABILITY_REACHABLE
    return response
