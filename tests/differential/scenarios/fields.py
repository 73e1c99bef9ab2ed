"""What histories hold of fields that a caller writes without a value, or leaves out: absent, empty or filled in."""

from __future__ import annotations

from typing import Any, Final

from differential.scenarios import scenario
from differential.scenarios.pieces import start_child, tasks_by_workflow
from differential.script import NAMESPACE, Script, command, failure, payload, seconds

_EMPTY: Final[dict[str, Any]] = {"memo": {}, "header": {}, "search_attributes": {}, "input": {}, "priority": {}}
"""Messages without anything in them, as some SDKs write what their caller did not give."""

_PRIORITY: Final[dict[str, Any]] = {"priority_key": 2, "fairness_key": "a", "fairness_weight": 3}


@scenario("fields-start", "a workflow is started with fields that are empty")
def start_with_empty_fields(s: Script) -> None:
    s.start(**_EMPTY, retry_policy={}, user_metadata={}, workflow_start_delay=seconds(0), cron_schedule="")
    s.note_description("started")
    s.complete(s.poll("first"), s.done())
    s.note_description("done")


@scenario("fields-signal", "signals, and a start with a signal, with fields that are empty")
def signal_with_empty_fields(s: Script) -> None:
    empty = {name: _EMPTY[name] for name in ("header", "input")}
    start = {**s.start_fields(), **_EMPTY, "signal_name": "first", "signal_input": {}}
    s.client.call("SignalWithStartWorkflowExecution", **start)
    s.track()
    s.signal("second", **empty)
    s.signal("third", input=None)
    s.complete(s.poll("with the signals"), command("COMPLETE_WORKFLOW_EXECUTION", result={}))


@scenario("fields-commands", "commands with fields that are empty")
def commands_with_empty_fields(s: Script) -> None:
    s.start()
    s.complete(
        s.poll(),
        s.activity("a1", header={}, input={}, priority={}, retry_policy={}, heartbeat_timeout=seconds(0)),
        command("RECORD_MARKER", marker_name="m1", header={}, failure={}, details={"d": {}}),
        command("RECORD_MARKER", marker_name="m2"),
        command("MODIFY_WORKFLOW_PROPERTIES", upserted_memo={"fields": {"m": {}}}),
        sdk_metadata={},
        metering_metadata={},
    )
    s.fail_activity(s.poll_activity("activity"), failure("", non_retryable=True))
    s.complete(s.poll("failed"), s.activity("a2", input=None, use_workflow_build_id=True))
    s.fail_activity(s.poll_activity("activity with less"), failure("", non_retryable=True))
    s.complete(s.poll("failed again"), command("FAIL_WORKFLOW_EXECUTION", failure={}))


@scenario("fields-external", "a signal to another workflow with fields that are empty, and one with less")
def external_signal_with_empty_fields(s: Script) -> None:
    s.start("target")
    s.complete(s.poll(), s.timer(after=60))
    s.start()
    signal = "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION"
    empty: dict[str, Any] = {"input": {}, "header": {}, "control": "c"}
    task = s.poll()
    for name, fields in (("empty", empty), ("less", {})):
        s.complete(task, command(signal, execution=s.execution("target"), signal_name=name, **fields))
        tasks = tasks_by_workflow(s, 2)
        s.complete(tasks[s.id("target")])
        task = tasks[s.id()]
    s.complete(task, s.done())
    s.terminate("target")


@scenario("fields-child", "children with every field empty, left out, and filled")
def child_fields(s: Script) -> None:
    s.start(priority=_PRIORITY)
    children: dict[str, dict[str, Any]] = {
        "empty": {**_EMPTY, "retry_policy": {}, "workflow_execution_timeout": seconds(0)},
        "left-out": {"input": None, "workflow_task_timeout": None, "task_queue": None},
        "named": {"namespace": NAMESPACE},
        "filled": {
            "memo": {"fields": {"m": payload("kept")}},
            "header": {"fields": {"h": payload("header")}},
            "search_attributes": {"indexed_fields": {"CustomKeyword": payload("k")}},
            "priority": {"priority_key": 4},
            "retry_policy": {"maximum_attempts": 2},
            "control": "control",
            "inherit_build_id": True,
            "workflow_execution_timeout": seconds(100),
            "workflow_run_timeout": seconds(50),
        },
    }
    task = s.poll()
    for name, fields in children.items():
        s.complete(task, start_child(s, **{"workflow_id": s.id(name), **fields}))
        tasks = tasks_by_workflow(s, 2)
        s.track(name)
        s.complete(tasks[s.id()])
        s.note_description(name, name)
        s.complete(tasks[s.id(name)], s.done(name))
        task = s.poll(f"{name} is done")
    s.complete(task, s.done())


