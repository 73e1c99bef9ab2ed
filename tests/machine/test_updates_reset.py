"""Updates and their speculative tasks, update-with-start, eager start, reset, delete."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import Message
from shard_driver import (
    NAMESPACE_ID,
    ShardDriver,
    cancel_external,
    complete_workflow,
    continue_as_new,
    duration,
    schedule_activity,
    signal_external,
    start_child,
    start_timer,
    sticky,
)
from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.protocol.v1 import message_pb2 as protocol_pb2
from temporalio.api.query.v1 import message_pb2 as query_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws
from test_workflow_task import assert_history

from everfold.history.machine import reads
from everfold.history.machine.step import UpdateNews
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import SECOND_NS
from everfold.schemas import codec


def update_request(update_id: str = "u") -> ws.UpdateWorkflowExecutionRequest:
    request = ws.UpdateWorkflowExecutionRequest()
    request.workflow_execution.workflow_id = "w"
    request.request.meta.update_id = update_id
    request.request.input.name = "change"
    return request


def message(body: Message, update_id: str = "u") -> protocol_pb2.Message:
    out = protocol_pb2.Message(id=f"{update_id}/{type(body).__name__.lower()}", protocol_instance_id=update_id)
    out.body.Pack(body)
    return out


def point(message_: protocol_pb2.Message) -> command_pb2.Command:
    command = command_pb2.Command(command_type=14)
    command.protocol_message_command_attributes.message_id = message_.id
    return command


def acceptance(update_id: str = "u") -> protocol_pb2.Message:
    return message(update_pb2.Acceptance(accepted_request_message_id=f"{update_id}/request"), update_id)


def response(update_id: str = "u") -> protocol_pb2.Message:
    done = update_pb2.Response()
    done.meta.update_id = update_id
    done.outcome.success.payloads.add().data = b"done"
    return message(done, update_id)


def rejection(update_id: str = "u") -> protocol_pb2.Message:
    no = update_pb2.Rejection()
    no.failure.message = "no"
    return message(no, update_id)


def idle(shard: ShardDriver) -> None:
    """A sticky workflow that waits."""
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 1000), **sticky())


def news(shard: ShardDriver) -> list[UpdateNews]:
    return [item for step in shard.steps for item in step.updates]


def test_an_update_of_an_idle_workflow_is_written_with_its_task(shard: ShardDriver) -> None:
    idle(shard)
    before = shard.history()
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    assert shard.history() == before
    task = shard.poll()
    assert [event.event_id for event in task.history.events] == [4, 5, 6, 7]
    assert [m.id for m in task.messages] == ["u/request"]
    assert task.messages[0].event_id == 6
    accept, done = acceptance(), response()
    shard.complete(task, point(accept), point(done), messages=[accept, done], **sticky())
    assert shard.history().splitlines()[5:] == [
        "6 WorkflowTaskScheduled",
        "7 WorkflowTaskStarted",
        "8 WorkflowTaskCompleted",
        "9 WorkflowUpdateAccepted",
        "10 WorkflowUpdateCompleted",
    ]
    assert [item.stage for item in news(shard)] == ["accepted", "completed"]
    status = reads.update_status(shard.fold, NAMESPACE_ID, "default", "w", "", "u")
    assert update_pb2.Outcome.FromString(status.outcome).success.payloads[0].data == b"done"


def test_a_rejected_update_leaves_no_trace(shard: ShardDriver) -> None:
    idle(shard)
    before = shard.history()
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    can = ws.RespondWorkflowTaskCompletedRequest.Capabilities(discard_speculative_workflow_task_with_events=True)
    answer = shard.complete(shard.poll(), messages=[rejection()], capabilities=can, **sticky())
    assert shard.history() == before
    assert answer.reset_history_event_id == 3
    assert news(shard)[-1].stage == "rejected"
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    assert shard.poll().messages


def test_a_first_task_that_leaves_no_trace_is_answered_so_that_the_worker_forgets_the_run(shard: ShardDriver) -> None:
    shard.start(workflow_start_delay=duration(3600))
    shard.request("UPDATE_WORKFLOW", update_request("u"), workflow_id="w")
    task = shard.poll()
    shard.request("UPDATE_WORKFLOW", update_request("v"), workflow_id="w")
    with pytest.raises(StatusError) as forgotten:
        shard.complete(task, messages=[rejection("u")], return_new_workflow_task=True, **sticky())
    assert forgotten.value.code == Code.NOT_FOUND
    assert [(item.update_id, item.stage) for item in news(shard)][-1] == ("u", "rejected")
    assert shard.history() == "1 WorkflowStarted"
    shard.signal()
    again = shard.poll()
    assert [event.event_id for event in again.history.events] == [1, 2, 3, 4]
    assert [m.id for m in again.messages] == ["v/request"]


def test_a_delayed_start_is_still_to_come_after_a_first_task_that_left_no_trace(shard: ShardDriver) -> None:
    shard.start(workflow_start_delay=duration(3600))
    shard.request("UPDATE_WORKFLOW", update_request("u"), workflow_id="w")
    with pytest.raises(StatusError):
        shard.complete(shard.poll(), messages=[rejection("u")], **sticky())
    shard.signal()
    shard.sleep(3590)
    assert shard.history().splitlines() == ["1 WorkflowStarted", "2 WorkflowSignaled signal_name=go"]
    shard.sleep(20)
    assert [event.event_id for event in shard.poll().history.events] == [1, 2, 3, 4]


def test_answers_to_queries_are_not_lost_with_a_first_task_that_leaves_no_trace(shard: ShardDriver) -> None:
    shard.start(workflow_start_delay=duration(3600))
    shard.request("UPDATE_WORKFLOW", update_request("u"), workflow_id="w")
    request_ = {"query_results": {"q": query_pb2.WorkflowQueryResult(result_type=1)}}
    answer = shard.complete(shard.poll(), messages=[rejection("u")], **request_, **sticky())
    assert answer.reset_history_event_id == 0
    assert shard.history() == "1 WorkflowStarted"


@pytest.mark.parametrize("close", [continue_as_new, complete_workflow])
def test_a_task_may_reject_an_update_and_close_the_run(
    shard: ShardDriver, close: Callable[[], command_pb2.Command]
) -> None:
    shard.start()
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    task = shard.poll()
    shard.sleep(2)
    shard.complete(task, close(), messages=[rejection()])
    assert [item.stage for item in news(shard)] == ["rejected"]
    if close is continue_as_new:
        assert not shard.poll().messages, "the next run does not get it"


def test_an_update_that_nobody_answered_goes_on_beside_one_that_was_rejected(shard: ShardDriver) -> None:
    shard.start()
    for update_id in ("u", "v"):
        shard.request("UPDATE_WORKFLOW", update_request(update_id), workflow_id="w")
    task = shard.poll()
    shard.sleep(2)
    shard.complete(task, continue_as_new(), messages=[rejection("v")])
    assert [(item.update_id, item.stage) for item in news(shard)] == [("v", "rejected"), ("u", "moved")]
    assert [message.id for message in shard.poll().messages] == ["u/request"]


def test_a_rejected_update_does_not_count() -> None:
    shard = ShardDriver(settings={"history.maxTotalUpdates": 1})
    idle(shard)
    for _ in range(2):
        shard.request("UPDATE_WORKFLOW", update_request("rejected"), workflow_id="w")
        shard.complete(shard.poll(), messages=[rejection("rejected")], **sticky())
        shard.request("UPDATE_WORKFLOW", update_request("ignored"), workflow_id="w")
        shard.complete(shard.poll(), **sticky())
    assert {item.stage for item in news(shard)} == {"rejected"}
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")


def test_an_update_is_admitted_once(shard: ShardDriver) -> None:
    idle(shard)
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    assert len(shard.poll().messages) == 1


def test_a_signal_turns_the_speculative_task_into_a_written_one(shard: ShardDriver) -> None:
    idle(shard)
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    shard.signal()
    task = shard.poll()
    assert task.messages
    assert shard.history().splitlines()[5:] == [
        "6 WorkflowSignaled signal_name=go",
        "7 WorkflowTaskScheduled",
        "8 WorkflowTaskStarted",
    ]


def test_an_update_that_comes_during_a_task_follows_in_the_next(shard: ShardDriver) -> None:
    idle(shard)
    shard.signal()
    task = shard.poll()
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    shard.complete(task, **sticky())
    assert [m.id for m in shard.poll().messages] == ["u/request"]


def test_an_update_is_carried_again_when_its_task_times_out(shard: ShardDriver) -> None:
    idle(shard)
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    assert shard.poll().messages
    shard.sleep(11)
    again = shard.poll()
    assert [m.id for m in again.messages] == ["u/request"]


def test_an_update_that_the_worker_ignores_is_rejected(shard: ShardDriver) -> None:
    idle(shard)
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    shard.complete(shard.poll(), **sticky())
    assert news(shard)[-1].stage == "rejected"


def test_closing_aborts_what_was_admitted_and_fails_what_was_accepted(shard: ShardDriver) -> None:
    idle(shard)
    shard.request("UPDATE_WORKFLOW", update_request("a"), workflow_id="w")
    accept = acceptance("a")
    shard.complete(shard.poll(), point(accept), messages=[accept], **sticky())
    shard.request("UPDATE_WORKFLOW", update_request("b"), workflow_id="w")
    shard.terminate()
    last = {item.update_id: item for item in news(shard)}
    assert last["b"].stage == "aborted"
    outcome = update_pb2.Outcome.FromString(last["a"].outcome)
    assert outcome.failure.application_failure_info.type == "AcceptedUpdateCompletedWorkflow"


def test_an_update_follows_into_the_next_run(shard: ShardDriver) -> None:
    idle(shard)
    shard.signal()
    task = shard.poll()
    shard.sleep(2)
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    shard.complete(task, continue_as_new())
    assert news(shard)[-1].stage == "moved"
    assert [m.id for m in shard.poll().messages] == ["u/request"]


def test_only_so_many_updates_may_be_under_way() -> None:
    shard = ShardDriver(settings={"history.maxInFlightUpdates": 2})
    idle(shard)
    for number in range(2):
        shard.request("UPDATE_WORKFLOW", update_request(f"u{number}"), workflow_id="w")
    with pytest.raises(StatusError) as refused:
        shard.request("UPDATE_WORKFLOW", update_request("third"), workflow_id="w")
    assert refused.value.code == Code.RESOURCE_EXHAUSTED


def test_an_update_is_refused_while_the_workflow_task_keeps_failing(shard: ShardDriver) -> None:
    shard.start()
    shard.fail_task(shard.poll())
    shard.fail_task(shard.poll())
    with pytest.raises(StatusError, match="due to Workflow Task in failed state") as refused:
        shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    assert refused.value.code == Code.FAILED_PRECONDITION
    assert refused.value.details[0][0].endswith("WorkflowNotReadyFailure")


def multi(request_id: str = "m", conflict: int = 2) -> ws.ExecuteMultiOperationRequest:
    request = ws.ExecuteMultiOperationRequest()
    start = request.operations.add().start_workflow
    start.workflow_id, start.request_id = "w", request_id
    start.workflow_type.name, start.task_queue.name = "Greeting", "queue"
    start.workflow_id_conflict_policy = conflict  # type: ignore[assignment]
    request.operations.add().update_workflow.CopyFrom(update_request())
    return request


def test_update_with_start_starts_and_its_first_task_carries_the_update(shard: ShardDriver) -> None:
    reply = shard.request("MULTI_OPERATION", multi(), workflow_id="w")
    answer = ws.ExecuteMultiOperationResponse.FromString(reply.response)
    assert answer.responses[0].start_workflow.started
    assert answer.responses[1].update_workflow.update_ref.update_id == "u"
    task = shard.poll()
    assert task.messages
    assert_history(shard, "1 WorkflowStarted\n2 WorkflowTaskScheduled\n3 WorkflowTaskStarted")


def test_update_with_start_updates_the_running_workflow(shard: ShardDriver) -> None:
    idle(shard)
    reply = shard.request("MULTI_OPERATION", multi(), workflow_id="w")
    assert not ws.ExecuteMultiOperationResponse.FromString(reply.response).responses[0].start_workflow.started


def test_update_with_start_that_may_not_start_names_the_culprit(shard: ShardDriver) -> None:
    idle(shard)
    with pytest.raises(StatusError, match="Update-with-Start") as refused:
        shard.request("MULTI_OPERATION", multi(conflict=1), workflow_id="w")
    assert refused.value.code == Code.ALREADY_EXISTS
    assert refused.value.details[0][0].endswith("MultiOperationExecutionFailure")


def test_update_with_start_starts_anew_where_a_closed_run_left_the_update_open(shard: ShardDriver) -> None:
    idle(shard)
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    accept = acceptance()
    shard.complete(shard.poll(), point(accept), complete_workflow(), messages=[accept])
    shard.sleep(2)
    reply = shard.request("MULTI_OPERATION", multi(), workflow_id="w")
    answer = ws.ExecuteMultiOperationResponse.FromString(reply.response)
    assert answer.responses[0].start_workflow.started
    assert shard.poll().messages


def test_update_with_start_finds_the_outcome_in_a_closed_run(shard: ShardDriver) -> None:
    idle(shard)
    shard.request("UPDATE_WORKFLOW", update_request(), workflow_id="w")
    accept, done = acceptance(), response()
    shard.complete(shard.poll(), point(accept), point(done), complete_workflow(), messages=[accept, done])
    reply = shard.request("MULTI_OPERATION", multi(), workflow_id="w")
    answer = ws.ExecuteMultiOperationResponse.FromString(reply.response)
    assert not answer.responses[0].start_workflow.started
    assert answer.responses[1].update_workflow.stage == 3


def test_an_eager_start_brings_its_first_task_along(shard: ShardDriver) -> None:
    shard.start(request_eager_execution=True)
    reply = shard.steps[-1].reply
    assert reply is not None
    answer = ws.StartWorkflowExecutionResponse.FromString(reads.assemble(shard.fold, reply))
    task = answer.eager_workflow_task
    assert [event.event_id for event in task.history.events] == [1, 2, 3]
    shard.complete(task, complete_workflow())


def test_an_eager_start_asked_again_brings_its_task_along_until_it_is_answered(shard: ShardDriver) -> None:
    request = ws.StartWorkflowExecutionRequest(workflow_id="w", request_id="r", request_eager_execution=True)
    request.workflow_type.name, request.task_queue.name = "Greeting", "queue"

    def ask() -> ws.StartWorkflowExecutionResponse:
        reply = shard.request("START_WORKFLOW", request, workflow_id="w")
        return ws.StartWorkflowExecutionResponse.FromString(reads.assemble(shard.fold, reply))

    first = ask()
    assert first.HasField("eager_workflow_task")
    assert ask() == first
    shard.complete(first.eager_workflow_task, schedule_activity())
    again = ask()
    assert (again.run_id, again.started, again.HasField("eager_workflow_task")) == (first.run_id, True, False)


def reset(shard: ShardDriver, at: int, **fields: object) -> str:
    request = ws.ResetWorkflowExecutionRequest(reason="again", request_id=shard.request_id(), **fields)  # type: ignore[arg-type]
    request.workflow_execution.workflow_id = "w"
    request.workflow_task_finish_event_id = at
    reply = shard.request("RESET_WORKFLOW", request, workflow_id="w")
    return ws.ResetWorkflowExecutionResponse.FromString(reply.response).run_id


@pytest.mark.parametrize("related", [False, True])
def test_only_what_waits_in_the_chain_of_the_reset_run_is_applied_again(shard: ShardDriver, related: bool) -> None:
    first = shard.start()
    shard.complete(shard.poll(), continue_as_new() if related else complete_workflow())
    if not related:
        shard.start()
    shard.sleep(2)  # a run that continues another waits a moment
    shard.poll("w")
    shard.signal("buffered")
    request = ws.ResetWorkflowExecutionRequest(reason="again", request_id="reset", workflow_task_finish_event_id=4)
    request.workflow_execution.workflow_id, request.workflow_execution.run_id = "w", first
    shard.request("RESET_WORKFLOW", request, workflow_id="w", run_id=first)
    assert ("signal_name=buffered" in shard.history()) is related


def test_a_reset_goes_on_from_the_workflow_task_with_later_signals(shard: ShardDriver) -> None:
    first = shard.start()
    shard.complete(shard.poll(), schedule_activity("a"))
    shard.signal("later")
    shard.complete_activity(shard.poll_activity())
    second = reset(shard, 4)
    assert second != first
    assert shard.history(run_id=first).splitlines()[-1].endswith("WorkflowTerminated")
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskFailed cause=RESET_WORKFLOW
        5 WorkflowSignaled signal_name=later
        6 WorkflowTaskScheduled
        """,
    )
    shard.complete(shard.poll(), schedule_activity("a"))
    shard.complete_activity(shard.poll_activity())
    shard.complete(shard.poll(), complete_workflow())
    info = shard.describe().workflow_execution_info
    assert info.status == 2
    assert info.first_run_id == first


