"""Runs workflows that use all that leaves a mark in a history, and replays their exported histories.

    python replays.py HOST:PORT

One line of JSON per workflow: {"program": …, "result": number of events replayed, by run}; exit code 1 when one went
wrong. The histories go through JSON, as `temporal workflow show --output json` writes them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowHistory
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError
from temporalio.worker import Replayer, Worker

BRIEF = timedelta(seconds=10)


@activity.defn
async def double(number: int) -> int:
    """Something to do."""
    return 2 * number


@activity.defn
async def unlucky() -> None:
    """Never works."""
    raise ApplicationError("on purpose", non_retryable=True)


@activity.defn
async def endless() -> None:
    """Beats until it is told to stop."""
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.1)


@workflow.defn
class Item:
    """A child: doubles, or fails for a negative number."""

    @workflow.run
    async def run(self, number: int) -> int:
        """The double."""
        if number < 0:
            raise ApplicationError("negative")
        return await workflow.execute_activity(double, number, start_to_close_timeout=BRIEF)


@workflow.defn
class Waiting:
    """Waits for a signal, from another workflow."""

    def __init__(self) -> None:
        """Nothing has come."""
        self._word = ""

    @workflow.run
    async def run(self) -> str:
        """The word that came."""
        await workflow.wait_condition(lambda: bool(self._word))
        return self._word

    @workflow.signal
    def say(self, word: str) -> None:
        """The word."""
        self._word = word


@workflow.defn
class Everything:
    """Activities of all sorts, children, timers, markers, attributes, signals to others."""

    @workflow.run
    async def run(self, other: str) -> list[int]:
        """What the activities and children gave."""
        results = [await workflow.execute_local_activity(double, 1, start_to_close_timeout=BRIEF)]
        results += await asyncio.gather(
            *(workflow.execute_activity(double, number, start_to_close_timeout=BRIEF) for number in (2, 3))
        )
        results.append(await workflow.execute_child_workflow(Item.run, 4))
        try:
            await workflow.execute_child_workflow(Item.run, -1)
        except ChildWorkflowError:
            results.append(-1)
        try:
            await workflow.execute_activity(unlucky, start_to_close_timeout=BRIEF)
        except ActivityError:
            results.append(-2)
        if workflow.patched("a-change"):
            workflow.upsert_memo({"seed": str(workflow.uuid4())})
        task = workflow.start_activity(endless, start_to_close_timeout=BRIEF, heartbeat_timeout=BRIEF)
        late = asyncio.create_task(asyncio.sleep(100))
        await asyncio.sleep(0.2)
        late.cancel()
        task.cancel()
        try:
            await task
        except ActivityError:
            results.append(-3)
        await workflow.get_external_workflow_handle(other).signal("say", "hello")
        return results


@workflow.defn
class Counter:
    """Takes updates, and goes on as new after a few."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self._count = self._added = 0

    @workflow.run
    async def run(self, count: int) -> int:
        """The count, once it is ten."""
        self._count += count
        await workflow.wait_condition(lambda: self._added >= 2 or self._count >= 10)
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._count < 10:
            workflow.continue_as_new(self._count)
        return self._count

    @workflow.update
    async def add(self, number: int) -> int:
        """Adds the double of the number."""
        self._count += await workflow.execute_activity(double, number, start_to_close_timeout=BRIEF)
        self._added += 1
        return self._count

    @add.validator
    def refuse_negative(self, number: int) -> None:
        """Only forwards."""
        if number < 0:
            raise ApplicationError("negative")


@workflow.defn
class Stubborn:
    """Fails until its third attempt."""

    @workflow.run
    async def run(self) -> int:
        """The attempt that worked."""
        attempt = workflow.info().attempt
        await asyncio.sleep(0.01)
        if attempt < 3:
            raise ApplicationError("not yet")
        return attempt


WORKFLOWS = [Item, Waiting, Everything, Counter, Stubborn]


async def everything(client: Client, queue: str) -> list[str]:
    """Two workflows, one of which signals the other."""
    other = await client.start_workflow(Waiting.run, id=f"waiting-{uuid.uuid4()}", task_queue=queue)
    first = await client.start_workflow(Everything.run, other.id, id=f"everything-{uuid.uuid4()}", task_queue=queue)
    assert await first.result() == [2, 4, 6, 8, -1, -2, -3]
    assert await other.result() == "hello"
    children = [one.id async for one in client.list_workflows(f'ParentWorkflowId = "{first.id}"')]
    return [first.id, other.id, *children]


async def updated(client: Client, queue: str) -> list[str]:
    """Updates, one of them rejected, over two runs."""
    handle = await client.start_workflow(Counter.run, 0, id=f"counter-{uuid.uuid4()}", task_queue=queue)
    for number in (1, -1, 1, 2, 3):
        try:
            await handle.execute_update(Counter.add, number)
        except Exception as error:
            if number > 0:
                raise AssertionError(f"update {number}") from error
    assert await handle.result() >= 10
    return [handle.id]


async def retried(client: Client, queue: str) -> list[str]:
    """A workflow with a retry policy: three runs."""
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=50), maximum_attempts=5)
    workflow_id = f"stubborn-{uuid.uuid4()}"
    result = await client.execute_workflow(Stubborn.run, id=workflow_id, task_queue=queue, retry_policy=policy)
    assert result == 3
    return [workflow_id]


async def histories(client: Client, workflow_id: str) -> list[WorkflowHistory]:
    """The histories of a workflow's runs, the last first, by way of JSON."""
    found = []
    run_id: str | None = None
    while True:
        handle: WorkflowHandle[object, object] = client.get_workflow_handle(workflow_id, run_id=run_id)
        history = await handle.fetch_history()
        found.append(WorkflowHistory.from_json(workflow_id, history.to_json()))
        previous = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
        if not previous:
            return found
        run_id = previous


async def main(address: str) -> int:
    """Runs and replays all of them."""
    client = await Client.connect(address)
    failed = False
    for name, program in (("everything", everything), ("updated", updated), ("retried", retried)):
        for cached in (0, 100):
            queue = f"replays-{uuid.uuid4()}"
            worker = Worker(
                client,
                task_queue=queue,
                workflows=WORKFLOWS,
                activities=[double, unlucky, endless],
                max_cached_workflows=cached,
                max_concurrent_workflow_task_polls=2,
            )
            try:
                async with worker:
                    ids = await asyncio.wait_for(program(client, queue), 60)
                events = []
                for workflow_id in ids:
                    described = await client.get_workflow_handle(workflow_id).describe()
                    assert described.status != WorkflowExecutionStatus.RUNNING
                    for history in await histories(client, workflow_id):
                        await Replayer(workflows=WORKFLOWS).replay_workflow(history)
                        events.append(len(history.events))
                line: dict[str, object] = {"program": name, "cached": cached, "result": events}
            except Exception as error:
                failed = True
                line = {"program": name, "cached": cached, "error": repr(error), "cause": repr(error.__cause__)}
            print(json.dumps(line), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7233")))
