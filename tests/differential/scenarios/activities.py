"""Activities: retries, every timeout, heartbeats, cancellation, completion by id, eager execution."""

from __future__ import annotations

from typing import Any

from temporalio.api.command.v1.message_pb2 import Command

from differential.scenarios import scenario
from differential.script import NAMESPACE, WORKER, Script, command, failure, payloads, seconds


@scenario("15", "an activity succeeds on its third attempt")
def activity_retry(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(retry_policy={"initial_interval": seconds(0.1), "backoff_coefficient": 1}))
    s.fail_activity(s.poll_activity("first attempt"), failure("first"))
    s.fail_activity(s.poll_activity("second attempt"), failure("second"))
    s.complete_activity(s.poll_activity("third attempt"))
    s.complete(s.poll("with the result"), s.done())


@scenario("15b", "an activity has used up its attempts")
def activity_attempts_used_up(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(retry_policy={"initial_interval": seconds(0.1), "maximum_attempts": 2}))
    s.fail_activity(s.poll_activity(), failure("first"))
    s.fail_activity(s.poll_activity(), failure("second"))
    s.complete(s.poll("failed"), s.done())


@scenario("15c", "a failure that is not to be retried, by flag and by type")
def activity_not_retryable(s: Script) -> None:
    s.start()
    s.complete(
        s.poll(),
        s.activity("a1"),
        s.activity("a2", retry_policy={"non_retryable_error_types": ["Fatal"]}),
    )
    tasks = {task.activity_id: task for task in (s.poll_activity(), s.poll_activity())}
    s.fail_activity(tasks["a1"], failure("no", non_retryable=True))
    s.fail_activity(tasks["a2"], failure("no", type_="Fatal"))
    s.complete(s.poll("with both failures"), s.done())


@scenario("15d", "a failure sets the delay of the next attempt")
def activity_next_delay(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(retry_policy={"initial_interval": seconds(60)}))
    s.fail_activity(s.poll_activity(), failure("soon", next_retry_delay=0.2))
    s.complete_activity(s.poll_activity("second attempt"))
    s.complete(s.poll(), s.done())


@scenario("15q", "a failure asks for a next attempt without delay: there is none")
def activity_no_delay(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1"))
    s.fail_activity(s.poll_activity(), failure("at once", next_retry_delay=0))
    s.complete(s.poll("failed"), s.activity("a2", retry_policy={"maximum_attempts": 1}))
    s.fail_activity(s.poll_activity(), failure("at once", next_retry_delay=0))
    s.complete(s.poll("failed again"), s.done())


@scenario("15e", "heartbeat details survive to the next attempt")
def activity_heartbeat_details(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(5), retry_policy={"initial_interval": seconds(0.1)}))
    task = s.poll_activity()
    s.note("heartbeat", s.heartbeat(task, "half"))
    s.note_description("running")
    s.fail_activity(task, failure("first"))
    task = s.poll_activity("second attempt")
    s.fail_activity(task, failure("second"), last_heartbeat_details=payloads("nearly"))
    s.complete_activity(s.poll_activity("third attempt"))
    s.complete(s.poll(), s.done())


@scenario("15n", "a heartbeat without details is seen all the same")
def activity_bare_heartbeat(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(5)))
    task = s.poll_activity()
    s.note_description("before")
    s.client.call("RecordActivityTaskHeartbeat", namespace=NAMESPACE, task_token=task.task_token, identity=WORKER)
    s.note_description("after")
    s.complete_activity(task)
    s.complete(s.poll(), s.done())


@scenario("15f", "an attempt takes too long, and the next one succeeds")
def activity_start_to_close_retried(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(start_to_close_timeout=seconds(1), retry_policy={"initial_interval": seconds(0.1)}))
    late = s.poll_activity()
    s.complete_activity(s.poll_activity("second attempt"), "in time")
    s.refused(
        "the first attempt, late",
        "RespondActivityTaskCompleted",
        namespace=NAMESPACE,
        task_token=late.task_token,
        identity=WORKER,
    )
    s.complete(s.poll(), s.done())


@scenario("15g", "an attempt takes too long, and there is no other")
def activity_start_to_close(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(start_to_close_timeout=seconds(1), retry_policy={"maximum_attempts": 1}))
    s.poll_activity()
    s.complete(s.poll("timed out"), s.done())


