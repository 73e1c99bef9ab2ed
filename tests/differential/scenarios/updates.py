"""Scenarios of updates that take more than one workflow task, or come to nothing."""

from __future__ import annotations

import contextlib
from typing import Any

from temporalio.api.enums.v1 import update_pb2
from temporalio.api.update.v1 import message_pb2 as update_v1

from differential.scenarios import scenario
from differential.scenarios.pieces import (
    accept_and_complete,
    answer_commands,
    begin_update,
    message,
    update_fields,
    update_with_start,
)
from differential.script import NAMESPACE, Script, command, failure, payloads, seconds
from support.raw import RpcError

ACCEPTED = update_pb2.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED


def _acceptance(task: Any) -> tuple[Any, Any]:
    """The acceptance of the task's first update, and the update's meta."""
    asked = task.messages[0]
    request = update_v1.Request()
    asked.body.Unpack(request)
    acceptance = update_v1.Acceptance(
        accepted_request_message_id=asked.id,
        accepted_request_sequencing_event_id=asked.event_id,
        accepted_request=request,
    )
    return message(asked, "accept", acceptance), request.meta


def _outcome(s: Script, waiting: Any) -> None:
    try:
        s.note("outcome", waiting.result())
    except RpcError as error:
        s.note_error("refused", error)


