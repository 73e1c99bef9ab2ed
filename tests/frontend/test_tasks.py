"""Workers' answers: tokens lead to the workflow, and what is too large to keep becomes a failure."""

from __future__ import annotations

import dataclasses

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.limits import FrontendLimits
from everfold.kernel import ids
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.tokens import (
    ActivityTaskToken,
    QueryToken,
    WorkflowTaskToken,
    encode_activity_task_token,
    encode_query_token,
    encode_workflow_task_token,
)
from frontend.fakes import DEFAULT, SHARDS, Frontend, run

NAMESPACE_ID = DEFAULT.namespace_id
RUN_ID = "6f3c2a9e-0000-8000-8000-00000000000a"
OTHER = dataclasses.replace(DEFAULT, namespace_id="7b4f1d6e-0000-4000-8000-000000000002", name="other")

WORKFLOW_TOKEN = encode_workflow_task_token(WorkflowTaskToken(NAMESPACE_ID, "w", RUN_ID, 2, 3, 1, 1, 0))
ACTIVITY_TOKEN = encode_activity_task_token(ActivityTaskToken(NAMESPACE_ID, "w", RUN_ID, "1", "act", 5, 6, 1, 1, 0))
QUERY_TOKEN = encode_query_token(QueryToken(NAMESPACE_ID, "q", "query-1", 1))

JITTER = Duration(seconds=1)
LARGE = {"payloads": [{"data": b"x" * 2000}]}
SMALL_BLOBS = FrontendLimits(blob_bytes_max=1000)

ANSWERS: list[tuple[str, str, Message]] = [
    (
        "RespondWorkflowTaskCompleted",
        "COMPLETE_WORKFLOW_TASK",
        ws.RespondWorkflowTaskCompletedRequest(task_token=WORKFLOW_TOKEN, identity="me"),
    ),
    ("RespondWorkflowTaskFailed", "FAIL_WORKFLOW_TASK", ws.RespondWorkflowTaskFailedRequest(task_token=WORKFLOW_TOKEN)),
    (
        "RespondActivityTaskCompleted",
        "COMPLETE_ACTIVITY",
        ws.RespondActivityTaskCompletedRequest(task_token=ACTIVITY_TOKEN, namespace="default"),
    ),
    ("RespondActivityTaskFailed", "FAIL_ACTIVITY", ws.RespondActivityTaskFailedRequest(task_token=ACTIVITY_TOKEN)),
    (
        "RespondActivityTaskCanceled",
        "CANCEL_ACTIVITY",
        ws.RespondActivityTaskCanceledRequest(task_token=ACTIVITY_TOKEN),
    ),
    (
        "RecordActivityTaskHeartbeat",
        "HEARTBEAT_ACTIVITY",
        ws.RecordActivityTaskHeartbeatRequest(task_token=ACTIVITY_TOKEN),
    ),
    (
        "RespondActivityTaskCompletedById",
        "COMPLETE_ACTIVITY_BY_ID",
        ws.RespondActivityTaskCompletedByIdRequest(
            namespace="default", workflow_id="w", run_id=RUN_ID, activity_id="1"
        ),
    ),
    (
        "RespondActivityTaskFailedById",
        "FAIL_ACTIVITY_BY_ID",
        ws.RespondActivityTaskFailedByIdRequest(namespace="default", workflow_id="w", run_id=RUN_ID, activity_id="1"),
    ),
    (
        "RespondActivityTaskCanceledById",
        "CANCEL_ACTIVITY_BY_ID",
        ws.RespondActivityTaskCanceledByIdRequest(namespace="default", workflow_id="w", run_id=RUN_ID, activity_id="1"),
    ),
    (
        "RecordActivityTaskHeartbeatById",
        "HEARTBEAT_ACTIVITY_BY_ID",
        ws.RecordActivityTaskHeartbeatByIdRequest(namespace="default", workflow_id="w", run_id=RUN_ID, activity_id="1"),
    ),
]


@pytest.mark.parametrize(("method", "kind", "request_"), ANSWERS, ids=[method for method, _, _ in ANSWERS])
def test_an_answer_goes_to_the_workflows_shard_byte_for_byte(method: str, kind: str, request_: Message) -> None:
    async def scenario(frontend: Frontend) -> None:
        await frontend.call(method, request_, ws.RespondActivityTaskCompletedResponse)
        call = frontend.router.only()
        assert (call.role, call.partition) == ("history", ids.shard_of("default", "w", SHARDS))
        assert call.args[:5] == [kind, NAMESPACE_ID, "w", RUN_ID, request_.SerializeToString()]

    run(scenario)


