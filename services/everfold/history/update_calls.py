"""Updates as their callers see them: asked for, waited for, and asked about later.

The record admits the update, or finds it by its id; from then on the caller waits in `UpdateWaiters` until the stage
that it wants is reached, and gets the outcome where there is one. After 20 s it gets the stage reached so far, and asks
again, by the same id or by PollWorkflowExecutionUpdate.

Temporal: service/history/api/updateworkflow, pollupdate, multioperation, workflow/update/update.go
(WaitLifecycleStage).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.step import RunKey
from everfold.history.proposals import WorkflowKey
from everfold.history.reading import Reads
from everfold.history.update_waiters import ACCEPTED, COMPLETED, WaitingUpdate
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.multi_operation import ABORTED, multi_operation_failed

if TYPE_CHECKING:
    from everfold.history.service import HeldShard

REJECTED_REASON: Final = "Update rejected"
"""What the link of an update that failed says; Temporal's word for it."""


class Propose(Protocol):
    """Puts a request into the shard's log; `finish` sees the response at its fold, in the same turn."""

    def __call__(
        self,
        held: HeldShard,
        kind: str,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        body: dict[str, Any],
        timeout: float,
        *,
        finish: Callable[[bytes], bytes],
    ) -> Awaitable[bytes]:
        """The fold's response."""
        ...


