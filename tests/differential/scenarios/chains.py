"""Scenarios of runs that follow one another, and of resets."""

from __future__ import annotations

import time
from typing import Any

from temporalio.api.common.v1 import message_pb2 as common_v1
from temporalio.api.enums.v1 import reset_pb2, workflow_pb2

from differential.scenarios import scenario
from differential.scenarios.pieces import json_value, refused_each, start_child, tasks_by_workflow
from differential.script import CLIENT, NAMESPACE, PATIENCE, Script, command, failure, payload, payloads, seconds


def _continue(**attributes: Any) -> Any:
    return command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", **{"workflow_type": {"name": "scripted"}, **attributes})


@scenario("7b", "continue-as-new with little said: what the next run takes over")
def continue_with_little(s: Script) -> None:
    s.start(
        memo={"fields": {"m": payload("of the start")}},
        search_attributes={"indexed_fields": {"CustomKeyword": payload("found")}},
        header={"fields": {"h": payload("header")}},
        input=payloads("input"),
        retry_policy={"maximum_attempts": 3},
        workflow_run_timeout=seconds(50),
        workflow_execution_timeout=seconds(200),
        user_metadata={"summary": payload("summary")},
    )
    s.complete(s.poll(), s.timer(after=1.2))
    s.complete(s.poll(), _continue())
    s.track("wf", label="next run")
    s.complete(s.poll("of the next run"))
    s.note_description("next run")
    s.terminate()


@scenario("7c", "continue-as-new with all said")
def continue_with_all(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=1.2))
    s.complete(
        s.poll(),
        _continue(
            workflow_type={"name": "other"},
            input=payloads("input"),
            memo={"fields": {"m": payload("new")}},
            search_attributes={"indexed_fields": {"CustomKeyword": payload("found")}},
            header={"fields": {"h": payload("header")}},
            workflow_run_timeout=seconds(50),
            workflow_task_timeout=seconds(5),
            backoff_start_interval=seconds(1),
            retry_policy={"maximum_attempts": 3},
        ),
    )
    s.track("wf", label="next run")
    s.complete(s.poll("of the next run"), s.done())


@scenario("7d", "a signal stands in the way of continue-as-new")
def continue_with_signal(s: Script) -> None:
    s.start()
    task = s.poll()
    s.signal("late")
    s.completion_refused("completion", task, _continue())
    s.complete(s.poll("again"), s.done())


@scenario("7e", "options of continue-as-new that are refused")
def continue_refused(s: Script) -> None:
    cases: dict[str, Any] = {
        "run timeout": {"workflow_run_timeout": seconds(-5)},
        "task timeout": {"workflow_task_timeout": seconds(-5)},
        "backoff": {"backoff_start_interval": seconds(-5)},
        "coefficient": {"retry_policy": {"backoff_coefficient": 0.5}},
        "attempts": {"retry_policy": {"maximum_attempts": -3}},
        "long type": {"workflow_type": {"name": "t" * 1001}},
        "long queue": {"task_queue": {"name": "q" * 1001}},
        "reserved queue": {"task_queue": {"name": "/_sys/x"}},
        "large memo": {"memo": {"fields": {"m": payload("m" * 3_000_000)}}},
        "unknown attribute": {"search_attributes": {"indexed_fields": {"Unknown": payload("x")}}},
        "wrong attribute": {"search_attributes": {"indexed_fields": {"CustomInt": payload("x")}}},
        "large attribute": {"search_attributes": {"indexed_fields": {"CustomKeyword": payload("x" * 3000)}}},
    }
    refused_each(s, {label: [_continue(**attributes)] for label, attributes in cases.items()})