def test_children_of_a_run_that_is_reset_live_on_and_report_to_the_new_run(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_child("child"))
    shard.deliver()
    shard.complete(shard.poll("w"), start_timer("t", 1000))
    reset(shard, 9)
    shard.deliver()
    assert shard.describe("child").workflow_execution_info.status == 1
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    assert "ChildWorkflowCompleted" in shard.history()


def test_the_end_of_a_child_that_waits_behind_a_task_goes_into_the_new_run(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_child("child"))
    shard.deliver()
    shard.complete(shard.poll("w"), start_timer("t", 1000))
    shard.signal()
    shard.poll("w")
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    assert "ChildWorkflowCompleted" not in shard.history(), "it is buffered"
    reset(shard, 9)
    assert [line.split(" ")[1] for line in shard.history().splitlines()[8:]] == [
        "WorkflowTaskFailed",
        "WorkflowSignaled",
        "ChildWorkflowCompleted",
        "WorkflowTaskScheduled",
    ]


def test_what_a_child_of_the_next_run_did_is_not_put_into_a_run_that_is_reset(shard: ShardDriver) -> None:
    """It has the event id that a child of the first run had there."""
    first = shard.start()
    shard.complete(shard.poll(), start_child("child", policy=2))
    shard.deliver()
    shard.sleep(2)
    shard.complete(shard.poll("w"), continue_as_new())
    shard.complete(shard.poll("w"), start_child("other", policy=2))
    shard.deliver()
    shard.complete(shard.poll("other"), complete_workflow())
    shard.deliver()
    assert "ChildWorkflowCompleted" in shard.history()
    request = ws.ResetWorkflowExecutionRequest(reason="again", request_id=shard.request_id())
    request.workflow_execution.workflow_id, request.workflow_execution.run_id = "w", first
    request.workflow_task_finish_event_id = 9
    shard.request("RESET_WORKFLOW", request, workflow_id="w", run_id=first)
    assert "ChildWorkflowCompleted" not in shard.history()
    (pending,) = shard.describe().pending_children
    assert pending.workflow_id == "child"


