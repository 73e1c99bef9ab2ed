"""A server with workflows to drive by hand, and what others do to its topics."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from temporalio.api.command.v1 import message_pb2 as command
from temporalio.api.enums.v1 import command_type_pb2

from support.raw import RawClient, RpcError
from support.servers import Server, banner


def await_that(condition: Callable[[], bool], within_s: float, what: Callable[[], str]) -> float:
    """Waits, and returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, f"not within {within_s} s: {what()}"
        time.sleep(0.1)
    return time.monotonic() - began


def bootstrap_of(server: Server) -> str:
    """The embedded broker's address."""
    told = re.findall(r"Kafka:\s+(127\.0\.0\.1:\d+) \(embedded\)", banner(server))
    assert told, server.tail()
    return str(told[-1])


class Workflows:
    """Starts, completes and lists workflows, as a client and its worker."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._client = RawClient(server.address)

    def close(self) -> None:
        self._client.close()

    def start(self, workflow_id: str) -> None:
        self._client.call(
            "StartWorkflowExecution",
            namespace="default",
            workflow_id=workflow_id,
            workflow_type={"name": "T"},
            task_queue={"name": "q"},
            request_id=workflow_id,
        )

    def complete(self, count: int) -> None:
        """Completes so many workflows, whichever have a task."""
        done: set[str] = set()
        deadline = time.monotonic() + 60
        while len(done) < count:
            assert time.monotonic() < deadline, f"{count - len(done)} workflows got no task\n{self.server.tail()}"
            task: Any = self._client.call(
                "PollWorkflowTaskQueue", namespace="default", task_queue={"name": "q"}, timeout=70
            )
            if task.task_token:
                end = command.Command(command_type=command_type_pb2.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
                end.complete_workflow_execution_command_attributes.SetInParent()
                self._client.call(
                    "RespondWorkflowTaskCompleted",
                    namespace="default",
                    task_token=task.task_token,
                    commands=[end],
                )
                done.add(task.workflow_execution.workflow_id)

    def describe(self, workflow_id: str) -> None:
        self._client.call("DescribeWorkflowExecution", namespace="default", execution={"workflow_id": workflow_id})

    def completed(self) -> set[str]:
        """The ids that the list has as completed."""
        try:
            found = self._client.call(
                "ListWorkflowExecutions",
                namespace="default",
                query="ExecutionStatus = 'Completed'",
                page_size=1000,
            )
        except RpcError:
            return set()
        return {one.execution.workflow_id for one in found.executions}


class Vandal:
    """Somebody's stock producer, which is wrong about where it writes."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})

    def partitions(self, prefix: str = "everfold.") -> dict[str, int]:
        """The cluster's topics, with how many partitions each has."""
        topics = AdminClient({"bootstrap.servers": self.bootstrap}).list_topics(timeout=20).topics
        return {name: len(topic.partitions) for name, topic in topics.items() if name.startswith(prefix)}

    def junk(self, topic: str, partition: int, count: int) -> None:
        """Bytes of no format, a foreign registry's framing, an engine record cut off; tombstones, too."""
        kinds = (b"junk", b"\0\0\0\0\x07registry", b"\0\x45\x56\0\1cut off", b"", None)
        for number in range(count):
            value = kinds[number % len(kinds)]
            self._producer.produce(topic, value, b"foreign-%d" % number, partition, headers=[("x", b"y")])
            self._producer.poll(0)
        assert self._producer.flush(30) == 0

    def transactions(self, places: list[tuple[str, int]]) -> None:
        """One that commits and one that aborts, over all the places: each leaves a marker in each of them."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "transactional.id": f"vandal-{uuid.uuid4()}"})
        producer.init_transactions(30)
        for commit in (True, False):
            producer.begin_transaction()
            for topic, partition in places:
                producer.produce(topic, b"in a transaction", b"foreign", partition)
            assert producer.flush(30) == 0
            (producer.commit_transaction if commit else producer.abort_transaction)(30)
