"""How workflows end: cancelled, terminated, timed out, and what is refused afterwards."""

from __future__ import annotations

import time
from typing import Any

from differential.scenarios import scenario
from differential.script import CLIENT, NAMESPACE, Script, command, payloads, seconds


@scenario("17", "a workflow is cancelled")
def cancelled(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    s.cancel()
    s.complete(s.poll("asked to cancel"), command("CANCEL_WORKFLOW_EXECUTION", details=payloads("tidied up")))
    s.note_description("closed")


@scenario("17b", "a cancellation asked for twice is written once; on a closed workflow it is refused")
def cancelled_twice(s: Script) -> None:
    s.start()
    s.cancel(request="first")
    s.cancel(request="first")
    s.cancel(request="second")
    s.complete(s.poll("asked to cancel"), s.done("went on all the same"))
    try:
        s.cancel(request="third")
    except AssertionError as error:
        s.note("on a closed workflow", str(error))
    else:
        s.note("on a closed workflow", "accepted")


@scenario("17c", "a cancellation asked for while a workflow task runs")
def cancelled_during_task(s: Script) -> None:
    s.start()
    task = s.poll()
    s.cancel()
    s.complete(task, s.timer(after=60))
    s.complete(s.poll("asked to cancel"), command("CANCEL_WORKFLOW_EXECUTION"))


@scenario("18", "an idle workflow is terminated")
def terminated(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60), s.activity())
    s.terminate()
    s.note_description("closed")
    s.refused(
        "once more",
        "TerminateWorkflowExecution",
        namespace=NAMESPACE,
        workflow_execution=s.execution(),
        identity=CLIENT,
    )


@scenario("18b", "a workflow is terminated while its task runs and a signal waits")
def terminated_during_task(s: Script) -> None:
    s.start()
    task = s.poll()
    s.signal("waiting")
    s.terminate()
    s.completion_refused("the completion", task, s.done())


@scenario("18c", "a workflow is terminated before its first task")
def terminated_at_once(s: Script) -> None:
    s.start()
    s.terminate()


@scenario("18d", "a workflow is terminated while its activity runs")
def terminated_during_activity(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(10)))
    task = s.poll_activity()
    s.terminate()
    for label, method in (("heartbeat", "RecordActivityTaskHeartbeat"), ("result", "RespondActivityTaskCompleted")):
        s.refused(label, method, namespace=NAMESPACE, task_token=task.task_token, identity="script:worker")


@scenario("20", "a run times out")
def run_timeout(s: Script) -> None:
    s.start(workflow_run_timeout=seconds(1))
    s.complete(s.poll(), s.timer(after=60))
    s.wait("WORKFLOW_EXECUTION_TIMED_OUT")
    s.note_description("closed")


@scenario("20b", "a run times out while its task runs and a signal waits")
def run_timeout_during_task(s: Script) -> None:
    s.start(workflow_run_timeout=seconds(1))
    s.poll()
    s.signal("waiting")
    s.wait("WORKFLOW_EXECUTION_TIMED_OUT")


@scenario("20c", "an execution times out")
def execution_timeout(s: Script) -> None:
    s.start(workflow_execution_timeout=seconds(3))
    s.complete(s.poll(), s.activity())
    s.poll_activity()
    s.wait("WORKFLOW_EXECUTION_TIMED_OUT")


@scenario("20d", "a workflow task's timeout is no longer than the run's")
def run_timeout_caps(s: Script) -> None:
    s.start(workflow_run_timeout=seconds(5), workflow_execution_timeout=seconds(3), workflow_task_timeout=seconds(200))
    s.terminate()


@scenario("history", "a history is read in pages, backwards, and by its closing event")
def history_reads(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    here: dict[str, Any] = {"namespace": NAMESPACE, "execution": s.execution()}
    open_ = s.client.call("GetWorkflowExecutionHistory", **here, history_event_filter_type=2)
    s.note("closing event of an open workflow", open_)
    pages: list[int] = []
    token = b""
    while not pages or token:
        page = s.client.call("GetWorkflowExecutionHistory", **here, maximum_page_size=2, next_page_token=token)
        pages += [event.event_id for event in page.history.events]
        token = page.next_page_token
    # How much a page holds is the server's affair: the real one counts transactions, not events.
    s.note("all pages", str(pages))
    waiting = s.client.begin("GetWorkflowExecutionHistory", **here, wait_new_event=True, history_event_filter_type=2)
    time.sleep(0.5)
    s.terminate()
    s.note("closing event, waited for", waiting.result())
    page = s.client.call("GetWorkflowExecutionHistoryReverse", **here)
    s.note("backwards", page)
