"""Requests that are refused before anything is produced: (method, request fields, code, text) as a real server answers.

The same table is put to a real Temporal server by `test_refusals.py` where one can be run.
"""

from __future__ import annotations

from typing import Any

from everfold.kernel.errors import Code

NS = "default"
RUN = {"workflow_id": "w"}
QUEUE = {"name": "q"}
TYPE = {"name": "t"}
LONG = "x" * 1001
BIG = {"payloads": [{"data": b"1" * 2_200_000}]}

BAD = Code.INVALID_ARGUMENT

START: dict[str, Any] = {"namespace": NS, "workflow_id": "w", "workflow_type": TYPE, "task_queue": QUEUE}
SIGNAL_START: dict[str, Any] = {**START, "signal_name": "s"}
SIGNAL: dict[str, Any] = {"namespace": NS, "workflow_execution": RUN, "signal_name": "s"}

UPDATE: dict[str, Any] = {
    "namespace": NS,
    "workflow_execution": RUN,
    "request": {"meta": {"update_id": "u"}, "input": {"name": "change"}},
}
RESET: dict[str, Any] = {
    "namespace": NS,
    "workflow_execution": RUN,
    "request_id": "r",
    "workflow_task_finish_event_id": 4,
}


def update_with_start(start: dict[str, Any] | None = None, update: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields of an ExecuteMultiOperation, some of its operations' replaced."""
    operations = [{"start_workflow": {**START, **(start or {})}}, {"update_workflow": {**UPDATE, **(update or {})}}]
    return {"namespace": NS, "operations": operations}


MULTI = "ExecuteMultiOperation"
NOT_BOTH = "Operations have to be exactly [Start, Update]."
NOT_DONE = "Update-with-Start could not be executed."

_NO_UUID = "RunId is not valid UUID."

REFUSALS: list[tuple[str, dict[str, Any], Code, str]] = [
    ("StartWorkflowExecution", {**START, "namespace": "nope"}, Code.NOT_FOUND, "Namespace nope is not found."),
    ("StartWorkflowExecution", {**START, "workflow_id": ""}, BAD, "WorkflowId is not set on request."),
    (
        "StartWorkflowExecution",
        {**START, "workflow_id": LONG},
        BAD,
        "WorkflowId exceeds maximum allowed length (1001/1000)",
    ),
    ("StartWorkflowExecution", {**START, "workflow_type": {}}, BAD, "WorkflowType is not set on request."),
    ("StartWorkflowExecution", {**START, "workflow_type": {"name": LONG}}, BAD, "WorkflowType length exceeds limit."),
    ("StartWorkflowExecution", {**START, "task_queue": None}, BAD, "taskQueue is not set"),
    ("StartWorkflowExecution", {**START, "task_queue": {}}, BAD, "missing task queue name"),
    ("StartWorkflowExecution", {**START, "task_queue": {"name": LONG}}, BAD, "taskQueue length exceeds limit"),
    (
        "StartWorkflowExecution",
        {**START, "task_queue": {"name": "/_sys/q/1"}},
        BAD,
        "task queue name cannot start with reserved prefix /_sys/",
    ),
    (
        "StartWorkflowExecution",
        {**START, "workflow_run_timeout": {"seconds": -1}},
        BAD,
        "An invalid WorkflowRunTimeoutSeconds is set on request. cause: negative duration",
    ),
    (
        "StartWorkflowExecution",
        {**START, "workflow_execution_timeout": {"nanos": -1}},
        BAD,
        "An invalid WorkflowExecutionTimeoutSeconds is set on request. cause: negative duration",
    ),
    ("StartWorkflowExecution", {**START, "request_id": LONG}, BAD, "RequestId length exceeds limit."),
    (
        "StartWorkflowExecution",
        {**START, "retry_policy": {"backoff_coefficient": 0.5}},
        BAD,
        "BackoffCoefficient cannot be less than 1 on retry policy.",
    ),
    (
        "StartWorkflowExecution",
        {**START, "retry_policy": {"initial_interval": {"seconds": 10}, "maximum_interval": {"seconds": 1}}},
        BAD,
        "MaximumInterval cannot be less than InitialInterval on retry policy.",
    ),
    (
        "StartWorkflowExecution",
        {**START, "retry_policy": {"maximum_attempts": -1}},
        BAD,
        "MaximumAttempts cannot be negative on retry policy.",
    ),
    (
        "StartWorkflowExecution",
        {**START, "workflow_id_reuse_policy": 4, "workflow_id_conflict_policy": 2},
        BAD,
        "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot be used together with a "
        "WorkflowIDConflictPolicy",
    ),
    (
        "StartWorkflowExecution",
        {**START, "workflow_id_reuse_policy": 3, "workflow_id_conflict_policy": 3},
        BAD,
        "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be used together with "
        "WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING",
    ),
    (
        "StartWorkflowExecution",
        {**START, "search_attributes": {"indexed_fields": {"Foo": {"data": b"1"}}}},
        BAD,
        "Namespace default has no mapping defined for search attribute Foo",
    ),
    (
        "StartWorkflowExecution",
        {**START, "search_attributes": {"indexed_fields": {"RunId": {"data": b'"r"'}}}},
        BAD,
        "RunId attribute can't be set in SearchAttributes",
    ),
    ("StartWorkflowExecution", {**START, "priority": {"priority_key": -1}}, BAD, "priority key can't be negative"),
    (
        "StartWorkflowExecution",
        {**START, "priority": {"fairness_key": "k" * 65}},
        BAD,
        "fairness key length exceeds limit",
    ),
    ("StartWorkflowExecution", {**START, "input": BIG}, BAD, "Blob data size exceeds limit."),
    (
        "StartWorkflowExecution",
        {**START, "memo": {"fields": {"m": {"data": b"1" * 2_200_000}}}},
        BAD,
        "Memo size exceeds limit.",
    ),
    (
        "StartWorkflowExecution",
        {**START, "workflow_start_delay": {"seconds": -1}},
        BAD,
        "An invalid WorkflowStartDelaySeconds is set on request. cause: negative duration",
    ),
    (
        "StartWorkflowExecution",
        {**START, "workflow_start_delay": {"seconds": 1}, "cron_schedule": "* * * * *"},
        BAD,
        "CronSchedule and WorkflowStartDelay may not be used together.",
    ),
    ("StartWorkflowExecution", {**START, "cron_schedule": "61 * * * *"}, BAD, "invalid CronSchedule."),
    (
        "StartWorkflowExecution",
        {**START, "cron_schedule": "0 0 30 2 *"},
        BAD,
        "invalid CronSchedule, no time can be found to satisfy the schedule",
    ),
    ("StartWorkflowExecution", {**START, "cron_schedule": "CRON_TZ=No/Where 1 * * * *"}, BAD, "invalid CronSchedule."),
    ("SignalWithStartWorkflowExecution", {**SIGNAL_START, "signal_name": ""}, BAD, "signal not set"),
    (
        "SignalWithStartWorkflowExecution",
        {**SIGNAL_START, "workflow_start_delay": {"seconds": -1}},
        BAD,
        "An invalid WorkflowStartDelaySeconds is set on request. cause: negative duration",
    ),
    ("SignalWithStartWorkflowExecution", {**SIGNAL_START, "workflow_type": {}}, BAD, "workflow type not set"),
    (
        "SignalWithStartWorkflowExecution",
        {**SIGNAL_START, "signal_name": LONG},
        BAD,
        "signal name exceeds maximum allowed length (1001/1000)",
    ),
    (
        "SignalWithStartWorkflowExecution",
        {**SIGNAL_START, "workflow_id_conflict_policy": 1},
        BAD,
        "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is not supported for this operation.",
    ),
    ("SignalWorkflowExecution", {"namespace": NS}, BAD, "Execution is not set on request."),
    (
        "SignalWorkflowExecution",
        {**SIGNAL, "workflow_execution": {"run_id": ""}},
        BAD,
        "WorkflowId is not set on request.",
    ),
    (
        "SignalWorkflowExecution",
        {**SIGNAL, "workflow_execution": {**RUN, "run_id": "zz"}},
        BAD,
        "Invalid RunId.",
    ),
    ("SignalWorkflowExecution", {**SIGNAL, "signal_name": ""}, BAD, "SignalName is not set on request."),
    ("SignalWorkflowExecution", {**SIGNAL, "signal_name": LONG}, BAD, "SignalName length exceeds limit."),
    ("SignalWorkflowExecution", {**SIGNAL, "request_id": LONG}, BAD, "RequestId length exceeds limit."),
    ("SignalWorkflowExecution", {**SIGNAL, "input": BIG}, BAD, "Blob data size exceeds limit."),
    ("RequestCancelWorkflowExecution", {"namespace": NS}, BAD, "Execution is not set on request."),
    ("TerminateWorkflowExecution", {"namespace": NS}, BAD, "Execution is not set on request."),
    ("UpdateWorkflowExecution", {**UPDATE, "namespace": "nope"}, Code.NOT_FOUND, "Namespace nope is not found."),
    ("UpdateWorkflowExecution", {"namespace": NS}, BAD, "Execution is not set on request."),
    ("UpdateWorkflowExecution", {**UPDATE, "workflow_execution": {**RUN, "run_id": "zz"}}, BAD, "Invalid RunId."),
    ("UpdateWorkflowExecution", {**UPDATE, "request": None}, BAD, "Update meta is not set on request."),
    (
        "UpdateWorkflowExecution",
        {**UPDATE, "request": {"meta": {"update_id": LONG}}},
        BAD,
        "UpdateId length exceeds limit.",
    ),
    ("UpdateWorkflowExecution", {**UPDATE, "request": {"meta": {}}}, BAD, "Update input is not set on request."),
    (
        "UpdateWorkflowExecution",
        {**UPDATE, "request": {"meta": {}, "input": {}}},
        BAD,
        "Update name is not set on request.",
    ),
    (
        "UpdateWorkflowExecution",
        {**UPDATE, "wait_policy": {"lifecycle_stage": 1}},
        Code.PERMISSION_DENIED,
        "UpdateWorkflowExecution issued asynchronously and waiting on update admitted is not supported.",
    ),
    ("PollWorkflowExecutionUpdate", {"namespace": NS}, BAD, "UpdateRef is not set on request."),
    (
        "PollWorkflowExecutionUpdate",
        {"namespace": NS, "update_ref": {"update_id": "u"}},
        BAD,
        "Can't load workflow execution.  WorkflowId not set.",
    ),
    (
        "PollWorkflowExecutionUpdate",
        {"namespace": NS, "update_ref": {"workflow_execution": {**RUN, "run_id": "zz"}, "update_id": "u"}},
        BAD,
        _NO_UUID,
    ),
    (MULTI, {**update_with_start(), "namespace": "nope"}, Code.NOT_FOUND, "Namespace nope is not found."),
    (MULTI, {"namespace": NS}, BAD, NOT_BOTH),
    (MULTI, {"namespace": NS, "operations": [{"start_workflow": START}]}, BAD, NOT_BOTH),
    (MULTI, {"namespace": NS, "operations": [{"update_workflow": UPDATE}, {"start_workflow": START}]}, BAD, NOT_BOTH),
    (MULTI, update_with_start({"namespace": "other"}), BAD, NOT_DONE),
    (MULTI, update_with_start({"cron_schedule": "* * * * *"}), BAD, NOT_DONE),
    (MULTI, update_with_start({"request_eager_execution": True}), BAD, NOT_DONE),
    (MULTI, update_with_start({"workflow_start_delay": {"seconds": 1}}), BAD, NOT_DONE),
    (MULTI, update_with_start({}, {"workflow_execution": {"workflow_id": "other"}}), BAD, NOT_DONE),
    (MULTI, update_with_start({}, {"wait_policy": {"lifecycle_stage": 1}}), Code.PERMISSION_DENIED, NOT_DONE),
    ("ResetWorkflowExecution", {**RESET, "namespace": "nope"}, Code.NOT_FOUND, "Namespace nope is not found."),
    ("ResetWorkflowExecution", {**RESET, "request_id": ""}, BAD, "RequestId is not set on request."),
    ("ResetWorkflowExecution", {**RESET, "request_id": LONG}, BAD, "RequestId length exceeds limit."),
    ("ResetWorkflowExecution", {**RESET, "workflow_execution": None}, BAD, "Execution is not set on request."),
    ("ResetWorkflowExecution", {**RESET, "workflow_execution": {**RUN, "run_id": "zz"}}, BAD, "Invalid RunId."),
    ("ResetActivity", {"namespace": NS, "id": "a"}, BAD, "WorkflowId is not set on request."),
    (
        "ResetActivity",
        {"namespace": NS, "execution": RUN},
        BAD,
        "Either Activity.Id or Activity.Type should be set on request.",
    ),
    ("ResetActivityExecution", {"namespace": NS, "workflow_id": "w"}, BAD, "activity ID is required"),
    (
        "ResetActivityExecution",
        {"namespace": NS, "workflow_id": "w", "activity_id": LONG},
        BAD,
        f"activity ID exceeds length limit. Length={len(LONG)} Limit=1000",
    ),
    (
        "ResetActivityExecution",
        {"namespace": NS, "workflow_id": "w", "activity_id": "1", "run_id": "zz"},
        BAD,
        "invalid run id: must be a valid UUID",
    ),
    (
        "ResetActivityExecution",
        {"namespace": NS, "workflow_id": "w", "activity_id": "1", "jitter": {"seconds": -1}},
        BAD,
        "invalid jitter: negative duration",
    ),
    ("DeleteWorkflowExecution", {"namespace": NS}, BAD, "Execution is not set on request."),
    (
        "DeleteWorkflowExecution",
        {"namespace": NS, "workflow_execution": {**RUN, "run_id": "zz"}},
        BAD,
        "Invalid RunId.",
    ),
    ("DescribeWorkflowExecution", {"namespace": NS}, BAD, "Execution is not set on request."),
    ("GetWorkflowExecutionHistory", {"namespace": NS}, BAD, "Execution is not set on request."),
    ("GetWorkflowExecutionHistoryReverse", {"namespace": NS}, BAD, "Execution is not set on request."),
    ("ResetStickyTaskQueue", {"namespace": NS}, BAD, "Execution is not set on request."),
    ("QueryWorkflow", {"namespace": NS}, BAD, "Execution is not set on request."),
    ("QueryWorkflow", {"namespace": NS, "execution": RUN}, BAD, "WorkflowQuery is not set on request."),
    ("QueryWorkflow", {"namespace": NS, "execution": RUN, "query": {}}, BAD, "QueryType is not set on request."),
    ("PollWorkflowTaskQueue", {"namespace": NS, "task_queue": {}}, BAD, "missing task queue name"),
    ("PollActivityTaskQueue", {"namespace": NS}, BAD, "taskQueue is not set"),
    (
        "PollWorkflowTaskQueue",
        {"namespace": NS, "task_queue": QUEUE, "identity": LONG},
        BAD,
        "Identity length exceeds limit.",
    ),
    ("RespondWorkflowTaskCompleted", {"namespace": NS}, BAD, "Task token not set on request."),
    (
        "RespondWorkflowTaskCompleted",
        {"namespace": NS, "task_token": b"xxx"},
        BAD,
        "Error deserializing task token.",
    ),
    ("RespondWorkflowTaskFailed", {"task_token": b"xxx"}, BAD, "Error deserializing task token."),
    ("RespondActivityTaskCompleted", {"task_token": b"xxx"}, BAD, "Error deserializing task token."),
    ("RespondActivityTaskFailed", {"task_token": b"xxx"}, BAD, "Error deserializing task token."),
    ("RespondActivityTaskCanceled", {"task_token": b"xxx"}, BAD, "Error deserializing task token."),
    ("RecordActivityTaskHeartbeat", {"task_token": b"xxx"}, BAD, "Error deserializing task token."),
    ("RespondQueryTaskCompleted", {"task_token": b"xxx"}, BAD, "Error deserializing task token."),
    ("RespondActivityTaskCompletedById", {"namespace": NS}, BAD, "ActivityId is not set on request."),
    ("RespondActivityTaskFailedById", {"namespace": NS}, BAD, "ActivityId is not set on request."),
    ("RespondActivityTaskCanceledById", {"namespace": NS}, BAD, "ActivityId is not set on request."),
    ("RecordActivityTaskHeartbeatById", {"namespace": NS}, BAD, "ActivityId is not set on request."),
    *(
        (method, {"namespace": NS, "workflow_id": "w", "run_id": "zz", "activity_id": "a"}, BAD, _NO_UUID)
        for method in (
            "RespondActivityTaskCompletedById",
            "RespondActivityTaskFailedById",
            "RespondActivityTaskCanceledById",
            "RecordActivityTaskHeartbeatById",
        )
    ),
    ("DescribeTaskQueue", {"namespace": NS}, BAD, "taskQueue is not set"),
    ("DescribeNamespace", {"namespace": "nope"}, Code.NOT_FOUND, "Namespace nope is not found."),
    ("DescribeNamespace", {}, BAD, "Namespace not set on request."),
    ("RegisterNamespace", {"namespace": "n1"}, BAD, "A valid retention period is not set on request."),
    (
        "RegisterNamespace",
        {"namespace": "n1", "workflow_execution_retention_period": {"seconds": 3_599}},
        BAD,
        "A valid retention period is not set on request.",
    ),
    (
        "RegisterNamespace",
        {"namespace": "g", "is_global_namespace": True, "workflow_execution_retention_period": {"seconds": 86_400}},
        BAD,
        "Cannot register global namespace when not enabled",
    ),
    ("UpdateNamespace", {"namespace": "nope"}, Code.NOT_FOUND, "Namespace nope is not found."),
    (
        "UpdateNamespace",
        {"namespace": NS, "config": {"workflow_execution_retention_ttl": {"seconds": 1}}},
        BAD,
        "A valid retention period is not set on request.",
    ),
    ("ListSearchAttributes", {}, BAD, "Namespace is not set on request."),
    ("AddSearchAttributes", {"namespace": NS}, BAD, "SearchAttributes are not set on request."),
    (
        "AddSearchAttributes",
        {"namespace": NS, "search_attributes": {"TemporalOwn": 2}},
        BAD,
        "Search attribute TemporalOwn is reserved by system.",
    ),
    (
        "AddSearchAttributes",
        {"namespace": NS, "search_attributes": {"RunId": 2}},
        BAD,
        "Search attribute RunId is reserved by system.",
    ),
    (
        "AddSearchAttributes",
        {"namespace": NS, "search_attributes": {"C2": 77}},
        BAD,
        "Unknown search attribute type: 77.",
    ),
    (
        "AddSearchAttributes",
        {"namespace": NS, "search_attributes": {"C2": 0}},
        BAD,
        "Unable to create search attributes: cannot have more than 0 search attribute of type Unspecified.",
    ),
    ("RemoveSearchAttributes", {"namespace": NS}, BAD, "SearchAttributes are not set on request."),
    (
        "RemoveSearchAttributes",
        {"namespace": NS, "search_attributes": ["RunId"]},
        BAD,
        "Unable to remove non-custom search attributes: RunId.",
    ),
    ("PauseActivity", {}, Code.UNIMPLEMENTED, ""),
    ("PauseActivityExecution", {}, Code.UNIMPLEMENTED, ""),
    ("UpdateActivityExecutionOptions", {}, Code.UNIMPLEMENTED, ""),
    ("CreateSchedule", {}, Code.UNIMPLEMENTED, ""),
]
