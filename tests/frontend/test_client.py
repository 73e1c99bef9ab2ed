"""A real temporalio client and worker on the real gateways, over fakes of history and matching."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from temporalio import activity
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws
from temporalio.client import Client
from temporalio.common import AutoUpgradeVersioningOverride
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from everfold.frontend.cluster import ClusterFacts
from everfold.frontend.server import FrontendServer
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.namespaces import InMemoryNamespaces
from frontend.fakes import DEFAULT, SHARDS, TASK_PARTITIONS, FakeRouter

RUN_ID = "6f3c2a9e-0000-8000-8000-00000000000a"


@activity.defn
async def nothing() -> None:
    """An activity that is never asked for."""


def serve(gateway: str, scenario: Callable[[str, FakeRouter], Awaitable[None]]) -> None:
    async def body() -> None:
        router = FakeRouter()
        server = FrontendServer(
            host="127.0.0.1",
            port=0,
            namespaces=InMemoryNamespaces(DEFAULT),
            router=router,
            shard_count=SHARDS,
            task_partitions=TASK_PARTITIONS,
            cluster=ClusterFacts("cluster-1", SHARDS),
            gateway=gateway,
        )
        await server.start()
        try:
            await asyncio.wait_for(scenario(f"127.0.0.1:{server.port}", router), 30)
        finally:
            await server.stop(0.5)

    asyncio.run(body())


@pytest.mark.parametrize("gateway", ["http2", "grpcio"])
def test_a_client_connects_starts_and_signals(gateway: str) -> None:
    async def scenario(address: str, router: FakeRouter) -> None:
        client = await Client.connect(address)
        answer = ws.StartWorkflowExecutionResponse(run_id=RUN_ID, started=True)
        router.answers["history", "execute"] = answer.SerializeToString()
        handle = await client.start_workflow("Greet", "you", id="w", task_queue="q")
        assert handle.result_run_id == RUN_ID
        router.answers["history", "execute"] = b""
        await handle.signal("wave", "hand")
        kinds = [call.args[0] for call in router.calls]
        assert kinds == ["START_WORKFLOW", "SIGNAL_WORKFLOW"]
        started = ws.StartWorkflowExecutionRequest.FromString(router.calls[0].args[4])
        assert started.workflow_type.name == "Greet"
        assert started.input.payloads[0].data == b'"you"'
        assert await client.service_client.check_health()

    serve(gateway, scenario)


@pytest.mark.parametrize("gateway", ["http2", "grpcio"])
def test_details_become_the_sdks_own_exceptions(gateway: str) -> None:
    async def scenario(address: str, router: FakeRouter) -> None:
        client = await Client.connect(address)
        failure = b"\x0a\x01r\x12" + bytes([len(RUN_ID)]) + RUN_ID.encode()
        router.answers["history", "execute"] = StatusError(
            Code.ALREADY_EXISTS,
            "Workflow execution is already running.",
            (("temporal.api.errordetails.v1.WorkflowExecutionAlreadyStartedFailure", failure),),
        )
        with pytest.raises(WorkflowAlreadyStartedError) as caught:
            await client.start_workflow("Greet", id="w", task_queue="q")
        assert caught.value.run_id == RUN_ID
        other = await Client.connect(address, namespace="nope")
        with pytest.raises(RPCError) as unknown:
            await other.start_workflow("Greet", id="w", task_queue="q")
        assert unknown.value.status == RPCStatusCode.NOT_FOUND
        override = AutoUpgradeVersioningOverride()
        with pytest.raises(RPCError) as unbuilt:
            await client.start_workflow("Greet", id="w", task_queue="q", versioning_override=override)
        assert unbuilt.value.status == RPCStatusCode.UNIMPLEMENTED
        assert "versioning_override" in unbuilt.value.message

    serve(gateway, scenario)


@pytest.mark.parametrize("gateway", ["http2", "grpcio"])
def test_a_worker_polls_and_goes(gateway: str) -> None:
    async def scenario(address: str, router: FakeRouter) -> None:
        polling, told = asyncio.Event(), asyncio.Event()
        polls: set[str] = set()
        cancelled: set[str] = set()

        async def wait(namespace_id: str, message: bytes, timeout: float, poll_id: str) -> bytes:
            polls.add(poll_id)
            polling.set()
            await asyncio.Event().wait()
            return b""

        def cancel(poll_id: str) -> None:
            cancelled.add(poll_id)
            told.set()

        router.answers["matching", "poll_activity_task"] = wait
        router.answers["matching", "cancel_poll"] = cancel
        client = await Client.connect(address)
        async with Worker(client, task_queue="q", activities=[nothing]):
            await asyncio.wait_for(polling.wait(), 10)
        # Without the capability to end polls at shutdown, the SDK leaves them, and matching hears of every one.
        while cancelled != polls:
            told.clear()
            await told.wait()

    serve(gateway, scenario)
