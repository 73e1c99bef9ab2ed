"""Scenarios of updates whose workflow task comes to a bad end."""

from __future__ import annotations

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
from differential.script import Script, command, payloads
from support.raw import RpcError

ACCEPTED = update_pb2.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED


def _outcome(s: Script, waiting: Any) -> None:
    try:
        s.note("outcome", waiting.result())
    except RpcError as error:
        s.note_error("refused", error)


def _ask_again(s: Script) -> None:
    """What an SDK does then: the same update once more, which is a new one."""
    waiting = begin_update(s, "u1")
    task = s.poll("asked again")
    s.complete(task, *answer_commands(), messages=accept_and_complete(task))
    _outcome(s, waiting)
    s.terminate()


def _bad(s: Script) -> Any:
    """A command that no server takes: an activity without an id."""
    return s.activity("")


@scenario("12m", "a completion that answers an update is refused for another command; the update comes again")
def completion_refused(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    s.completion_refused("refused", task, *answer_commands(), _bad(s), messages=accept_and_complete(task))
    _outcome(s, waiting)
    s.complete(s.poll("again"))
    _ask_again(s)


@scenario("12o", "an update that was accepted before is completed by a task that is refused, and then by another")
def later_completion_refused(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    fields = {**update_fields(s, "u1"), "wait_policy": {"lifecycle_stage": ACCEPTED}}
    waiting = s.client.begin("UpdateWorkflowExecution", **fields)
    first = s.poll()
    accepted, completed = accept_and_complete(first)
    s.complete(first, *answer_commands(1), messages=[accepted])
    _outcome(s, waiting)
    s.signal("go")
    task = s.poll("with the signal")
    answer = command("PROTOCOL_MESSAGE", message_id="u1/complete")
    s.completion_refused("refused", task, answer, _bad(s), messages=[completed])
    s.complete(s.poll("again"), answer, messages=[completed])
    s.note("asked again", s.client.call("UpdateWorkflowExecution", **update_fields(s, "u1")))
    s.terminate()


@scenario("12p", "a completion answers an update that nobody asked for")
def answer_of_nothing(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    response = update_v1.Response(outcome=update_v1.Outcome(success=payloads("changed")))
    response.meta.update_id = "u1"
    s.completion_refused(
        "refused", task, *answer_commands()[1:], messages=[message(task.messages[0], "complete", response)]
    )
    _outcome(s, waiting)
    s.complete(s.poll("again"))
    _ask_again(s)


@scenario("12q", "a workflow answers an update and completes while a signal waits")
def answered_and_unhandled(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    s.signal("meanwhile")
    s.completion_refused("refused", task, *answer_commands(), s.done(), messages=accept_and_complete(task))
    _outcome(s, waiting)
    s.complete(s.poll("again"), s.done())


@scenario("12r", "the workflow task with an update times out; the update comes again")
def update_task_times_out(s: Script) -> None:
    s.start(workflow_task_timeout={"seconds": 1})
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    s.poll("with the update")
    again = s.poll("again")
    s.complete(again, *answer_commands(), messages=accept_and_complete(again))
    _outcome(s, waiting)
    s.terminate()


@scenario("12s", "an update comes again as often as the worker fails its task")
def update_of_failing(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    for attempt in range(2):
        s.fail(s.poll(f"attempt {attempt + 1}"))
    last = s.poll("last")
    s.complete(last, *answer_commands(), messages=accept_and_complete(last))
    _outcome(s, waiting)
    s.terminate()


@scenario("12t", "a completion that rejects an update is refused itself")
def rejection_refused(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    first = begin_update(s, "u1")
    task = s.poll("with the update")
    s.completion_refused("refused", task, _bad(s), messages=[_rejected(task)])
    _outcome(s, first)
    s.complete(s.poll("again"))
    _ask_again(s)


def _rejected(task: Any) -> Any:
    """The worker's message that it does not want the task's first update."""
    request = task.messages[0]
    rejection = update_v1.Rejection(
        rejected_request_message_id=request.id, rejected_request_sequencing_event_id=request.event_id
    )
    rejection.failure.message = "not now"
    return message(request, "reject", rejection)


@scenario("12y", "a completion rejects an update and continues as new")
def rejected_and_continued(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=1.2))  # a run of less than a second would have a successor that waits
    timer = s.poll()
    s.complete(timer)
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    s.complete(
        task,
        command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", workflow_type={"name": "scripted"}, task_queue={"name": s.queue}),
        messages=[_rejected(task)],
    )
    _outcome(s, waiting)
    s.track("wf", task.workflow_execution.run_id, label="the first run")
    s.complete(s.poll("of the next run"), s.done())


@scenario("12z", "a completion rejects an update and completes the workflow")
def rejected_and_completed(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    s.complete(task, s.done(), messages=[_rejected(task)])
    _outcome(s, waiting)


@scenario("14d", "update with start: the completion that answers the update is refused")
def update_with_start_refused(s: Script) -> None:
    waiting = s.client.begin("ExecuteMultiOperation", **update_with_start(s))
    task = s.poll("with the update")
    s.completion_refused("refused", task, *answer_commands(), _bad(s), messages=accept_and_complete(task))
    _outcome(s, waiting)
    s.track("wf", task.workflow_execution.run_id)
    s.complete(s.poll("again"))
    s.terminate()


@scenario("14e", "the same with a workflow that runs")
def update_with_start_of_running_refused(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = s.client.begin("ExecuteMultiOperation", **update_with_start(s))
    task = s.poll("with the update")
    s.completion_refused("refused", task, *answer_commands(), _bad(s), messages=accept_and_complete(task))
    _outcome(s, waiting)
    s.complete(s.poll("again"))
    s.terminate()