def test_the_parent_of_a_run_that_is_reset_hears_of_the_new_run_alone(shard: ShardDriver) -> None:
    shard.start("parent")
    shard.complete(shard.poll("parent"), start_child("w"))
    shard.deliver()
    shard.complete(shard.poll("w"), start_timer("t", 1000))
    reset(shard, 4)
    shard.deliver()
    assert "ChildWorkflowTerminated" not in shard.history("parent")
    shard.complete(shard.poll("w"), complete_workflow())
    shard.deliver()
    assert shard.history("parent").splitlines()[-1].endswith("ChildWorkflowCompleted")
    reset(shard, 4)  # it is closed now, and the parent has heard
    shard.complete(shard.poll("w"), complete_workflow())
    shard.deliver()
    assert shard.history("parent").count("ChildWorkflowCompleted") == 1


@pytest.mark.parametrize("answered", [True, False])
def test_what_other_workflows_were_asked_is_asked_again_when_the_reset_takes_the_answer(
    shard: ShardDriver, answered: bool
) -> None:
    shard.start("target")
    shard.start()
    asked = [signal_external("target"), cancel_external("target")]
    shard.complete(shard.poll("w"), *asked, force_create_new_workflow_task=True)
    if answered:
        shard.deliver()
    shard.poll("w")
    reset(shard, 8)
    shard.deliver()
    history = shard.history()
    assert "8 WorkflowTaskStarted" in history
    assert history.count("ExternalWorkflowSignaled") == history.count("ExternalWorkflowCancelRequested") == 1
    assert shard.history("target").count("WorkflowSignaled") == 2  # as on a real server
    assert shard.history("target").count("WorkflowCancelRequested") == 1


