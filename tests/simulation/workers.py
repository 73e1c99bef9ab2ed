"""Scripted workers, as an SDK's core is one: polls, sticky queue, cache, heartbeats, repeats, bad manners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.taskqueue.v1 import message_pb2 as taskqueue_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.kernel.ids import shard_of, task_partition
from everfold.kernel.tokens import decode_query_token
from simulation.cluster import NAMESPACE_ID
from simulation.program import answer_query, answer_updates, decide, duration, payloads, value_of

if TYPE_CHECKING:
    from simulation.cluster import Cluster
    from simulation.ledger import Ledger

QUEUE = "queue"
RETRIED = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED})


class Calls:
    """The frontend's part: which partition a call goes to, and how an SDK repeats it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._router = cluster.router(None)

    async def execute(
        self,
        kind: str,
        workflow_id: str,
        run_id: str,
        message: bytes,
        *,
        namespace_id: str = NAMESPACE_ID,
        timeout: float = 10.0,
    ) -> bytes:
        """One try of an RPC that changes something."""
        shard = self._shard(namespace_id, workflow_id)
        args = [kind, namespace_id, workflow_id, run_id, message, timeout]
        found: bytes = await self._router.call("history", shard, "execute", args, timeout)
        return found

    async def repeated(self, kind: str, workflow_id: str, run_id: str, message: bytes, **more: Any) -> bytes:
        """The RPC, until its outcome is known: the same bytes again, as an SDK does."""
        for attempt in range(200):
            try:
                return await self.execute(kind, workflow_id, run_id, message, **more)
            except StatusError as error:
                if error.code not in RETRIED:
                    raise
            await asyncio.sleep(min(0.1 * 2 ** min(attempt, 5), 2.0) * (0.5 + self._cluster.random.random() / 2))
        raise StatusError(Code.UNAVAILABLE, "two hundred tries")

    async def read(self, method: str, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """A read, tried again while the owner is away."""
        shard = self._shard(namespace_id, workflow_id)
        while True:
            args: list[Any] = [namespace_id, message, timeout]
            if method == "history":
                args.insert(1, workflow_id)
            try:
                found: bytes = await self._router.call("history", shard, method, args, timeout)
                return found
            except StatusError as error:
                if error.code not in RETRIED:
                    raise
            await asyncio.sleep(0.2)

    async def events(self, workflow_id: str, run_id: str) -> list[history_pb2.HistoryEvent]:
        """The whole history of a run, page by page."""
        events: list[history_pb2.HistoryEvent] = []
        token = b""
        while True:
            request = ws.GetWorkflowExecutionHistoryRequest(next_page_token=token)
            request.execution.workflow_id, request.execution.run_id = workflow_id, run_id
            data = await self.read("history", NAMESPACE_ID, workflow_id, request.SerializeToString(), 10.0)
            response = ws.GetWorkflowExecutionHistoryResponse.FromString(data)
            events.extend(response.history.events)
            token = response.next_page_token
            if not token:
                return events

    async def update(self, workflow_id: str, message: bytes) -> ws.UpdateWorkflowExecutionResponse:
        """UpdateWorkflowExecution, asked again by the same id until its outcome is known."""
        return await self._updated("update", workflow_id, message, ws.UpdateWorkflowExecutionResponse.FromString)

    async def update_with_start(self, workflow_id: str, message: bytes) -> ws.UpdateWorkflowExecutionResponse:
        """ExecuteMultiOperation, asked again as it is until the update's outcome is known."""
        return await self._updated(
            "multi_operation",
            workflow_id,
            message,
            lambda data: ws.ExecuteMultiOperationResponse.FromString(data).responses[1].update_workflow,
        )

    async def _updated(
        self,
        method: str,
        workflow_id: str,
        message: bytes,
        response_in: Callable[[bytes], ws.UpdateWorkflowExecutionResponse],
    ) -> ws.UpdateWorkflowExecutionResponse:
        shard = self._shard(NAMESPACE_ID, workflow_id)
        for _ in range(20):
            try:
                args = [NAMESPACE_ID, workflow_id, message, 20.0]
                data: bytes = await self._router.call("history", shard, method, args, 20.0)
            except StatusError as error:
                if error.code not in RETRIED:
                    raise
                await asyncio.sleep(0.2)
                continue
            response = response_in(data)
            if response.HasField("outcome"):
                return response
        raise StatusError(Code.UNAVAILABLE, "twenty tries")

    async def query(self, workflow_id: str, message: bytes) -> Any:
        """QueryWorkflow, once: what the worker answered."""
        shard = self._shard(NAMESPACE_ID, workflow_id)
        data: bytes = await self._router.call("history", shard, "query", [NAMESPACE_ID, workflow_id, message, 8.0], 8.0)
        return value_of(ws.QueryWorkflowResponse.FromString(data).query_result)

    async def respond_query(self, token: bytes, message: bytes) -> None:
        """RespondQueryTaskCompleted."""
        number = decode_query_token(token).partition
        await self._router.call("matching", number, "respond_query", [token, message], 2.0)

    async def poll(self, method: str, queue: str, message: bytes, poll_id: str, timeout: float) -> bytes:
        """A long poll."""
        number = task_partition(NAMESPACE_ID, queue, self._cluster.task_partitions)
        args = [NAMESPACE_ID, message, timeout, poll_id]
        found: bytes = await self._router.call("matching", number, method, args, timeout)
        return found

    async def cancel_poll(self, queue: str, poll_id: str) -> None:
        """The client hung up."""
        number = task_partition(NAMESPACE_ID, queue, self._cluster.task_partitions)
        await self._router.call("matching", number, "cancel_poll", [poll_id], 2.0)

    def _shard(self, namespace_id: str, workflow_id: str) -> int:
        return shard_of(self._cluster.namespace_names[namespace_id], workflow_id, self._cluster.shard_count)


class Worker:
    """One worker process."""

    def __init__(self, cluster: Cluster, ledger: Ledger, name: str, *, sticky: bool) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self.name = name
        self._random = cluster.random
        self._calls = Calls(cluster)
        self._sticky = f"sticky-{name}" if sticky else ""
        self._cache: dict[str, list[history_pb2.HistoryEvent]] = {}
        self._polls = 0
        #: in order, so that they end in order
        self._tasks: dict[asyncio.Task[Any], None] = {}
        #: how often it misbehaves, in parts of 1
        self.mischief = 0.0
        self.stopped = False

    def start(self) -> None:
        """Poll for ever."""
        self._spawn(self._poll_for_ever(QUEUE, False))
        self._spawn(self._poll_for_ever(QUEUE, False))
        if self._sticky:
            self._spawn(self._poll_for_ever(self._sticky, True))
        self._spawn(self._poll_activities())
        self._spawn(self._poll_activities())

    def stop(self) -> None:
        """kill -9."""
        self.stopped = True
        for task in list(self._tasks):
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._cluster.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._cluster.watch.problem(f"worker {self.name}: {error!r}", error)

    def _chance(self, factor: float = 1.0) -> bool:
        return self._random.random() < self.mischief * factor

    # ---- polling ----------------------------------------------------------------------------------------------------

    async def _poll(self, method: str, queue: str, message: bytes) -> bytes:
        self._polls += 1
        poll_id = f"{self.name}-{self._polls}"
        if not self._chance(0.5):
            return await self._calls.poll(method, queue, message, poll_id, 12.0)
        # The client hangs up at some moment; what it was given must go to somebody else.
        task = self._cluster.loop.create_task(self._calls.poll(method, queue, message, poll_id, 12.0))
        try:
            await asyncio.wait({task}, timeout=self._random.choice((0.001, 0.01, 0.5)))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._calls.cancel_poll(queue, poll_id)
        return b""

    async def _poll_for_ever(self, queue: str, sticky: bool) -> None:
        request = ws.PollWorkflowTaskQueueRequest(identity=self.name)
        request.task_queue.name = queue
        request.task_queue.kind = 2 if sticky else 1
        request.task_queue.normal_name = QUEUE if sticky else ""
        while True:
            try:
                data = await self._poll("poll_workflow_task", queue, request.SerializeToString())
            except StatusError:
                await asyncio.sleep(0.3)
                continue
            task = ws.PollWorkflowTaskQueueResponse.FromString(data)
            if task.task_token:
                await self._do(self._workflow_task(task))

    async def _do(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StatusError as error:
            if error.code in (Code.INTERNAL, Code.UNKNOWN):
                raise

    # ---- workflow tasks ---------------------------------------------------------------------------------------------

    async def _workflow_task(self, task: ws.PollWorkflowTaskQueueResponse) -> None:
        run = task.workflow_execution
        events = await self._history_of(task)
        if task.HasField("query"):
            await self._answer_query(task, events)
            return
        self._ledger.workflow_task_given(run.workflow_id, run.run_id, task.started_event_id, task.attempt, events)
        if self._chance(0.4):
            return  # it dies with the task: the task times out
        await asyncio.sleep(self._random.random() * (2.0 if self._chance() else 0.02))
        if self._chance(0.6):
            await self._fail(task)
            return
        answers, messages = answer_updates(events, task.messages)
        commands = answers + decide(events)
        request = ws.RespondWorkflowTaskCompletedRequest(
            task_token=task.task_token, commands=commands, messages=messages, identity=self.name
        )
        for query_id in task.queries:
            request.query_results[query_id].result_type = 1  # type: ignore[assignment]  # answered
            request.query_results[query_id].answer.CopyFrom(answer_query(events))
        request.capabilities.discard_speculative_workflow_task_with_events = self._random.random() < 0.5
        if self._sticky and self._random.random() < 0.8:
            request.sticky_attributes.worker_task_queue.CopyFrom(
                taskqueue_pb2.TaskQueue(name=self._sticky, kind=2, normal_name=QUEUE)
            )
            request.sticky_attributes.schedule_to_start_timeout.CopyFrom(duration(5))
        self._cache.pop(run.run_id, None)
        request.return_new_workflow_task = self._random.random() < 0.5
        if not commands and not messages and self._chance():
            request.force_create_new_workflow_task = True
        data = await self._complete(run, request.SerializeToString())
        response = ws.RespondWorkflowTaskCompletedResponse.FromString(data)
        if not response.reset_history_event_id:
            self._ledger.workflow_task_completed(run.workflow_id, run.run_id, events)
        if request.HasField("sticky_attributes"):
            # Not before: as with an SDK, what it made of a task that was not its own is no part of the history.
            self._cache[run.run_id] = events[: response.reset_history_event_id or len(events)]
        for activity in response.activity_tasks:
            self._spawn(self._do(self._activity(activity)))
        if response.HasField("workflow_task") and response.workflow_task.task_token:
            await self._workflow_task(response.workflow_task)

    async def _answer_query(
        self, task: ws.PollWorkflowTaskQueueResponse, events: list[history_pb2.HistoryEvent]
    ) -> None:
        if self._chance(0.4):
            return
        await asyncio.sleep(self._random.random() * 0.02)
        answer = ws.RespondQueryTaskCompletedRequest(task_token=task.task_token, query_result=answer_query(events))
        answer.completed_type = 1  # type: ignore[assignment]  # answered
        await self._calls.respond_query(task.task_token, answer.SerializeToString())

    async def _complete(self, run: common_pb2.WorkflowExecution, message: bytes) -> bytes:
        answer = self._calls.repeated("COMPLETE_WORKFLOW_TASK", run.workflow_id, run.run_id, message)
        if not self._chance(0.5):
            return await answer
        # A copy of the answer goes another way.
        other = self._cluster.loop.create_task(
            self._calls.execute("COMPLETE_WORKFLOW_TASK", run.workflow_id, run.run_id, message)
        )
        try:
            return await answer
        finally:
            await asyncio.gather(other, return_exceptions=True)

    async def _history_of(self, task: ws.PollWorkflowTaskQueueResponse) -> list[history_pb2.HistoryEvent]:
        run = task.workflow_execution
        events = list(task.history.events)
        if not events:  # a query to the worker that has the run in its cache
            cached = self._cache.get(run.run_id)
            return cached if cached is not None else await self._calls.events(run.workflow_id, run.run_id)
        if task.next_page_token:
            found = await self._calls.events(run.workflow_id, run.run_id)
            return found[: task.started_event_id]
        if events and events[0].event_id > 1:
            cached = self._cache.get(run.run_id)
            if cached is None or cached[-1].event_id + 1 < events[0].event_id:
                events = (await self._calls.events(run.workflow_id, run.run_id))[: events[0].event_id - 1] + events
            else:
                events = cached[: events[0].event_id - 1] + events
        return events

    async def _fail(self, task: ws.PollWorkflowTaskQueueResponse) -> None:
        run = task.workflow_execution
        self._cache.pop(run.run_id, None)
        request = ws.RespondWorkflowTaskFailedRequest(task_token=task.task_token, identity=self.name, cause=24)
        request.failure.message = "on purpose"
        await self._calls.repeated("FAIL_WORKFLOW_TASK", run.workflow_id, run.run_id, request.SerializeToString())

    # ---- activities -------------------------------------------------------------------------------------------------

    async def _poll_activities(self) -> None:
        request = ws.PollActivityTaskQueueRequest(identity=self.name)
        request.task_queue.name = QUEUE
        while True:
            try:
                data = await self._poll("poll_activity_task", QUEUE, request.SerializeToString())
            except StatusError:
                await asyncio.sleep(0.3)
                continue
            task = ws.PollActivityTaskQueueResponse.FromString(data)
            if task.task_token:
                await self._do(self._activity(task))

    async def _activity(self, task: ws.PollActivityTaskQueueResponse) -> None:
        run = task.workflow_execution
        options = value_of(task.input)
        self._ledger.activity_given(run.run_id, task.activity_id, task.attempt)
        if task.attempt <= options["hang"] or self._chance(0.3):
            return
        for _ in range(options["beats"]):
            await asyncio.sleep(0.5)
            beat = ws.RecordActivityTaskHeartbeatRequest(task_token=task.task_token, identity=self.name)
            beat.details.CopyFrom(payloads("beat"))
            data = await self._calls.repeated(
                "HEARTBEAT_ACTIVITY", run.workflow_id, run.run_id, beat.SerializeToString()
            )
            if ws.RecordActivityTaskHeartbeatResponse.FromString(data).cancel_requested:
                canceled = ws.RespondActivityTaskCanceledRequest(task_token=task.task_token, identity=self.name)
                await self._calls.repeated("CANCEL_ACTIVITY", run.workflow_id, run.run_id, canceled.SerializeToString())
                return
        await asyncio.sleep(self._random.random() * (5.0 if self._chance() else 0.05))
        if task.attempt <= options["hang"] + options["fail"]:
            failed = ws.RespondActivityTaskFailedRequest(task_token=task.task_token, identity=self.name)
            failed.failure.message = "on purpose"
            failed.failure.application_failure_info.SetInParent()
            await self._calls.repeated("FAIL_ACTIVITY", run.workflow_id, run.run_id, failed.SerializeToString())
            return
        result = self._ledger.result(run.run_id, task.activity_id, task.attempt)
        kind = "COMPLETE_ACTIVITY"
        message = ws.RespondActivityTaskCompletedRequest(
            task_token=task.task_token, identity=self.name, result=payloads(result)
        ).SerializeToString()
        if options["by_id"]:
            kind = "COMPLETE_ACTIVITY_BY_ID"
            message = ws.RespondActivityTaskCompletedByIdRequest(
                namespace="default",
                workflow_id=run.workflow_id,
                run_id=run.run_id,
                activity_id=task.activity_id,
                identity=self.name,
                result=payloads(result),
            ).SerializeToString()
        await self._calls.repeated(kind, run.workflow_id, run.run_id, message)
        self._ledger.completed(run.workflow_id, run.run_id, result)
