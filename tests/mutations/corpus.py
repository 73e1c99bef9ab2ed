"""Valid requests for the methods of Temporal's two services, and what is known of the server that they are sent to.

A method that has no line here gets the names of things that exist, wherever its request has room for one.
"""

from __future__ import annotations

import base64
import uuid
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

HIT: Final = "hit"
"""The namespace that is meant."""

VICTIM: Final = "victim"
"""The namespace that calls on namespaces may change, deprecate and delete."""

QUEUE: Final = "queue"

ATTRIBUTES: Final = {
    "AText": "Text",
    "AKeyword": "Keyword",
    "AnInt": "Int",
    "ADouble": "Double",
    "ABool": "Bool",
    "ADatetime": "Datetime",
    "AList": "KeywordList",
}

METHODS: Final[dict[str, MethodDescriptor]] = {
    method.name: method
    for service in (
        workflow_service.DESCRIPTOR.services_by_name["WorkflowService"],
        operator_service.DESCRIPTOR.services_by_name["OperatorService"],
    )
    for method in service.methods
}

WAITING: Final = frozenset(("PollWorkflowTaskQueue", "PollActivityTaskQueue", "PollNexusTaskQueue"))
"""Methods that wait for work: asked as often as there may be some."""

Fields = dict[str, Any]


