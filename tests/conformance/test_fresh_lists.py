"""What a client has seen happen it finds in the lists that it asks for next, without waiting."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

pytestmark = [pytest.mark.integration, pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(180)]


@workflow.defn
class Returns:
    """Returns at once."""

    @workflow.run
    async def run(self) -> None:
        return


def test_a_list_has_what_was_closed_and_started_just_before(address: str) -> None:
    async def main() -> None:
        client = await Client.connect(address)
        queue = uuid.uuid4().hex
        unsandboxed = UnsandboxedWorkflowRunner()  # the sandbox would import pytest
        async with Worker(client, task_queue=queue, workflows=[Returns], workflow_runner=unsandboxed):
            for number in range(10):
                closed, started = f"{queue}-closed-{number}", f"{queue}-started-{number}"
                await client.execute_workflow(Returns.run, id=closed, task_queue=queue)
                (found,) = [run async for run in client.list_workflows(f"WorkflowId = '{closed}'")]
                assert found.close_time is not None
                await client.start_workflow(Returns.run, id=started, task_queue=f"{queue}-nobody")
                count = await client.count_workflows(f"WorkflowId = '{started}' AND ExecutionStatus = 'Running'")
                assert count.count == 1

    asyncio.run(main())
