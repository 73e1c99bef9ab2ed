"""Workflows under way while servers die: a load that tolerates everything, and a check that forgives nothing.

Each workflow waits for a number of signals, one unique text each, runs an activity for every few of them and a timer
in between, and returns what it received in order. The load sends every signal until it is acknowledged, always with the
same request id, as the SDKs' own retries do. At the end each workflow must have completed exactly once, in one run,
with every signal in its history exactly once, and with event ids from 1 without a gap.

    python load.py ADDRESS TASK_QUEUE        is one of the worker processes
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

NAMESPACE: Final = "default"
SIGNALS_PER_ACTIVITY: Final = 5
RPC_SECONDS: Final = 5.0
REFUSALS: Final = {
    RPCStatusCode.INVALID_ARGUMENT,
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.ALREADY_EXISTS,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.UNIMPLEMENTED,
    RPCStatusCode.PERMISSION_DENIED,
}
"""Answers that no retry mends: with one of them the load has found a fault."""

T = TypeVar("T")


@activity.defn(name="add_up")
async def add_up(texts: list[str]) -> int:
    """Something for the activity queue to do."""
    return len(texts)


@workflow.defn(name="ledger")
class Ledger:
    """Receives signals until it has them all."""

    def __init__(self) -> None:
        self._received: list[str] = []

    @workflow.run
    async def run(self, expected: int) -> list[str]:
        """What was received, in order."""
        counted = 0
        while counted < expected:
            await workflow.wait_condition(
                lambda: len(self._received) >= min(expected, counted + SIGNALS_PER_ACTIVITY)  # noqa: B023
            )
            counted += await workflow.execute_activity(
                add_up,
                self._received[counted : counted + SIGNALS_PER_ACTIVITY],
                start_to_close_timeout=timedelta(seconds=10),
            )
            await asyncio.sleep(0.2)
        return self._received

    @workflow.signal(name="entry")
    def entry(self, text: str) -> None:
        """One entry."""
        self._received.append(text)


async def work(address: str, task_queue: str) -> None:
    """A worker that outlives its server: when it gives up, it begins again."""
    while True:
        try:
            client = await Client.connect(address)
            worker = Worker(client, task_queue=task_queue, workflows=[Ledger], activities=[add_up])
            await worker.run()
        except Exception as error:
            print(f"{time.strftime('%X')} begins again: {error!r}", flush=True)
            await asyncio.sleep(0.5)


@dataclass
class Flight:
    """One workflow of the load.

    Attributes:
        workflow_id: the start's; its signals' texts begin with it.
        run_id: as the start answered.
        acknowledged: the signals that the server took.
    """

    workflow_id: str
    run_id: str = ""
    acknowledged: list[str] = field(default_factory=list)
    completed: bool = False


@dataclass
class Report:
    """What the check found.

    Attributes:
        workflows, signals: how many were looked at.
        faults: what is wrong, one sentence each; empty when nothing is.
    """

    workflows: int = 0
    signals: int = 0
    faults: list[str] = field(default_factory=list)


class Load:
    """Keeps workflows in flight, on a thread of its own, until it is told to stop starting new ones.

    Args:
        addresses: frontends; calls go to them in turn.
        task_queue: where the workers poll.
        in_flight: how many workflows at once.
        signals: how many each waits for.
        pause: average seconds between two signals of one workflow.
    """

    def __init__(
        self, addresses: list[str], task_queue: str, *, in_flight: int = 200, signals: int = 15, pause: float = 4.0
    ) -> None:
        self.flights: list[Flight] = []
        self.signals_acknowledged = 0
        self.last_acknowledged_at = 0.0
        self._addresses = addresses
        self._task_queue = task_queue
        self._in_flight = in_flight
        self._signals = signals
        self._pause = pause
        self._clients: list[Client] = []
        self._turn = 0
        self._stopping = threading.Event()
        self._faults: list[str] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)

    # ---- from the test ----------------------------------------------------------

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    @property
    def completed(self) -> int:
        """Workflows whose result came."""
        return sum(flight.completed for flight in self.flights)

    def wait_for_progress(self, timeout: float = 60.0) -> float:
        """Waits until a signal that is sent from now on is acknowledged; returns the seconds that took."""
        began = time.monotonic()
        while self.last_acknowledged_at < began:
            if self._error is not None:
                raise self._error
            if time.monotonic() - began > timeout:
                raise AssertionError(f"no signal was acknowledged within {timeout:.0f} s")
            time.sleep(0.02)
        return time.monotonic() - began

    def finish(self, timeout: float) -> Report:
        """Lets the workflows in flight end, then checks all of them."""
        self._stopping.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            open_ = [flight.workflow_id for flight in self.flights if not flight.completed]
            raise AssertionError(f"{len(open_)} workflows did not complete within {timeout:.0f} s: {open_[:10]}")
        if self._error is not None:
            raise self._error
        return self._report

    # ---- on the thread ----------------------------------------------------------

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self._error = error

    async def _run(self) -> None:
        self._clients = [await self._connect(address) for address in self._addresses]
        async with asyncio.TaskGroup() as group:
            for _ in range(self._in_flight):
                group.create_task(self._slot())
        self._report = Report(faults=self._faults)
        for flight in self.flights:
            await self._check(flight)

    async def _connect(self, address: str) -> Client:
        return await Client.connect(address, lazy=True)

    def _client(self) -> Client:
        self._turn += 1
        return self._clients[self._turn % len(self._clients)]

    async def _slot(self) -> None:
        """One workflow after the other."""
        await asyncio.sleep(random.uniform(0, self._pause))
        while not self._stopping.is_set():
            flight = Flight(f"ledger-{uuid.uuid4().hex}")
            self.flights.append(flight)
            await self._fly(flight)

    async def _fly(self, flight: Flight) -> None:
        start = StartWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_id=flight.workflow_id,
            workflow_type=WorkflowType(name="ledger"),
            task_queue=TaskQueue(name=self._task_queue),
            input=_json(str(self._signals)),
            request_id=str(uuid.uuid4()),
            identity="load",
        )
        started = await self._until(
            lambda client: client.workflow_service.start_workflow_execution(
                start, retry=False, timeout=timedelta(seconds=RPC_SECONDS)
            ),
            f"start of {flight.workflow_id}",
        )
        if started is None:
            return
        flight.run_id = started.run_id
        for number in range(self._signals):
            if not self._stopping.is_set():
                await asyncio.sleep(random.uniform(0, 2 * self._pause))
            await self._signal(flight, f"{flight.workflow_id}/{number}")
        await self._result(flight)

    async def _signal(self, flight: Flight, text: str) -> None:
        request = SignalWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=flight.workflow_id),
            signal_name="entry",
            input=_json(f'"{text}"'),
            request_id=str(uuid.uuid4()),
            identity="load",
        )
        sent_at = time.monotonic()
        answer = await self._until(
            lambda client: client.workflow_service.signal_workflow_execution(
                request, retry=False, timeout=timedelta(seconds=RPC_SECONDS)
            ),
            f"signal {text}",
        )
        if answer is not None:
            flight.acknowledged.append(text)
            self.signals_acknowledged += 1
            self.last_acknowledged_at = max(self.last_acknowledged_at, sent_at)

    async def _result(self, flight: Flight) -> None:
        request = GetWorkflowExecutionHistoryRequest(
            namespace=NAMESPACE,
            execution=WorkflowExecution(workflow_id=flight.workflow_id, run_id=flight.run_id),
            wait_new_event=True,
            history_event_filter_type=2,  # type: ignore[arg-type]  # only the closing event
        )
        while True:
            answer = await self._until(
                lambda client: client.workflow_service.get_workflow_execution_history(
                    request, retry=False, timeout=timedelta(seconds=30)
                ),
                f"result of {flight.workflow_id}",
            )
            if answer is None:
                return
            if answer.history.events:
                flight.completed = True
                return
            request.next_page_token = answer.next_page_token

    async def _until(self, call: Callable[[Client], Awaitable[T]], what: str) -> T | None:
        """Calls until there is an answer; None, and a fault, when the answer is a refusal."""
        pause = 0.05
        while True:
            try:
                return await call(self._client())
            except RPCError as error:
                if error.status in REFUSALS:
                    self._faults.append(f"{what}: refused with {error.status.name}: {error.message}")
                    return None
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    # ---- the check --------------------------------------------------------------

    async def _check(self, flight: Flight) -> None:
        report = self._report
        report.workflows += 1
        report.signals += len(flight.acknowledged)
        described = await self._until(
            lambda client: client.workflow_service.describe_workflow_execution(
                DescribeWorkflowExecutionRequest(
                    namespace=NAMESPACE, execution=WorkflowExecution(workflow_id=flight.workflow_id)
                ),
                retry=False,
                timeout=timedelta(seconds=RPC_SECONDS),
            ),
            f"description of {flight.workflow_id}",
        )
        if described is None:
            return
        info = described.workflow_execution_info
        if info.execution.run_id != flight.run_id:
            report.faults.append(f"{flight.workflow_id}: a second run, {info.execution.run_id} after {flight.run_id}")
        if info.status != WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED:
            report.faults.append(f"{flight.workflow_id}: its status is {info.status}, not completed")
        events = await self._history(flight)
        report.faults += [f"{flight.workflow_id}: {fault}" for fault in faults_of(events, flight.acknowledged)]

    async def _history(self, flight: Flight) -> list[HistoryEvent]:
        events: list[HistoryEvent] = []
        request = GetWorkflowExecutionHistoryRequest(
            namespace=NAMESPACE, execution=WorkflowExecution(workflow_id=flight.workflow_id, run_id=flight.run_id)
        )
        while True:
            page = await self._until(
                lambda client: client.workflow_service.get_workflow_execution_history(
                    request, retry=False, timeout=timedelta(seconds=RPC_SECONDS)
                ),
                f"history of {flight.workflow_id}",
            )
            if page is None:
                return events
            events += page.history.events
            if not page.next_page_token:
                return events
            request.next_page_token = page.next_page_token


def faults_of(events: list[HistoryEvent], acknowledged: list[str]) -> list[str]:
    """What is wrong with a history, given the signals that were acknowledged."""
    faults: list[str] = []
    ids = [event.event_id for event in events]
    if ids != list(range(1, len(events) + 1)):
        faults.append(f"event ids are not 1 to {len(events)}: {ids}")
    signals = Counter(
        event.workflow_execution_signaled_event_attributes.input.payloads[0].data.decode().strip('"')
        for event in events
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    )
    faults += [
        f"signal {text} was acknowledged and is there {signals[text]} times"
        for text in acknowledged
        if signals[text] != 1
    ]
    faults += [
        f"signal {text} is there and was never acknowledged" for text in signals if text not in set(acknowledged)
    ]
    ends = [event for event in events if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED]
    if len(ends) != 1 or events[-1] is not ends[0]:
        faults.append(f"it was completed {len(ends)} times")
    scheduled = Counter(event.event_type for event in events)
    for what in ("WORKFLOW_TASK", "ACTIVITY_TASK"):
        begun = scheduled[EventType.Value(f"EVENT_TYPE_{what}_SCHEDULED")]
        ended = sum(
            scheduled[EventType.Value(f"EVENT_TYPE_{what}_{end}")] for end in ("COMPLETED", "FAILED", "TIMED_OUT")
        )
        if begun != ended:
            faults.append(f"{begun} of {what} were scheduled, {ended} ended")
    return faults


def _json(text: str) -> Payloads:
    return Payloads(payloads=[Payload(metadata={"encoding": b"json/plain"}, data=text.encode())])


def worker_command(address: str, task_queue: str) -> list[Any]:
    """The command of one worker process."""
    return [sys.executable, Path(__file__), address, task_queue]


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2]))
