"""Whether a server that is being hit still does all that it should: its lists, its events, its other namespaces."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from typing import Any, Final

from confluent_kafka import Consumer, TopicPartition
from google.protobuf.message import Message
from temporalio.api.common.v1 import message_pb2 as common

from support.metrics import sample
from support.raw import RawClient
from support.servers import Server

OTHER: Final = "other"
"""The namespace that no call means."""

MOVES_SECONDS: Final = 30.0
"""How long a workflow may take to be in the lists and on `events`; on an idle machine that is 0.2 s."""


ASIDE: Final = ("everfold_runs_quarantined_total", "everfold_records_set_aside_total", "everfold_dead_letters_total")
"""What nothing from a client may count."""


class Quiet:
    """A namespace with a few workflows that nobody calls any more: it must stay as it is."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._ids = [f"quiet-{number}" for number in range(6)]
        for workflow_id in self._ids:
            client.call(
                "StartWorkflowExecution", namespace=OTHER, workflow_id=workflow_id, request_id=workflow_id,
                workflow_type={"name": "Order"}, task_queue={"name": "quiet"},
            )  # fmt: skip
        for workflow_id in self._ids[:3]:
            client.call("TerminateWorkflowExecution", namespace=OTHER, workflow_execution={"workflow_id": workflow_id})
        self._before = self._seen()

    def _seen(self) -> list[Message]:
        seen: list[Message] = [self._client.call("DescribeNamespace", namespace=OTHER)]
        for workflow_id in self._ids:
            execution = common.WorkflowExecution(workflow_id=workflow_id)
            history = self._client.call("GetWorkflowExecutionHistory", namespace=OTHER, execution=execution)
            described = self._client.call("DescribeWorkflowExecution", namespace=OTHER, execution=execution)
            seen += [history, described.workflow_execution_info]
        return seen

    def check(self) -> None:
        """Raises unless everything is as it was."""
        assert self._seen() == self._before


class Watch:
    """Asks, after each hundred calls, whether a new workflow is listed and its events come.

    Attributes:
        kafka: the broker's address.
        slowest_s: how long the slowest of these workflows took.
    """

    def __init__(self, server: Server, kafka: str, topic: str, ports: Iterable[int]) -> None:
        self.kafka = kafka
        self._server = server
        self._client = RawClient(server.address)
        self._ports = list(ports)
        self._events: Any = Consumer(
            {"bootstrap.servers": kafka, "group.id": f"watch-{uuid.uuid4()}", "enable.auto.commit": False}
        )
        partitions = self._events.list_topics(topic, timeout=20).topics[topic].partitions
        self._events.assign([TopicPartition(topic, number, -1) for number in partitions])
        self._events.poll(0.5)
        self._quiet = Quiet(self._client)
        self.slowest_s = 0.0

    def close(self) -> None:
        self._events.close()
        self._client.close()

    async def look(self) -> None:
        """Raises unless everything moves and nothing is set aside."""
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        began = time.monotonic()
        workflow_id = f"canary-{uuid.uuid4()}"
        self._client.call(
            "StartWorkflowExecution", namespace=OTHER, workflow_id=workflow_id, request_id=workflow_id,
            workflow_type={"name": "Order"}, task_queue={"name": "canary"},
        )  # fmt: skip
        query = f"WorkflowId = '{workflow_id}'"
        while not self._client.call("ListWorkflowExecutions", namespace=OTHER, query=query).executions:
            self._still(began, "is not listed")
        while not self._has_come(workflow_id):
            self._still(began, "has no events on the topic")
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        for name in ASIDE:
            assert self._sum(name) == 0, f"{name}\n{self._server.tail(80)}"

    def check_quiet(self) -> None:
        """Raises unless the other namespace is as it was."""
        self._quiet.check()

    def _has_come(self, workflow_id: str) -> bool:
        for record in self._events.consume(500, 0.05):
            assert record.error() is None
            if workflow_id.encode() in (record.key() or b""):
                return True
        return False

    def _still(self, began: float, what: str) -> None:
        assert time.monotonic() - began < MOVES_SECONDS, f"a new workflow {what}\n{self._server.tail(80)}"
        time.sleep(0.02)

    def _sum(self, name: str) -> float:
        return sum(sample(port, name) for port in self._ports)