@scenario("fields-continued", "runs continued with every field empty, left out, and filled")
def continued_fields(s: Script) -> None:
    s.start(priority=_PRIORITY, memo={"fields": {"m": payload("of the start")}}, header={"fields": {"h": payload("h")}})
    filled: dict[str, Any] = {
        "workflow_type": {"name": "scripted"},
        "task_queue": {"name": s.queue},
        "inherit_build_id": True,
        "memo": {"fields": {"m": payload("of the command")}},
        "failure": {},
        "last_completion_result": {},
    }
    empty: dict[str, Any] = {**_EMPTY, "retry_policy": {}, "backoff_start_interval": seconds(0)}
    del empty["priority"]
    task = s.poll()
    for name, fields in (("empty", empty), ("less", {}), ("filled", filled)):
        s.complete(task, s.timer(after=1))  # a run of under a second has a successor that waits
        s.complete(s.poll(), command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", **fields))
        task = s.poll(name)
        s.track("wf", task.workflow_execution.run_id, name)
        s.note_description(name)
    s.complete(task, s.done())


@scenario("fields-retried", "runs that follow by retry and by cron, whose start had empty fields")
def retried_fields(s: Script) -> None:
    s.start(**_EMPTY, retry_policy={"initial_interval": seconds(1), "maximum_attempts": 2})
    s.complete(s.poll(), command("FAIL_WORKFLOW_EXECUTION", failure=failure("first")))
    task = s.poll("second attempt")
    s.track("wf", task.workflow_execution.run_id, "second attempt")
    s.note_description("second attempt")
    s.complete(task, s.done())


@scenario("fields-cancel", "a workflow is asked to cancel, and cancels, without saying why")
def cancel_without_reason(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(input=None))
    task = s.poll_activity()
    s.cancel(reason="")
    s.complete(s.poll(), command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=5))
    s.client.call("RespondActivityTaskCanceled", namespace=NAMESPACE, task_token=task.task_token)
    s.complete(s.poll("cancelled"), command("CANCEL_WORKFLOW_EXECUTION", details={}))


@scenario("fields-terminate", "a workflow is terminated without a word")
def terminate_without_reason(s: Script) -> None:
    s.start()
    s.client.call("TerminateWorkflowExecution", namespace=NAMESPACE, workflow_execution=s.execution(), details={})


@scenario("worker-builds", "the builds of the workers, through continue-as-new, a reset, and workers without")
def worker_builds(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60), **_build("b1"), binary_checksum="c1")
    s.note_description("first build")
    s.signal("one")
    s.complete(s.poll(), **_build("b2"), deployment_options={"deployment_name": "shop", "build_id": "b2"})
    s.note_description("second build")
    s.signal("two")
    task = s.poll()
    s.completion_refused("a long build", task, **_build("b" * 256))
    s.complete(task)
    s.note_description("no build")
    reset = s.client.call(
        "ResetWorkflowExecution",
        namespace=NAMESPACE,
        workflow_execution=s.execution(),
        workflow_task_finish_event_id=8,
        request_id=s.request("reset"),
        reason="again",
    )
    s.track("wf", reset.run_id, "reset")
    s.note_description("reset")
    s.complete(s.poll(), s.timer("t2", 1), **_build("b3"))
    s.complete(s.poll(), command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION"), **_build("b3"))
    task = s.poll("continued")
    s.track("wf", task.workflow_execution.run_id, "continued")
    s.note_description("continued")
    s.complete(task, s.done(), **_build("b4"))
    s.note_description("done")


@scenario("worker-builds-started", "which build a started task names: that of the poll, or of the completion")
def worker_builds_started(s: Script) -> None:
    able = {"worker_version_capabilities": {"build_id": "polls"}}
    s.start()
    going_on = {"force_create_new_workflow_task": True, "return_new_workflow_task": True}
    answer = s.complete(s.poll("polled", **able), **going_on, **_build("goes on"))
    s.fail(answer.workflow_task)
    s.complete(s.poll("a retry", **able), s.activity(priority=_PRIORITY), **_build("completes"))
    s.note_description("with an activity")
    s.complete_activity(s.poll_activity())
    s.complete(s.poll(), s.done())


def _build(build_id: str) -> dict[str, Any]:
    return {"worker_version_stamp": {"build_id": build_id}}


def _attributes(**values: str) -> dict[str, Any]:
    """Search attributes by the JSON of their values; an empty text is what SDKs write for nothing."""
    return {
        "indexed_fields": {
            name: {"metadata": {"encoding": b"json/plain" if value else b"binary/null"}, "data": value.encode()}
            for name, value in values.items()
        }
    }


_NOTHINGS: Final = _attributes(CustomKeyword="null", CustomText="", CustomInt="[]", CustomKeywordList="[]")
_SOME: Final = _attributes(CustomKeyword="null", CustomInt="3", CustomText='""', CustomKeywordList="[null]")


@scenario("fields-nulls", "search attributes that are null or empty, in every start and in an upsert")
def null_search_attributes(s: Script) -> None:
    s.start("nothing", search_attributes=_NOTHINGS)
    s.note_description("nothing", "nothing")
    elsewhere = {"task_queue": {"name": f"{s.queue}-children"}}
    abandoned = {"parent_close_policy": 2, **elsewhere}
    s.complete(
        s.poll(),
        start_child(s, search_attributes=_SOME, **abandoned),
        command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", search_attributes=_SOME),
        command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", search_attributes=_NOTHINGS),
    )
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED", "nothing")
    s.track("child")
    s.note("described", s.describe("nothing").workflow_execution_info.search_attributes)
    s.terminate("nothing")
    start = {**s.start_fields("some"), "signal_name": "first", "search_attributes": _SOME}
    s.client.call("SignalWithStartWorkflowExecution", **start)
    again = {"workflow_type": {"name": "scripted"}, **elsewhere}
    s.complete(s.poll(), command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", search_attributes=_SOME, **again))
    s.note_description("continued", "some")
