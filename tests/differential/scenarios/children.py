"""Scenarios of children: what becomes of them, and of their parents."""

from __future__ import annotations

from typing import Any

from temporalio.api.enums.v1 import workflow_pb2

from differential.scenarios import scenario
from differential.scenarios.pieces import refused_each, start_child, tasks_by_workflow
from differential.script import NAMESPACE, Script, command, failure, payload, payloads, seconds

ABANDON = workflow_pb2.PARENT_CLOSE_POLICY_ABANDON
SIGNALS_MAX = 20
"""What both servers of the comparison are told: the default would take long to reach."""
REQUEST_CANCEL = workflow_pb2.PARENT_CLOSE_POLICY_REQUEST_CANCEL


@scenario("6c", "a child whose id is taken does not start")
def child_exists(s: Script) -> None:
    s.start("child")
    s.complete(s.poll(), s.timer(after=60))
    s.start()
    s.complete(s.poll(), start_child(s))
    s.complete(s.poll("refused"), s.done())
    s.terminate("child")


@scenario("6q", "options of a child that are refused")
def child_options_refused(s: Script) -> None:
    cases: dict[str, Any] = {
        "priority": {"priority": {"priority_key": -1}},
        "fairness": {"priority": {"fairness_key": "k" * 65}},
        "long queue": {"task_queue": {"name": "q" * 2000}},
        "reserved queue": {"task_queue": {"name": "/_sys/x"}},
        "long type": {"workflow_type": {"name": "t" * 1001}},
        "long id": {"workflow_id": "i" * 1001},
        "run timeout": {"workflow_run_timeout": seconds(-5)},
        "coefficient": {"retry_policy": {"backoff_coefficient": 0.5}},
        "schedule": {"cron_schedule": "nonsense"},
        "large memo": {"memo": {"fields": {"m": payload("m" * 3_000_000)}}},
        "unknown attribute": {"search_attributes": {"indexed_fields": {"Unknown": payload("x")}}},
        "wrong attribute": {"search_attributes": {"indexed_fields": {"CustomInt": payload("x")}}},
        "large attribute": {"search_attributes": {"indexed_fields": {"CustomKeyword": payload("x" * 3000)}}},
    }
    refused_each(s, {label: [start_child(s, **attributes)] for label, attributes in cases.items()})


@scenario("6r", "a child takes the place of a run that is just started")
def child_takes_place(s: Script) -> None:
    first = s.start("child", track=False)
    s.complete(s.poll(), s.timer(after=60))
    s.start()
    terminate = workflow_pb2.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING
    s.complete(s.poll(), start_child(s, workflow_id_reuse_policy=terminate))
    tasks = tasks_by_workflow(s, 2)
    s.track("child", first, "run in its place")
    s.track("child")
    s.complete(tasks[s.id()])
    s.complete(tasks[s.id("child")], s.done("of the child"))
    s.complete(s.poll("child is done"), s.done())


@scenario("25g", "signals and cancel requests to other workflows that are refused")
def external_refused(s: Script) -> None:
    signal, cancel = "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION"
    refused_each(
        s,
        {
            "signal: run id": [command(signal, execution={"workflow_id": "x", "run_id": "bad"}, signal_name="go")],
            "signal: no workflow id": [command(signal, execution={"run_id": "bad"}, signal_name="go")],
            "signal: no execution": [command(signal, signal_name="go")],
            "signal: no name": [command(signal, execution={"workflow_id": "x"})],
            "signal: long workflow id": [command(signal, execution={"workflow_id": "x" * 1001}, signal_name="go")],
            "cancel: run id": [command(cancel, workflow_id="x", run_id="bad")],
            "cancel: no workflow id": [command(cancel, run_id="bad")],
            "cancel: long workflow id": [command(cancel, workflow_id="x" * 1001)],
            "cancel: of a child just started": [start_child(s), command(cancel, workflow_id=s.id("child"))],
        },
    )


@scenario("25h", "a workflow signals one that has had as many signals as one may")
def external_signal_too_many(s: Script) -> None:
    s.start("target")
    s.complete(s.poll(), s.timer(after=60))
    for number in range(SIGNALS_MAX):
        s.signal(f"signal-{number}", "target")
    s.complete(s.poll())
    s.start()
    signal = "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION"
    s.complete(s.poll(), command(signal, execution=s.execution("target"), signal_name="from outside"))
    s.complete(s.poll("refused"), s.done())
    s.terminate("target")


