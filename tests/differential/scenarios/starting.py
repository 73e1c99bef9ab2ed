"""Starting a workflow: policies for ids that are taken, request ids, and what is refused."""

from __future__ import annotations

import time
import uuid
from typing import Any

from temporalio.api.enums.v1 import workflow_pb2

from differential.scenarios import scenario
from differential.script import NAMESPACE, Script, command, failure, payload, payloads, seconds

REUSE = workflow_pb2.WorkflowIdReusePolicy.Value
CONFLICT = workflow_pb2.WorkflowIdConflictPolicy.Value


@scenario("start", "everything that a start request can carry is in the first event")
def start_fields(s: Script) -> None:
    s.start(
        input=payloads("argument"),
        header={"fields": {"trace": payload("context")}},
        memo={"fields": {"note": payload("remembered")}},
        search_attributes={"indexed_fields": {"CustomKeyword": payload("indexed")}},
        workflow_execution_timeout=seconds(300),
        workflow_run_timeout=seconds(200),
        workflow_task_timeout=seconds(7),
        user_metadata={"summary": payload("summary"), "details": payload("details")},
        priority={"priority_key": 2, "fairness_key": "tenant", "fairness_weight": 1.5},
    )
    s.note_description("open")
    s.complete(s.poll("first task"), s.done())


@scenario("start-request", "a start repeated with its request id is the same start")
def start_repeated(s: Script) -> None:
    fields = s.start_fields(request_id=s.request("same"))
    first = s.client.call("StartWorkflowExecution", **fields)
    s.track("wf", first.run_id)
    s.note("first", first)
    s.note("again", s.client.call("StartWorkflowExecution", **fields))
    s.refused("with another request id", "StartWorkflowExecution", **s.start_fields(request_id=s.request("other")))
    s.complete(s.poll(), s.done())
    s.note("again when closed", s.client.call("StartWorkflowExecution", **fields))


@scenario("start-conflict", "what the conflict policies do with a workflow that runs")
def conflict_policies(s: Script) -> None:
    s.start()
    fail = s.start_fields(workflow_id_conflict_policy=CONFLICT("WORKFLOW_ID_CONFLICT_POLICY_FAIL"))
    s.refused("fail", "StartWorkflowExecution", **fail)
    use = s.start_fields(workflow_id_conflict_policy=CONFLICT("WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING"))
    s.note("use existing", s.client.call("StartWorkflowExecution", **use))
    end = s.start_fields(workflow_id_conflict_policy=CONFLICT("WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING"))
    _wait_a_second_between_runs()
    response = s.client.call("StartWorkflowExecution", **end)
    s.note("terminate existing", response)
    s.track("wf", response.run_id, "second run")
    s.complete(s.poll("of the second run"), s.done())


@scenario("start-reuse", "what the reuse policies do with a workflow that is closed")
def reuse_policies(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.done())
    for policy in ("REJECT_DUPLICATE", "ALLOW_DUPLICATE_FAILED_ONLY"):
        _try_reuse(s, f"{policy} after success", policy)
    _try_reuse(s, "ALLOW_DUPLICATE after success", "ALLOW_DUPLICATE")
    s.complete(s.poll(), command("FAIL_WORKFLOW_EXECUTION", failure=failure("on purpose", non_retryable=True)))
    _try_reuse(s, "REJECT_DUPLICATE after failure", "REJECT_DUPLICATE")
    _try_reuse(s, "ALLOW_DUPLICATE_FAILED_ONLY after failure", "ALLOW_DUPLICATE_FAILED_ONLY")
    s.complete(s.poll(), s.done())


@scenario("start-refused", "start requests that are refused, each with its reason")
def refused_starts(s: Script) -> None:
    tries: dict[str, dict[str, Any]] = {
        "no workflow id": {"workflow_id": ""},
        "no workflow type": {"workflow_type": None},
        "no task queue": {"task_queue": None},
        "an unknown namespace": {"namespace": "nowhere"},
        "an unknown search attribute": {
            "search_attributes": {"indexed_fields": {"NeverRegistered": payload("x")}},
        },
        "a negative timeout": {"workflow_run_timeout": seconds(-1)},
        "a retry policy that shrinks": {"retry_policy": {"backoff_coefficient": 0.5}},
        "a workflow id beyond all limits": {"workflow_id": "x" * 1001},
        "a request id beyond all limits": {"request_id": "x" * 1001},
    }
    for label, fields in tries.items():
        s.refused(label, "StartWorkflowExecution", **s.start_fields(**fields))


