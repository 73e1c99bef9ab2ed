"""The shell's reads over the machine: namespaces found for it, replies assembled, queries turned into tasks."""

from __future__ import annotations

from temporalio.api.query.v1 import message_pb2 as query_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import reads
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import workflow_not_found
from everfold.history.machine.shard_fold import ShardFold
from everfold.history.machine.state import Run
from everfold.history.machine.step import Reply, RunKey
from everfold.history.queries import QueryView
from everfold.history.reading import HistoryAnswer, UpdateStatus


class MachineReads:
    """A `Reads`."""

    def describe(self, fold: ShardFold, namespace_id: str, request: bytes) -> bytes:
        """See `Reads`."""
        info = fold.namespace(namespace_id)
        if info is None:
            raise workflow_not_found(ws.DescribeWorkflowExecutionRequest.FromString(request).execution.workflow_id)
        return reads.describe(fold, info, request)

    def history(self, fold: ShardFold, namespace_id: str, request: bytes, *, may_wait: bool) -> HistoryAnswer:
        """See `Reads`."""
        info = fold.namespace(namespace_id)
        if info is None:
            raise workflow_not_found(ws.GetWorkflowExecutionHistoryRequest.FromString(request).execution.workflow_id)
        answer = reads.get_history(fold, namespace_id, info.name, request, final=not may_wait)
        if answer.response is None:
            return HistoryAnswer(b"", answer.run, answer.until_closed)
        return HistoryAnswer(answer.response, None)

    def history_reverse(self, fold: ShardFold, namespace_id: str, request: bytes) -> bytes:
        """See `Reads`."""
        info = fold.namespace(namespace_id)
        if info is None:
            asked = ws.GetWorkflowExecutionHistoryReverseRequest.FromString(request)
            raise workflow_not_found(asked.execution.workflow_id)
        return reads.get_history_reverse(fold, namespace_id, info.name, request)

    def response(self, fold: ShardFold, kind: str, reply: Reply) -> bytes:
        """See `Reads`."""
        return reads.assemble(fold, reply)

    def update_status(
        self, fold: ShardFold, namespace_id: str, workflow_id: str, run_id: str, update_id: str
    ) -> UpdateStatus:
        """See `Reads`."""
        info = fold.namespace(namespace_id)
        if info is None:
            raise workflow_not_found(workflow_id, run_id)
        return UpdateStatus(*reads.update_status(fold, namespace_id, info.name, workflow_id, run_id, update_id))

    def query_view(self, fold: ShardFold, namespace_id: str, workflow_id: str, run_id: str) -> QueryView:
        """See `Reads`."""
        run = _run(fold, namespace_id, workflow_id, run_id)
        task = run.workflow_task
        return QueryView(
            RunKey(run.namespace_id, run.workflow_id, run.run_id),
            run.workflow_type,
            int(run.status),
            run.running,
            run.task_queue,
            run.sticky_queue,
            run.sticky_timeout_ns,
            task is not None,
            task.attempt if task is not None else 0,
            run.last_completed_started_id > 0,
            not run.first_task_at_ns,
        )

    def query_task(self, fold: ShardFold, run: RunKey, query: bytes, *, sticky: bool) -> bytes:
        """See `Reads`."""
        state = _run(fold, *run)
        task = ws.PollWorkflowTaskQueueResponse(attempt=1, query=query_pb2.WorkflowQuery.FromString(query))
        task.workflow_execution.workflow_id = state.workflow_id
        task.workflow_execution.run_id = state.run_id
        task.workflow_type.name = state.workflow_type
        task.workflow_execution_task_queue.name = state.task_queue
        task.workflow_execution_task_queue.kind = 1  # type: ignore[assignment]
        task.previous_started_event_id = state.last_completed_started_id
        task.history.SetInParent()
        if not sticky:
            end = state.next_event_id
            page = reads.page(fold, state, 1, end)
            task.history.ParseFromString(page.events)
            if page.next_event_id < end:
                task.next_page_token = reads.encode_token(reads.Token(state.run_id, page.next_event_id, end, 0))
        return serialize(task)


def _run(fold: ShardFold, namespace_id: str, workflow_id: str, run_id: str) -> Run:
    info = fold.namespace(namespace_id)
    run = None if info is None else fold.run(namespace_id, info.name, workflow_id, run_id)
    if run is None:
        raise workflow_not_found(workflow_id, run_id)
    return run