@scenario("12c", "an update is accepted now and completed later")
def update_completed_later(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    accepted, meta = _acceptance(task)
    s.complete(task, *answer_commands(1), s.activity(), messages=[accepted])
    s.complete_activity(s.poll_activity())
    later = s.poll("with the activity's result")
    response = update_v1.Response(meta=meta, outcome=update_v1.Outcome(success=payloads("changed")))
    s.complete(
        later,
        command("PROTOCOL_MESSAGE", message_id="u1/complete"),
        messages=[message(task.messages[0], "complete", response)],
    )
    _outcome(s, waiting)
    s.note("asked again", s.client.call("UpdateWorkflowExecution", **update_fields(s, "u1")))
    s.note(
        "polled",
        s.client.call(
            "PollWorkflowExecutionUpdate",
            namespace=NAMESPACE,
            update_ref={"workflow_execution": s.execution(), "update_id": "u1"},
            wait_policy={"lifecycle_stage": ACCEPTED},
        ),
    )
    s.terminate()


@scenario("12u", "an update does not wait for a delayed start")
def update_before_delayed_start(s: Script) -> None:
    s.start(workflow_start_delay=seconds(3600))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    s.complete(task, *answer_commands(), s.done(), messages=accept_and_complete(task))
    _outcome(s, waiting)


@scenario("12v", "the first task of a delayed start leaves no trace when it only rejects an update")
def update_rejected_before_delayed_start(s: Script) -> None:
    s.start(workflow_start_delay=seconds(3600))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    asked = task.messages[0]
    rejection = update_v1.Rejection(
        rejected_request_message_id=asked.id, rejected_request_sequencing_event_id=asked.event_id
    )
    rejection.failure.message = "not now"
    # A real server answers as ever, which misleads the cache of SDKs; Everfold NOT_FOUND, at which they empty it.
    with contextlib.suppress(RpcError):
        s.complete(task, messages=[message(asked, "reject", rejection)])
    _outcome(s, waiting)
    waiting = begin_update(s, "u2")
    task = s.poll("with the other update")
    s.complete(task, *answer_commands(update_id="u2"), s.done(), messages=accept_and_complete(task))
    _outcome(s, waiting)


@scenario("12w", "a delayed start comes all the same after its first task left no trace")
def delayed_start_after_rejection(s: Script) -> None:
    s.start(workflow_start_delay=seconds(4))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    asked = task.messages[0]
    rejection = update_v1.Rejection(
        rejected_request_message_id=asked.id, rejected_request_sequencing_event_id=asked.event_id
    )
    rejection.failure.message = "not now"
    with contextlib.suppress(RpcError):  # as in 12v
        s.complete(task, messages=[message(asked, "reject", rejection)])
    _outcome(s, waiting)
    s.signal("while it waits")
    s.complete(s.poll("when the delay is over"), s.done())


@scenario("12d", "a workflow completes with an accepted update open")
def update_left_open(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    accepted, _ = _acceptance(task)
    s.complete(task, *answer_commands(1), messages=[accepted])
    s.signal("finish")
    s.complete(s.poll(), s.done())
    _outcome(s, waiting)


@scenario("12e", "an update of a closed workflow, and of one that does not exist")
def update_of_closed(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.done())
    s.refused("closed", "UpdateWorkflowExecution", **update_fields(s, "u1"))
    fields = {**update_fields(s, "u1"), "workflow_execution": s.execution("nobody")}
    s.refused("nobody", "UpdateWorkflowExecution", **fields)


@scenario("12f", "a worker forgets an update: it is rejected in its place")
def update_forgotten(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    s.complete(s.poll("with the update"))
    _outcome(s, waiting)
    s.terminate()


@scenario("12g", "an update completes with a failure, and the workflow with it")
def update_fails(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    accepted, meta = _acceptance(task)
    response = update_v1.Response(meta=meta, outcome=update_v1.Outcome(failure=failure("no change")))
    completed = message(task.messages[0], "complete", response)
    s.complete(task, *answer_commands(), s.done(), messages=[accepted, completed])
    _outcome(s, waiting)


@scenario("12h", "an update comes with the first workflow task")
def update_before_first_task(s: Script) -> None:
    s.start()
    waiting = begin_update(s, "u1")
    s.wait("WORKFLOW_TASK_SCHEDULED")
    task = s.poll()
    while not task.messages:
        s.complete(task)
        task = s.poll()
    s.complete(task, *answer_commands(), messages=accept_and_complete(task))
    _outcome(s, waiting)
    s.terminate()


@scenario("12i", "the workflow task with an update fails; the update comes again")
def update_task_fails(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    s.fail(s.poll("with the update"))
    task = s.poll("again")
    s.complete(task, *answer_commands(), messages=accept_and_complete(task))
    _outcome(s, waiting)
    s.terminate()


@scenario("12j", "a signal arrives while a workflow task with an update runs")
def update_and_signal(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    s.signal("meanwhile")
    s.complete(task, *answer_commands(), messages=accept_and_complete(task))
    _outcome(s, waiting)
    s.complete(s.poll("with the signal"))
    s.terminate()


@scenario("14b", "update with start of a workflow that runs, and again with the same update id")
def update_with_start_of_running(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = s.client.begin("ExecuteMultiOperation", **update_with_start(s))
    task = s.poll("with the update")
    s.complete(task, *answer_commands(), messages=accept_and_complete(task))
    s.note("answer", waiting.result())
    again = s.client.call("ExecuteMultiOperation", **update_with_start(s))
    s.note("again", again.responses[1].update_workflow.outcome)
    s.terminate()


@scenario("14c", "update with start is refused for either part")
def update_with_start_refused(s: Script) -> None:
    s.start()
    s.refused("running", "ExecuteMultiOperation", **update_with_start(s, "FAIL"))
    s.terminate()
    s.refused("no duplicate", "ExecuteMultiOperation", **update_with_start(s, reuse="REJECT_DUPLICATE"))


@scenario("21i", "an update that was accepted is admitted again by a reset")
def update_survives_reset(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    s.complete(task, *answer_commands(), messages=accept_and_complete(task))
    _outcome(s, waiting)
    response = s.client.call(
        "ResetWorkflowExecution",
        namespace=NAMESPACE,
        workflow_execution=s.execution("wf", run_id),
        reason="try again",
        workflow_task_finish_event_id=4,
        request_id=s.request("reset"),
        identity="script:client",
    )
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())


@scenario("12k", "an update waits for its acceptance only")
def update_accepted_only(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    fields = {**update_fields(s, "u1"), "wait_policy": {"lifecycle_stage": ACCEPTED}}
    waiting = s.client.begin("UpdateWorkflowExecution", **fields)
    task = s.poll("with the update")
    accepted, _ = _acceptance(task)
    s.complete(task, *answer_commands(1), messages=[accepted])
    _outcome(s, waiting)
    s.terminate()
    s.refused("after the end", "UpdateWorkflowExecution", **update_fields(s, "u2"))


@scenario("12l", "a workflow is terminated while an update waits to be delivered")
def update_of_terminated(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    s.poll("with the update")
    s.terminate()
    _outcome(s, waiting)