class UpdateCalls:
    """UpdateWorkflowExecution, PollWorkflowExecutionUpdate, ExecuteMultiOperation.

    Args:
        held: finds the shard of a workflow id, and waits until it serves.
        barrier: waits until a read may look at the fold.
        propose: see `Propose`.
        wait_s: when a caller gets the stage reached so far.
    """

    def __init__(
        self,
        held: Callable[[str, str, float], Awaitable[HeldShard]],
        barrier: Callable[[HeldShard, WorkflowKey, float], Awaitable[None]],
        propose: Propose,
        reads: Reads,
        wait_s: float,
    ) -> None:
        self._held = held
        self._barrier = barrier
        self._propose = propose
        self._reads = reads
        self._wait_s = wait_s

    async def update(self, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """UpdateWorkflowExecution.

        Raises:
            StatusError: the fold's refusal; NOT_FOUND when the run closed before it accepted the update;
                DEADLINE_EXCEEDED when the caller's time was shorter than the wait.
        """
        request = ws.UpdateWorkflowExecutionRequest.FromString(message)
        wait = _Wait(self._wait_s, timeout)
        held = await self._held(namespace_id, workflow_id, timeout)
        waiting = wait.expect(held, request.request.meta.update_id, request.wait_policy.lifecycle_stage or COMPLETED)

        def begin(response: bytes) -> bytes:
            reference = ws.UpdateWorkflowExecutionResponse.FromString(response).update_ref
            self._begin(held, namespace_id, waiting, reference.workflow_execution)
            return response

        try:
            await self._propose(
                held,
                "UPDATE_WORKFLOW",
                namespace_id,
                workflow_id,
                request.workflow_execution.run_id,
                {"message": message},
                wait.seconds_left(),
                finish=begin,
            )
            await wait.reached(waiting)
            return _response(request, waiting).SerializeToString(deterministic=True)
        finally:
            waiting.cancel()

    async def poll(self, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """PollWorkflowExecutionUpdate. A request that names no stage to wait for gets the one reached.

        Raises:
            StatusError: NOT_FOUND for an unknown workflow or update; otherwise as `update`.
        """
        request = ws.PollWorkflowExecutionUpdateRequest.FromString(message)
        wait = _Wait(self._wait_s, timeout)
        held = await self._held(namespace_id, workflow_id, timeout)
        await self._barrier(held, (namespace_id, workflow_id), wait.seconds_left())
        waiting = wait.expect(held, request.update_ref.update_id, request.wait_policy.lifecycle_stage)
        try:
            self._begin(held, namespace_id, waiting, request.update_ref.workflow_execution)
            await wait.reached(waiting)
            response = ws.PollWorkflowExecutionUpdateResponse(
                outcome=_outcome(waiting),
                stage=waiting.stage,  # type: ignore[arg-type]
                update_ref=_reference(waiting),
            )
            return response.SerializeToString(deterministic=True)
        finally:
            waiting.cancel()

    async def multi_operation(self, namespace_id: str, workflow_id: str, message: bytes, timeout: float) -> bytes:
        """ExecuteMultiOperation of [StartWorkflow, UpdateWorkflow].

        A running workflow that closes before it accepts the update is started anew, once; if that happens again, the
        client is told to try again itself.

        Raises:
            StatusError: with a status for each operation; otherwise as `update`.
        """
        request = ws.ExecuteMultiOperationRequest.FromString(message)
        update = request.operations[1].update_workflow
        wait = _Wait(self._wait_s, timeout)
        for last in (False, True):
            held = await self._held(namespace_id, workflow_id, wait.seconds_left())
            wanted = update.wait_policy.lifecycle_stage or COMPLETED
            waiting = wait.expect(held, update.request.meta.update_id, wanted)
            try:
                response = await self._start_and_update(held, namespace_id, workflow_id, message, wait, waiting)
                response.responses[1].update_workflow.CopyFrom(_response(update, waiting))
                return response.SerializeToString(deterministic=True)
            except _Aborted as aborted:
                error = aborted.error
                if aborted.started:
                    raise multi_operation_failed([None, error]) from None
                if not aborted.by_closing:
                    raise multi_operation_failed([ABORTED, error]) from None
                if last:
                    raise multi_operation_failed([ABORTED, StatusError(Code.ABORTED, error.message)]) from None
            finally:
                waiting.cancel()
        raise AssertionError("unreachable")

    async def _start_and_update(
        self,
        held: HeldShard,
        namespace_id: str,
        workflow_id: str,
        message: bytes,
        wait: _Wait,
        waiting: WaitingUpdate,
    ) -> ws.ExecuteMultiOperationResponse:
        def begin(response: bytes) -> bytes:
            reference = ws.ExecuteMultiOperationResponse.FromString(response).responses[1].update_workflow.update_ref
            self._begin(held, namespace_id, waiting, reference.workflow_execution)
            return response

        folded = await self._propose(
            held,
            "MULTI_OPERATION",
            namespace_id,
            workflow_id,
            "",
            {"message": message},
            wait.seconds_left(),
            finish=begin,
        )
        response = ws.ExecuteMultiOperationResponse.FromString(folded)
        try:
            await wait.reached(waiting)
        except StatusError as error:
            if waiting.error is not None and error.code != Code.UNAVAILABLE:
                raise _Aborted(error, response.responses[0].start_workflow.started, waiting.aborted) from None
            raise
        return response

    def _begin(
        self, held: HeldShard, namespace_id: str, waiting: WaitingUpdate, execution: common_pb2.WorkflowExecution
    ) -> None:
        status = self._reads.update_status(
            held.shard.fold, namespace_id, execution.workflow_id, execution.run_id, waiting.update_id
        )
        waiting.begin(RunKey(*status.run), status.stage, status.outcome)


class _Aborted(Exception):
    """The update has come to nothing before the workflow accepted it.

    Attributes:
        started: this call had started the workflow.
        by_closing: the workflow closed; another run may accept it.
    """

    def __init__(self, error: StatusError, started: bool, by_closing: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.started = started
        self.by_closing = by_closing


class _Wait:
    """One call's time: when it answers with what there is, and when its caller is gone."""

    def __init__(self, wait_s: float, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._answer_at = now + wait_s
        self._gone_at = now + timeout
        self._woken: asyncio.Future[None] = self._loop.create_future()

    def seconds_left(self) -> float:
        """Until the caller is gone."""
        return self._gone_at - self._loop.time()

    def expect(self, held: HeldShard, update_id: str, wanted: int) -> WaitingUpdate:
        """A caller that is about to wait.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, too many wait already.
        """
        shard = held.shard
        if len(shard.updates) >= shard.limits.waiters_max:
            raise shard.overloaded()
        if self._woken.done():
            self._woken = self._loop.create_future()
        woken = self._woken

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        return WaitingUpdate(shard.updates, update_id, wanted, wake)

    async def reached(self, waiting: WaitingUpdate) -> None:
        """Wait for the stage wanted, or until it is time to answer with the one reached.

        Raises:
            StatusError: the update's own; DEADLINE_EXCEEDED when the caller is gone before that.
        """
        if not self._woken.done():
            until = min(self._answer_at, self._gone_at)
            await asyncio.wait([self._woken], timeout=max(until - self._loop.time(), 0))
        if waiting.error is not None:
            error = waiting.error
            raise StatusError(error.code, error.message, error.details)
        if waiting.stage < waiting.wanted and self._gone_at < self._answer_at:
            raise StatusError(Code.DEADLINE_EXCEEDED, "the update has not reached the stage in time")


def _outcome(waiting: WaitingUpdate) -> update_pb2.Outcome | None:
    return update_pb2.Outcome.FromString(waiting.outcome) if waiting.stage == COMPLETED else None


def _reference(waiting: WaitingUpdate) -> update_pb2.UpdateRef:
    run = waiting.run
    assert run is not None
    execution = common_pb2.WorkflowExecution(workflow_id=run.workflow_id, run_id=run.run_id)
    return update_pb2.UpdateRef(workflow_execution=execution, update_id=waiting.update_id)


def _response(request: ws.UpdateWorkflowExecutionRequest, waiting: WaitingUpdate) -> ws.UpdateWorkflowExecutionResponse:
    outcome = _outcome(waiting)
    response = ws.UpdateWorkflowExecutionResponse(
        update_ref=_reference(waiting),
        outcome=outcome,
        stage=waiting.stage,  # type: ignore[arg-type]
    )
    run = response.update_ref.workflow_execution
    if outcome is not None and outcome.HasField("failure"):
        # A rejection has no event: Temporal links the workflow, and does so for every failure.
        whole = response.link.workflow
        whole.namespace, whole.reason = request.namespace, REJECTED_REASON
        whole.workflow_id, whole.run_id = run.workflow_id, run.run_id
    elif waiting.stage >= ACCEPTED:
        event = response.link.workflow_event
        event.namespace, event.workflow_id, event.run_id = request.namespace, run.workflow_id, run.run_id
        event.request_id_ref.request_id = request.request.request_id
        event.request_id_ref.event_type = event_type_pb2.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
    return response
