"""History's calls: proposals, task starts, reads, long polls, queries. All on the event loop's thread.

A call names a namespace id and a workflow id; the namespace's *name* and the workflow id make the shard. For a shard
that this process does not hold it raises `NotOwner`, and the router asks somebody else. A shard that is being taken is
waited for, within the caller's timeout. When a shard is given up, everybody who waits for it gets UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import failed_cause_pb2 as failed_cause
from temporalio.api.enums.v1 import query_pb2 as query_enums
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.query.v1 import message_pb2 as query_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.handed_out import Settled
from everfold.history.machine.step import Reply, RunKey
from everfold.history.ports import Matching, Namespaces
from everfold.history.proposals import Verdict, WorkflowKey, unavailable
from everfold.history.queries import FAILED_ATTEMPTS_MAX, Outcome, Queries, QueryView, failing, not_ready
from everfold.history.reading import Reads
from everfold.history.shard import Shard
from everfold.history.update_calls import UpdateCalls
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.ids import shard_of
from everfold.kernel.time import SECOND_NS
from everfold.runtime.clients import StartableTask
from everfold.runtime.rpc import NotOwner

LONG_POLL_S: Final = 20.0
"""How long a history read waits for events before it answers with a token, as in Temporal."""

ANSWER_MARGIN_S: Final = 1.0
"""A long poll answers this long before its caller's deadline."""

NAMESPACE_KINDS: Final = frozenset(
    {
        "REGISTER_NAMESPACE",
        "UPDATE_NAMESPACE",
        "DEPRECATE_NAMESPACE",
        "DELETE_NAMESPACE",
        "ADD_SEARCH_ATTRIBUTES",
        "REMOVE_SEARCH_ATTRIBUTES",
    }
)
"""Decided by shard 0, whose outputs are the topic `namespaces`."""

_WORKFLOW_COMPLETED: Final = 2
_WORKFLOW_RUNNING: Final = 1

T = TypeVar("T")


class HeldShard:
    """A shard in this process, and the queries that wait in it. Made anew whenever the shard is taken again."""

    def __init__(self, shard: Shard, reads: Reads) -> None:
        self.shard = shard
        limits = shard.limits

        def view(run: RunKey) -> QueryView | None:
            with suppress(StatusError):
                return reads.query_view(shard.fold, *run)
            return None

        self.queries = Queries(view, limits.queries_per_run_max, limits.queries_max)
        shard.after_batch.append(self.queries.on_steps)
        shard.on_close.append(self.queries.close)


