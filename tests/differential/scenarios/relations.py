"""Scenarios of more than one run: children, chains, updates, resets, signals to others; and of delayed starts."""

from __future__ import annotations

from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.update.v1 import message_pb2 as update_v1
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from differential.scenarios import scenario
from differential.scenarios.pieces import (
    accept_and_complete,
    answer_commands,
    begin_update,
    message,
    start_child,
    tasks_by_workflow,
    update_fields,
)
from differential.script import CLIENT, NAMESPACE, Script, command, failure, payloads, seconds


@scenario("6", "a child workflow completes")
def child(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s))
    tasks = tasks_by_workflow(s, 2)
    s.track("child")
    s.note("parent after the child's start", tasks[s.id()])
    s.note("child", tasks[s.id("child")])
    s.complete(tasks[s.id()])
    s.complete(tasks[s.id("child")], s.done("of the child"))
    s.complete(s.poll("with the child's result"), s.done())


@scenario("6b", "a child is terminated with its parent")
def child_terminated_with_parent(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s))
    s.track("child")
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED")
    s.terminate()
    s.wait("WORKFLOW_EXECUTION_TERMINATED", "child")


@scenario("7", "a workflow continues as new")
def continue_as_new(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=1.2))  # a run of less than a second would have a successor that waits
    s.complete(
        s.poll(),
        command(
            "CONTINUE_AS_NEW_WORKFLOW_EXECUTION",
            workflow_type={"name": "scripted"},
            task_queue={"name": s.queue},
            input=payloads("next"),
            workflow_run_timeout=seconds(100),
            workflow_task_timeout=seconds(10),
        ),
    )
    s.track("wf", label="next run")
    s.complete(s.poll("of the next run"), s.done())


@scenario("12", "an update is accepted and completed by one workflow task")
def update(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    s.complete(task, *answer_commands(2), messages=accept_and_complete(task))
    s.note("outcome", waiting.result())
    s.terminate()


@scenario("12b", "an update is rejected without a trace")
def update_rejected(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    waiting = begin_update(s, "u1")
    task = s.poll("with the update")
    request = task.messages[0]
    rejection = update_v1.Rejection(
        rejected_request_message_id=request.id,
        rejected_request_sequencing_event_id=request.event_id,
        failure=failure("not now"),
    )
    s.complete(task, messages=[message(request, "reject", rejection)])
    s.note("outcome", waiting.result())
    s.terminate()


@scenario("13", "an update arrives while a workflow task runs")
def update_during_task(s: Script) -> None:
    s.start()
    task = s.poll()
    waiting = begin_update(s, "u1")
    s.signal("after the update")
    s.complete(task, s.timer(after=60))
    task = s.poll()
    if not task.messages:
        s.complete(task)
        task = s.poll()
    s.complete(task, *answer_commands(2), messages=accept_and_complete(task))
    s.note("outcome", waiting.result())
    s.terminate()


@scenario("14", "update with start")
def update_with_start(s: Script) -> None:
    operation = ws.ExecuteMultiOperationRequest.Operation
    conflict = workflow_pb2.WorkflowIdConflictPolicy.Value("WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING")
    start = s.start_fields(workflow_id_conflict_policy=conflict)
    waiting = s.client.begin(
        "ExecuteMultiOperation",
        namespace=NAMESPACE,
        operations=[
            operation(start_workflow=ws.StartWorkflowExecutionRequest(**start)),
            operation(update_workflow=ws.UpdateWorkflowExecutionRequest(**update_fields(s, "u1"))),
        ],
    )
    task = s.poll("with the update")
    s.track()
    s.complete(task, *answer_commands(2), messages=accept_and_complete(task))
    s.note("outcome", waiting.result())
    s.terminate()


@scenario("19", "a failed workflow is retried")
def workflow_retry(s: Script) -> None:
    s.start(retry_policy={"initial_interval": seconds(1), "maximum_attempts": 2})
    s.complete(s.poll(), command("FAIL_WORKFLOW_EXECUTION", failure=failure("first")))
    s.track("wf", label="second attempt")
    s.complete(s.poll("of the second attempt"), command("FAIL_WORKFLOW_EXECUTION", failure=failure("second")))


@scenario("19b", "a cron workflow runs again")
def cron(s: Script) -> None:
    s.start(cron_schedule="@every 1s")
    s.complete(s.poll("first run"), s.done("of the first run"))
    task = s.poll("second run")
    s.track("wf", task.workflow_execution.run_id, "second run")
    s.terminate()


@scenario("21", "a workflow is reset to its first task, and a signal is applied again")
def reset(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.timer(after=60))
    s.signal("kept")
    s.complete(s.poll(), s.timer("t2", 60))
    response = s.client.call(
        "ResetWorkflowExecution",
        namespace=NAMESPACE,
        workflow_execution=s.execution("wf", run_id),
        reason="try again",
        workflow_task_finish_event_id=4,
        request_id=s.request("reset"),
        identity=CLIENT,
    )
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())


@scenario("23", "the first workflow task comes with the start")
def eager_start(s: Script) -> None:
    response = s.client.call("StartWorkflowExecution", **s.start_fields(request_eager_execution=True))
    s.track("wf", response.run_id)
    s.note("answer", response)
    s.complete(response.eager_workflow_task, s.done())


@scenario("25", "a workflow signals and cancels another one")
def external_signal(s: Script) -> None:
    s.start("target")
    s.complete(s.poll(), s.timer(after=60))
    s.start()
    s.complete(
        s.poll(),
        command(
            "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION",
            execution=s.execution("target"),
            signal_name="from outside",
            input=payloads("hello"),
        ),
    )
    s.wait("EXTERNAL_WORKFLOW_EXECUTION_SIGNALED")
    s.wait("WORKFLOW_EXECUTION_SIGNALED", "target")
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id("target")])
    s.complete(
        tasks[s.id()],
        command("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", workflow_id=s.id("target"), reason="enough"),
    )
    s.wait("EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED")
    s.wait("WORKFLOW_EXECUTION_CANCEL_REQUESTED", "target")
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id("target")], command("CANCEL_WORKFLOW_EXECUTION"))
    s.complete(tasks[s.id()], s.done())


@scenario("25b", "a workflow signals one that does not exist")
def external_signal_to_nobody(s: Script) -> None:
    s.start()
    s.complete(
        s.poll(),
        command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=s.execution("nobody"), signal_name="from outside"),
    )
    s.complete(s.poll("refused"), s.done())


@scenario("26", "a workflow starts with a delay; a signal does not wake it")
def delayed_start(s: Script) -> None:
    s.start(workflow_start_delay=seconds(2))
    s.signal("early")
    s.note("task before its time", bool(s.poll_once(timeout=2.2).task_token))
    s.complete(s.poll("in time"), s.done())