def test_a_child_whose_start_was_not_answered_before_a_reset_is_started_once(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll("w"), start_child("child"), force_create_new_workflow_task=True)
    for _ in range(2):  # the second run is reset, too
        shard.poll("w")
        reset(shard, 7)
    shard.deliver()
    assert shard.history().count("ChildWorkflowStarted") == 1
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    assert shard.history().splitlines()[-1].endswith("ChildWorkflowCompleted")


def test_a_child_that_closes_before_the_new_run_knows_it_is_written_as_started_and_closed(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll("w"), start_child("child"), force_create_new_workflow_task=True)
    shard.poll("w")
    reset(shard, 7)
    shard._fold(shard.messages.pop(0))  # the base run's
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    lines = [line.split()[1] for line in shard.history().splitlines()]
    assert lines[-2:] == ["ChildWorkflowStarted", "ChildWorkflowCompleted"]
    assert shard.describe("child").workflow_execution_info.status == 2  # and not started again


def test_a_child_of_the_run_before_a_reset_is_not_taken_for_one_of_the_new_run(shard: ShardDriver) -> None:
    first = shard.start()
    shard.complete(shard.poll(), start_timer("t", 1000))
    shard.signal()
    shard.complete(shard.poll("w"), start_child("child"))
    shard.deliver()
    reset(shard, 4)
    shard.complete(shard.poll("w"), start_timer("t", 1000), start_child("other"))
    initiated = "10 StartChildWorkflowInitiated"
    assert initiated in shard.history(run_id=first)
    assert initiated in shard.history()
    shard.deliver()
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    assert "ChildWorkflowCompleted" not in shard.history()
    shard.complete(shard.poll("other"), complete_workflow())
    shard.deliver()
    assert "ChildWorkflowCompleted" in shard.history()


