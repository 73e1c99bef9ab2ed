"""Requests that are accepted: what reaches the shard, and which shard."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid

import pytest
from click.testing import CliRunner
from temporalio.api.enums.v1 import workflow_pb2 as enums
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.cli.commands import everfold
from everfold.frontend.limits import FrontendLimits
from everfold.kernel import ids
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.namespaces import STATE_DEPRECATED
from frontend.fakes import DEFAULT, SHARDS, Frontend, run
from frontend.refusals import SIGNAL, SIGNAL_START, START

NAMESPACE_ID = DEFAULT.namespace_id
RUN_ID = "6f3c2a9e-0000-8000-8000-00000000000a"


def test_a_start_goes_to_the_shard_of_its_namespaces_name_with_defaults_filled_in() -> None:
    async def scenario(frontend: Frontend) -> None:
        answer = ws.StartWorkflowExecutionResponse(run_id=RUN_ID, started=True)
        frontend.router.answers["history", "execute"] = answer.SerializeToString()
        request = ws.StartWorkflowExecutionRequest(**START)
        assert await frontend.call("StartWorkflowExecution", request, ws.StartWorkflowExecutionResponse) == answer
        call = frontend.router.only()
        assert (call.role, call.partition, call.method) == ("history", ids.shard_of("default", "w", SHARDS), "execute")
        kind, namespace_id, workflow_id, run_id, data, timeout = call.args
        assert (kind, namespace_id, workflow_id, run_id) == ("START_WORKFLOW", NAMESPACE_ID, "w", "")
        assert 9 < timeout <= 10
        accepted = ws.StartWorkflowExecutionRequest.FromString(data)
        assert uuid.UUID(accepted.request_id)
        assert accepted.workflow_id_reuse_policy == enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
        assert accepted.workflow_id_conflict_policy == enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL

    run(scenario)


def test_terminate_if_running_becomes_a_conflict_policy() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.StartWorkflowExecutionRequest(**START, workflow_id_reuse_policy=4, request_id="r")
        await frontend.call("StartWorkflowExecution", request, ws.StartWorkflowExecutionResponse)
        accepted = ws.StartWorkflowExecutionRequest.FromString(frontend.router.only().args[4])
        assert accepted.request_id == "r"
        assert accepted.workflow_id_reuse_policy == enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
        assert accepted.workflow_id_conflict_policy == enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING

    run(scenario)


def test_signal_with_start_uses_a_running_workflow_by_default() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.SignalWithStartWorkflowExecutionRequest(**SIGNAL_START)
        await frontend.call("SignalWithStartWorkflowExecution", request, ws.SignalWithStartWorkflowExecutionResponse)
        call = frontend.router.only()
        assert call.args[0] == "SIGNAL_WITH_START_WORKFLOW"
        accepted = ws.SignalWithStartWorkflowExecutionRequest.FromString(call.args[4])
        assert accepted.workflow_id_conflict_policy == enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
        assert uuid.UUID(accepted.request_id)

    run(scenario)


def test_unknown_fields_of_a_newer_client_survive() -> None:
    async def scenario(frontend: Frontend) -> None:
        newer = b"\xfa\x3e\x05later"  # field 1007
        context = frontend.context("StartWorkflowExecution")
        data = ws.StartWorkflowExecutionRequest(**START).SerializeToString() + newer
        await frontend.server.handlers[context.method](context, data)
        assert newer in frontend.router.only().args[4]

    run(scenario)


@pytest.mark.parametrize(
    ("name", "data", "refusal"),
    [
        ("CustomKeyword", b'"red"', None),
        ("CustomKeyword", b'["red"]', None),
        ("CustomKeyword", b"null", None),
        (
            "CustomKeyword",
            b"",
            "invalid value for search attribute CustomKeyword of type Keyword: value from <",
        ),
        (
            "CustomKeyword",
            b'["a","b"]',
            "invalid value for search attribute CustomKeyword of type Keyword: [a b]",
        ),
        ("CustomInt", b"9223372036854775808", "invalid value for search attribute CustomInt of type Int: 9.22"),
        ("BuildIds", b'"a"', "invalid value for search attribute BuildIds of type KeywordList: a"),
        ("CustomKeyword", b"7", "invalid value for search attribute CustomKeyword of type Keyword: 7"),
        ("CustomInt", b"7", None),
        ("CustomInt", b"true", "invalid value for search attribute CustomInt of type Int: true"),
        ("CustomInt", b"7.5", "invalid value for search attribute CustomInt of type Int: 7.5"),
        ("CustomTime", b'"2026-01-02T03:04:05.123456789Z"', None),
        ("CustomTime", b'"yesterday"', "invalid value for search attribute CustomTime of type Datetime: yesterday"),
        ("BuildIds", b'["a", "b"]', None),
        ("TemporalWorkerDeployment", b'"d"', "TemporalWorkerDeployment attribute can't be set in SearchAttributes"),
        ("CustomKeyword", b"{", "invalid value for search attribute CustomKeyword of type Keyword"),
        ("CustomKeyword", b'"' + b"x" * 3000 + b'"', "search attribute CustomKeyword value size 3002"),
    ],
)
def test_search_attributes_are_checked_against_the_namespaces_types(
    name: str, data: bytes, refusal: str | None
) -> None:
    async def scenario(frontend: Frontend) -> None:
        attributes = {"indexed_fields": {name: {"data": data, "metadata": {"encoding": b"json/plain"}}}}
        request = ws.StartWorkflowExecutionRequest(**START, search_attributes=attributes)
        if refusal is not None:
            error = await frontend.error("StartWorkflowExecution", request)
            assert error.code == Code.INVALID_ARGUMENT
            assert error.message.startswith(refusal)
            return
        await frontend.call("StartWorkflowExecution", request, ws.StartWorkflowExecutionResponse)
        accepted = ws.StartWorkflowExecutionRequest.FromString(frontend.router.only().args[4])
        payload = accepted.search_attributes.indexed_fields[name]
        types = {**DEFAULT.search_attributes, "BuildIds": "KeywordList"}
        assert payload.metadata["type"] == types[name].encode()
        assert payload.data == data

    run(scenario)


def test_only_so_many_search_attributes_may_be_set() -> None:
    async def scenario(frontend: Frontend) -> None:
        attributes = {"indexed_fields": {name: {"data": b'"x"'} for name in ("CustomKeyword", "CustomInt")}}
        request = ws.StartWorkflowExecutionRequest(**START, search_attributes=attributes)
        error = await frontend.error("StartWorkflowExecution", request)
        assert error.message == "number of search attributes 2 exceeds limit 1"

    run(scenario, limits=FrontendLimits(search_attributes_max=1))


def test_a_signal_is_passed_on_byte_for_byte_when_it_is_complete() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.SignalWorkflowExecutionRequest(**SIGNAL, request_id="r")
        await frontend.call("SignalWorkflowExecution", request, ws.SignalWorkflowExecutionResponse)
        call = frontend.router.only()
        assert call.args[:5] == ["SIGNAL_WORKFLOW", NAMESPACE_ID, "w", "", request.SerializeToString()]

    run(scenario)


def test_the_run_id_travels_beside_the_request() -> None:
    async def scenario(frontend: Frontend) -> None:
        execution = {"workflow_id": "w", "run_id": RUN_ID}
        cancel = ws.RequestCancelWorkflowExecutionRequest(namespace="default", workflow_execution=execution)
        await frontend.call("RequestCancelWorkflowExecution", cancel, ws.RequestCancelWorkflowExecutionResponse)
        reset = ws.ResetStickyTaskQueueRequest(namespace="default", execution=execution)
        await frontend.call("ResetStickyTaskQueue", reset, ws.ResetStickyTaskQueueResponse)
        first, second = frontend.router.calls
        assert first.args[:4] == ["REQUEST_CANCEL_WORKFLOW", NAMESPACE_ID, "w", RUN_ID]
        assert second.args[:4] == ["RESET_STICKY", NAMESPACE_ID, "w", RUN_ID]

    run(scenario)


def test_the_command_releases_a_workflow_through_a_frontend() -> None:
    async def scenario(frontend: Frontend) -> None:
        await frontend.server.start()
        try:
            address = f"127.0.0.1:{frontend.server.port}"
            arguments = ["workflow", "release", "-w", "w", "-r", RUN_ID, "--address", address]
            done = await asyncio.to_thread(CliRunner().invoke, everfold, arguments)
            assert (done.exit_code, done.output) == (0, "Workflow w goes on.\n")
            assert frontend.router.only().args[:4] == ["RELEASE_WORKFLOW", NAMESPACE_ID, "w", RUN_ID]
            frontend.router.answers["history", "execute"] = StatusError(Code.FAILED_PRECONDITION, "not quarantined")
            refused = await asyncio.to_thread(CliRunner().invoke, everfold, arguments)
            assert refused.exit_code == 1
            assert "FAILED_PRECONDITION: not quarantined" in refused.output
        finally:
            await frontend.server.stop(0)

    run(scenario)


def test_a_terminate_without_reason_says_that_a_user_did_it() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.TerminateWorkflowExecutionRequest(namespace="default", workflow_execution={"workflow_id": "w"})
        await frontend.call("TerminateWorkflowExecution", request, ws.TerminateWorkflowExecutionResponse)
        accepted = ws.TerminateWorkflowExecutionRequest.FromString(frontend.router.only().args[4])
        assert accepted.reason == "terminated by user via frontend"
        assert accepted.identity == "frontend-service"

    run(scenario)


def test_a_rejection_of_the_fold_reaches_the_caller_as_it_is() -> None:
    async def scenario(frontend: Frontend) -> None:
        details = (("temporal.api.errordetails.v1.NotFoundFailure", b""),)
        rejection = StatusError(Code.NOT_FOUND, "workflow not found for ID: w", details)
        frontend.router.answers["history", "execute"] = rejection
        error = await frontend.error("SignalWorkflowExecution", ws.SignalWorkflowExecutionRequest(**SIGNAL))
        assert error is rejection

    run(scenario)


def test_reads_go_to_the_workflows_shard_with_bounded_pages() -> None:
    async def scenario(frontend: Frontend) -> None:
        execution = {"workflow_id": "w"}
        describe = ws.DescribeWorkflowExecutionRequest(namespace="default", execution=execution)
        await frontend.call("DescribeWorkflowExecution", describe, ws.DescribeWorkflowExecutionResponse)
        history = ws.GetWorkflowExecutionHistoryRequest(
            namespace="default", execution=execution, maximum_page_size=100_000
        )
        await frontend.call("GetWorkflowExecutionHistory", history, ws.GetWorkflowExecutionHistoryResponse)
        reverse = ws.GetWorkflowExecutionHistoryReverseRequest(namespace="default", execution=execution)
        await frontend.call(
            "GetWorkflowExecutionHistoryReverse", reverse, ws.GetWorkflowExecutionHistoryReverseResponse
        )
        first, second, third = frontend.router.calls
        assert {call.partition for call in frontend.router.calls} == {ids.shard_of("default", "w", SHARDS)}
        assert first.args == [NAMESPACE_ID, describe.SerializeToString()]
        assert (second.method, second.args[:2]) == ("history", [NAMESPACE_ID, "w"])
        assert ws.GetWorkflowExecutionHistoryRequest.FromString(second.args[2]).maximum_page_size == 256
        assert third.method == "history_reverse"
        assert ws.GetWorkflowExecutionHistoryReverseRequest.FromString(third.args[2]).maximum_page_size == 256

    run(scenario)


def test_a_long_poll_for_history_waits_twenty_seconds_or_as_long_as_the_client() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.GetWorkflowExecutionHistoryRequest(
            namespace="default", execution={"workflow_id": "w"}, wait_new_event=True
        )
        response = ws.GetWorkflowExecutionHistoryResponse
        for client_waits, given in ((60.0, 21.0), (5.0, 5.0)):
            await frontend.call("GetWorkflowExecutionHistory", request, response, client_waits)
            assert given - 1 < frontend.router.calls[-1].args[3] <= given

    run(scenario)


def test_a_call_whose_deadline_has_passed_is_not_produced() -> None:
    async def scenario(frontend: Frontend) -> None:
        error = await frontend.error("SignalWorkflowExecution", ws.SignalWorkflowExecutionRequest(**SIGNAL), -1)
        assert error.code == Code.DEADLINE_EXCEEDED
        assert frontend.router.calls == []

    run(scenario)


def test_a_deprecated_namespace_starts_nothing_and_finishes_its_work() -> None:
    async def scenario(frontend: Frontend) -> None:
        error = await frontend.error("StartWorkflowExecution", ws.StartWorkflowExecutionRequest(**START))
        assert error.code == Code.FAILED_PRECONDITION
        assert error.message == "Namespace has invalid state: Deprecated. Must be Registered."
        detail = errordetails.NamespaceInvalidStateFailure.FromString(error.details[0][1])
        assert (detail.namespace, detail.state, list(detail.allowed_states)) == ("default", STATE_DEPRECATED, [1])
        request = ws.SignalWorkflowExecutionRequest(**SIGNAL)
        await frontend.call("SignalWorkflowExecution", request, ws.SignalWorkflowExecutionResponse)
        assert frontend.router.only().args[0] == "SIGNAL_WORKFLOW"

    run(scenario, dataclasses.replace(DEFAULT, state=STATE_DEPRECATED))


def test_a_namespace_over_its_rate_is_told_to_come_back_and_polls_are_not() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.SignalWorkflowExecutionRequest(**SIGNAL)
        for _ in range(4):
            await frontend.call("SignalWorkflowExecution", request, ws.SignalWorkflowExecutionResponse)
        error = await frontend.error("SignalWorkflowExecution", request)
        assert error.code == Code.RESOURCE_EXHAUSTED
        assert error.message == "namespace rate limit exceeded"
        detail = errordetails.ResourceExhaustedFailure.FromString(error.details[0][1])
        assert (detail.cause, detail.scope) == (1, 1)
        for _ in range(20):
            poll = ws.PollWorkflowTaskQueueRequest(namespace="default", task_queue={"name": "q"})
            await frontend.call("PollWorkflowTaskQueue", poll, ws.PollWorkflowTaskQueueResponse)
        await asyncio.sleep(0.6)
        await frontend.call("SignalWorkflowExecution", request, ws.SignalWorkflowExecutionResponse)

    run(scenario, limits=FrontendLimits(rps=2))


def test_a_workflow_id_that_none_can_have_goes_nowhere() -> None:
    async def scenario(frontend: Frontend) -> None:
        signal = ws.SignalWorkflowExecutionRequest(**SIGNAL)
        signal.workflow_execution.workflow_id = "w" * 1_001
        with pytest.raises(StatusError, match=r"WorkflowId exceeds maximum allowed length \(1001/1000\)") as long:
            await frontend.call("SignalWorkflowExecution", signal, ws.SignalWorkflowExecutionResponse)
        assert long.value.code == Code.INVALID_ARGUMENT
        assert not frontend.router.calls

    run(scenario)
