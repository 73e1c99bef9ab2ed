"""The way from the frontend to history and matching: which owner a call goes to, and its arguments in order.

Everything goes through the router (`runtime/router.py`), which calls an object of this process plainly and any other
over its connection. The methods here are what the frontend uses of the two services, and nothing more.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, Protocol

from everfold.kernel import ids
from everfold.kernel.names import too_long
from everfold.runtime.namespaces import Namespace
from everfold.runtime.requests import id_too_long, invalid

NAMESPACE_SHARD: Final = 0
"""The shard that decides the names and ids of namespaces."""


class Router(Protocol):
    """Calls the owner of a shard or of a task partition, wherever it is."""

    def call(self, role: str, partition: int, method: str, args: list[Any], timeout: float) -> Awaitable[Any]:
        """Calls `method(*args)`.

        Raises:
            StatusError: the method's own; UNAVAILABLE when no owner answered within `timeout` seconds.
        """
        ...


class Backend:
    """History and matching, by namespace, workflow id and task queue."""

    def __init__(self, router: Router, shard_count: int, task_partitions: int, id_bytes_max: int) -> None:
        self._call = router.call
        self.shard_count = shard_count
        self._task_partitions = task_partitions
        self._id_bytes_max = id_bytes_max

    def _shard(self, namespace: Namespace, workflow_id: str) -> int:
        if too_long(workflow_id, self._id_bytes_max):
            raise id_too_long(workflow_id, self._id_bytes_max)
        return ids.shard_of(namespace.name, workflow_id, self.shard_count)

    def queue_partition(self, namespace: Namespace, task_queue: str) -> int:
        """The task partition, and so the matching owner, of a queue. A sticky queue goes by its own name."""
        if too_long(task_queue, self._id_bytes_max):
            raise invalid("taskQueue length exceeds limit")
        return ids.task_partition(namespace.namespace_id, task_queue, self._task_partitions)

    # History ----------------------------------------------------------------------------------------------------------

    def execute(
        self, kind: str, namespace: Namespace, workflow_id: str, run_id: str, message: bytes, timeout: float
    ) -> Awaitable[bytes]:
        """Puts a request into the workflow's shard log and returns the fold's answer."""
        args = [kind, namespace.namespace_id, workflow_id, run_id, message, timeout]
        return self._call("history", self._shard(namespace, workflow_id), "execute", args, timeout)

    def change_namespaces(self, kind: str, namespace_id: str, message: bytes, timeout: float) -> Awaitable[bytes]:
        """Puts a change of the namespaces into the log of the shard that decides them."""
        return self._call(
            "history", NAMESPACE_SHARD, "execute", [kind, namespace_id, "", "", message, timeout], timeout
        )

    def read(
        self, method: str, namespace: Namespace, workflow_id: str, message: bytes, timeout: float
    ) -> Awaitable[bytes]:
        """Calls a method of history that takes these: reads behind the barrier, and updates. Some wait for news."""
        args = [namespace.namespace_id, workflow_id, message, timeout]
        return self._call("history", self._shard(namespace, workflow_id), method, args, timeout)

    def describe(self, namespace: Namespace, workflow_id: str, message: bytes, timeout: float) -> Awaitable[bytes]:
        """DescribeWorkflowExecution."""
        args = [namespace.namespace_id, message]
        return self._call("history", self._shard(namespace, workflow_id), "describe", args, timeout)

    # Matching ---------------------------------------------------------------------------------------------------------

    def poll(
        self, method: str, partition: int, namespace: Namespace, message: bytes, timeout: float, poll_id: str
    ) -> Awaitable[bytes]:
        """`poll_workflow_task` or `poll_activity_task`: the response's bytes, empty when there was no task in time."""
        args = [namespace.namespace_id, message, timeout, poll_id]
        return self._call("matching", partition, method, args, timeout)

    def cancel_poll(self, partition: int, poll_id: str, timeout: float) -> Awaitable[None]:
        """The poller is gone: the poll ends, with a task or empty."""
        return self._call("matching", partition, "cancel_poll", [poll_id], timeout)

    def has_partition(self, partition: int) -> bool:
        """Whether the task topics have such a partition; a token that a client bent may name another."""
        return 0 <= partition < self._task_partitions

    def respond_query(self, partition: int, token: bytes, message: bytes, timeout: float) -> Awaitable[None]:
        """Gives a worker's answer to the query that waits for it."""
        return self._call("matching", partition, "respond_query", [token, message], timeout)

    def describe_task_queue(
        self, namespace: Namespace, task_queue: str, message: bytes, timeout: float
    ) -> Awaitable[bytes]:
        """DescribeTaskQueue."""
        args = [namespace.namespace_id, message]
        partition = self.queue_partition(namespace, task_queue)
        return self._call("matching", partition, "describe_task_queue", args, timeout)

    def shutdown_worker(self, namespace: Namespace, task_queue: str, message: bytes, timeout: float) -> Awaitable[None]:
        """ShutdownWorker: drops the sticky queue."""
        args = [namespace.namespace_id, message]
        partition = self.queue_partition(namespace, task_queue)
        return self._call("matching", partition, "shutdown_worker", args, timeout)
