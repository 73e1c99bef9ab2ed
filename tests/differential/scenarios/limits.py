"""What happens at a limit: histories that are full, failures that are too large to keep."""

from __future__ import annotations

from typing import Any

from differential.scenarios import scenario
from differential.script import NAMESPACE, WORKER, Script, command, failure, payloads, seconds

EVENTS_MAX = 300
"""What both servers of the comparison are told: the default would take long to reach."""


def _fill(s: Script, events: int) -> None:
    """A run whose history has that many events, and which waits."""
    s.start()
    s.complete(s.poll(), *(command("RECORD_MARKER", marker_name="m") for _ in range(events - 4)))


@scenario("limit-signal", "the signal that crosses the limit of events is refused, and the run ends")
def signal_crosses(s: Script) -> None:
    _fill(s, EVENTS_MAX - 2)
    for name in ("one", "two"):
        s.signal(name)
    s.refused("three", "SignalWorkflowExecution", **_signal(s))
    s.refused("four", "SignalWorkflowExecution", **_signal(s))
    s.note("status", s.describe().workflow_execution_info.status)


def _signal(s: Script) -> dict[str, Any]:
    return {"namespace": NAMESPACE, "workflow_execution": s.execution(), "signal_name": "more"}


@scenario("limit-completion", "a workflow task's completion crosses the limit of events, and one that closes")
def completion_crosses(s: Script) -> None:
    s.start()
    markers = [command("RECORD_MARKER", marker_name="m") for _ in range(EVENTS_MAX)]
    s.completion_refused("too many", s.poll(), *markers)
    s.start("closing")
    s.complete(s.poll(), *markers, s.done())


@scenario("limit-poll", "the start of a workflow task crosses the limit of events")
def task_start_crosses(s: Script) -> None:
    _fill(s, EVENTS_MAX - 2)
    s.signal("one")
    s.note("polled", bool(s.poll_once().task_token))
    s.wait("WORKFLOW_EXECUTION_TERMINATED")


@scenario("limit-heartbeat", "a heartbeat when the history is too long")
def heartbeat_behind(s: Script) -> None:
    s.start()
    markers = (command("RECORD_MARKER", marker_name="m") for _ in range(EVENTS_MAX - 7))
    s.complete(s.poll(), s.activity(), *markers)
    task = s.poll_activity()
    for name in ("one", "two"):
        s.signal(name)
    s.refused("beat", "RecordActivityTaskHeartbeat", namespace=NAMESPACE, task_token=task.task_token, identity=WORKER)


@scenario("limit-failure", "failures that are too large: kept for the next attempt, and for the history")
def large_failures(s: Script) -> None:
    large = failure("é" * 4000)
    large.cause.CopyFrom(failure("the cause"))
    detailed = failure("with details")
    detailed.application_failure_info.details.CopyFrom(payloads("d" * 5000))
    detailed.cause.CopyFrom(failure("c" * 5000))
    for name, error in (("large", large), ("detailed", detailed)):
        s.start(name)
        s.complete(s.poll(), s.activity(retry_policy={"initial_interval": seconds(60)}))
        s.fail_activity(s.poll_activity(), error)
        s.note(name, s.describe(name).pending_activities[0].last_failure)
        s.terminate(name)
    s.start("huge")
    task = s.poll()
    huge = failure("m")
    huge.application_failure_info.details.CopyFrom(payloads("d" * 2_500_000))
    s.client.call(
        "RespondWorkflowTaskFailed", namespace=NAMESPACE, task_token=task.task_token, failure=huge, identity=WORKER
    )
    s.complete(s.poll(), s.done())