class World:
    """What a caller knows of the server: the latest runs and the tasks that it has been given."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.workflows: deque[str] = deque(["none"], maxlen=40)
        self.runs: deque[tuple[str, str]] = deque(maxlen=40)
        self.tasks: deque[Any] = deque(maxlen=40)
        self.activities: deque[Any] = deque(maxlen=40)

    def workflow(self) -> str:
        """A workflow of late."""
        return self.random.choice(self.workflows)

    def execution(self) -> Fields:
        """One of late, sometimes with its run."""
        if self.runs and self.random.random() < 0.3:
            workflow_id, run_id = self.random.choice(self.runs)
            return {"workflow_id": workflow_id, "run_id": run_id}
        return {"workflow_id": self.workflow()}

    def learn(self, method: str, request: Any, answer: Any) -> None:
        """Keeps of an answer what later requests can name."""
        if method in ("StartWorkflowExecution", "SignalWithStartWorkflowExecution") and answer.run_id:
            self.workflows.append(request.workflow_id)
            self.runs.append((request.workflow_id, answer.run_id))
        elif method == "PollWorkflowTaskQueue" and answer.task_token:
            self.tasks.append(answer)
        elif method == "PollActivityTaskQueue" and answer.task_token:
            self.activities.append(answer)

    def task_token(self) -> bytes:
        """Of a workflow task that nobody has answered."""
        return self.tasks.popleft().task_token if self.tasks else b"none"

    def activity_token(self) -> bytes:
        """Of an activity task, which a heartbeat leaves where it is."""
        return self.random.choice(self.activities).task_token if self.activities else b"none"


def request(method: str, world: World) -> Message:
    """A valid request for a method."""
    fields = {"namespace": HIT, **(MADE[method](world) if method in MADE else {})}
    message_class = message_factory.GetMessageClass(METHODS[method].input_type)
    known = message_class.DESCRIPTOR.fields_by_name
    message = message_class()
    return ParseDict({name: value for name, value in fields.items() if name in known}, message)


# ParseDict reads JSON, in which bytes are Base64.
def _payload(text: str) -> Fields:
    return {"metadata": {"encoding": _base64(b"json/plain")}, "data": _base64(text.encode())}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _payloads() -> Fields:
    return {"payloads": [_payload('"hello"')]}


_VALUES: Final = {
    "AText": '"some words"',
    "AKeyword": '"word"',
    "AnInt": "7",
    "ADouble": "1.5",
    "ABool": "true",
    "ADatetime": '"2026-01-02T03:04:05Z"',
    "AList": '["a", "b"]',
}


def _attributes(world: World) -> Fields:
    return {"indexed_fields": {name: _payload(_VALUES[name]) for name in world.random.sample(sorted(_VALUES), 2)}}


def _failure() -> Fields:
    info = {"type": "Bad", "details": _payloads(), "next_retry_delay": "0.05s"}
    cause = {"message": "because", "application_failure_info": {"type": "Worse"}}
    return {"message": "failed", "source": "test", "cause": cause, "application_failure_info": info}


_RETRY: Final = {
    "initial_interval": "0.05s",
    "backoff_coefficient": 1.5,
    "maximum_interval": "1s",
    "maximum_attempts": 3,
}


def _options(world: World) -> Fields:
    return {
        "workflow_id": f"w-{world.random.getrandbits(48):012x}",
        "workflow_type": {"name": "Order"},
        "task_queue": {"name": QUEUE},
        "input": _payloads(),
        "identity": "caller",
        "request_id": str(uuid.UUID(int=world.random.getrandbits(128), version=4)),
        "workflow_execution_timeout": "60s",
        "workflow_run_timeout": "50s",
        "workflow_task_timeout": "2s",
        "retry_policy": _RETRY,
        "memo": {"fields": {"note": _payload('"memo"')}},
        "search_attributes": _attributes(world),
        "header": {"fields": {"trace": _payload('"header"')}},
        "priority": {"priority_key": 2, "fairness_key": "f", "fairness_weight": 2},
        "user_metadata": {"summary": _payload('"summary"')},
        **({"cron_schedule": "* * * * *"} if world.random.random() < 0.1 else {}),
        **({"workflow_start_delay": "1s"} if world.random.random() < 0.05 else {}),
    }


def _commands(world: World) -> list[Fields]:
    name = f"{world.random.getrandbits(32):x}"
    queue = {"task_queue": {"name": QUEUE}}
    options = {"workflow_type": {"name": "Order"}, **queue, "input": _payloads(), "workflow_run_timeout": "20s"}
    other = {"execution": world.execution(), "namespace": HIT}
    commands: dict[str, Fields] = {
        "SCHEDULE_ACTIVITY_TASK": {
            **queue, "activity_id": name, "activity_type": {"name": "act"}, "input": _payloads(),
            "retry_policy": _RETRY, "start_to_close_timeout": "5s", "schedule_to_close_timeout": "20s",
            "heartbeat_timeout": "4s",
        },
        "REQUEST_CANCEL_ACTIVITY_TASK": {"scheduled_event_id": 5},
        "START_TIMER": {"timer_id": name, "start_to_fire_timeout": "0.2s"},
        "CANCEL_TIMER": {"timer_id": name},
        "RECORD_MARKER": {"marker_name": "mark", "details": {"data": _payloads()}, "failure": _failure()},
        "START_CHILD_WORKFLOW_EXECUTION": {
            **options, "workflow_id": f"child-{name}", "parent_close_policy": 2, "retry_policy": _RETRY,
        },
        "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION": {**other, "signal_name": "go", "input": _payloads()},
        "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION": {
            "namespace": HIT, "workflow_id": world.workflow(), "reason": "why",
        },
        "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES": {"search_attributes": _attributes(world)},
        "MODIFY_WORKFLOW_PROPERTIES": {"upserted_memo": {"fields": {"note": _payload('"other"')}}},
    }  # fmt: skip
    closing: dict[str, Fields] = {
        "COMPLETE_WORKFLOW_EXECUTION": {"result": _payloads()},
        "FAIL_WORKFLOW_EXECUTION": {"failure": _failure()},
        "CANCEL_WORKFLOW_EXECUTION": {"details": _payloads()},
        "CONTINUE_AS_NEW_WORKFLOW_EXECUTION": {**options, "retry_policy": _RETRY, "backoff_start_interval": "0.1s"},
    }
    chosen = world.random.sample(sorted(commands), 2)
    if world.random.random() < 0.5:
        chosen.append(world.random.choice(sorted(closing)))
    return [
        {
            "command_type": f"COMMAND_TYPE_{kind}",
            _attributes_field(kind): {**commands, **closing}[kind],
            "user_metadata": {"summary": _payload('"summary"')},
        }
        for kind in chosen
    ]


def _attributes_field(kind: str) -> str:
    name = kind.lower()
    return (
        "modify_workflow_properties_command_attributes" if kind.startswith("MODIFY") else f"{name}_command_attributes"
    )


def _completion(world: World) -> Fields:
    return {
        "task_token": _base64(world.task_token()),
        "identity": "worker",
        "commands": _commands(world),
        "sticky_attributes": {
            "worker_task_queue": {"name": "sticky", "kind": 2, "normal_name": QUEUE},
            "schedule_to_start_timeout": "0.3s",
        },
        "sdk_metadata": {"sdk_name": "test", "sdk_version": "1"},
        "worker_version_stamp": {"build_id": "b"},
        "binary_checksum": "b",
    }


def _answer(world: World) -> Fields:
    return {"task_token": _base64(world.activity_token()), "identity": "worker"}


def _by_id(world: World) -> Fields:
    return {**world.execution(), "activity_id": "none", "identity": "worker"}


def _poll(world: World) -> Fields:
    return {
        "task_queue": {"name": QUEUE, "kind": 1},
        "identity": "worker",
        "worker_version_capabilities": {"build_id": "b"},
    }


def _update(world: World) -> Fields:
    return {
        "workflow_execution": world.execution(),
        "wait_policy": {"lifecycle_stage": 2},
        "request": {
            "meta": {"update_id": f"u-{world.random.getrandbits(32):x}", "identity": "caller"},
            "input": {"name": "set", "args": _payloads()},
        },
    }


def _query(world: World) -> str:
    return world.random.choice(
        [
            "",
            f"WorkflowId = '{world.workflow()}'",
            "AnInt > 3 AND ADouble < 2.5",
            "ADatetime BETWEEN '2020-01-01T00:00:00Z' AND '2030-01-01T00:00:00Z'",
            "ExecutionStatus = 'Running' AND AKeyword IN ('word', 'x')",
            "AList = 'a' OR NOT ABool = true",
            "StartTime > '2020-01-01T00:00:00Z' AND WorkflowType STARTS_WITH 'Or'",
        ]
    )


def _signal(world: World) -> Fields:
    return {
        "workflow_execution": world.execution(), "signal_name": "go", "input": _payloads(), "identity": "caller",
        "request_id": f"s-{world.random.getrandbits(48):x}", "header": {"fields": {"trace": _payload('"header"')}},
    }  # fmt: skip


def _read(world: World) -> Fields:
    return {"execution": world.execution(), "maximum_page_size": 5}


MADE: Final[dict[str, Callable[[World], Fields]]] = {
    "StartWorkflowExecution": _options,
    "SignalWithStartWorkflowExecution": lambda world: {
        **_options(world), "signal_name": "go", "signal_input": _payloads(),
    },
    "ExecuteMultiOperation": lambda world: {
        "operations": [
            {"start_workflow": {**(start := _options(world)), "namespace": HIT, "workflow_id_conflict_policy": 2,
                                "cron_schedule": "", "workflow_start_delay": "0s"}},
            {"update_workflow": {**_update(world), "namespace": HIT,
                                 "workflow_execution": {"workflow_id": start["workflow_id"]}}},
        ]
    },
    "SignalWorkflowExecution": _signal,
    "RequestCancelWorkflowExecution": lambda world: {
        "workflow_execution": world.execution(), "identity": "caller", "reason": "why", "request_id": "c",
    },
    "TerminateWorkflowExecution": lambda world: {
        "workflow_execution": world.execution(), "identity": "caller", "reason": "why", "details": _payloads(),
    },
    "DeleteWorkflowExecution": lambda world: {"workflow_execution": world.execution()},
    "ResetWorkflowExecution": lambda world: {
        "workflow_execution": world.execution(), "reason": "why", "workflow_task_finish_event_id": 4,
        "request_id": f"r-{world.random.getrandbits(48):x}", "reset_reapply_type": 1, "identity": "caller",
    },
    "UpdateWorkflowExecution": _update,
    "PollWorkflowExecutionUpdate": lambda world: {
        "update_ref": {"workflow_execution": world.execution(), "update_id": "u"}, "identity": "caller",
        "wait_policy": {"lifecycle_stage": 2},
    },
    "DescribeWorkflowExecution": _read,
    "GetWorkflowExecutionHistory": _read,
    "GetWorkflowExecutionHistoryReverse": _read,
    "QueryWorkflow": lambda world: {
        "execution": world.execution(), "query": {"query_type": "get", "query_args": _payloads()},
        "query_reject_condition": 1,
    },
    "PollWorkflowTaskQueue": _poll,
    "PollActivityTaskQueue": lambda world: {**_poll(world), "task_queue_metadata": {"max_tasks_per_second": 1e5}},
    "RespondWorkflowTaskCompleted": _completion,
    "RespondWorkflowTaskFailed": lambda world: {
        "task_token": _base64(world.task_token()), "cause": 24, "failure": _failure(), "identity": "worker",
    },
    "RespondQueryTaskCompleted": lambda world: {
        "task_token": _base64(world.task_token()), "completed_type": 1, "query_result": _payloads(),
    },
    "RespondActivityTaskCompleted": lambda world: {**_answer(world), "result": _payloads()},
    "RespondActivityTaskFailed": lambda world: {
        **_answer(world), "failure": _failure(), "last_heartbeat_details": _payloads(),
    },
    "RespondActivityTaskCanceled": lambda world: {**_answer(world), "details": _payloads()},
    "RecordActivityTaskHeartbeat": lambda world: {**_answer(world), "details": _payloads()},
    "RespondActivityTaskCompletedById": lambda world: {**_by_id(world), "result": _payloads()},
    "RespondActivityTaskFailedById": lambda world: {**_by_id(world), "failure": _failure()},
    "RespondActivityTaskCanceledById": lambda world: {**_by_id(world), "details": _payloads()},
    "RecordActivityTaskHeartbeatById": lambda world: {**_by_id(world), "details": _payloads()},
    "ResetActivity": lambda world: {
        "execution": world.execution(), "match_all": True, "reset_heartbeat": True, "jitter": "0.1s",
    },
    "ResetStickyTaskQueue": lambda world: {"execution": world.execution()},
    "ShutdownWorker": lambda world: {"sticky_task_queue": "sticky", "identity": "worker", "reason": "why"},
    "DescribeTaskQueue": lambda world: {"task_queue": {"name": QUEUE}, "task_queue_type": 1, "report_stats": True},
    "ListWorkflowExecutions": lambda world: {"query": _query(world), "page_size": 3},
    "ScanWorkflowExecutions": lambda world: {"query": _query(world), "page_size": 3},
    "CountWorkflowExecutions": lambda world: {"query": _query(world)},
    "RegisterNamespace": lambda world: {
        "namespace": f"n-{world.random.getrandbits(8):x}", "workflow_execution_retention_period": "86400s",
        "description": "of a test", "owner_email": "a@b.c", "data": {"k": "v"},
    },
    "UpdateNamespace": lambda world: {
        "namespace": VICTIM, "update_info": {"description": "other", "data": {"k": "w"}},
        "config": {"workflow_execution_retention_ttl": "172800s"},
    },
    "DescribeNamespace": lambda world: {"namespace": VICTIM},
    "ListNamespaces": lambda world: {"page_size": 2, "namespace_filter": {"include_deleted": True}},
    "DeprecateNamespace": lambda world: {"namespace": VICTIM},
    "DeleteNamespace": lambda world: {"namespace": f"n-{world.random.getrandbits(8):x}"},
    "AddSearchAttributes": lambda world: {"namespace": VICTIM, "search_attributes": {"Added": 2}},
    "RemoveSearchAttributes": lambda world: {"namespace": VICTIM, "search_attributes": ["Added"]},
    "ListSearchAttributes": lambda world: {"namespace": HIT},
}  # fmt: skip