@scenario("7f", "continue-as-new with timeouts that are longer than what is around them, and kept by the next runs")
def continue_with_long_timeouts(s: Script) -> None:
    s.start(workflow_execution_timeout=seconds(300), workflow_run_timeout=seconds(100))
    s.complete(s.poll(), s.timer(after=1.2))
    s.complete(s.poll(), _continue(workflow_run_timeout=seconds(500), workflow_task_timeout=seconds(3600)))
    task = s.poll("second run")
    s.track("wf", task.workflow_execution.run_id, "second run")
    s.complete(task, s.timer(after=1.2))
    s.complete(s.poll(), _continue())
    task = s.poll("third run")
    s.track("wf", task.workflow_execution.run_id, "third run")
    s.complete(task, s.done())


@scenario("19c", "a run times out and is retried")
def retry_after_timeout(s: Script) -> None:
    first = s.start(
        workflow_run_timeout=seconds(2), retry_policy={"initial_interval": seconds(1), "maximum_attempts": 2}
    )
    s.complete(s.poll(), s.timer(after=60))
    s.wait("WORKFLOW_EXECUTION_TIMED_OUT", run_id=first)
    s.track("wf", label="second attempt")
    s.complete(s.poll("of the second attempt"), s.done())


@scenario("19d", "a failure that must not be retried is not")
def not_retried(s: Script) -> None:
    s.start(retry_policy={"initial_interval": seconds(1), "non_retryable_error_types": ["ScriptError"]})
    s.complete(s.poll(), command("FAIL_WORKFLOW_EXECUTION", failure=failure("final")))


@scenario("19e", "a failure that says itself when it is to be retried")
def retry_delay(s: Script) -> None:
    s.start(
        retry_policy={"initial_interval": seconds(60)},
        workflow_execution_timeout=seconds(100),
        user_metadata={"summary": payload("summary")},
        search_attributes={"indexed_fields": {"CustomKeyword": payload("found")}},
    )
    delayed = failure("soon", next_retry_delay=1)
    s.complete(s.poll(), command("FAIL_WORKFLOW_EXECUTION", failure=delayed))
    s.track("wf", label="second attempt")
    s.complete(s.poll("of the second attempt"), s.done())


@scenario("19f", "a cron workflow fails, with a result from before; and is signalled before its time")
def cron_fails(s: Script) -> None:
    s.start(
        cron_schedule="@every 2s",
        memo={"fields": {"m": payload("kept")}},
        input=payloads("input"),
        user_metadata={"summary": payload("summary")},
    )
    s.signal("early")
    s.complete(s.poll("first run"), s.done("of the first run"))
    task = s.poll()
    s.track("wf", task.workflow_execution.run_id, "second run")
    s.complete(task, command("FAIL_WORKFLOW_EXECUTION", failure=failure("of the second run")))
    task = s.poll("third run")
    s.track("wf", task.workflow_execution.run_id, "third run")
    s.complete(task, command("CANCEL_WORKFLOW_EXECUTION"))


@scenario("19g", "a cron workflow with a retry policy: retries come first")
def cron_and_retries(s: Script) -> None:
    s.start(cron_schedule="@every 1s", retry_policy={"initial_interval": seconds(1), "maximum_attempts": 2})
    s.complete(s.poll(), command("FAIL_WORKFLOW_EXECUTION", failure=failure("first")))
    task = s.poll("retry")
    s.track("wf", task.workflow_execution.run_id, "retry")
    s.complete(task, command("FAIL_WORKFLOW_EXECUTION", failure=failure("second")))
    task = s.poll("next time")
    s.track("wf", task.workflow_execution.run_id, "next time")
    s.terminate()


@scenario("19h", "schedules that are refused")
def cron_refused(s: Script) -> None:
    s.refused("malformed", "StartWorkflowExecution", **s.start_fields(cron_schedule="sometimes"))
    s.refused("unknown zone", "StartWorkflowExecution", **s.start_fields(cron_schedule="CRON_TZ=No/Where 1 * * * *"))


