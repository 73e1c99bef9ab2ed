"""Update-with-start: a start and an update of the same workflow, both or neither.

Temporal: service/history/api/multioperation, service/frontend/workflow_handler.go (ExecuteMultiOperation).
"""

from __future__ import annotations

from typing import Final

from temporalio.api.enums.v1 import workflow_pb2 as enums
from temporalio.api.errordetails.v1 import message_pb2 as errordetails_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.schedule import schedule_workflow_task
from everfold.history.machine.decide.search_attributes import check_search_attributes
from everfold.history.machine.decide.start import conflict_policy, create_run, make_room, started_response
from everfold.history.machine.decide.updates import admit_update, update_reference
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import invalid, status
from everfold.history.machine.state import Run, UpdateStage
from everfold.history.machine.step import Reply
from everfold.kernel.errors import Code, StatusError

_START: Final = 0
_UPDATE: Final = 1


def decide_multi_operation(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """ExecuteMultiOperation of [StartWorkflow, UpdateWorkflow]: the update goes to the running run or a new one."""
    request = ws.ExecuteMultiOperationRequest.FromString(message)
    if len(request.operations) != 2:
        raise invalid("Operations have to be exactly [Start, Update].")
    start, update = request.operations[0].start_workflow, request.operations[1].update_workflow
    update_id = update.request.meta.update_id
    current = ctx.find(namespace.namespace_id, namespace.name, start.workflow_id, "", quarantined=True)
    at = _START
    try:
        if current is not None and _belongs(ctx, current, start, update_id):
            at = _UPDATE
            turn = admit_update(ctx, ctx.sound(current), update)
            if turn is not None:
                turn.finish()
            return _reply(current, False, update_id)
        check_search_attributes(namespace, start.search_attributes, ctx.limits)
        run_id = ctx.new_id()
        make_room(ctx, start, current, run_id)
        turn = create_run(ctx, namespace, start, run_id)
        schedule_workflow_task(turn)  # before the update, which would be content with a speculative one
        at = _UPDATE
        admit_update(ctx, turn.run, update, turn)
    except StatusError as error:
        raise _failed(error, at) from None
    turn.finish()
    return _reply(turn.run, True, update_id)


def _belongs(ctx: StepContext, run: Run, start: ws.StartWorkflowExecutionRequest, update_id: str) -> bool:
    """The update is for the present run: it is known there, the start is a repeat, or the policy says so.

    An update that a closed run accepted and did not complete does not count: the workflow is started anew for it.
    """
    known = run.updates.get(update_id)
    if known is not None and (run.running or known.stage == UpdateStage.COMPLETED):
        return True
    if ctx.guards.start_dedupe and run.create_request_id == start.request_id:
        return True
    return run.running and conflict_policy(start) == enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING


def _reply(run: Run, started: bool, update_id: str) -> Reply:
    response = ws.ExecuteMultiOperationResponse()
    start = response.responses.add().start_workflow
    start.CopyFrom(started_response(run, started))
    if not started:
        start.ClearField("first_execution_run_id")  # as a real server answers here, and only here
    response.responses.add().update_workflow.CopyFrom(update_reference(run, update_id))
    return Reply(serialize(response))


def _failed(error: StatusError, culprit: int) -> StatusError:
    """The culprit's own error, and of the other operation that it was aborted."""
    failure = errordetails_pb2.MultiOperationExecutionFailure()
    for index in (_START, _UPDATE):
        entry = failure.statuses.add()
        if index == culprit:
            entry.code, entry.message = int(error.code), error.message
            for name, data in error.details:
                entry.details.add(type_url=f"type.googleapis.com/{name}", value=data)
        else:
            entry.code, entry.message = int(Code.ABORTED), "Operation was aborted."
            aborted = entry.details.add()
            aborted.type_url = "type.googleapis.com/temporal.api.failure.v1.MultiOperationExecutionAborted"
    return status(error.code, "Update-with-Start could not be executed.", failure)
