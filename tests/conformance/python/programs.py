"""Runs each program of the SDK's guides against a server, with Temporal's Python SDK as it comes from PyPI.

    python programs.py HOST:PORT

One line of JSON per program: {"program": …, "result": …}; exit code 1 when one went wrong. Nothing of Everfold's is
imported here: that is the point.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker


@activity.defn
async def greet(name: str) -> str:
    """The first activity of every guide."""
    return f"Hello, {name}!"


@activity.defn
async def flaky() -> str:
    """Fails twice, having reported how far it came; the third attempt goes on from there."""
    info = activity.info()
    seen = int(info.heartbeat_details[0]) if info.heartbeat_details else 0
    activity.heartbeat(seen + 1)
    if info.attempt < 3:
        raise ApplicationError(f"attempt {info.attempt} fails on purpose")
    return f"attempt {info.attempt} after {seen} heartbeats"


@activity.defn
async def patient() -> str:
    """Beats until it is told to stop."""
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.2)


@workflow.defn
class Hello:
    """One activity."""

    @workflow.run
    async def run(self, name: str) -> str:
        """The greeting."""
        return await workflow.execute_activity(greet, name, start_to_close_timeout=timedelta(seconds=10))


@workflow.defn
class Retried:
    """One activity that needs three attempts."""

    @workflow.run
    async def run(self) -> str:
        """What the last attempt knew of those before it."""
        return await workflow.execute_activity(
            flaky,
            start_to_close_timeout=timedelta(seconds=10),
            heartbeat_timeout=timedelta(seconds=5),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=100), maximum_attempts=5),
        )


@workflow.defn
class Timer:
    """A durable sleep."""

    @workflow.run
    async def run(self) -> str:
        """Says so when it is over."""
        await asyncio.sleep(0.3)
        return "the timer fired"


@workflow.defn
class Approval:
    """Waits for two approvals; who approved can be asked for at any time, also when it is done."""

    def __init__(self) -> None:
        """Nobody has approved yet."""
        self._names: list[str] = []

    @workflow.run
    async def run(self) -> str:
        """Who approved."""
        await workflow.wait_condition(lambda: len(self._names) >= 2)
        return " and ".join(self._names)

    @workflow.signal
    def approve(self, name: str) -> None:
        """One approval."""
        self._names.append(name)

    @workflow.query
    def approvals(self) -> list[str]:
        """Who approved so far."""
        return self._names


@workflow.defn
class Cancellable:
    """One long activity whose end is waited for when the workflow is cancelled."""

    @workflow.run
    async def run(self) -> str:
        """Never a result."""
        return await workflow.execute_activity(
            patient,
            start_to_close_timeout=timedelta(minutes=1),
            heartbeat_timeout=timedelta(seconds=2),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


class Programs:
    """The programs, each a coroutine that returns what the guide promises."""

    def __init__(self, client: Client, task_queue: str) -> None:
        """Starts workflows through `client`, for a worker on `task_queue`."""
        self._client = client
        self._task_queue = task_queue

    async def _start(self, name: str, definition: Any, *args: Any) -> WorkflowHandle[Any, Any]:
        workflow_id = f"{name}-{uuid.uuid4()}"
        return await self._client.start_workflow(definition, *args, id=workflow_id, task_queue=self._task_queue)

    async def hello(self) -> object:
        """Hello world."""
        return await (await self._start("hello", Hello.run, "Everfold")).result()

    async def retried(self) -> object:
        """An activity with retries and heartbeat."""
        return await (await self._start("retried", Retried.run)).result()

    async def timer(self) -> object:
        """A timer."""
        return await (await self._start("timer", Timer.run)).result()

    async def signal(self) -> object:
        """Two signals."""
        handle = await self._start("signal", Approval.run)
        await handle.signal(Approval.approve, "Ada")
        await handle.signal(Approval.approve, "Grace")
        return await handle.result()

    async def query(self) -> object:
        """A query before, between and after the signals."""
        handle = await self._start("query", Approval.run)
        answers = [await handle.query(Approval.approvals)]
        await handle.signal(Approval.approve, "Ada")
        answers.append(await handle.query(Approval.approvals))
        await handle.signal(Approval.approve, "Grace")
        await handle.result()
        answers.append(await handle.query(Approval.approvals))
        return answers

    async def cancel(self) -> object:
        """The cancellation of a workflow whose activity is running."""
        handle = await self._start("cancel", Cancellable.run)
        while not await self._beating(handle):  # noqa: ASYNC110 - the state is the server's; it sends no event
            await asyncio.sleep(0.05)
        await handle.cancel()
        try:
            return await handle.result()
        except WorkflowFailureError as error:
            if isinstance(error.cause, CancelledError):
                return "cancelled"
            raise

    async def _beating(self, handle: WorkflowHandle[Any, Any]) -> bool:
        pending = (await handle.describe()).raw_description.pending_activities
        return any(one.HasField("last_heartbeat_time") for one in pending)


async def main(address: str) -> int:
    """Runs all programs, one after the other, and prints what each returned."""
    client = await Client.connect(address)
    task_queue = f"conformance-python-{uuid.uuid4()}"
    programs = Programs(client, task_queue)
    failed = False
    worker = Worker(
        client,
        task_queue=task_queue,
        workflows=[Hello, Retried, Timer, Approval, Cancellable],
        activities=[greet, flaky, patient],
    )
    async with worker:
        for name in ("hello", "retried", "timer", "signal", "query", "cancel"):
            run: Callable[[], Awaitable[object]] = getattr(programs, name)
            try:
                line: dict[str, object] = {"program": name, "result": await asyncio.wait_for(run(), 30)}
            except Exception as error:
                failed = True
                line = {"program": name, "error": repr(error), "cause": repr(error.__cause__)}
            print(json.dumps(line), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7233")))
