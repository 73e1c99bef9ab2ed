"""Task polls: how long they wait, where they go, and what happens when the worker leaves."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import core
from everfold.frontend.limits import FrontendLimits
from everfold.frontend.polls import POLL_BYTES_MAX
from everfold.kernel import ids
from everfold.kernel.errors import Code, StatusError
from frontend.fakes import DEFAULT, TASK_PARTITIONS, Frontend, run

WORKFLOW_POLL = ws.PollWorkflowTaskQueueRequest(namespace="default", task_queue={"name": "q"}, identity="me")
ACTIVITY_POLL = ws.PollActivityTaskQueueRequest(namespace="default", task_queue={"name": "q"}, identity="me")


@pytest.mark.parametrize(
    ("method", "called", "request_"),
    [
        ("PollWorkflowTaskQueue", "poll_workflow_task", WORKFLOW_POLL),
        ("PollActivityTaskQueue", "poll_activity_task", ACTIVITY_POLL),
    ],
)
def test_a_poll_goes_to_the_owner_of_its_queue_and_may_answer_empty(
    method: str, called: str, request_: ws.PollWorkflowTaskQueueRequest | ws.PollActivityTaskQueueRequest
) -> None:
    async def scenario(frontend: Frontend) -> None:
        response = await frontend.call(method, request_, ws.PollWorkflowTaskQueueResponse, 70)
        assert response == ws.PollWorkflowTaskQueueResponse()
        call = frontend.router.only()
        assert (call.role, call.method) == ("matching", called)
        assert call.partition == ids.task_partition(DEFAULT.namespace_id, "q", TASK_PARTITIONS)
        namespace_id, data, timeout, poll_id = call.args
        assert (namespace_id, data) == (DEFAULT.namespace_id, request_.SerializeToString())
        assert 60 < timeout <= 61
        assert poll_id

    run(scenario)


def test_every_poll_has_an_id_of_its_own() -> None:
    async def scenario(frontend: Frontend) -> None:
        for _ in range(3):
            await frontend.call("PollWorkflowTaskQueue", WORKFLOW_POLL, ws.PollWorkflowTaskQueueResponse)
        assert len({call.args[3] for call in frontend.router.calls}) == 3

    run(scenario)


def test_a_sticky_queue_goes_by_its_own_name() -> None:
    async def scenario(frontend: Frontend) -> None:
        for number in range(8):
            queue = {"name": f"sticky-{number}", "kind": 2, "normal_name": "q"}
            poll = ws.PollWorkflowTaskQueueRequest(namespace="default", task_queue=queue)
            await frontend.call("PollWorkflowTaskQueue", poll, ws.PollWorkflowTaskQueueResponse)
        wanted = [ids.task_partition(DEFAULT.namespace_id, f"sticky-{n}", TASK_PARTITIONS) for n in range(8)]
        assert [call.partition for call in frontend.router.calls] == wanted

    run(scenario)


def test_a_poll_needs_a_deadline_that_leaves_room_for_an_answer() -> None:
    async def scenario(frontend: Frontend) -> None:
        error = await frontend.error("PollWorkflowTaskQueue", WORKFLOW_POLL, None)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "Context timeout is not set.")
        error = await frontend.error("PollActivityTaskQueue", ACTIVITY_POLL, 1.5)
        assert (error.code, error.message) == (Code.FAILED_PRECONDITION, "Context timeout is too short.")
        assert frontend.router.calls == []

    run(scenario)


def test_when_the_worker_leaves_matching_is_told_by_the_polls_id() -> None:
    async def scenario(frontend: Frontend) -> None:
        polling, told = asyncio.Event(), asyncio.Event()

        async def wait(*_: object) -> bytes:
            polling.set()
            await asyncio.Event().wait()
            return b""

        frontend.router.answers["matching", "poll_workflow_task"] = wait
        frontend.router.answers["matching", "cancel_poll"] = lambda poll_id: told.set()
        call = frontend.call("PollWorkflowTaskQueue", WORKFLOW_POLL, ws.PollWorkflowTaskQueueResponse)
        task = asyncio.get_running_loop().create_task(call)
        await polling.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await told.wait()
        poll, cancel = frontend.router.calls
        assert (cancel.method, cancel.partition, cancel.args) == ("cancel_poll", poll.partition, [poll.args[3]])

    run(scenario)


def test_a_task_that_did_not_reach_the_worker_is_taken_back() -> None:
    async def scenario(frontend: Frontend) -> None:
        told = asyncio.Event()
        frontend.router.answers["matching", "poll_activity_task"] = b"\x0a\x01t"
        frontend.router.answers["matching", "cancel_poll"] = lambda poll_id: told.set()
        context = frontend.context("PollActivityTaskQueue")
        response = await frontend.server.handlers[context.method](context, ACTIVITY_POLL.SerializeToString())
        assert context.undelivered is not None
        context.undelivered(response)
        await told.wait()
        poll, cancel = frontend.router.calls
        assert cancel.args == [poll.args[3]]

    run(scenario)


def test_an_empty_answer_that_did_not_arrive_needs_nothing() -> None:
    async def scenario(frontend: Frontend) -> None:
        context = frontend.context("PollActivityTaskQueue")
        await frontend.server.handlers[context.method](context, ACTIVITY_POLL.SerializeToString())
        assert context.undelivered is None

    run(scenario)


def test_a_queue_that_nobody_serves_is_an_empty_answer_in_the_end_and_an_error_before() -> None:
    async def scenario(frontend: Frontend) -> None:
        nobody = StatusError(Code.UNAVAILABLE, "matching partition 0 is not available")
        frontend.router.answers["matching", "poll_workflow_task"] = nobody
        assert (await frontend.error("PollWorkflowTaskQueue", WORKFLOW_POLL)).code == Code.UNAVAILABLE

        async def later(*_: object) -> bytes:
            await asyncio.sleep(1.2)
            raise nobody

        frontend.router.answers["matching", "poll_workflow_task"] = later
        response = await frontend.call("PollWorkflowTaskQueue", WORKFLOW_POLL, ws.PollWorkflowTaskQueueResponse, 2.1)
        assert response == ws.PollWorkflowTaskQueueResponse()
        # A task may have been started meanwhile, whose answer was lost.
        polls = [call.args[3] for call in frontend.router.calls if call.method == "poll_workflow_task"]
        cancelled = [call.args[0] for call in frontend.router.calls if call.method == "cancel_poll"]
        assert polls[0] in cancelled

    run(scenario)


def test_the_number_of_parked_polls_is_bounded() -> None:
    async def scenario(frontend: Frontend) -> None:
        go, parking = asyncio.Event(), asyncio.Semaphore(0)

        async def wait(*_: object) -> bytes:
            parking.release()
            await go.wait()
            return b""

        frontend.router.answers["matching", "poll_workflow_task"] = wait
        response = ws.PollWorkflowTaskQueueResponse
        loop = asyncio.get_running_loop()
        parked = [loop.create_task(frontend.call("PollWorkflowTaskQueue", WORKFLOW_POLL, response)) for _ in range(2)]
        for _ in parked:
            await parking.acquire()
        error = await frontend.error("PollWorkflowTaskQueue", WORKFLOW_POLL)
        assert error.code == Code.RESOURCE_EXHAUSTED
        assert error.message == "namespace concurrent poller limit exceeded"
        go.set()
        await asyncio.gather(*parked)
        await frontend.call("PollWorkflowTaskQueue", WORKFLOW_POLL, response)

    run(scenario, limits=FrontendLimits(long_polls_max=2))


def test_worker_shutdown_goes_to_the_sticky_queues_owner() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.ShutdownWorkerRequest(namespace="default", sticky_task_queue="sticky-7", identity="me")
        await frontend.call("ShutdownWorker", request, ws.ShutdownWorkerResponse)
        call = frontend.router.only()
        assert (call.role, call.method) == ("matching", "shutdown_worker")
        assert call.partition == ids.task_partition(DEFAULT.namespace_id, "sticky-7", TASK_PARTITIONS)
        assert call.args == [DEFAULT.namespace_id, request.SerializeToString()]
        # A worker without a sticky queue has nothing to fail over.
        await frontend.call("ShutdownWorker", ws.ShutdownWorkerRequest(namespace="default"), ws.ShutdownWorkerResponse)
        assert len(frontend.router.calls) == 1

    run(scenario)


def test_describe_task_queue_asks_the_queues_owner_for_both_types() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.DescribeTaskQueueRequest(namespace="default", task_queue={"name": "q"})
        await frontend.call("DescribeTaskQueue", request, ws.DescribeTaskQueueResponse)
        call = frontend.router.only()
        assert (call.role, call.method) == ("matching", "describe_task_queue")
        accepted = ws.DescribeTaskQueueRequest.FromString(call.args[1])
        assert accepted.task_queue_type == 1
        assert list(accepted.task_queue_types) == [1, 2]

    run(scenario)


@pytest.mark.parametrize("method", ["PollWorkflowTaskQueue", "PollActivityTaskQueue"])
def test_a_poll_that_is_no_polls_size_is_refused(method: str) -> None:
    async def scenario(frontend: Frontend) -> None:
        poll = ws.PollWorkflowTaskQueueRequest(namespace="default", task_queue={"name": "q"}, identity="me")
        poll.deployment_options.deployment_name = "d" * POLL_BYTES_MAX
        with pytest.raises(StatusError, match="expected a poll of at most 65536 bytes") as large:
            await frontend.call(method, poll, ws.PollWorkflowTaskQueueResponse)
        assert large.value.code == Code.INVALID_ARGUMENT
        assert not frontend.router.calls

    run(scenario)


def test_a_queue_whose_name_is_too_long_goes_nowhere() -> None:
    async def scenario(frontend: Frontend) -> None:
        gone = ws.ShutdownWorkerRequest(namespace="default", sticky_task_queue="s" * 1_001)
        with pytest.raises(StatusError, match="taskQueue length exceeds limit"):
            await frontend.call("ShutdownWorker", gone, ws.ShutdownWorkerResponse)
        assert not frontend.router.calls

    run(scenario)


def test_what_no_caller_waits_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "BACKGROUND_MAX", 2)

    async def scenario(frontend: Frontend) -> None:
        held = asyncio.Event()
        begun = []

        async def work(number: int) -> None:
            begun.append(number)
            await held.wait()

        shared = frontend.server._core
        for number in range(4):
            shared.spawn(work(number))
        await asyncio.sleep(0)
        held.set()
        await shared.stop(1)
        assert begun == [0, 1]

    run(scenario)