@scenario("6d", "a child fails")
def child_fails(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s, memo={"fields": {"m": payloads("kept").payloads[0]}}))
    tasks = tasks_by_workflow(s, 2)
    s.track("child")
    s.complete(tasks[s.id()])
    s.complete(tasks[s.id("child")], command("FAIL_WORKFLOW_EXECUTION", failure=failure("of the child")))
    s.complete(s.poll("with the child's failure"), s.done())


@scenario("6e", "a parent closes; its child is abandoned")
def child_abandoned(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s, parent_close_policy=ABANDON))
    tasks = tasks_by_workflow(s, 2)
    s.track("child")
    s.complete(tasks[s.id()], s.done())
    s.complete(tasks[s.id("child")], s.done("of the child"))


@scenario("6f", "a parent closes; its child is asked to cancel")
def child_asked_to_cancel(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s, parent_close_policy=REQUEST_CANCEL))
    tasks = tasks_by_workflow(s, 2)
    s.track("child")
    s.complete(tasks[s.id("child")])
    s.complete(tasks[s.id()], s.done())
    s.complete(s.poll("of the child"), command("CANCEL_WORKFLOW_EXECUTION", details=payloads("stopped")))


@scenario("6g", "a parent cancels its child")
def child_cancelled(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s))
    tasks = tasks_by_workflow(s, 2)
    s.track("child")
    s.complete(tasks[s.id("child")])
    s.complete(
        tasks[s.id()],
        command(
            "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION",
            workflow_id=s.id("child"),
            child_workflow_only=True,
            reason="enough",
        ),
    )
    s.wait("EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED")
    s.wait("WORKFLOW_EXECUTION_CANCEL_REQUESTED", "child")
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id()])
    s.complete(tasks[s.id("child")], command("CANCEL_WORKFLOW_EXECUTION"))
    s.complete(s.poll("child is cancelled"), s.done())


@scenario("6h", "a child continues as new; its parent hears of the last run only")
def child_continues(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s))
    tasks = tasks_by_workflow(s, 2)
    first = tasks[s.id("child")]
    s.track("child", first.workflow_execution.run_id, "child's first run")
    s.complete(tasks[s.id()])
    s.complete(first, s.timer(after=1.2))
    s.complete(s.poll(), command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", workflow_type={"name": "scripted"}))
    task = s.poll("of the child's next run")
    s.track("child", task.workflow_execution.run_id, "child's next run")
    s.complete(task, s.done("of the child"))
    s.complete(s.poll("with the child's result"), s.done())


@scenario("6i", "a child times out, another is terminated")
def child_times_out(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s, workflow_run_timeout=seconds(1)))
    s.track("child")
    s.wait("CHILD_WORKFLOW_EXECUTION_TIMED_OUT")
    s.complete(s.poll(), start_child(s, workflow_id=s.id("other")))
    s.track("other")
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED", count=2)
    s.terminate("other")
    s.wait("CHILD_WORKFLOW_EXECUTION_TERMINATED")
    s.terminate()


@scenario("6j", "pending children are described")
def children_described(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s, workflow_execution_timeout=seconds(100)))
    s.wait("CHILD_WORKFLOW_EXECUTION_STARTED")
    s.note_description("parent")
    s.note_description("child", "child")
    s.terminate()


@scenario("6k", "a child without a workflow id fails the workflow task")
def child_without_id(s: Script) -> None:
    s.start()
    s.completion_refused("completion", s.poll(), start_child(s, workflow_id=""))
    s.terminate()


@scenario("25c", "a workflow signals itself")
def signal_to_itself(s: Script) -> None:
    s.start()
    s.complete(
        s.poll(), command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=s.execution(), signal_name="to myself")
    )
    s.wait("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED")
    s.complete(s.poll("refused"), s.done())


@scenario("25d", "a workflow cancels one that does not exist, and one that is closed")
def cancel_of_nobody(s: Script) -> None:
    s.start("closed")
    s.complete(s.poll(), s.done())
    s.start()
    cancel = "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION"
    s.complete(s.poll(), command(cancel, workflow_id=s.id("nobody")))
    s.wait("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED")
    s.complete(s.poll(), command(cancel, workflow_id=s.id("closed")))
    s.complete(s.poll("answered"), s.done())