SCHEDULES = (
    "30 9 * * 1-5",
    "CRON_TZ=America/New_York 0 9 * * *",
    "CRON_TZ=Europe/Berlin 30 2 * * SUN",
    "TZ=Asia/Kolkata 0 0 1 * *",
    "0 12 */2 * fri",
    "0 12 13 * fri",
    "15,45 10-20/3 * jan-jun,dec *",
    "@yearly",
    "@weekly",
    "CRON_TZ=Australia/Lord_Howe @monthly",
)


@scenario("19i", "when schedules come, in time zones and without")
def cron_times(s: Script) -> None:
    for number, schedule in enumerate(SCHEDULES):
        name = f"wf{number}"
        s.start(name, track=False, cron_schedule=schedule)
        event = s.wait("WORKFLOW_EXECUTION_STARTED", name)
        backoff = event.workflow_execution_started_event_attributes.first_workflow_task_backoff
        due = event.event_time.ToNanoseconds() + backoff.ToNanoseconds()
        s.note(schedule, f"{due // 60_000_000_000} minutes since 1970")
        s.terminate(name)


def _reset(s: Script, run_id: str, event_id: int, name: str = "wf", request: str = "", **fields: Any) -> Any:
    return s.client.call(
        "ResetWorkflowExecution",
        namespace=NAMESPACE,
        workflow_execution=s.execution(name, run_id),
        reason="try again",
        workflow_task_finish_event_id=event_id,
        request_id=s.request(request or f"reset-{run_id}"),
        identity=CLIENT,
        **fields,
    )


@scenario("21b", "a closed workflow is reset to its last task, a timer pending")
def reset_closed(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.timer("long", 60), s.timer("short", 1))
    s.complete(s.poll(), s.done("too early"))
    response = _reset(s, run_id, 10)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())


@scenario("21c", "a reset leaves out signals when told to")
def reset_without_signals(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.timer(after=60))
    s.signal("left out")
    s.complete(s.poll(), s.done())
    excluded = [reset_pb2.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL]
    response = _reset(s, run_id, 4, reset_reapply_exclude_types=excluded)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())


@scenario("21d", "a reset with an activity scheduled before its point")
def reset_with_activity(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.activity())
    s.poll_activity()
    s.signal("next task")
    s.complete(s.poll(), s.timer(after=60))
    response = _reset(s, run_id, 9)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"))
    s.terminate()


@scenario("21e", "resets that are refused")
def reset_refused(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.timer(after=60))
    fields = {
        "namespace": NAMESPACE,
        "workflow_execution": s.execution("wf", run_id),
        "reason": "try again",
        "request_id": s.request("reset"),
        "identity": CLIENT,
    }
    s.refused("beyond the end", "ResetWorkflowExecution", workflow_task_finish_event_id=40, **fields)
    s.refused("to the first event", "ResetWorkflowExecution", workflow_task_finish_event_id=1, **fields)
    s.terminate()


@scenario("21f", "a reset while a cancellation is requested")
def reset_cancelled(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.timer(after=60))
    s.cancel()
    s.complete(s.poll())
    response = _reset(s, run_id, 4)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())


@scenario("19j", "a retried workflow forgets what was upserted")
def retry_after_upserts(s: Script) -> None:
    s.start(
        retry_policy={"initial_interval": seconds(1), "maximum_attempts": 2},
        memo={"fields": {"m": payload("of the start")}},
    )
    s.complete(
        s.poll(),
        command("MODIFY_WORKFLOW_PROPERTIES", upserted_memo={"fields": {"m": payload("changed")}}),
        command(
            "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
            search_attributes={"indexed_fields": {"CustomKeyword": payload("found")}},
        ),
        command("FAIL_WORKFLOW_EXECUTION", failure=failure("first")),
    )
    s.track("wf", label="second attempt")
    s.complete(s.poll("of the second attempt"))
    s.note_description("second attempt")
    s.terminate()


