"""A worker of the Python SDK whose first task of a run was forgotten sees every signal all the same."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

pytestmark = [pytest.mark.integration, pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(180)]


@workflow.defn
class Collects:
    """Returns the first two signals; wants no updates."""

    def __init__(self) -> None:
        self._heard: list[str] = []

    @workflow.signal
    def tell(self, text: str) -> None:
        self._heard.append(text)

    @workflow.update
    def ask(self) -> None:
        raise AssertionError("never accepted")

    @ask.validator
    def _refuse(self) -> None:
        raise ValueError("no updates")

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: len(self._heard) >= 2)
        return self._heard


def test_signals_are_heard_after_a_first_task_that_only_rejected_an_update(address: str) -> None:
    async def main() -> None:
        client = await Client.connect(address)
        queue = uuid.uuid4().hex
        unsandboxed = UnsandboxedWorkflowRunner()  # the sandbox would import pytest
        async with Worker(client, task_queue=queue, workflows=[Collects], workflow_runner=unsandboxed):
            # An update does not wait for the end of the delay; signals do.
            delay = timedelta(seconds=5)
            handle = await client.start_workflow(Collects.run, id=queue, task_queue=queue, start_delay=delay)
            for text in ("one", "two"):
                with pytest.raises(WorkflowUpdateFailedError):
                    await handle.execute_update(Collects.ask)
                await handle.signal(Collects.tell, text)
            assert await asyncio.wait_for(handle.result(), 30) == ["one", "two"]
            events = [event.event_type for event in (await handle.fetch_history()).events]
            assert 9 not in events, "a workflow task failed"

    asyncio.run(main())
