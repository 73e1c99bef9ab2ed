"""Workflow updates: admitted by a record, carried to the worker by the next task, accepted or rejected, completed.

Everything about an update goes through the log, so an admitted one survives a change of owner (law 11). Only the events
of the speculative workflow task that carries it are virtual: a rejected update leaves no trace in the history.
Temporal: service/history/api/updateworkflow, service/history/workflow/update/update.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from temporalio.api.enums.v1 import update_pb2 as update_enums
from temporalio.api.protocol.v1 import message_pb2 as protocol_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events
from everfold.history.machine.apply import add_update, drop_update
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.failures import CommandFailed
from everfold.history.machine.decide.schedule import schedule_speculative_task
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import (
    busy,
    not_found,
    too_many,
    workflow_completed,
    workflow_not_found,
    workflow_not_ready,
)
from everfold.history.machine.state import Run, Update, UpdateStage
from everfold.history.machine.step import Reply, RunKey, UpdateNews
from everfold.history.machine.turn import Turn
from everfold.kernel.errors import Code, StatusError

_M = TypeVar("_M", bound=Message)

_BAD_MESSAGE: Final = "BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE"

FAILED_ATTEMPTS_MAX: Final = 3
"""A workflow task at this attempt has failed too often for an update to wait for it.
Temporal: failUpdateWorkflowTaskAttemptCount."""


# ---- admission ------------------------------------------------------------------------------------------------------


def decide_update(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """UpdateWorkflowExecution: admits the update, or finds it by its id. The reply names the run and the stage reached.

    Whoever asked then waits for the stage that it wants; the outcome comes as `UpdateNews`.
    """
    request = ws.UpdateWorkflowExecutionRequest.FromString(message)
    target = request.workflow_execution
    run_id = "" if request.first_execution_run_id else target.run_id
    run = ctx.find(namespace.namespace_id, namespace.name, target.workflow_id, run_id)
    if run is None:
        raise workflow_not_found(target.workflow_id, target.run_id)
    if request.first_execution_run_id and run.first_run_id != request.first_execution_run_id:
        raise not_found("workflow execution not found")
    turn = admit_update(ctx, run, request)
    if turn is not None:
        turn.finish()
    return Reply(serialize(update_reference(run, request.request.meta.update_id)))


def admit_update(
    ctx: StepContext, run: Run, request: ws.UpdateWorkflowExecutionRequest, turn: Turn | None = None
) -> Turn | None:
    """Admits the update to the run; None when it is known already and nothing changes.

    Raises:
        StatusError: the run is closed, is closing, or has too many updates.
    """
    update_id = request.request.meta.update_id
    if run.running and run.workflow_task_attempt >= FAILED_ATTEMPTS_MAX:
        raise workflow_not_ready("Unable to perform workflow execution update due to Workflow Task in failed state.")
    if update_id in run.updates:
        ctx.step.ignored = True
        return turn
    if not run.running:
        raise workflow_completed()
    if run.close_attempted and run.task_started:
        raise busy("workflow operation can not be applied because workflow is closing")
    limits = ctx.limits
    open_updates = sum(1 for update in run.updates.values() if update.stage != UpdateStage.COMPLETED)
    if limits.reached("history.maxInFlightUpdates", open_updates):
        raise too_many(f"limit on number of concurrent in-flight updates has been reached ({open_updates})")
    if limits.reached("history.maxTotalUpdates", run.updates_total):
        raise StatusError(
            Code.FAILED_PRECONDITION,
            f"The limit on the total number of distinct updates in this workflow has been reached "
            f"({run.updates_total}). "
            "Make sure any duplicate updates share an Update ID so the server can deduplicate them, and consider "
            "rejecting updates that you aren't going to process. You can also Continue-as-New to avoid this; we "
            "recommend you check Continue-as-New Suggested in your Workflow.",
        )
    bytes_max = limits["history.maxInFlightUpdatePayloads"]
    if bytes_max and _bytes_in_flight(run) + request.request.ByteSize() >= bytes_max:
        raise too_many(f"limit on total payload size of in-flight updates has been reached ({bytes_max} bytes)")
    turn = turn or Turn(ctx, run)
    update = Update()
    update.update_id = update_id
    update.request = serialize(request.request)
    update.any_run = not request.workflow_execution.run_id
    add_update(run, update)
    schedule_speculative_task(turn)
    return turn


def _bytes_in_flight(run: Run) -> int:
    """Ids and requests of the updates that are not completed."""
    return sum(
        len(update.update_id) + len(update.request)
        for update in run.updates.values()
        if update.stage != UpdateStage.COMPLETED
    )


def update_reference(run: Run, update_id: str) -> ws.UpdateWorkflowExecutionResponse:
    """The response without an outcome: which update, which run, how far."""
    response = ws.UpdateWorkflowExecutionResponse()
    response.update_ref.workflow_execution.workflow_id = run.workflow_id
    response.update_ref.workflow_execution.run_id = run.run_id
    response.update_ref.update_id = update_id
    update = run.updates.get(update_id)
    response.stage = stage_of(update)
    return response


def stage_of(update: Update | None) -> update_enums.UpdateWorkflowExecutionLifecycleStage.ValueType:
    """The API's name of an update's stage."""
    if update is None:
        return update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_UNSPECIFIED
    if update.stage == UpdateStage.COMPLETED:
        return update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
    if update.stage == UpdateStage.ACCEPTED:
        return update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
    return update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED


# ---- from the worker ------------------------------------------------------------------------------------------------


class Messages:
    """The messages of a completion, each taken once: by the command that names it, or at the end."""

    def __init__(self, messages: Iterable[protocol_pb2.Message]) -> None:
        self._waiting = {message.id: message for message in messages}

    def take(self, message_id: str) -> protocol_pb2.Message:
        """The message of that id.

        Raises:
            CommandFailed: the command names none, or one that is not there.
        """
        if not message_id:
            raise CommandFailed(_BAD_MESSAGE, "MessageID is not set on ProtocolMessageCommand.")
        message = self._waiting.pop(message_id, None)
        if message is None:
            raise CommandFailed(_BAD_MESSAGE, f"ProtocolMessageCommand referenced absent message ID {message_id}")
        return message

    def rejections(self) -> list[protocol_pb2.Message]:
        """The rejections that are left."""
        found = [message for message in self._waiting.values() if message.body.Is(update_pb2.Rejection.DESCRIPTOR)]
        for message in found:
            del self._waiting[message.id]
        return found

    def rest(self) -> list[protocol_pb2.Message]:
        """Those that no command named: rejections, mostly."""
        rest = list(self._waiting.values())
        self._waiting = {}
        return rest


def handle_message(turn: Turn, message: protocol_pb2.Message) -> None:
    """An acceptance, a rejection or a response of the worker.

    Raises:
        CommandFailed: the message fits no update.
    """
    run = turn.run
    update = run.updates.get(message.protocol_instance_id)
    if message.body.Is(update_pb2.Acceptance.DESCRIPTOR):
        _accept(turn, update, message)
    elif message.body.Is(update_pb2.Rejection.DESCRIPTOR):
        rejection = _body(message, update_pb2.Rejection)
        if update is None or update.stage != UpdateStage.ADMITTED:
            raise _misplaced(update, message, "Rejection")
        outcome = update_pb2.Outcome(failure=rejection.failure)
        _forget(run, update)
        _news(turn, update.update_id, "rejected", serialize(outcome))
    elif message.body.Is(update_pb2.Response.DESCRIPTOR):
        response = _body(message, update_pb2.Response)
        if update is None or update.stage != UpdateStage.ACCEPTED:
            raise _misplaced(update, message, "Response")
        event = turn.new(events.UPDATE_COMPLETED)
        a = event.workflow_execution_update_completed_event_attributes
        a.meta.update_id = update.update_id
        a.meta.identity = response.meta.identity
        a.accepted_event_id = update.accepted_event_id
        a.outcome.CopyFrom(response.outcome)
        turn.record(event)
        _news(turn, update.update_id, "completed", serialize(response.outcome))
    else:
        raise CommandFailed(_BAD_MESSAGE, f"unsupported protocol message {message.body.type_url}")


def _body(message: protocol_pb2.Message, kind: type[_M]) -> _M:
    """What a message says, whose bytes nothing has looked at yet."""
    try:
        return kind.FromString(message.body.value)
    except DecodeError:
        raise CommandFailed(_BAD_MESSAGE, f"message {message.id} is no {kind.DESCRIPTOR.full_name}") from None


def _accept(turn: Turn, update: Update | None, message: protocol_pb2.Message) -> None:
    acceptance = _body(message, update_pb2.Acceptance)
    if update is None:
        # The update was lost before it was accepted (a reset, a worker that is ahead): the worker has its request.
        if not acceptance.HasField("accepted_request"):
            raise _unknown(message)
    elif update.stage != UpdateStage.ADMITTED:
        raise _misplaced(update, message, "Acceptance")
    event = turn.new(events.UPDATE_ACCEPTED)
    a = event.workflow_execution_update_accepted_event_attributes
    a.protocol_instance_id = message.protocol_instance_id
    a.accepted_request_message_id = acceptance.accepted_request_message_id
    a.accepted_request_sequencing_event_id = acceptance.accepted_request_sequencing_event_id
    if update is not None and update.request:
        a.accepted_request.ParseFromString(update.request)
    elif update is None:
        a.accepted_request.CopyFrom(acceptance.accepted_request)
    turn.record(event)
    _news(turn, message.protocol_instance_id, "accepted")


def reject_unprocessed(turn: Turn) -> None:
    """A worker that completes its task must have answered every update it carried; one it ignored is rejected."""
    for update in list(turn.run.updates.values()):
        if update.stage != UpdateStage.ADMITTED or not update.sent:
            continue
        outcome = update_pb2.Outcome()
        outcome.failure.message = (
            "Workflow Update is rejected because it wasn't processed by worker. Probably, Workflow Update is not "
            "supported by the worker."
        )
        outcome.failure.source = "Server"
        outcome.failure.application_failure_info.type = "UnprocessedUpdate"
        outcome.failure.application_failure_info.non_retryable = True
        _forget(turn.run, update)
        _news(turn, update.update_id, "rejected", serialize(outcome))


def abort_sent(turn: Turn) -> None:
    """The completion of the task that carried them has failed: nobody will answer these updates."""
    run = turn.run
    for update in list(run.updates.values()):
        if update.stage == UpdateStage.ADMITTED and update.sent:
            _forget(run, update)
            error = workflow_not_ready(
                "Unable to perform workflow execution update due to unexpected workflow task failure."
            )
            _news(turn, update.update_id, "failed", error=error)


def _forget(run: Run, update: Update) -> None:
    """The update leaves no trace, and does not count (update/registry.go, remover)."""
    drop_update(run, update.update_id)
    run.updates_total -= 1


def has_admitted(run: Run) -> bool:
    """True when an update waits to be carried to the worker."""
    return any(update.stage == UpdateStage.ADMITTED and update.request for update in run.updates.values())


def _news(turn: Turn, update_id: str, stage: str, outcome: bytes = b"", error: StatusError | None = None) -> None:
    run = turn.run
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    turn.ctx.step.updates.append(UpdateNews(key, update_id, stage, outcome, error))


def _misplaced(update: Update | None, message: protocol_pb2.Message, name: str) -> CommandFailed:
    """A message that does not fit the update's stage."""
    if update is None:
        return _unknown(message)
    state = {UpdateStage.ACCEPTED: "Accepted", UpdateStage.COMPLETED: "Completed"}.get(
        UpdateStage(update.stage), "Sent" if update.sent else "Admitted"
    )
    return CommandFailed(
        _BAD_MESSAGE,
        f"invalid state transition attempted for Update {update.update_id}: received *update.{name} message while in "
        f"state {state}",
    )


def _unknown(message: protocol_pb2.Message) -> CommandFailed:
    return CommandFailed(
        _BAD_MESSAGE,
        f"update {message.protocol_instance_id} wasn't found on the server. "
        "This is most likely a transient error which will be resolved automatically by retries",
    )
