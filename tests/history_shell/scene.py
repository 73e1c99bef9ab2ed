"""A history service over one shard in memory, with a worker's and a client's calls at hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from temporalio.api.query.v1 import message_pb2 as query_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.step import TaskOffer
from everfold.history.machine_reads import MachineReads
from everfold.history.service import HeldShard, HistoryService
from everfold.kernel.errors import StatusError
from history_shell.messages import run_id_of, signal, start
from history_shell.world import NAMESPACE, NAMESPACE_ID, Owner, World


class Matching:
    """Answers queries as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, ws.PollWorkflowTaskQueueResponse]] = []
        self.answers: list[ws.RespondQueryTaskCompletedRequest | StatusError] = []

    async def query(self, namespace_id: str, queue: str, sticky_queue: str, query_task: bytes, timeout: float) -> bytes:
        self.asked.append((queue, sticky_queue, ws.PollWorkflowTaskQueueResponse.FromString(query_task)))
        answer = self.answers.pop(0)
        if isinstance(answer, StatusError):
            raise answer
        return answer.SerializeToString()

    def offer(self, task: TaskOffer) -> None:
        """Nobody polls."""


class Scene:
    def __init__(self) -> None:
        self.world = World()
        self.owner = Owner(self.world).take()
        self.shards = {0: HeldShard(self.owner.shard, MachineReads())}
        self.matching = Matching()
        self.service = HistoryService(
            self.shards, 1, self.owner.namespaces, MachineReads(), self.matching, long_poll_s=0.2
        )

    async def start(self, workflow_id: str = "w") -> str:
        response = await self.service.execute(
            "START_WORKFLOW", NAMESPACE_ID, workflow_id, "", start(workflow_id, "r-" + workflow_id), 5
        )
        return run_id_of(response)

    async def signal(self, request_id: str = "s1") -> bytes:
        return await self.service.execute("SIGNAL_WORKFLOW", NAMESPACE_ID, "w", "", signal(request_id=request_id), 5)

    async def start_workflow_task(self, queue: str = "queue") -> ws.PollWorkflowTaskQueueResponse:
        offer = next(o for o in reversed(self.owner.offers) if o.type == "workflow")
        poll = ws.PollWorkflowTaskQueueRequest(identity="worker")
        poll.task_queue.name = queue
        if offer.sticky:
            poll.task_queue.kind = 2  # type: ignore[assignment]
        response = await self.service.start_task(
            "workflow",
            NAMESPACE_ID,
            offer.workflow_id,
            offer.run_id,
            offer.scheduled_event_id,
            offer.attempt,
            offer.stamp,
            offer.task_id,
            f"start-{offer.scheduled_event_id}-{offer.stamp}",
            poll.SerializeToString(),
            5,
        )
        return ws.PollWorkflowTaskQueueResponse.FromString(response)

    async def complete(
        self,
        task: ws.PollWorkflowTaskQueueResponse,
        sticky: bool = False,
        results: dict[str, query_pb2.WorkflowQueryResult] | None = None,
    ) -> None:
        request = ws.RespondWorkflowTaskCompletedRequest(
            task_token=task.task_token, identity="worker", query_results=results
        )
        if sticky:
            request.sticky_attributes.worker_task_queue.name = "sticky"
            request.sticky_attributes.worker_task_queue.kind = 2  # type: ignore[assignment]
            request.sticky_attributes.worker_task_queue.normal_name = "queue"
            request.sticky_attributes.schedule_to_start_timeout.seconds = 5
        run = task.workflow_execution
        await self.service.execute(
            "COMPLETE_WORKFLOW_TASK", NAMESPACE_ID, run.workflow_id, run.run_id, request.SerializeToString(), 5
        )

    async def query(self, condition: int = 0, timeout: float = 5) -> ws.QueryWorkflowResponse:
        request = ws.QueryWorkflowRequest(namespace=NAMESPACE, query_reject_condition=condition)  # type: ignore[arg-type]
        request.execution.workflow_id = "w"
        request.query.query_type = "state"
        answer = await self.service.query(NAMESPACE_ID, "w", request.SerializeToString(), timeout)
        return ws.QueryWorkflowResponse.FromString(answer)

    async def history(
        self, *, wait: bool, token: bytes = b"", timeout: float = 5
    ) -> ws.GetWorkflowExecutionHistoryResponse:
        request = ws.GetWorkflowExecutionHistoryRequest(namespace=NAMESPACE, wait_new_event=wait, next_page_token=token)
        request.execution.workflow_id = "w"
        answer = await self.service.history(NAMESPACE_ID, "w", request.SerializeToString(), 5)
        return ws.GetWorkflowExecutionHistoryResponse.FromString(answer)


@asynccontextmanager
async def running() -> AsyncIterator[Scene]:
    scene = Scene()

    async def pump() -> None:
        # The world's time is virtual: it moves as fast as the loop turns, while something is to happen within a second.
        while True:
            for _ in range(5):
                if scene.world.next_within(1_000_000_000):
                    scene.world.step()
            await asyncio.sleep(0)

    task = asyncio.create_task(pump())
    try:
        yield scene
    finally:
        task.cancel()


def over(body: Callable[[Scene], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            async with running() as scene:
                await asyncio.wait_for(body(scene), 20)

        asyncio.run(main())

    run.__name__ = body.__name__
    return run


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)