class HistoryService:
    """See the module.

    Args:
        shards: what this process holds, kept by the owner.
    """

    METHODS: Final = frozenset(
        {
            "execute",
            "start_task",
            "return_task",
            "sticky_worker_gone",
            "describe",
            "history",
            "history_reverse",
            "query",
            "update",
            "poll_update",
            "multi_operation",
        }
    )
    """What other processes may call."""

    def __init__(
        self,
        shards: Mapping[int, HeldShard],
        shard_count: int,
        namespaces: Namespaces,
        reads: Reads,
        matching: Matching,
        *,
        long_poll_s: float = LONG_POLL_S,
    ) -> None:
        self._shards = shards
        self._shard_count = shard_count
        self._namespaces = namespaces
        self._reads = reads
        self._matching = matching
        self._long_poll_s = long_poll_s
        self._updates = UpdateCalls(self._held, self._barrier, self._propose, reads, long_poll_s)

    # ---- proposals --------------------------------------------------------------------------------------------------

    async def execute(
        self, kind: str, namespace_id: str, workflow_id: str, run_id: str, message: bytes, timeout: float
    ) -> bytes:
        """Propose a request of the Temporal API and return the fold's response, once it is durable and folded.

        Raises:
            StatusError: the fold's rejection; RESOURCE_EXHAUSTED when nothing was proposed; UNAVAILABLE when the
                outcome is unknown (a repeat with the same request id is safe).
        """
        if kind in NAMESPACE_KINDS:
            held = await self._serving(0, timeout)
            return await self._propose(held, kind, namespace_id, "", "", {"message": message}, timeout, gated=False)
        held = await self._held(namespace_id, workflow_id, timeout)
        if kind == "COMPLETE_WORKFLOW_TASK":
            return await self._complete_workflow_task(held, namespace_id, workflow_id, run_id, message, timeout)
        body = {} if kind == "RELEASE_WORKFLOW" else {"message": message}
        return await self._propose(held, kind, namespace_id, workflow_id, run_id, body, timeout)

    async def start_task(
        self,
        type: str,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        scheduled_event_id: int,
        attempt: int,
        stamp: int,
        task_id: str,
        request_id: str,
        poll: bytes,
        timeout: float,
    ) -> bytes:
        """Start a task for a poller: the serialized poll response. The same `request_id` again gets the same answer.

        Raises:
            StatusError: NOT_FOUND: there is nothing to start, drop the task. UNAVAILABLE: try again with the same id.
        """
        held = await self._held(namespace_id, workflow_id, timeout)
        body = _start(scheduled_event_id, attempt, stamp, task_id, request_id, poll)
        if type == "activity":
            return await self._propose(
                held, "START_ACTIVITY_TASK", namespace_id, workflow_id, run_id, body, timeout, bounded=False
            )
        run = RunKey(namespace_id, workflow_id, run_id)
        return await self._propose(
            held,
            "START_WORKFLOW_TASK",
            namespace_id,
            workflow_id,
            run_id,
            body,
            timeout,
            bounded=False,
            finish=lambda response: _with_queries(held, run, response),
        )

    def hand_out_task(self, task: StartableTask, request_id: str, poll: bytes, settled: Settled) -> bytes | None:
        """Start a workflow task for a poller of this process at once, before the log has it.

        None: ask `start_task`. Otherwise the serialized poll response, and `settled` is called, later: with True when
        the start, or something that overtook it, is in the log; with False when it is not and will not be.
        """
        held = self._shards.get(task.shard)
        run = RunKey(task.namespace_id, task.workflow_id, task.run_id)
        if held is None or held.queries.any_for(run):
            return None
        start = _start(task.scheduled_event_id, task.attempt, task.stamp, task.task_id, request_id, poll)
        respond = partial(self._reads.response, held.shard.fold, "START_WORKFLOW_TASK")
        return held.shard.hand_out(run, start, settled, respond)

    async def return_task(
        self,
        type: str,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        scheduled_event_id: int,
        attempt: int,
        request_id: str,
        timeout: float,
    ) -> None:
        """The poller of that start is gone: make the task scheduled again. Repeating it is harmless."""
        held = await self._held(namespace_id, workflow_id, timeout)
        if type == "workflow" and held.shard.take_back((namespace_id, workflow_id), request_id):
            return
        body = {
            "task_type": type.upper(),
            "scheduled_event_id": scheduled_event_id,
            "attempt": attempt,
            "request_id": request_id,
        }
        await self._propose(held, "RETURN_TASK", namespace_id, workflow_id, run_id, body, timeout, bounded=False)

    async def sticky_worker_gone(
        self,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        scheduled_event_id: int,
        stamp: int,
        timeout: float = 10.0,
    ) -> None:
        """The worker of this sticky task is gone: send the task to the normal queue. Repeating it is harmless."""
        held = await self._held(namespace_id, workflow_id, timeout)
        body = {"scheduled_event_id": scheduled_event_id, "stamp": stamp}
        await self._propose(held, "STICKY_WORKER_GONE", namespace_id, workflow_id, run_id, body, timeout, bounded=False)

    async def _complete_workflow_task(
        self, held: HeldShard, namespace_id: str, workflow_id: str, run_id: str, message: bytes, timeout: float
    ) -> bytes:
        """As any request; answers to queries are taken out, since queries never enter the log (law 11)."""
        run = RunKey(namespace_id, workflow_id, run_id)
        results: dict[str, query_pb2.WorkflowQueryResult] = {}
        if held.queries.any_for(run):
            request = ws.RespondWorkflowTaskCompletedRequest.FromString(message)
            if request.query_results:
                results = dict(request.query_results)
                request.ClearField("query_results")
                message = request.SerializeToString(deterministic=True)

        def finish(response: bytes) -> bytes:
            held.queries.answered(run, results)
            if not held.queries.any_for(run):
                return response
            completed = ws.RespondWorkflowTaskCompletedResponse.FromString(response)
            if not completed.HasField("workflow_task"):
                return response
            task = ws.PollWorkflowTaskQueueResponse(queries=held.queries.travel(run))
            return response + ws.RespondWorkflowTaskCompletedResponse(workflow_task=task).SerializeToString()

        return await self._propose(
            held,
            "COMPLETE_WORKFLOW_TASK",
            namespace_id,
            workflow_id,
            run_id,
            {"message": message},
            timeout,
            finish=finish,
        )

    async def _propose(
        self,
        held: HeldShard,
        kind: str,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        body: dict[str, Any],
        timeout: float,
        *,
        bounded: bool = True,
        gated: bool = True,
        finish: Callable[[bytes], bytes] | None = None,
    ) -> bytes:
        """Propose and wait. `finish` runs at the fold of the record, also when the caller has gone meanwhile."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        fold = held.shard.fold

        def verdict(result: Verdict) -> None:
            error = result if isinstance(result, StatusError) else result.error
            if error is not None:
                _fail(future, error)
                return
            assert isinstance(result, Reply)
            try:
                # Read now, while the rows are those of this very step.
                response = self._reads.response(fold, kind, result)
                if finish is not None:
                    response = finish(response)
            except Exception as trouble:
                # A defect in making the answer must not cost the shard; the record is folded all the same.
                if not future.done():
                    future.set_exception(trouble)
            else:
                _set(future, response)

        held.shard.propose(kind, namespace_id, workflow_id, run_id, body, verdict, bounded=bounded, gated=gated)
        return await _within(future, timeout, "the log has not confirmed the request in time; its outcome is unknown")

    # ---- reads ------------------------------------------------------------------------------------------------------

    async def describe(self, namespace_id: str, message: bytes, timeout: float = 10.0) -> bytes:
        """DescribeWorkflowExecution."""
        workflow_id = ws.DescribeWorkflowExecutionRequest.FromString(message).execution.workflow_id
        held = await self._held(namespace_id, workflow_id, timeout)
        await self._barrier(held, (namespace_id, workflow_id), timeout)
        return self._reads.describe(held.shard.fold, namespace_id, message)

    async def history(self, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """GetWorkflowExecutionHistory, with its long poll."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        held = await self._held(namespace_id, workflow_id, timeout)
        last = began + min(self._long_poll_s, timeout - ANSWER_MARGIN_S)
        with suppress(StatusError):
            # What is durable stays true: a long poll that finds something to wait for needs no barrier before it waits,
            # only before it says that nothing came.
            if (news := await self._news(held, namespace_id, message, last)) is not None:
                return news
        await self._barrier(held, (namespace_id, workflow_id), timeout)
        return self._reads.history(held.shard.fold, namespace_id, message, may_wait=False).response

    async def _news(self, held: HeldShard, namespace_id: str, message: bytes, last: float) -> bytes | None:
        """What a long poll for history waited for; None when it does not wait, or nothing came by `last`.

        A function of its own: what was read to find that out must not be held while its caller waits for the barrier.
        """
        loop = asyncio.get_running_loop()
        fold = held.shard.fold
        answer = self._reads.history(fold, namespace_id, message, may_wait=True)
        while answer.wait_for is not None and (left := last - loop.time()) > 0:
            wait_for, until_closed = answer.wait_for, answer.until_closed
            del answer
            if not await self._changed(held, wait_for, left, until_closed):
                break
            answer = self._reads.history(fold, namespace_id, message, may_wait=True)
            if answer.wait_for is None:
                return answer.response
        return None

    async def history_reverse(
        self, namespace_id: str, workflow_id: str, message: bytes, timeout: float = 10.0
    ) -> bytes:
        """GetWorkflowExecutionHistoryReverse."""
        held = await self._held(namespace_id, workflow_id, timeout)
        await self._barrier(held, (namespace_id, workflow_id), timeout)
        return self._reads.history_reverse(held.shard.fold, namespace_id, message)

    async def _barrier(self, held: HeldShard, workflow: WorkflowKey, timeout: float) -> None:
        """Wait until the fold has everything that was in the log when the read of the workflow arrived (law 7)."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: StatusError | None) -> None:
            if error is not None:
                _fail(future, error)
            else:
                _set(future, None)

        waiting = held.shard.read(workflow, done)
        try:
            await _within(future, timeout, "the log's end could not be read in time")
        finally:
            waiting.cancel()

    async def _changed(self, held: HeldShard, run: RunKey, timeout: float, until_closed: bool) -> bool:
        """Wait until the run changes, or closes: True; False when the time is over or there is no room to wait."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def wake(changed: bool) -> None:
            if changed:
                _set(future, True)
            else:
                _fail(future, unavailable(f"shard {held.shard.shard} was given up"))

        waiting = held.shard.waiters.park(run, wake, until_closed=until_closed)
        if waiting is None:
            return False
        timer = asyncio.get_running_loop().call_later(max(timeout, 0), _set, future, False)
        try:
            return await future
        finally:
            timer.cancel()
            waiting.cancel()

    # ---- queries ----------------------------------------------------------------------------------------------------

    async def query(self, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """QueryWorkflow. Directly through matching, or with the run's next workflow task (`queries`)."""
        deadline = asyncio.get_running_loop().time() + timeout
        request = ws.QueryWorkflowRequest.FromString(message)
        held = await self._held(namespace_id, workflow_id, timeout)
        await self._barrier(held, (namespace_id, workflow_id), timeout)
        fold = held.shard.fold
        view = self._reads.query_view(fold, namespace_id, workflow_id, request.execution.run_id)
        if _rejects(request.query_reject_condition, view):
            rejected = query_pb2.QueryRejected(status=view.status)  # type: ignore[arg-type]
            return ws.QueryWorkflowResponse(query_rejected=rejected).SerializeToString()
        if not view.task_known:
            raise not_ready("Workflow task is not scheduled yet.")
        if not view.task_completed and not view.running:
            raise not_ready("Workflow closed before a workflow task was completed.")
        if view.running and view.task_pending:
            outcome = await self._with_workflow_task(held, view, request.query, deadline)
            if isinstance(outcome, query_pb2.WorkflowQueryResult):
                return _from_result(outcome)
            view = self._reads.query_view(fold, *view.run)
        if not view.task_completed:
            raise not_ready("The workflow has not completed a workflow task yet.")
        return await self._direct(held, view, request.query, deadline)

    async def _with_workflow_task(
        self, held: HeldShard, view: QueryView, query: query_pb2.WorkflowQuery, deadline: float
    ) -> Outcome:
        if view.task_attempt >= FAILED_ATTEMPTS_MAX:
            raise failing()
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, StatusError):
                _fail(future, outcome)
            else:
                _set(future, outcome)

        waiting = held.queries.wait(view.run, query, done)
        if waiting is None:
            raise _busy()
        left = deadline - asyncio.get_running_loop().time()
        try:
            return await _within(future, left, "the query was not answered in time", Code.DEADLINE_EXCEEDED)
        finally:
            waiting.cancel()

    async def _direct(self, held: HeldShard, view: QueryView, query: query_pb2.WorkflowQuery, deadline: float) -> bytes:
        """Ask the sticky worker, which has the run in its cache; else any worker, with the history."""
        loop = asyncio.get_running_loop()
        fold = held.shard.fold
        asked = query.SerializeToString()
        run = view.run
        if view.sticky_queue:
            wait_s = min(view.sticky_timeout_ns / SECOND_NS or 5.0, deadline - loop.time())
            task = self._reads.query_task(fold, run, asked, sticky=True)
            try:
                answer = await self._matching.query(run.namespace_id, view.task_queue, view.sticky_queue, task, wait_s)
                return _from_answer(answer)
            except StatusError as error:
                if error.code not in (Code.FAILED_PRECONDITION, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE):
                    raise
                if deadline - loop.time() <= 0:
                    raise
            if view.running and held.shard.serving:
                self._clear_sticky(held, run)
            view = self._reads.query_view(fold, *run)
        task = self._reads.query_task(fold, run, asked, sticky=False)
        answer = await self._matching.query(run.namespace_id, view.task_queue, "", task, deadline - loop.time())
        return _from_answer(answer)

    def _clear_sticky(self, held: HeldShard, run: RunKey) -> None:
        """The sticky worker did not answer: the next workflow task must not wait for it. Nobody waits for this."""
        request = ws.ResetStickyTaskQueueRequest(
            namespace=self._namespaces.name_of(run.namespace_id) or "",
            execution=common_pb2.WorkflowExecution(workflow_id=run.workflow_id, run_id=run.run_id),
        )
        body = {"message": request.SerializeToString(deterministic=True)}
        held.shard.propose("RESET_STICKY", *run, body, lambda _verdict: None)

    # ---- updates ----------------------------------------------------------------------------------------------------

    async def update(self, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """UpdateWorkflowExecution: admit the update, and wait for its stage."""
        return await self._updates.update(namespace_id, workflow_id, message, timeout)

    async def poll_update(self, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """PollWorkflowExecutionUpdate: wait for the stage of an update that somebody has asked for."""
        return await self._updates.poll(namespace_id, workflow_id, message, timeout)

    async def multi_operation(self, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """ExecuteMultiOperation: start the workflow unless it runs, update it, and wait for the update's stage."""
        return await self._updates.multi_operation(namespace_id, workflow_id, message, timeout)

    # ---- finding the shard ------------------------------------------------------------------------------------------

    def shard_number(self, namespace_id: str, workflow_id: str) -> int:
        """The shard of a workflow id. Raises NOT_FOUND for a namespace that this process does not know."""
        name = self._namespaces.name_of(namespace_id)
        if name is None:
            detail = errordetails.NamespaceNotFoundFailure(namespace=namespace_id)
            raise StatusError(
                Code.NOT_FOUND,
                f"Namespace {namespace_id} is not found.",
                ((detail.DESCRIPTOR.full_name, detail.SerializeToString()),),
            )
        return shard_of(name, workflow_id, self._shard_count)

    async def _held(self, namespace_id: str, workflow_id: str, timeout: float) -> HeldShard:
        if self._namespaces.name_of(namespace_id) is None:
            await self._refresh_namespaces(timeout)
        return await self._serving(self.shard_number(namespace_id, workflow_id), timeout)

    async def _serving(self, number: int, timeout: float) -> HeldShard:
        held = self._shards.get(number)
        if held is None:
            raise NotOwner(number)
        if held.shard.serving:
            return held
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        held.shard.when_settled(lambda: _set(future, None))
        await _within(future, timeout, f"shard {number} is still being taken")
        # The owner may have replaced it meanwhile.
        held = self._shards.get(number)
        if held is None or not held.shard.serving:
            raise NotOwner(number)
        return held

    async def _refresh_namespaces(self, timeout: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(read: bool) -> None:
            if read:
                _set(future, None)
            else:
                _fail(future, unavailable("the namespaces cannot be read"))

        self._namespaces.refresh(done)
        await _within(future, timeout, "the namespaces could not be read in time")


def _set(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _start(
    scheduled_event_id: int, attempt: int, stamp: int, task_id: str, request_id: str, poll: bytes
) -> dict[str, Any]:
    """Body of the record that starts a task."""
    return {
        "scheduled_event_id": scheduled_event_id,
        "attempt": attempt,
        "stamp": stamp,
        "request_id": request_id,
        "poll": poll,
        "task_id": task_id,
    }


def _with_queries(held: HeldShard, run: RunKey, response: bytes) -> bytes:
    """A workflow task's response, with the queries that wait for it."""
    if not held.queries.any_for(run):
        return response
    # Protobuf messages concatenate: the map is added without parsing the response and its history.
    return response + ws.PollWorkflowTaskQueueResponse(queries=held.queries.travel(run)).SerializeToString()


def _fail(future: asyncio.Future[Any], error: StatusError) -> None:
    # One status may end many calls; each raises its own, so that tracebacks do not pile up on it.
    if not future.done():
        future.set_exception(StatusError(error.code, error.message, error.details))


async def _within(future: asyncio.Future[T], timeout: float, text: str, code: Code = Code.UNAVAILABLE) -> T:
    """The future's result; when time is over, a status. Whoever holds the future finds it done."""
    if future.done():
        return future.result()
    timer = asyncio.get_running_loop().call_later(max(timeout, 0), _fail, future, StatusError(code, text))
    try:
        return await future
    finally:
        timer.cancel()


def _rejects(condition: int, view: QueryView) -> bool:
    if condition == query_enums.QUERY_REJECT_CONDITION_NOT_OPEN:
        return not view.running
    if condition == query_enums.QUERY_REJECT_CONDITION_NOT_COMPLETED_CLEANLY:
        return view.status not in (_WORKFLOW_RUNNING, _WORKFLOW_COMPLETED)
    return False


def _from_answer(answer: bytes) -> bytes:
    """QueryWorkflowResponse of a RespondQueryTaskCompletedRequest."""
    found = ws.RespondQueryTaskCompletedRequest.FromString(answer)
    if found.completed_type == query_enums.QUERY_RESULT_TYPE_FAILED:
        raise _failed(found.error_message, found)
    return ws.QueryWorkflowResponse(query_result=found.query_result).SerializeToString()


def _from_result(result: query_pb2.WorkflowQueryResult) -> bytes:
    """QueryWorkflowResponse of an answer that came with a completion."""
    if result.result_type == query_enums.QUERY_RESULT_TYPE_FAILED:
        raise _failed(result.error_message, result)
    return ws.QueryWorkflowResponse(query_result=result.answer).SerializeToString()


def _failed(text: str, answer: ws.RespondQueryTaskCompletedRequest | query_pb2.WorkflowQueryResult) -> StatusError:
    detail = errordetails.QueryFailedFailure(failure=answer.failure if answer.HasField("failure") else None)
    return StatusError(
        Code.INVALID_ARGUMENT, text, ((detail.DESCRIPTOR.full_name, detail.SerializeToString(deterministic=True)),)
    )


def _busy() -> StatusError:
    detail = errordetails.ResourceExhaustedFailure(
        cause=failed_cause.RESOURCE_EXHAUSTED_CAUSE_BUSY_WORKFLOW,
        scope=failed_cause.RESOURCE_EXHAUSTED_SCOPE_NAMESPACE,
    )
    return StatusError(
        Code.RESOURCE_EXHAUSTED,
        "consistent query buffer is full, this may be caused by too many queries and workflow not able to process "
        "query fast enough",
        ((detail.DESCRIPTOR.full_name, detail.SerializeToString()),),
    )