def test_a_reset_can_leave_signals_out(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 10))
    shard.signal()
    reset(shard, 4, reset_reapply_exclude_types=[1])
    assert "WorkflowSignaled" not in shard.history()


def test_a_closed_workflow_can_be_reset_and_pending_activities_run_again(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), schedule_activity("a"))
    shard.signal()
    shard.complete(shard.poll(), complete_workflow())
    reset(shard, 8)
    task = shard.poll_activity()
    assert task.activity_id == "a"
    shard.complete_activity(task)
    assert "ActivityTaskCompleted" in shard.history()


def test_the_time_of_an_activity_that_has_not_begun_is_counted_from_the_reset(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), schedule_activity("a", schedule_to_close=20))
    shard.signal()
    shard.complete(shard.poll(), start_timer("t", 1000))
    shard.sleep(15)
    reset(shard, 8)
    shard.sleep(10)
    task = shard.poll_activity()
    assert task.scheduled_time.ToNanoseconds() == shard.now_ns - 10 * SECOND_NS
    run = shard.fold.run(NAMESPACE_ID, "default", "w", "")
    assert run is not None
    started = reads.events_of(shard.fold, run)[7].workflow_task_started_event_attributes
    assert (started.request_id, started.history_size_bytes > 0) == ("emptyUuid", True)
    shard.sleep(9)
    assert "ActivityTaskTimedOut" not in shard.history()
    shard.sleep(2)
    assert "ActivityTaskTimedOut" in shard.history()


