"""Workflow tasks: completed, failed, timed out, unhandled commands, heartbeats."""

from __future__ import annotations

from typing import Any

from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.enums.v1 import failed_cause_pb2

from differential.scenarios import scenario
from differential.scenarios.pieces import refused_each
from differential.script import Script, command, failure, payload, payloads, seconds


@scenario("1", "one activity, from start to result")
def one_activity(s: Script) -> None:
    s.start(input=payloads("a", "b"))
    task = s.poll("first workflow task")
    s.note("answer", s.complete(task, s.activity()))
    activity = s.poll_activity("activity task")
    s.complete_activity(activity)
    s.complete(s.poll("second workflow task"), s.done())


@scenario("1b", "two activities at once, the second completed first, both while a workflow task runs")
def two_activities_buffered(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1"), s.activity("a2"))
    tasks = {task.activity_id: task for task in (s.poll_activity(), s.poll_activity())}
    s.signal("wake")
    running = s.poll("woken")
    s.complete_activity(tasks["a2"], "second")
    s.complete_activity(tasks["a1"], "first")
    s.complete(running)
    s.complete(s.poll("with both results"), s.done())


@scenario("1c", "markers, memo and search attributes are recorded by one completion, with user metadata")
def markers_and_upserts(s: Script) -> None:
    s.start(memo={"fields": {"kept": payload("as it was"), "changed": payload("old")}})
    marker = command(
        "RECORD_MARKER", marker_name="Version", details={"change-id": payloads("one"), "version": payloads("2")}
    )
    upsert = command(
        "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
        search_attributes={"indexed_fields": {"CustomKeyword": payload("found")}},
    )
    memo = command("MODIFY_WORKFLOW_PROPERTIES", upserted_memo={"fields": {"changed": payload("new")}})
    timer = s.timer(after=60)
    timer.user_metadata.summary.CopyFrom(payload("a minute of rest"))
    s.complete(s.poll(), marker, upsert, memo, timer)
    s.note_description("open")
    s.terminate()


@scenario("1d", "the workflow fails")
def workflow_fails(s: Script) -> None:
    s.start()
    s.complete(s.poll(), command("FAIL_WORKFLOW_EXECUTION", failure=failure("it cannot be done", non_retryable=True)))
    s.note_description("closed")


@scenario("1e", "a completion with what the SDK reports of itself")
def sdk_metadata(s: Script) -> None:
    s.start()
    s.complete(
        s.poll(),
        s.done(),
        sdk_metadata={"core_used_flags": [1, 2], "lang_used_flags": [3], "sdk_name": "script", "sdk_version": "1.0"},
        metering_metadata={"nonfirst_local_activity_execution_attempts": 2},
        binary_checksum="checksum",
    )


@scenario("1f", "a completion of a worker that has a deployment, but no versioning")
def deployment_unversioned(s: Script) -> None:
    s.start()
    options = {"deployment_name": "deployment", "build_id": "build", "worker_versioning_mode": 1}
    task = s.poll()
    s.completion_refused("with a behavior", task, s.done(), deployment_options=options, versioning_behavior=1)
    s.complete(task, s.done(), deployment_options=options)


@scenario("4", "a signal arrives while the worker completes the workflow")
def unhandled_command(s: Script) -> None:
    s.start()
    task = s.poll()
    s.signal("late")
    s.completion_refused("completion", task, s.timer(after=60), s.done())
    s.complete(s.poll("again"), s.done())


@scenario("8z", "many workflow tasks fail in a row: a search attribute says so")
def reported_problems(s: Script) -> None:
    s.start()
    for attempt in range(1, 6):
        s.fail(s.poll(), f"attempt {attempt}")
        s.note_description(f"after attempt {attempt}")
    s.terminate()  # a success would be written with a timeout that the real server draws by chance


@scenario("8", "a failed workflow task is tried again, and the second attempt succeeds")
def task_failure(s: Script) -> None:
    s.start()
    s.fail(s.poll("first attempt"), cause=failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR)
    s.complete(s.poll("second attempt"), s.done())


@scenario("8b", "a signal turns the transient task of a failed one into a normal one")
def transient_task_becomes_normal(s: Script) -> None:
    s.start()
    s.fail(s.poll())
    s.signal("new")
    s.complete(s.poll("after the signal"), s.done())


@scenario("8c", "later failures of a workflow task write nothing")
def task_fails_twice(s: Script) -> None:
    s.start()
    s.fail(s.poll())
    s.fail(s.poll("second attempt"))
    s.note_description("between")
    # Not the fourth: from there on the timeout grows, by a random amount.
    s.complete(s.poll("third attempt"), s.timer(after=60))
    s.terminate()


@scenario("8d", "a signal while a transient task runs is written after it")
def signal_during_transient_task(s: Script) -> None:
    s.start()
    s.fail(s.poll())
    task = s.poll("second attempt")
    s.signal("during")
    s.complete(task)
    s.complete(s.poll("with the signal"), s.done())


@scenario("8e", "a command without its attributes fails the workflow task")
def bad_command(s: Script) -> None:
    s.start()
    s.completion_refused("completion", s.poll(), command("START_TIMER", start_to_fire_timeout=seconds(1)))
    s.complete(s.poll("again"), s.done())


@scenario("8f", "an activity without a timeout fails the workflow task")
def activity_without_timeout(s: Script) -> None:
    s.start()
    s.completion_refused("completion", s.poll(), s.activity(start_to_close_timeout=None))
    s.complete(s.poll("again"), s.done())


@scenario("8g", "two timers of one id fail the workflow task, and the first of them is not started either")
def duplicate_timer(s: Script) -> None:
    s.start()
    s.completion_refused("completion", s.poll(), s.timer("same", 60), s.timer("same", 60))
    s.complete(s.poll("again"), s.done())


@scenario("8i", "options of an activity that are refused")
def activity_refused(s: Script) -> None:
    attributes = {
        "activity_id": "a",
        "activity_type": {"name": "act"},
        "task_queue": {"name": s.queue},
        "start_to_close_timeout": seconds(5),
    }
    cases: dict[str, Any] = {
        "priority": {"priority": {"priority_key": -1}},
        "fairness": {"priority": {"fairness_key": "k" * 65}},
        "weight": {"priority": {"fairness_weight": -1.0}},
        "long queue": {"task_queue": {"name": "q" * 2000}},
        "reserved queue": {"task_queue": {"name": "/_sys/x"}},
        "no queue": {"task_queue": None},
        "coefficient": {"retry_policy": {"backoff_coefficient": 0.5}, "start_to_close_timeout": None},
    }
    refused_each(
        s, {label: [command("SCHEDULE_ACTIVITY_TASK", **{**attributes, **case})] for label, case in cases.items()}
    )


@scenario("8j", "commands that do not fit the state of the workflow")
def commands_refused(s: Script) -> None:
    cancel = "REQUEST_CANCEL_ACTIVITY_TASK"
    refused_each(
        s,
        {
            "activity twice": [s.activity("a"), s.activity("a", activity_type={"name": "other"})],
            "timer twice": [s.timer("t"), s.timer("t")],
            "cancelled timer": [command("CANCEL_TIMER", timer_id="t")],
            "cancelled activity": [command(cancel, scheduled_event_id=77)],
            "cancelled event": [command(cancel, scheduled_event_id=1)],
            "cancelled nothing": [command(cancel)],
            "message": [command("PROTOCOL_MESSAGE", message_id="nobody")],
            "no message": [command("PROTOCOL_MESSAGE")],
            "failure": [command("FAIL_WORKFLOW_EXECUTION")],
            "memo": [command("MODIFY_WORKFLOW_PROPERTIES")],
            "empty memo": [command("MODIFY_WORKFLOW_PROPERTIES", upserted_memo={})],
            "two ends": [s.done(), s.done()],
            "end in between": [s.done(), s.timer()],
            "unknown": [Command(command_type=77)],  # type: ignore[arg-type]
            "none": [Command()],
        },
    )


@scenario("8h", "a signal while a failing workflow task runs")
def signal_during_failing_task(s: Script) -> None:
    s.start()
    task = s.poll()
    s.signal("during")
    s.fail(task)
    s.complete(s.poll("again"), s.done())


@scenario("9", "a workflow task times out, and the second attempt succeeds")
def task_timeout(s: Script) -> None:
    s.start(workflow_task_timeout=seconds(1))
    late = s.poll()
    s.wait("WORKFLOW_TASK_TIMED_OUT")
    task = s.poll("second attempt")
    s.completion_refused("the late one", late, s.done())
    s.complete(task, s.done())


@scenario("9b", "a signal while a workflow task runs that times out")
def signal_during_timing_out_task(s: Script) -> None:
    s.start(workflow_task_timeout=seconds(1))
    s.poll()
    s.signal("during")
    s.wait("WORKFLOW_TASK_TIMED_OUT")
    s.complete(s.poll("again"), s.done())


@scenario("9c", "a task token is good for one answer")
def token_twice(s: Script) -> None:
    s.start()
    task = s.poll()
    s.complete(task, s.timer(after=60))
    s.completion_refused("the same token again", task, s.done())
    s.terminate()


@scenario("22", "a workflow task is kept alive while local activities run")
def heartbeat(s: Script) -> None:
    s.start()
    task = s.poll()
    for number in (1, 2):
        marker = command("RECORD_MARKER", marker_name="LocalActivity", details={"data": payloads(f"local {number}")})
        answer = s.complete(task, marker, return_new_workflow_task=True, force_create_new_workflow_task=True)
        task = answer.workflow_task
        s.note(f"returned task {number}", task)
    s.complete(task, s.done())


@scenario("22b", "a signal during a heartbeating workflow task comes with the next one")
def signal_during_heartbeat(s: Script) -> None:
    s.start()
    task = s.poll()
    s.signal("during")
    answer = s.complete(task, return_new_workflow_task=True, force_create_new_workflow_task=True)
    s.note("returned task", answer.workflow_task)
    s.complete(answer.workflow_task, s.done())


@scenario("22c", "a forced workflow task that is not asked to be returned is polled")
def forced_task(s: Script) -> None:
    s.start()
    s.complete(s.poll(), force_create_new_workflow_task=True)
    s.complete(s.poll("forced"), s.done())


@scenario("8y", "a task fails again and again: the problem that is reported is the one that the history shows")
def reported_problem(s: Script) -> None:
    s.start()
    s.fail(s.poll(), "first", failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE)
    for attempt in range(2, 7):
        s.fail(s.poll(), "again", failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR)
        if attempt >= 4:
            s.note_description(f"attempt {attempt}")
    s.terminate()


@scenario("8x", "a task times out and then fails again and again")
def reported_timeout(s: Script) -> None:
    s.start(workflow_task_timeout=seconds(3))
    s.poll()
    for _ in range(5):
        s.fail(s.poll(), "again", failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR)
    s.note_description("reported")
    s.terminate()
