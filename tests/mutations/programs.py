"""Programs on Temporal's Python SDK that use much of the API, and put up with whatever becomes of their calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from datetime import timedelta
from random import Random
from typing import Any, Final

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy, SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from mutations.corpus import HIT

QUEUE: Final = "programs"
LIFE: Final = timedelta(seconds=10)
WORD: Final = SearchAttributeKey.for_keyword("AKeyword")
AMOUNT: Final = SearchAttributeKey.for_int("AnInt")
logging.getLogger("temporalio").setLevel(logging.ERROR)  # activities fail here by the thousand, and are meant to

_RETRY: Final = RetryPolicy(initial_interval=timedelta(milliseconds=50), maximum_attempts=3)


@activity.defn
async def act(number: int) -> int:
    if not activity.info().is_local:
        activity.heartbeat(number)
    if number % 3 == 0 and activity.info().attempt == 1:
        raise ApplicationError("no", {"of": number}, type="Bad") from ValueError("because")
    return number


@workflow.defn
class Child:
    @workflow.run
    async def run(self, number: int) -> int:
        await workflow.sleep(0.05)
        if number % 4 == 0:
            raise ApplicationError("the child fails")
        return number


@workflow.defn
class Program:
    def __init__(self) -> None:
        self._told = 0
        self._value = 0

    @workflow.run
    async def run(self, number: int) -> int:
        options: Any = {"start_to_close_timeout": timedelta(seconds=2), "retry_policy": _RETRY}
        workflow.upsert_search_attributes([AMOUNT.value_set(number)])
        workflow.upsert_memo({"number": number})
        done = await asyncio.gather(
            workflow.execute_activity(act, number, heartbeat_timeout=timedelta(seconds=1), **options),
            workflow.execute_local_activity(act, number + 1, **options),
            workflow.execute_child_workflow(Child.run, number, execution_timeout=LIFE),
            workflow.sleep(0.1),
            return_exceptions=True,
        )
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: self._told > 0, timeout=1)
        if number % 5 == 0:
            workflow.continue_as_new(number + 1)
        if number % 7 == 0:
            raise ApplicationError("the program fails", type="Bad")
        return len(done) + self._value

    @workflow.signal
    def tell(self, number: int) -> None:
        self._told += 1

    @workflow.query
    def told(self) -> int:
        return self._told

    @workflow.update
    async def set(self, value: int) -> int:
        await workflow.sleep(0.02)
        self._value = value
        return value


class Programs:
    """A client and a worker at one address.

    Attributes:
        ended: how many programs came to their end as they should.
    """

    def __init__(self, address: str, seed: int) -> None:
        self._address = address
        self._random = Random(seed)
        self.ended = 0

    async def run(self, until: asyncio.Event, at_once: int = 8) -> None:
        """Runs programs until the event is set. A worker that gives up is replaced."""
        client = await Client.connect(self._address, namespace=HIT, identity="programs")
        working = asyncio.create_task(self._work(client, until))
        await asyncio.gather(*(self._ask(client, until) for _ in range(at_once)))
        await working

    async def _work(self, client: Client, until: asyncio.Event) -> None:
        while not until.is_set():
            worker = Worker(
                client, task_queue=QUEUE, workflows=[Program, Child], activities=[act],
                workflow_runner=UnsandboxedWorkflowRunner(), graceful_shutdown_timeout=timedelta(seconds=0.2),
                sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
            )  # fmt: skip
            waiting = asyncio.create_task(until.wait())
            with contextlib.suppress(Exception):  # a poll that was refused for good
                async with worker:
                    await waiting
            waiting.cancel()

    async def _ask(self, client: Client, until: asyncio.Event) -> None:
        while not until.is_set():
            number = self._random.randrange(1000)
            # What was changed on the way comes back: refused, failed, late, or as what the SDK cannot decode.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(4):
                    handle = await client.start_workflow(
                        Program.run, number, id=f"program-{uuid.uuid4()}", task_queue=QUEUE, execution_timeout=LIFE,
                        search_attributes=TypedSearchAttributes([SearchAttributePair(WORD, "word")]),
                        memo={"of": "a test"}, task_timeout=timedelta(seconds=2),
                    )  # fmt: skip
                    await self._use(client, handle, number)

    async def _use(self, client: Client, handle: WorkflowHandle[Any, Any], number: int) -> None:
        await handle.execute_update(Program.set, number)
        await handle.query(Program.told)
        await handle.signal(Program.tell, number)
        await handle.describe()
        async for _ in client.list_workflows("AKeyword = 'word'", limit=2):
            pass
        if number % 6 == 0:
            await handle.cancel()
        if number % 11 == 0:
            await handle.terminate("enough")
        await handle.result()
        self.ended += 1
