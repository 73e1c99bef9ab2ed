"""Timers that fire or are cancelled, and signals at every moment of a workflow task."""

from __future__ import annotations

import time
from typing import Any

from differential.scenarios import scenario
from differential.script import CLIENT, NAMESPACE, Script, command, failure, payloads, seconds


@scenario("2", "a timer fires")
def timer_fires(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=1))
    s.complete(s.poll("after the timer"), s.done())


@scenario("2b", "a timer is cancelled")
def timer_cancelled(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    s.signal("stop")
    s.complete(s.poll(), command("CANCEL_TIMER", timer_id="t1"))
    s.signal("go on")
    s.complete(s.poll("nothing but the signal is new"), s.done())


@scenario("2c", "two timers due at once fire together")
def timers_together(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer("t1", 1), s.timer("t2", 1))
    s.wait("TIMER_FIRED", count=2)
    s.complete(s.poll("with both"), s.done())


@scenario("2d", "a timer that fired while a workflow task runs is still cancelled by it")
def fired_timer_cancelled(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer("t1", 1), s.timer("t2", 1), s.timer("t3", 60))
    s.signal("wake")
    task = s.poll()
    # The timers fire into the buffer, which nobody can see; the third one's second attempt is not waited for.
    time.sleep(2.5)
    s.complete(task, command("CANCEL_TIMER", timer_id="t1"))
    s.complete(s.poll("only the second fired"), s.done())


@scenario("2e", "a timer of no length fires at once")
def zero_timer(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=0))
    s.complete(s.poll("after the timer"), s.done())


@scenario("2f", "a timer that does not exist is cancelled")
def unknown_timer(s: Script) -> None:
    s.start()
    s.completion_refused("completion", s.poll(), command("CANCEL_TIMER", timer_id="never started"))
    s.complete(s.poll("again"), s.done())


@scenario("3", "a signal reaches an idle workflow")
def signal_idle(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    s.signal("hello")
    s.complete(s.poll("with the signal"), s.done())


@scenario("3b", "a signal joins a scheduled workflow task")
def signal_scheduled(s: Script) -> None:
    s.start()
    s.signal("one")
    s.signal("two")
    s.complete(s.poll("with both signals"), s.done())


@scenario("3c", "a signal waits while a workflow task runs")
def signal_started(s: Script) -> None:
    s.start()
    task = s.poll()
    s.signal("one")
    s.signal("two")
    s.complete(task, s.timer(after=60), s.activity())
    s.complete(s.poll("with both signals"), s.done())


@scenario("3d", "a signal sent twice with one request id counts once")
def signal_twice(s: Script) -> None:
    s.start()
    s.signal("same")
    s.signal("same")
    s.signal("other")
    task = s.poll("with two signals")
    s.signal("buffered")
    s.signal("buffered")
    s.signal("same")
    s.complete(task)
    s.complete(s.poll("with the buffered one"), s.done())


@scenario("3e", "a signal to a workflow that is closed, or never was, is refused")
def signal_nobody(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.done())
    for label, name in (("closed", "wf"), ("missing", "nobody")):
        s.refused(
            label,
            "SignalWorkflowExecution",
            namespace=NAMESPACE,
            workflow_execution=s.execution(name),
            signal_name="hello",
            identity=CLIENT,
        )


@scenario("5", "signal with start starts the workflow")
def signal_with_start(s: Script) -> None:
    response = _signal_with_start(s, "first")
    s.note("answer", response)
    s.track("wf", response.run_id)
    s.complete(s.poll("started and signalled"), s.done())


@scenario("5b", "signal with start signals the workflow that runs")
def signal_with_start_running(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    s.note("answer", _signal_with_start(s, "second"))
    s.complete(s.poll("signalled"), s.done())
    response = _signal_with_start(s, "third")
    s.note("answer when closed", response)
    s.track("wf", response.run_id, "next run")
    s.complete(s.poll(), s.done())


@scenario("5c", "signal with start wakes a run that waits: for its delay, its schedule, its retry")
def signal_with_start_waiting(s: Script) -> None:
    s.start(workflow_start_delay=seconds(60))
    s.signal("does not wake it")
    s.note("answer", _signal_with_start(s, "second"))
    s.complete(s.poll("delayed"), s.done())
    s.start("cron", cron_schedule="0 0 1 1 *")
    s.note("answer", _signal_with_start(s, "by cron", "cron"))
    s.poll("by cron")
    s.terminate("cron")
    s.start("retried", retry_policy={"initial_interval": seconds(60)})
    s.complete(s.poll(), command("FAIL_WORKFLOW_EXECUTION", failure=failure("no")))
    s.note("answer", _signal_with_start(s, "by retry", "retried"))
    task = s.poll("retried")
    s.track("retried", task.workflow_execution.run_id, "next run")
    s.complete(task, s.done())


def _signal_with_start(s: Script, signal_name: str, name: str = "wf") -> Any:
    return s.client.call(
        "SignalWithStartWorkflowExecution",
        **s.start_fields(name),
        signal_name=signal_name,
        signal_input=payloads(f"of {signal_name}"),
    )