def test_a_reset_needs_a_workflow_task_at_its_point(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 10))
    with pytest.raises(StatusError, match="Can only reset workflow"):
        reset(shard, 2)
    with pytest.raises(StatusError, match="must be > 1"):
        reset(shard, 99)


def test_a_reset_gives_a_run_that_timed_out_its_whole_time_again(shard: ShardDriver) -> None:
    shard.start(workflow_run_timeout=duration(10))
    shard.complete(shard.poll(), start_timer("t", 1000))
    shard.sleep(11)
    assert shard.describe().workflow_execution_info.status == 7
    reset(shard, 4)
    shard.sleep(9)
    assert shard.describe().workflow_execution_info.status == 1
    shard.sleep(2)
    assert shard.describe().workflow_execution_info.status == 7


def test_what_a_reset_run_continues_as_ends_by_its_own_time(shard: ShardDriver) -> None:
    shard.start(workflow_execution_timeout=duration(20))
    shard.complete(shard.poll(), start_timer("t", 1000))
    shard.sleep(15)
    reset(shard, 4)
    reset_at = shard.now_ns
    shard.sleep(10)
    shard.complete(shard.poll(), continue_as_new())
    extended = shard.describe().workflow_extended_info
    assert extended.execution_expiration_time.ToNanoseconds() == reset_at + 20 * SECOND_NS
    assert extended.run_expiration_time.ToNanoseconds() == reset_at + 20 * SECOND_NS
    shard.sleep(11)
    assert shard.describe().workflow_execution_info.status == 7