@scenario("15h", "heartbeats cease")
def activity_heartbeat_timeout(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(1), retry_policy={"maximum_attempts": 1}))
    task = s.poll_activity()
    s.heartbeat(task, "the last one")
    s.complete(s.poll("timed out"), s.done())


@scenario("15i", "nobody takes an activity in time")
def activity_schedule_to_start(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(schedule_to_start_timeout=seconds(1), task_queue={"name": f"{s.queue}-none"}))
    s.complete(s.poll("timed out"), s.done())


@scenario("15o", "nobody takes an activity that names only its whole time, and one whose whole time is its last")
def activity_that_nobody_takes(s: Script) -> None:
    s.start()
    nobody: dict[str, Any] = {"task_queue": {"name": f"{s.queue}-none"}, "schedule_to_close_timeout": seconds(1)}
    s.complete(s.poll(), s.activity("a1", start_to_close_timeout=None, **nobody))
    s.complete(s.poll("timed out"), s.activity("a2", schedule_to_start_timeout=seconds(60), **nobody))
    s.complete(s.poll("timed out, too"), s.done())


@scenario("15p", "nobody takes the second attempt of an activity that names only its whole time")
def activity_attempt_that_nobody_takes(s: Script) -> None:
    s.start()
    retries = {"initial_interval": seconds(0.1)}
    s.complete(
        s.poll(), s.activity(start_to_close_timeout=None, schedule_to_close_timeout=seconds(2), retry_policy=retries)
    )
    s.fail_activity(s.poll_activity(), failure("first"))
    s.complete(s.poll("timed out"), s.done())


@scenario("15j", "the whole time of an activity is over between two attempts")
def activity_schedule_to_close(s: Script) -> None:
    s.start()
    s.complete(
        s.poll(),
        s.activity(
            start_to_close_timeout=None,
            schedule_to_close_timeout=seconds(3),
            retry_policy={"initial_interval": seconds(1), "backoff_coefficient": 10},
        ),
    )
    s.fail_activity(s.poll_activity(), failure("first"))
    s.fail_activity(s.poll_activity("second attempt"), failure("second"))
    s.complete(s.poll("no room for a third"), s.done())


@scenario("15k", "the whole time of an activity is over while it runs")
def activity_schedule_to_close_running(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(start_to_close_timeout=None, schedule_to_close_timeout=seconds(1)))
    s.poll_activity()
    s.complete(s.poll("timed out"), s.done())


@scenario("15l", "activities are completed, failed and heartbeaten by their ids")
def activity_by_id(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1"), s.activity("a2", retry_policy={"maximum_attempts": 1}))
    s.poll_activity()
    s.poll_activity()
    here: dict[str, Any] = {"namespace": NAMESPACE, "workflow_id": s.id(), "identity": WORKER}
    beat = s.client.call(
        "RecordActivityTaskHeartbeatById", **here, activity_id="a1", details=payloads("from elsewhere")
    )
    s.note("heartbeat", beat)
    s.client.call("RespondActivityTaskCompletedById", **here, activity_id="a1", result=payloads("from elsewhere"))
    s.client.call("RespondActivityTaskFailedById", **here, activity_id="a2", failure=failure("from elsewhere"))
    s.refused("an id that never was", "RespondActivityTaskCompletedById", **here, activity_id="a3")
    s.complete(s.poll(), s.done())


@scenario("15m", "defaults are filled in: timeouts and retry policy")
def activity_defaults(s: Script) -> None:
    s.start(workflow_run_timeout=seconds(100))
    s.complete(
        s.poll(),
        s.activity("a1", start_to_close_timeout=None, schedule_to_close_timeout=seconds(30)),
        s.activity("a2", start_to_close_timeout=seconds(1000), heartbeat_timeout=seconds(2000)),
        s.activity("a3", retry_policy={"initial_interval": seconds(3)}, priority={"priority_key": 2}),
    )
    s.terminate()


@scenario("16", "an activity that runs is cancelled")
def activity_cancelled(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(30)))
    task = s.poll_activity()
    s.note("heartbeat before", s.heartbeat(task))
    s.signal("stop it")
    s.complete(s.poll(), _cancel(s, 5))
    s.note("heartbeat after", s.heartbeat(task))
    s.cancel_activity(task)
    s.complete(s.poll("cancelled"), s.done())