@scenario("25e", "a workflow signals one that is closed, in its own namespace by name")
def signal_to_closed(s: Script) -> None:
    s.start("closed")
    s.complete(s.poll(), s.done())
    s.start()
    signal = "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION"
    s.complete(s.poll(), command(signal, namespace=NAMESPACE, execution=s.execution("closed"), signal_name="late"))
    s.complete(s.poll("answered"), s.done())


@scenario("25f", "commands to another namespace are refused, and the task fails")
def commands_to_another_namespace(s: Script) -> None:
    other = f"other-{s.nonce}"
    s.client.call("RegisterNamespace", namespace=other, workflow_execution_retention_period=seconds(86_400))
    s.start()
    refused = {
        "child": start_child(s, namespace=other),
        "signal": command(
            "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", namespace=other, execution=s.execution("there"), signal_name="hello"
        ),
        "cancel": command("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", namespace=other, workflow_id=s.id("there")),
    }
    for label, sent in refused.items():
        s.completion_refused(label, s.poll(), sent)
        s.complete(s.poll())
        s.signal(f"after the {label}")
    s.complete(s.poll(), s.done())


@scenario("6l", "a child is retried; its parent hears of the last attempt only")
def child_retried(s: Script) -> None:
    s.start()
    policy = {"initial_interval": seconds(1), "maximum_attempts": 2}
    s.complete(s.poll(), start_child(s, retry_policy=policy))
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id()])
    s.complete(tasks[s.id("child")], command("FAIL_WORKFLOW_EXECUTION", failure=failure("first")))
    task = s.poll("second attempt")
    s.track("child", task.workflow_execution.run_id, "child's second attempt")
    s.complete(task, command("FAIL_WORKFLOW_EXECUTION", failure=failure("second")))
    s.complete(s.poll("with the child's failure"), s.done())


@scenario("6m", "a child is refused by its id policy")
def child_refused(s: Script) -> None:
    s.start("child")
    s.complete(s.poll(), s.done())
    s.start()
    rejecting = start_child(s, workflow_id_reuse_policy=workflow_pb2.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE)
    s.complete(s.poll(), rejecting)
    s.complete(s.poll("refused"), s.done())


@scenario("6n", "a child with a cron schedule")
def child_with_schedule(s: Script) -> None:
    s.start()
    s.complete(s.poll(), start_child(s, cron_schedule="@every 1s"))
    tasks = tasks_by_workflow(s, 2)
    s.complete(tasks[s.id()])
    s.complete(tasks[s.id("child")], s.done("of the child"))
    task = s.poll("second time")
    s.track("child", task.workflow_execution.run_id, "child's second time")
    s.complete(task, command("CANCEL_WORKFLOW_EXECUTION"))
    s.complete(s.poll("child is cancelled"), s.done())


@scenario("6o", "a parent that closes in the task in which it starts a child reaches nobody")
def child_of_closed(s: Script) -> None:
    s.start("target")
    s.complete(s.poll(), s.timer(after=60))
    s.start()
    s.complete(
        s.poll(),
        start_child(s, parent_close_policy=ABANDON),
        command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=s.execution("target"), signal_name="never sent"),
        command("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", workflow_id=s.id("target")),
        s.done(),
    )
    s.note("task of the child or target", bool(s.poll_once(timeout=3).task_token))
    s.refused("child", "DescribeWorkflowExecution", namespace=NAMESPACE, execution=s.execution("child"))
    s.terminate("target")


@scenario("6p", "priorities come from the parent, field by field")
def child_priorities(s: Script) -> None:
    s.start(priority={"priority_key": 2, "fairness_key": "tenant", "fairness_weight": 1.5})
    s.complete(
        s.poll(),
        start_child(s, priority={"fairness_key": "child"}),
        s.activity(priority={"priority_key": 4}),
    )
    s.track("child")
    s.note("activity", s.poll_activity())
    tasks = tasks_by_workflow(s, 2)
    s.note("child", tasks[s.id("child")])
    s.wait("WORKFLOW_TASK_STARTED", "child")  # a read brings the start of a task that is handed out into the history
    s.terminate()
    s.wait("WORKFLOW_EXECUTION_TERMINATED", "child")  # by a message: not yet there when the call returns