@scenario("chain-guard", "terminate and cancel guarded by the first run of a chain")
def guarded_by_chain(s: Script) -> None:
    first = s.start()
    s.complete(s.poll(), s.timer(after=1.2))
    s.complete(s.poll(), _continue())
    s.track("wf", label="next run")
    fields: dict[str, Any] = {"namespace": NAMESPACE, "identity": CLIENT, "reason": "guarded"}
    other = "01234567-0123-4123-8123-0123456789ab"
    s.refused(
        "of another chain",
        "TerminateWorkflowExecution",
        workflow_execution=s.execution(),
        first_execution_run_id=other,
        **fields,
    )
    s.refused("the closed run", "TerminateWorkflowExecution", workflow_execution=s.execution("wf", first), **fields)
    s.client.call(
        "RequestCancelWorkflowExecution",
        workflow_execution=s.execution("wf", first),
        first_execution_run_id=first,
        request_id=s.request("cancel"),
        **fields,
    )
    s.client.call(
        "TerminateWorkflowExecution",
        workflow_execution=s.execution("wf", first),
        first_execution_run_id=first,
        **fields,
    )


@scenario("21g", "a reset of a run that continued as new; the signal of the next run is applied again")
def reset_before_continue(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.timer(after=1.2))
    s.signal("of the first run")
    s.complete(s.poll())
    s.complete(s.poll(), _continue())
    s.track("wf", label="next run")
    s.complete(s.poll())
    s.signal("of the next run")
    response = _reset(s, run_id, 4)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())


@scenario("21t", "a run is reset whose id a newer, unrelated run has; what waits there is not applied again")
def reset_before_stranger(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.done())
    stranger = s.start(track=False, request_id=s.request("stranger"))
    s.track("wf", stranger, "stranger")
    s.poll()
    s.signal("waits")
    response = _reset(s, run_id, 4)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())


@scenario("21u", "a run that continued as new is reset; what waits in the next run is applied again")
def reset_before_heir(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), _continue())
    s.track("wf", label="next run")
    s.poll()
    s.signal("waits")
    response = _reset(s, run_id, 4)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())


@scenario("21h", "a reset with a child started before its point")
def reset_with_child(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), start_child(s))
    s.track("child")
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED")
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id()], s.timer(after=60))
    response = _reset(s, run_id, 9)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"))
    s.complete(tasks[s.id("child")], s.done("of the child"))
    s.complete(s.poll("with the child's result"), s.done())


@scenario("21j", "a run that timed out is reset: the new one has its whole time, and so has what it continues as")
def reset_timed_out(s: Script) -> None:
    run_id = s.start(workflow_run_timeout=seconds(2), workflow_execution_timeout=seconds(5))
    s.complete(s.poll(), s.timer(after=60))
    s.wait("WORKFLOW_EXECUTION_TIMED_OUT")
    time.sleep(3.5)  # the workflow's whole time is over, too
    response = _reset(s, run_id, 4)
    s.track("wf", response.run_id, "after the reset")
    end = _note_expiry(s, "after the reset")
    time.sleep(1.2)
    s.complete(s.poll("after the reset"), _continue())
    s.track("wf", label="next run")
    task = s.poll()
    extended = s.describe().workflow_extended_info
    s.note("the workflow's end stays where the reset put it", extended.execution_expiration_time == end)
    s.complete(task, s.timer(after=60))
    s.wait("WORKFLOW_EXECUTION_TIMED_OUT")


def _note_expiry(s: Script, label: str) -> Any:
    """Notes how long the current run and its workflow may last, counted from its start; returns the latter's end."""
    description = s.describe()
    start = description.workflow_execution_info.start_time.ToNanoseconds()
    extended = description.workflow_extended_info
    for name in ("execution_expiration_time", "run_expiration_time"):
        s.note(f"{label}: {name}", f"{(getattr(extended, name).ToNanoseconds() - start) / 1e9:.0f} s")
    return extended.execution_expiration_time


