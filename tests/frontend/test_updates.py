"""Updates at the frontend: what reaches the shard, and what each operation of an update-with-start is told."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.limits import FrontendLimits
from everfold.kernel import ids
from everfold.kernel.errors import Code, StatusError
from frontend.fakes import DEFAULT, SHARDS, Frontend, run
from frontend.refusals import NS, RESET, RUN, START, UPDATE, update_with_start

NAMESPACE_ID = DEFAULT.namespace_id
RUN_ID = "6f3c2a9e-0000-8000-8000-00000000000a"
ABORTED = (Code.ABORTED, "Operation was aborted.", ["temporal.api.failure.v1.MultiOperationExecutionAborted"])


def test_an_update_gets_an_id_and_waits_for_its_outcome_unless_it_says_otherwise() -> None:
    async def scenario(frontend: Frontend) -> None:
        answer = ws.UpdateWorkflowExecutionResponse(stage=3)  # type: ignore[arg-type]
        frontend.router.answers["history", "update"] = answer.SerializeToString()
        request = ws.UpdateWorkflowExecutionRequest(**UPDATE)
        request.request.meta.update_id = ""
        assert await frontend.call("UpdateWorkflowExecution", request, ws.UpdateWorkflowExecutionResponse) == answer
        call = frontend.router.only()
        assert (call.role, call.partition, call.method) == ("history", ids.shard_of("default", "w", SHARDS), "update")
        namespace_id, workflow_id, data, timeout = call.args
        assert (namespace_id, workflow_id) == (NAMESPACE_ID, "w")
        assert 9 < timeout <= 10
        accepted = ws.UpdateWorkflowExecutionRequest.FromString(data)
        assert uuid.UUID(accepted.request.meta.update_id)
        assert accepted.wait_policy.lifecycle_stage == 3

    run(scenario)


def test_an_update_that_is_to_be_accepted_keeps_its_id_and_stage() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.UpdateWorkflowExecutionRequest(**UPDATE, wait_policy={"lifecycle_stage": 2})
        await frontend.call("UpdateWorkflowExecution", request, ws.UpdateWorkflowExecutionResponse)
        assert ws.UpdateWorkflowExecutionRequest.FromString(frontend.router.only().args[2]) == request

    run(scenario)


def test_a_poll_for_an_update_is_passed_on_as_it_is() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.PollWorkflowExecutionUpdateRequest(
            namespace=NS, update_ref={"workflow_execution": {**RUN, "run_id": RUN_ID}, "update_id": "u"}
        )
        await frontend.call("PollWorkflowExecutionUpdate", request, ws.PollWorkflowExecutionUpdateResponse)
        call = frontend.router.only()
        assert call.method == "poll_update"
        assert call.args[:3] == [NAMESPACE_ID, "w", request.SerializeToString()]

    run(scenario)


def test_updates_that_wait_are_bounded() -> None:
    async def scenario(frontend: Frontend) -> None:
        error = await frontend.error("UpdateWorkflowExecution", ws.UpdateWorkflowExecutionRequest(**UPDATE))
        assert error.code == Code.RESOURCE_EXHAUSTED
        assert frontend.router.calls == []

    run(scenario, limits=FrontendLimits(long_polls_max=0))


def test_an_update_with_start_is_made_explicit_in_both_its_parts() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.ExecuteMultiOperationRequest(**update_with_start({"namespace": ""}, {"namespace": ""}))
        await frontend.call("ExecuteMultiOperation", request, ws.ExecuteMultiOperationResponse)
        call = frontend.router.only()
        assert (call.partition, call.method) == (ids.shard_of("default", "w", SHARDS), "multi_operation")
        first, second = ws.ExecuteMultiOperationRequest.FromString(call.args[2]).operations
        start, update = first.start_workflow, second.update_workflow
        assert (start.namespace, update.namespace) == (NS, NS)
        assert uuid.UUID(start.request_id)
        assert start.workflow_id_conflict_policy == 1
        assert update.wait_policy.lifecycle_stage == 3

    run(scenario)


def operations(error: StatusError) -> list[tuple[int, str, list[str]]]:
    ((name, data),) = error.details
    assert name == errordetails.MultiOperationExecutionFailure.DESCRIPTOR.full_name
    failure = errordetails.MultiOperationExecutionFailure.FromString(data)
    return [
        (one.code, one.message, [detail.type_url.rpartition("/")[2] for detail in one.details])
        for one in failure.statuses
    ]


@pytest.mark.parametrize(
    ("start", "update", "expected"),
    [
        ({"cron_schedule": "* * * * *"}, {}, [(Code.INVALID_ARGUMENT, "CronSchedule is not allowed.", []), ABORTED]),
        (
            {"workflow_type": None},
            {"request": None},
            [
                (Code.INVALID_ARGUMENT, "WorkflowType is not set on request.", []),
                (Code.INVALID_ARGUMENT, "Update meta is not set on request.", []),
            ],
        ),
        (
            {},
            {"workflow_execution": {"workflow_id": "other"}},
            [ABORTED, (Code.INVALID_ARGUMENT, "WorkflowId is not consistent with previous operation(s).", [])],
        ),
        (
            {},
            {"workflow_execution": {**RUN, "run_id": RUN_ID}},
            [ABORTED, (Code.INVALID_ARGUMENT, "RunId is not allowed.", [])],
        ),
        (
            {},
            {"first_execution_run_id": RUN_ID},
            [ABORTED, (Code.INVALID_ARGUMENT, "FirstExecutionRunId is not allowed.", [])],
        ),
        (
            {},
            {"wait_policy": {"lifecycle_stage": 1}},
            [
                ABORTED,
                (
                    Code.PERMISSION_DENIED,
                    "UpdateWorkflowExecution issued asynchronously and waiting on update admitted is not supported.",
                    ["temporal.api.errordetails.v1.PermissionDeniedFailure"],
                ),
            ],
        ),
    ],
)
def test_each_operation_of_an_update_with_start_is_told_its_own_fate(
    start: dict[str, Any], update: dict[str, Any], expected: list[tuple[int, str, list[str]]]
) -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.ExecuteMultiOperationRequest(**update_with_start(start, update))
        error = await frontend.error("ExecuteMultiOperation", request)
        assert operations(error) == expected
        assert frontend.router.calls == []

    run(scenario)


def test_reset_and_delete_go_to_the_shard_with_the_run_beside_them() -> None:
    async def scenario(frontend: Frontend) -> None:
        reset = ws.ResetWorkflowExecutionRequest(**{**RESET, "workflow_execution": {**RUN, "run_id": RUN_ID}})
        await frontend.call("ResetWorkflowExecution", reset, ws.ResetWorkflowExecutionResponse)
        delete = ws.DeleteWorkflowExecutionRequest(namespace=NS, workflow_execution={**RUN, "run_id": RUN_ID})
        await frontend.call("DeleteWorkflowExecution", delete, ws.DeleteWorkflowExecutionResponse)
        first, second = frontend.router.calls
        assert first.args[:5] == ["RESET_WORKFLOW", NAMESPACE_ID, "w", RUN_ID, reset.SerializeToString()]
        assert second.args[:5] == ["DELETE_WORKFLOW", NAMESPACE_ID, "w", RUN_ID, delete.SerializeToString()]

    run(scenario)


def test_a_reset_that_applies_again_what_nobody_knows_is_refused() -> None:
    async def scenario(frontend: Frontend) -> None:
        error = await frontend.error(
            "ResetWorkflowExecution", ws.ResetWorkflowExecutionRequest(**RESET, reset_reapply_type=77)
        )
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "unknown reset reapply type: 77")

    run(scenario)


def test_retry_policy_start_delay_and_eager_start_reach_the_shard() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.StartWorkflowExecutionRequest(
            **START,
            retry_policy={"maximum_attempts": 3},
            workflow_start_delay={"seconds": 1},
            request_eager_execution=True,
        )
        await frontend.call("StartWorkflowExecution", request, ws.StartWorkflowExecutionResponse)
        accepted = ws.StartWorkflowExecutionRequest.FromString(frontend.router.only().args[4])
        assert accepted.retry_policy.maximum_attempts == 3
        assert accepted.workflow_start_delay.seconds == 1
        assert accepted.request_eager_execution

    run(scenario)