def test_the_newer_way_to_reset_an_activity_is_the_older_one_with_its_workflow() -> None:
    async def scenario(frontend: Frontend) -> None:
        options = {"keep_paused": True, "restore_original_options": True, "reset_heartbeat": True}
        request = ws.ResetActivityExecutionRequest(
            namespace="default",
            workflow_id="w",
            run_id=RUN_ID,
            activity_id="1",
            identity="me",
            jitter=JITTER,
            **options,
        )
        await frontend.call("ResetActivityExecution", request, ws.ResetActivityExecutionResponse)
        call = frontend.router.only()
        assert (call.role, call.partition) == ("history", ids.shard_of("default", "w", SHARDS))
        assert call.args[:4] == ["RESET_ACTIVITY", NAMESPACE_ID, "w", RUN_ID]
        assert ws.ResetActivityRequest.FromString(call.args[4]) == ws.ResetActivityRequest(
            namespace="default",
            execution={"workflow_id": "w", "run_id": RUN_ID},
            id="1",
            identity="me",
            jitter=JITTER,
            **options,
        )

    run(scenario)


def test_a_token_of_another_namespace_than_the_requests_is_refused() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondActivityTaskCompletedRequest(task_token=ACTIVITY_TOKEN, namespace="other")
        error = await frontend.error("RespondActivityTaskCompleted", request)
        assert (error.code, error.message) == (
            Code.INVALID_ARGUMENT,
            "Operation requested with a token from a different namespace.",
        )

    run(scenario, DEFAULT, OTHER)


def test_a_build_id_that_does_not_fit_into_a_search_attribute_is_refused() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondWorkflowTaskCompletedRequest(task_token=WORKFLOW_TOKEN, namespace="default")
        request.worker_version_stamp.build_id = "b" * 256
        error = await frontend.error("RespondWorkflowTaskCompleted", request)
        text = "Build ID exceeds configured limit.workerBuildIdSize, use a shorter build ID."
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, text)
        request.worker_version_stamp.build_id = "b" * 255
        await frontend.call("RespondWorkflowTaskCompleted", request, ws.RespondWorkflowTaskCompletedResponse)

    run(scenario)


def test_a_token_of_one_kind_is_none_of_another() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondActivityTaskCompletedRequest(task_token=WORKFLOW_TOKEN, namespace="default")
        error = await frontend.error("RespondActivityTaskCompleted", request)
        assert error.message == "Error deserializing task token."

    run(scenario)


def test_a_token_of_a_namespace_that_is_gone_is_not_found() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondActivityTaskCompletedRequest(task_token=ACTIVITY_TOKEN)
        error = await frontend.error("RespondActivityTaskCompleted", request)
        assert error.code == Code.NOT_FOUND

    run(scenario, OTHER)


def temporals_token(*strings: str) -> bytes:
    """A token as Temporal's servers make it: namespace id, workflow id, run id, scheduled event 5."""
    fields = b"".join(bytes((number << 3 | 2, len(text))) + text.encode() for number, text in enumerate(strings, 1))
    return fields + b"\x20\x05"


@pytest.mark.parametrize(
    ("token", "code", "text"),
    [
        (
            temporals_token(NAMESPACE_ID, "w", "r"),
            Code.NOT_FOUND,
            'workflow execution not found for workflow ID "w" and run ID "r"',
        ),
        (temporals_token(NAMESPACE_ID, "w"), Code.NOT_FOUND, "workflow not found for ID: w"),
        (temporals_token("elsewhere", "w", "r"), Code.NOT_FOUND, "Namespace elsewhere is not found."),
        (temporals_token(NAMESPACE_ID), Code.INVALID_ARGUMENT, "Business ID is not set on request."),
        (b"\x0a", Code.INVALID_ARGUMENT, "Error deserializing task token."),
        (b"\x0a\x01\xff", Code.INVALID_ARGUMENT, "Error deserializing task token."),
        (temporals_token(NAMESPACE_ID) + b"\x10\x05", Code.INVALID_ARGUMENT, "Error deserializing task token."),
    ],
)
@pytest.mark.parametrize(("method", "_kind", "answer"), ANSWERS[:6], ids=[method for method, _, _ in ANSWERS[:6]])
def test_a_token_of_a_temporal_server_is_of_a_workflow_that_is_not_here(
    method: str, _kind: str, answer: Message, token: bytes, code: Code, text: str
) -> None:
    async def scenario(frontend: Frontend) -> None:
        error = await frontend.error(method, type(answer)(task_token=token))
        assert (error.code, error.message) == (code, text)

    run(scenario)