@scenario("21k", "when a run that a reset made has started, as described and as listed")
def reset_times(s: Script) -> None:
    run_id = s.start(workflow_start_delay=seconds(1))
    s.complete(s.poll(), s.timer(after=60))
    time.sleep(1.2)
    response = _reset(s, run_id, 4)
    s.track("wf", response.run_id, "after the reset")
    s.poll()
    for label, which in (("base", run_id), ("reset", response.run_id)):
        description = s.describe(run_id=which)
        info, extended = description.workflow_execution_info, description.workflow_extended_info
        began = extended.original_start_time.ToNanoseconds()
        start = info.start_time.ToNanoseconds()
        s.note(f"{label}: starts later than its history", start - began > 1_000_000_000)
        s.note(f"{label}: execution", f"{(info.execution_time.ToNanoseconds() - start) / 1e9:.0f} s later")
        shown = extended.HasField("last_reset_time") and extended.last_reset_time == info.start_time
        s.note(f"{label}: its start is its last reset", shown)
        apart = _listed_start(s, which).ToNanoseconds() - info.start_time.ToNanoseconds()
        s.note(f"{label}: listed with that start", abs(apart) < 10_000_000)  # kept to the millisecond or so
    s.terminate()


def _listed_start(s: Script, run_id: str) -> Any:
    """Start time of a run in lists, once it is there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        query = f'WorkflowId = "{s.id()}"'
        for info in s.client.call("ListWorkflowExecutions", namespace=NAMESPACE, query=query).executions:
            if info.execution.run_id == run_id:
                return info.start_time
        time.sleep(0.1)
    raise AssertionError(f"{run_id} is not listed")


@scenario("21l", "an open child is reset, and once more when closed: its parent hears of the first result alone")
def reset_child(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s))
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED")
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id()], s.timer(after=60))
    child = tasks[s.id("child")]
    s.complete(child, s.timer(after=60))
    run_id = child.workflow_execution.run_id
    s.track("child", run_id)
    for label in ("after the reset", "after the second reset"):
        response = _reset(s, run_id, 4, "child", reset_reapply_type=reset_pb2.RESET_REAPPLY_TYPE_NONE)
        run_id = response.run_id
        s.track("child", run_id, label)
        s.complete(s.poll(label), s.done(label))
        if label == "after the reset":
            s.complete(s.poll("of the parent"), s.timer("again", 60))
    time.sleep(1.5)  # for what should not come
    s.terminate()


@scenario("21m", "a reset with an activity not yet begun: its time is counted from the reset")
def reset_with_activity_in_time(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), s.activity(schedule_to_close_timeout=seconds(4)))
    s.signal("next task")
    s.complete(s.poll(), s.timer(after=60))
    time.sleep(2.5)
    response = _reset(s, run_id, 8)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"))
    time.sleep(2.5)
    s.complete_activity(s.poll_activity("of the activity"))
    s.poll("with its result")
    s.terminate()


@scenario("upserts", "memo and search attributes are upserted and taken away again")
def upserts(s: Script) -> None:
    s.start(memo={"fields": {"a": payload("1"), "b": payload("2")}})
    null = common_v1.Payload(metadata={"encoding": b"binary/null"})
    found = {"indexed_fields": {"CustomKeyword": payload("found")}}
    s.complete(
        s.poll(),
        command("MODIFY_WORKFLOW_PROPERTIES", upserted_memo={"fields": {"a": null, "c": payload("3")}}),
        command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", search_attributes=found),
    )
    s.note_description("upserted")
    s.signal("next")
    gone = {"indexed_fields": {"CustomKeyword": null}}
    s.complete(s.poll(), command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", search_attributes=gone))
    s.note_description("taken away")
    s.signal("bad")
    unknown = {"indexed_fields": {"NoSuchAttribute": payload("x")}}
    s.completion_refused("unknown", s.poll(), command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", search_attributes=unknown))
    s.terminate()


@scenario("3-all", "a signal, a cancel request and a timer wait for the workflow task to end")
def buffered_in_order(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer("soon", 1), s.activity())
    activity = s.poll_activity()
    s.signal("first")
    task = s.poll()
    s.complete_activity(activity)
    s.signal("second")
    s.cancel()
    time.sleep(1.5)  # the timer fires behind the running task, where no event shows it yet
    s.complete(task, s.timer("late", 60))
    s.complete(s.poll("with all of it"), s.done())


@scenario("delete", "a workflow is deleted, open or closed")
def deleted(s: Script) -> None:
    for name in ("open", "closed"):
        s.start(name, track=False)
        task = s.poll()
        s.complete(task, *([s.done()] if name == "closed" else []))
        s.note(
            name,
            s.client.call("DeleteWorkflowExecution", namespace=NAMESPACE, workflow_execution=s.execution(name)),
        )
    fields = {"namespace": NAMESPACE, "workflow_execution": s.execution("nobody")}
    s.refused("nobody", "DeleteWorkflowExecution", **fields)


@scenario("26b", "signal with a delayed start")
def delayed_signal_with_start(s: Script) -> None:
    s.note(
        "answer",
        s.client.call(
            "SignalWithStartWorkflowExecution",
            **s.start_fields(workflow_start_delay=seconds(2), signal_name="first", signal_input=payloads("early")),
        ),
    )
    s.track()
    s.complete(s.poll("in time"), s.done())


@scenario("21n", "a reset between what other workflows are asked and their answers: they are asked again")
def reset_with_external(s: Script) -> None:
    run_id = s.start(track=False)  # the answers come in any order
    s.start("target", track=False)
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id("target")], s.timer(after=60))
    s.complete(
        tasks[s.id()],
        command(
            "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION",
            execution=s.execution("target"),
            signal_name="from afar",
            input=payloads("of the signal"),
            control="control",
        ),
        command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=s.execution("nobody"), signal_name="from afar"),
        command(
            "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", workflow_id=s.id("target"), reason="from afar", control="c"
        ),
        force_create_new_workflow_task=True,
    )
    for kind in (
        "EXTERNAL_WORKFLOW_EXECUTION_SIGNALED",
        "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED",
        "EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED",
    ):
        s.wait(kind)
    response = _reset(s, run_id, 9)
    s.note("signals of the target", len(_events(s, "target", "WORKFLOW_EXECUTION_SIGNALED", 2)))
    s.note("requests to cancel it", len(_events(s, "target", "WORKFLOW_EXECUTION_CANCEL_REQUESTED", 1)))
    for kind in (
        "EXTERNAL_WORKFLOW_EXECUTION_SIGNALED",
        "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED",
        "EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED",
    ):
        event = s.wait(kind, run_id=response.run_id)
        event.event_id = 0  # in any order
        s.note(f"after the reset, {kind}", event)
    s.terminate()
    s.terminate("target")


def _events(s: Script, name: str, kind: str, count: int) -> list[str]:
    s.wait(kind, name, count=count)
    time.sleep(0.5)  # for what should not come
    return [heading for heading in s.headings(name) if heading.endswith(kind)]


@scenario("21o", "a reset between a child's start and the news of it")
def reset_before_child_started(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), start_child(s), force_create_new_workflow_task=True)
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED")
    s.track("child")
    response = _reset(s, run_id, 7)
    s.track("wf", response.run_id, "after the reset")
    tasks = tasks_by_workflow(s, 2)
    s.note("after the reset", tasks[s.id()])
    s.complete(tasks[s.id()], s.timer(after=60))
    s.complete(tasks[s.id("child")], s.done("of the child"))
    s.complete(s.poll("with the child's result"), s.done())


@scenario("21p", "the parent-close policy and a child that an earlier run had started before a reset")
def reset_and_close_policy(s: Script) -> None:
    run_id = s.start()
    s.complete(s.poll(), start_child(s))
    s.track("child")
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED")
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id("child")], s.timer(after=60))
    s.complete(tasks[s.id()], s.timer(after=60))
    response = _reset(s, run_id, 9)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"), s.done())
    time.sleep(1)
    s.note("child", s.describe("child").workflow_execution_info.status)  # lives on, also on a real server
    s.terminate("child")


def _start_with_child(s: Script, **attributes: Any) -> tuple[str, dict[str, Any]]:
    """A workflow that has started the workflow `child`: its run, and the task of each that a worker has."""
    run_id = s.start()
    s.complete(s.poll(), start_child(s, **attributes))
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED")
    return run_id, tasks_by_workflow(s, 2)


def _note_children_left(s: Script) -> None:
    """How many children the workflow still waits for, when there was time for news of them; ends it."""
    time.sleep(2)
    s.note("children", len(s.describe().pending_children))
    s.terminate()


@scenario("21q", "a reset while a child's end waits behind an open workflow task")
def reset_with_buffered_child(s: Script) -> None:
    run_id, tasks = _start_with_child(s)
    s.complete(tasks[s.id()])
    s.signal("next task")
    s.poll()
    s.complete(tasks[s.id("child")], s.done("of the child"))
    s.wait("WORKFLOW_EXECUTION_COMPLETED", "child")
    time.sleep(1)  # for the news of it
    response = _reset(s, run_id, 9)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"))
    _note_children_left(s)


@scenario("21r", "a run is reset twice; between the resets its child ends, which the first new run hears")
def reset_twice_with_child(s: Script) -> None:
    run_id, tasks = _start_with_child(s)
    s.complete(tasks[s.id()], s.timer(after=60))
    first = _reset(s, run_id, 9)
    s.track("wf", first.run_id, "after the first reset")
    s.complete(s.poll("after the first reset"), s.timer(after=60))
    s.complete(tasks[s.id("child")], s.done("of the child"))
    s.complete(s.poll("with the child's end"), s.timer("another", after=60))
    second = _reset(s, run_id, 9, request="again")
    s.track("wf", second.run_id, "after the second reset")
    s.complete(s.poll("after the second reset"))
    _note_children_left(s)


@scenario("21s", "a closed run is reset whose child has ended since")
def reset_closed_with_child(s: Script) -> None:
    run_id, tasks = _start_with_child(s, parent_close_policy=workflow_pb2.PARENT_CLOSE_POLICY_ABANDON)
    s.complete(tasks[s.id()], s.done("too early"))
    s.complete(tasks[s.id("child")], s.done("of the child"))
    s.wait("WORKFLOW_EXECUTION_COMPLETED", "child")
    time.sleep(1)  # for the news of it
    response = _reset(s, run_id, 9)
    s.track("wf", response.run_id, "after the reset")
    s.complete(s.poll("after the reset"))
    _note_children_left(s)


@scenario("upserts-refused", "search attributes that are refused, by the worker's completion and by the start")
def upserts_refused(s: Script) -> None:
    values = {
        "CustomDatetime": [b'"not a date"', b"5", b'"2020-01-01 00:00:00Z"', b'"2020-01-01T24:00:00Z"'],
        "CustomKeyword": [b'["a","b"]', b"5", b"1e30", b'{"a":1}', b"nonsense", b"", b'"' + b"x" * 2047 + b'"'],
        "CustomText": [b"1.50", b'["a","b"]'],
        "CustomInt": [b"9223372036854775808", b"1.0", b'"5"', b'[1,"2"]', b"true", b"123456.5", b"1234567.5", b"1e21"],
        "CustomDouble": [b'"1"', b"NaN", b"1e400"],
        "CustomBool": [b"0.00001", b"0.0001", b'"true"', b"1000000", b"100000"],
        "CustomKeywordList": [b'"x"', b'["a",5]', b'[["a"],["b"]]'],
        "TemporalChangeVersion": [b'"x"'],
        "TemporalWorkerDeployment": [b'"x"'],
        "TemporalUsedWorkerDeploymentVersions": [b'["x"]'],
        "RootRunId": [b'"x"'],
        "Unknown": [b'"x"'],
    }
    cases: dict[str, Any] = {
        f"{name}: {data[:40]!r}": {"indexed_fields": {name: json_value(data)}}
        for name, several in values.items()
        for data in several
    }
    cases["not JSON"] = {"indexed_fields": {"CustomKeyword": json_value(b'"x"', b"binary/plain")}}
    cases["without encoding"] = {"indexed_fields": {"CustomKeyword": common_v1.Payload(data=b'"x"')}}
    for label, attributes in cases.items():
        s.refused(f"start: {label}", "StartWorkflowExecution", **s.start_fields(search_attributes=attributes))
    upsert = "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES"
    commands = {label: [command(upsert, search_attributes=attributes)] for label, attributes in cases.items()}
    commands["nothing"] = [command(upsert)]
    commands["no field"] = [command(upsert, search_attributes={})]
    refused_each(s, commands)


@scenario("attribute-types", "a search attribute's payload says another type than the registered one")
def attribute_types(s: Script) -> None:
    said = {
        "CustomText": (b"Keyword", b'"one text"'),
        "CustomKeyword": (b"KeywordList", b'"x"'),
        "CustomInt": (b"Double", b"7"),
        "CustomDouble": (b"Int", b"1.5"),
        "CustomBool": (b"NoSuchType", b"true"),
        "CustomDatetime": (b"Keyword", b'"2020-01-01T00:00:00Z"'),
    }
    attributes = {"indexed_fields": {name: json_value(data, kind=kind) for name, (kind, data) in said.items()}}
    s.start(search_attributes=attributes)
    s.note_description("started")
    _note_listed(s, "started", "CustomText = 'text' AND CustomInt = 7 AND CustomDouble > 1 AND CustomBool = true")
    s.complete(s.poll(), s.timer(after=1.2))
    s.complete(s.poll(), _continue(search_attributes=attributes))
    s.track("wf", label="next run")
    gone = {"indexed_fields": {"CustomInt": common_v1.Payload(metadata={"encoding": b"binary/null"})}}
    other = {"indexed_fields": {"CustomKeyword": json_value(b'"y"', kind=b"Text")}}
    upsert = "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES"
    s.complete(s.poll(), command(upsert, search_attributes=gone), command(upsert, search_attributes=other))
    s.note_description("upserted")
    _note_listed(s, "upserted", "CustomText = 'text' AND CustomKeyword = 'y' AND CustomInt IS NULL")
    s.terminate()


def _note_listed(s: Script, label: str, condition: str) -> None:
    query = f"WorkflowId = '{s.id()}' AND ExecutionStatus = 'Running' AND {condition}"
    for _ in range(100):
        page = s.client.call("ListWorkflowExecutions", namespace=NAMESPACE, query=query)
        if page.executions:
            break
        time.sleep(0.1)
    listed = page.executions[0].search_attributes
    listed.indexed_fields.pop("BuildIds", None)  # what worker versioning keeps for itself
    s.note(f"{label}, listed", listed)


@scenario("upserts-odd", "values of search attributes that one might think are refused")
def upserts_odd(s: Script) -> None:
    odd = {
        "CustomDatetime": [b'"2020-01-01T00:00:00.1234567891Z"', b'["2020-01-01T00:00:00+01:00"]'],
        "CustomKeyword": [b'["a"]', b"[null]", b"[]", b"null"],
        "CustomInt": [b"9223372036854775807", b"[-5]"],
        "CustomDouble": [b"1"],
        "CustomKeywordList": [b'["a",null]', b'[["a"]]'],
    }
    s.start()
    task = s.poll()
    for name, values in odd.items():
        for data in values:
            attributes = {"indexed_fields": {name: json_value(data)}}
            s.complete(task, command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", search_attributes=attributes))
            s.signal("next", request_id=f"signal {name} {data!r}")
            task = s.poll()
    s.complete(task, s.done())