@scenario("16b", "an activity that nobody took yet is cancelled")
def activity_cancelled_before_start(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(task_queue={"name": f"{s.queue}-none"}))
    s.signal("stop it")
    s.complete(s.poll(), _cancel(s, 5))
    s.complete(s.poll("cancelled"), s.done())


@scenario("16c", "a cancelled activity completes all the same")
def activity_ignores_cancellation(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity())
    task = s.poll_activity()
    s.signal("stop it")
    s.complete(s.poll(), _cancel(s, 5))
    s.complete_activity(task, "done all the same")
    s.complete(s.poll("completed"), s.done())


@scenario("16d", "a cancellation that nobody asked for is refused")
def activity_cancels_itself(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity())
    task = s.poll_activity()
    s.refused(
        "cancellation",
        "RespondActivityTaskCanceled",
        namespace=NAMESPACE,
        task_token=task.task_token,
        identity=WORKER,
    )
    s.complete_activity(task)
    s.complete(s.poll(), s.done())


@scenario("16m", "an activity is scheduled and cancelled in one task, with commands behind it")
def activity_cancelled_at_once(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1"), _cancel(s, 5), s.activity("a2"), s.timer("t1", 60))
    s.complete_activity(s.poll_activity("the other one"))
    s.complete(s.poll("cancelled and done"), s.done())


@scenario("16n", "an activity is scheduled and cancelled in the task that closes the workflow")
def activity_cancelled_at_the_end(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1"), _cancel(s, 5), s.done())


@scenario("16o", "a waiting activity is cancelled in a task behind which a signal waits")
def activity_cancelled_before_a_signal(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(task_queue={"name": f"{s.queue}-none"}))
    s.signal("stop it")
    task = s.poll()
    s.signal("too late")
    s.complete(task, _cancel(s, 5), s.timer("t1", 60))
    s.complete(s.poll("cancelled, and a signal"), s.done())


@scenario("16e", "an activity is cancelled between two attempts")
def activity_cancelled_in_backoff(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(retry_policy={"initial_interval": seconds(60)}))
    s.fail_activity(s.poll_activity(), failure("first"))
    s.signal("stop it")
    s.complete(s.poll(), _cancel(s, 5))
    s.complete(s.poll("cancelled"), s.done())


@scenario("16f", "an activity is scheduled and cancelled by one completion")
def activity_scheduled_and_cancelled(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(), _cancel(s, 5))
    s.complete(s.poll("cancelled"), s.done())


@scenario("16g", "an activity that never was is cancelled")
def unknown_activity_cancelled(s: Script) -> None:
    s.start()
    s.completion_refused("completion", s.poll(), _cancel(s, 77))
    s.complete(s.poll("again"), s.done())


@scenario("16p", "an activity is cancelled twice, and one that has ended")
def activity_cancelled_again(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1"))
    task = s.poll_activity()
    s.signal("stop it")
    s.completion_refused("twice at once", s.poll(), _cancel(s, 5), _cancel(s, 5))
    s.complete(s.poll(), _cancel(s, 5))
    s.signal("again")
    s.completion_refused("twice", s.poll(), _cancel(s, 5))
    s.complete_activity(task)
    s.completion_refused("ended", s.poll("with the result"), _cancel(s, 5))
    s.complete(s.poll(), s.done())


@scenario("16q", "an activity is cancelled whose end waits for the workflow task")
def activity_cancelled_when_it_ended(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1"))
    task = s.poll_activity()
    s.signal("stop it")
    busy = s.poll()
    s.complete_activity(task)
    s.complete(busy, _cancel(s, 5))
    s.complete(s.poll("with the result"), s.done())


@scenario("24", "an activity comes with the completion that schedules it")
def eager_activity(s: Script) -> None:
    s.start()
    answer = s.complete(s.poll(), s.activity(request_eager_execution=True))
    s.note("answer", answer)
    s.complete_activity(answer.activity_tasks[0])
    s.complete(s.poll("with the result"), s.done())


def _cancel(s: Script, scheduled_event_id: int) -> Command:
    return command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=scheduled_event_id)