@scenario("missing", "what is said of a workflow that does not exist, and of a run that does not")
def missing_workflow(s: Script) -> None:
    s.start(track=False)
    for label, target in (("workflow", s.execution("nobody")), ("run", s.execution(run_id=str(uuid.uuid4())))):
        ended = {"workflow_id": target.workflow_id, "run_id": target.run_id, "activity_id": "a1"}
        tries: dict[str, dict[str, Any]] = {
            "DescribeWorkflowExecution": {"execution": target},
            "GetWorkflowExecutionHistory": {"execution": target},
            "GetWorkflowExecutionHistoryReverse": {"execution": target},
            "QueryWorkflow": {"execution": target, "query": {"query_type": "state"}},
            "ResetStickyTaskQueue": {"execution": target},
            "ResetActivity": {"execution": target, "id": "a1"},
            "SignalWorkflowExecution": {"workflow_execution": target, "signal_name": "go"},
            "RequestCancelWorkflowExecution": {"workflow_execution": target},
            "TerminateWorkflowExecution": {"workflow_execution": target},
            "DeleteWorkflowExecution": {"workflow_execution": target},
            "ResetWorkflowExecution": {
                "workflow_execution": target,
                "request_id": s.request("reset"),
                "workflow_task_finish_event_id": 3,
            },
            "UpdateWorkflowExecution": {
                "workflow_execution": target,
                "request": {"meta": {"update_id": "u1"}, "input": {"name": "change"}},
            },
            "PollWorkflowExecutionUpdate": {"update_ref": {"workflow_execution": target, "update_id": "u1"}},
            "RespondActivityTaskCompletedById": ended,
            "RecordActivityTaskHeartbeatById": ended,
        }
        for method, fields in tries.items():
            s.refused(f"{label}: {method}", method, namespace=NAMESPACE, **fields)
    for method in ("RespondWorkflowTaskCompleted", "RespondActivityTaskCompleted"):
        s.refused(method, method, namespace=NAMESPACE, task_token=b"")
    s.refused(
        "a run id that is none",
        "DescribeWorkflowExecution",
        namespace=NAMESPACE,
        execution={"workflow_id": s.id(), "run_id": "not-a-uuid"},
    )


def _try_reuse(s: Script, label: str, policy: str) -> None:
    fields = s.start_fields(workflow_id_reuse_policy=REUSE(f"WORKFLOW_ID_REUSE_POLICY_{policy}"))
    try:
        response = s.client.call("StartWorkflowExecution", **fields)
    except AssertionError as error:
        s.note(label, str(error))
        return
    s.note(label, response)
    s.track("wf", response.run_id, f"run {label}")


def _wait_a_second_between_runs() -> None:
    """The real server refuses to replace a workflow within a second of its start."""
    time.sleep(1.2)


@scenario("start-answers", "what starts of one id are answered: again, existing, with a signal, with an update")
def start_answers(s: Script) -> None:
    fields = s.start_fields()
    s.note("first", s.client.call("StartWorkflowExecution", **fields))
    s.track("wf")
    s.note("its request again", s.client.call("StartWorkflowExecution", **fields))
    use = s.start_fields(workflow_id_conflict_policy=CONFLICT("WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING"))
    s.note("existing", s.client.call("StartWorkflowExecution", **use))
    s.note("with a signal", s.client.call("SignalWithStartWorkflowExecution", **_with_signal(s)))
    s.complete(s.poll(), _continue_as_new(s))
    s.note("existing, the second run", s.client.call("StartWorkflowExecution", **use))
    s.note("with a signal, the second run", s.client.call("SignalWithStartWorkflowExecution", **_with_signal(s)))
    s.refused("refused, the second run", "StartWorkflowExecution", **s.start_fields())
    s.refused("its request again, the second run", "StartWorkflowExecution", **fields)
    s.terminate()
    s.note("another, after the end", s.client.call("StartWorkflowExecution", **s.start_fields()))
    s.note("existing, the third run", s.client.call("StartWorkflowExecution", **use))
    s.terminate()


@scenario("start-answers-closed", "a start is asked for again when its workflow has closed")
def start_answers_closed(s: Script) -> None:
    fields = s.start_fields()
    s.note("first", s.client.call("StartWorkflowExecution", **fields))
    s.complete(s.poll(), s.done())
    s.note("its request again", s.client.call("StartWorkflowExecution", **fields))
    s.refused(
        "another",
        "StartWorkflowExecution",
        **s.start_fields(workflow_id_reuse_policy="WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE"),
    )
    s.note("with a signal", s.client.call("SignalWithStartWorkflowExecution", **_with_signal(s)))
    s.note("with another signal", s.client.call("SignalWithStartWorkflowExecution", **_with_signal(s)))
    s.track("wf")
    s.terminate()


def _with_signal(s: Script) -> dict[str, Any]:
    return {**s.start_fields(), "signal_name": "go", "signal_input": payloads("of go")}


def _continue_as_new(s: Script) -> Any:
    return command(
        "CONTINUE_AS_NEW_WORKFLOW_EXECUTION",
        workflow_type={"name": "scripted"},
        task_queue={"name": s.queue},
        workflow_task_timeout=seconds(10),
        workflow_run_timeout=seconds(60),
    )