def test_a_result_that_is_too_large_fails_the_activity() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondActivityTaskCompletedRequest(task_token=ACTIVITY_TOKEN, result=LARGE, identity="me")
        await frontend.call("RespondActivityTaskCompleted", request, ws.RespondActivityTaskCompletedResponse)
        call = frontend.router.only()
        assert call.args[0] == "FAIL_ACTIVITY"
        failed = ws.RespondActivityTaskFailedRequest.FromString(call.args[4])
        assert failed.task_token == ACTIVITY_TOKEN
        assert failed.failure.message == "Complete result exceeds size limit."
        assert failed.failure.server_failure_info.non_retryable

    run(scenario, limits=SMALL_BLOBS)


def test_a_heartbeat_that_is_too_large_fails_the_activity_and_tells_the_worker_to_stop() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RecordActivityTaskHeartbeatByIdRequest(
            namespace="default", workflow_id="w", activity_id="1", details=LARGE
        )
        response = await frontend.call(
            "RecordActivityTaskHeartbeatById", request, ws.RecordActivityTaskHeartbeatByIdResponse
        )
        assert response.cancel_requested
        call = frontend.router.only()
        assert call.args[0] == "FAIL_ACTIVITY_BY_ID"
        failed = ws.RespondActivityTaskFailedByIdRequest.FromString(call.args[4])
        assert failed.failure.message == "Heartbeat details exceed size limit."

    run(scenario, limits=SMALL_BLOBS)


def test_a_failure_that_is_too_large_keeps_its_texts() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondActivityTaskFailedRequest(
            task_token=ACTIVITY_TOKEN,
            failure={
                "message": "the disk is full",
                "stack_trace": "at line 1",
                "application_failure_info": {"type": "DiskFull", "details": LARGE},
                "cause": {"message": "no space left"},
            },
        )
        await frontend.call("RespondActivityTaskFailed", request, ws.RespondActivityTaskFailedResponse)
        call = frontend.router.only()
        assert call.args[0] == "FAIL_ACTIVITY"
        failure = ws.RespondActivityTaskFailedRequest.FromString(call.args[4]).failure
        assert failure.message == "Failure exceeds size limit."
        assert failure.cause.message == "the disk is full"
        assert failure.cause.application_failure_info.type == "DiskFull"
        assert failure.cause.cause.message == "no space left"
        assert len(call.args[4]) < 1000

    run(scenario, limits=SMALL_BLOBS)


def test_an_activity_fails_with_an_application_failure_only() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondActivityTaskFailedRequest(task_token=ACTIVITY_TOKEN, failure={"message": "what"})
        error = await frontend.error("RespondActivityTaskFailed", request)
        assert error.message == "Failure must have ApplicationFailureInfo."

    run(scenario)


def test_query_answers_go_to_the_owner_that_the_token_names() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondQueryTaskCompletedRequest(task_token=QUERY_TOKEN, query_result=LARGE)
        await frontend.call("RespondQueryTaskCompleted", request, ws.RespondQueryTaskCompletedResponse)
        call = frontend.router.only()
        assert (call.role, call.partition, call.method) == ("matching", 1, "respond_query")
        assert call.args == [QUERY_TOKEN, request.SerializeToString()]

    run(scenario)


def test_a_query_result_that_is_too_large_is_a_failed_query() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondQueryTaskCompletedRequest(task_token=QUERY_TOKEN, query_result=LARGE)
        await frontend.call("RespondQueryTaskCompleted", request, ws.RespondQueryTaskCompletedResponse)
        answer = ws.RespondQueryTaskCompletedRequest.FromString(frontend.router.only().args[1])
        assert answer.completed_type == 2
        assert answer.error_message == "Blob data size exceeds limit."

    run(scenario, limits=SMALL_BLOBS)


def test_an_answer_that_rides_on_a_completion_and_is_too_large_is_a_failed_query() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.RespondWorkflowTaskCompletedRequest(task_token=WORKFLOW_TOKEN)
        request.query_results["large"].answer.payloads.add(data=bytes(2_000))
        request.query_results["small"].answer.payloads.add(data=b"1")
        await frontend.call("RespondWorkflowTaskCompleted", request, ws.RespondWorkflowTaskCompletedResponse)
        results = ws.RespondWorkflowTaskCompletedRequest.FromString(frontend.router.only().args[4]).query_results
        assert results["large"].error_message == "Blob data size exceeds limit."
        assert not results["large"].answer.payloads
        assert results["small"].answer.payloads

    run(scenario, limits=SMALL_BLOBS)


def test_a_query_that_no_worker_answers_in_time_says_so() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.QueryWorkflowRequest(
            namespace="default", execution={"workflow_id": "w"}, query={"query_type": "state"}
        )
        for trouble in (StatusError(Code.DEADLINE_EXCEEDED, "late"), TimeoutError()):
            frontend.router.answers["history", "query"] = trouble
            error = await frontend.error("QueryWorkflow", request)
            assert error.code == Code.DEADLINE_EXCEEDED
            assert error.message == "query timed out before a worker could process it"

    run(scenario)
