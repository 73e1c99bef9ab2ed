"""Task queues as operators and the web UI look at them."""

from __future__ import annotations

from typing import Final

from temporalio.api.enums.v1 import task_queue_pb2 as task_queue_enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import validate
from everfold.frontend.calls import CallContext
from everfold.frontend.core import Core, parse
from everfold.runtime import requests
from everfold.runtime.requests import invalid

_BOTH_TYPES: Final = (task_queue_enums.TASK_QUEUE_TYPE_WORKFLOW, task_queue_enums.TASK_QUEUE_TYPE_ACTIVITY)


class TaskQueueHandlers:
    """DescribeTaskQueue."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def describe(self, context: CallContext, request: bytes) -> bytes:
        """DescribeTaskQueue, in its old form and in the enhanced one."""
        core = self._core
        message = parse(ws.DescribeTaskQueueRequest, request)
        namespace = await core.namespace(message.namespace)
        queue = requests.task_queue(message, core.limits.id_bytes_max)
        validate.refuse_unbuilt(message)
        enhanced = message.api_mode == task_queue_enums.DESCRIBE_TASK_QUEUE_MODE_ENHANCED
        if enhanced and queue.kind == task_queue_enums.TASK_QUEUE_KIND_STICKY:
            raise invalid(
                "Enhanced DescribeTaskQueue is not valid for a sticky queue, use api_mode=UNSPECIFIED or a "
                "normal queue."
            )
        if enhanced or not message.task_queue_type:
            message.task_queue_type = task_queue_enums.TASK_QUEUE_TYPE_WORKFLOW
        if not message.task_queue_types:
            message.task_queue_types.extend(_BOTH_TYPES)
        accepted = message.SerializeToString(deterministic=True)
        left = core.seconds_left(context)
        return await core.backend.describe_task_queue(namespace, queue.name, accepted, left)
