"""What scenarios of several runs have in common."""

from __future__ import annotations

from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from temporalio.api.common.v1 import message_pb2 as common_v1
from temporalio.api.enums.v1 import update_pb2
from temporalio.api.protocol.v1 import message_pb2 as protocol_v1
from temporalio.api.update.v1 import message_pb2 as update_v1
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from differential.script import CLIENT, NAMESPACE, Script, command, payloads, seconds
from support.raw import RpcError


def start_child(s: Script, **attributes: Any) -> Any:
    """START_CHILD_WORKFLOW_EXECUTION of the workflow `child`."""
    return command(
        "START_CHILD_WORKFLOW_EXECUTION",
        **{
            "workflow_id": s.id("child"),
            "workflow_type": {"name": "scripted"},
            "task_queue": {"name": s.queue},
            "input": payloads("of the child"),
            "workflow_task_timeout": seconds(10),
            **attributes,
        },
    )


def refused_each(s: Script, cases: dict[str, list[Any]]) -> None:
    """Completions that must be refused, each of a workflow of its own: what is said, and whether the workflow goes on.

    Args:
        s: the scenario.
        cases: by label, the commands of a completion.
    """
    for number, (label, commands) in enumerate(cases.items()):
        name = f"wf-{number}"
        s.start(name)
        s.completion_refused(label, s.poll(), *commands)
        try:
            s.terminate(name)
        except RpcError as error:
            s.note_error("  and the workflow is", error)


def json_value(data: bytes, encoding: bytes = b"json/plain", kind: bytes = b"") -> common_v1.Payload:
    """A payload as it is. `kind`: the type of search attribute that it says it is."""
    return common_v1.Payload(metadata={"encoding": encoding, **({"type": kind} if kind else {})}, data=data)


def tasks_by_workflow(s: Script, count: int) -> dict[str, Any]:
    """So many workflow tasks, by workflow id: they come in any order."""
    tasks = [s.poll() for _ in range(count)]
    return {task.workflow_execution.workflow_id: task for task in tasks}


def update_fields(s: Script, update_id: str) -> dict[str, Any]:
    """Of an update that waits for its outcome."""
    completed = update_pb2.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
    return {
        "namespace": NAMESPACE,
        "workflow_execution": s.execution(),
        "wait_policy": {"lifecycle_stage": completed},
        "request": {
            "meta": {"update_id": update_id, "identity": CLIENT},
            "input": {"name": "change", "args": payloads("argument")},
        },
    }


def begin_update(s: Script, update_id: str) -> Any:
    """Begins an update that the scripted worker must answer."""
    return s.client.begin("UpdateWorkflowExecution", **update_fields(s, update_id))


def message(request: Any, what: str, body: Any) -> protocol_v1.Message:
    """A worker's message about an update."""
    packed = AnyMessage()
    packed.Pack(body)
    return protocol_v1.Message(
        id=f"{request.protocol_instance_id}/{what}", protocol_instance_id=request.protocol_instance_id, body=packed
    )


def accept_and_complete(task: Any) -> list[protocol_v1.Message]:
    """Both messages of an update that is done in one workflow task."""
    asked = task.messages[0]
    request = update_v1.Request()
    asked.body.Unpack(request)
    acceptance = update_v1.Acceptance(
        accepted_request_message_id=asked.id,
        accepted_request_sequencing_event_id=asked.event_id,
        accepted_request=request,
    )
    response = update_v1.Response(meta=request.meta, outcome=update_v1.Outcome(success=payloads("changed")))
    return [message(asked, "accept", acceptance), message(asked, "complete", response)]


def answer_commands(count: int = 2, update_id: str = "u1") -> list[Any]:
    """The commands that say where those messages take effect."""
    return [command("PROTOCOL_MESSAGE", message_id=f"{update_id}/{what}") for what in ("accept", "complete")[:count]]


def update_with_start(s: Script, conflict: str = "USE_EXISTING", reuse: str = "ALLOW_DUPLICATE") -> dict[str, Any]:
    """Of an update that starts its workflow unless it runs."""
    operation = ws.ExecuteMultiOperationRequest.Operation
    start = s.start_fields(
        workflow_id_conflict_policy=f"WORKFLOW_ID_CONFLICT_POLICY_{conflict}",
        workflow_id_reuse_policy=f"WORKFLOW_ID_REUSE_POLICY_{reuse}",
    )
    return {
        "namespace": NAMESPACE,
        "operations": [
            operation(start_workflow=ws.StartWorkflowExecutionRequest(**start)),
            operation(update_workflow=ws.UpdateWorkflowExecutionRequest(**update_fields(s, "u1"))),
        ],
    }