def test_a_run_that_a_reset_made_starts_at_the_reset(shard: ShardDriver) -> None:
    first = shard.start(workflow_start_delay=duration(3))
    started_at = shard.now_ns
    shard.sleep(4)
    shard.complete(shard.poll(), start_timer("t", 1000))
    shard.sleep(15)
    assert not shard.describe().workflow_extended_info.HasField("last_reset_time")
    reset(shard, 4)
    description = shard.describe()
    info, extended = description.workflow_execution_info, description.workflow_extended_info
    assert info.start_time.ToNanoseconds() == extended.last_reset_time.ToNanoseconds() == shard.now_ns
    assert info.execution_time.ToNanoseconds() == shard.now_ns + 3 * SECOND_NS
    assert extended.original_start_time.ToNanoseconds() == started_at
    assert shard.describe(run_id=first).workflow_execution_info.start_time.ToNanoseconds() == started_at
    listed = [row.value for row in shard.steps[-1].outputs if row.topic == "visibility"]
    assert codec.decode(listed[-1] or b"")[1]["start_time_ns"] == shard.now_ns


def test_a_deleted_workflow_is_gone(shard: ShardDriver) -> None:
    shard.start()
    request = ws.DeleteWorkflowExecutionRequest()
    request.workflow_execution.workflow_id = "w"
    shard.request("DELETE_WORKFLOW", request, workflow_id="w")
    with pytest.raises(StatusError, match="not found"):
        shard.describe()
    assert [output.topic for output in shard.steps[-1].outputs].count("visibility") == 2
