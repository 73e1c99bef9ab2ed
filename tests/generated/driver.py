"""Drives programs on one server: starts them, sends what they wait for, and gathers what came of them.

Every call is repeated until it is answered, with the same ids, as the server may be killed at any moment. What a call
answers is part of the outcome; only that an answer was lost is not.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson
from temporalio.api.common.v1 import Payload, Payloads, RetryPolicy, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import WorkflowIdReusePolicy
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)
from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowContinuedAsNewError,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowHistory,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
    WorkflowUpdateStage,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.common import WorkflowIDReusePolicy as ReusePolicy
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig
from temporalio.service import RPCError, RPCStatusCode

from generated.failures import described
from generated.generator import ENDED_BY_CLIENT, NOTED_UPDATES, Program, walk
from generated.outcome import Chain, Outcome, Sent, faults_of, kind_of, kinds

NAMESPACE: Final = "default"
RPC_SECONDS: Final = 5.0
WORKFLOW_TASK_SECONDS: Final = 5
"""A task whose start was answered to a connection that is gone comes again after this."""

REFUSALS: Final = frozenset(
    (
        RPCStatusCode.INVALID_ARGUMENT,
        RPCStatusCode.NOT_FOUND,
        RPCStatusCode.ALREADY_EXISTS,
        RPCStatusCode.UNIMPLEMENTED,
        RPCStatusCode.PERMISSION_DENIED,
    )
)

T = TypeVar("T")


class Refused(Exception):
    """The server answered, and the answer is no.

    Attributes:
        error: the answer.
        repeated: whether an earlier attempt of the same call was left without one.
    """

    def __init__(self, what: str, error: RPCError, repeated: bool) -> None:
        again = ", called again" if repeated else ""
        super().__init__(f"{what}{again}: {error.status.name}: {error.message}")
        self.error = error
        self.repeated = repeated


class Play:
    """Programs on one server, on a thread of its own.

    Args:
        address: the server's.
        task_queue: where its worker polls.
        programs: what to run.
        at_once: how many at a time.
        seed: of the pauses between what is sent.

    Attributes:
        outcomes: by program id, as they come.
        histories: of every run, for a replay.
        answered, ended: how many calls were answered, and how many programs came to their end, so far.
    """

    def __init__(self, address: str, task_queue: str, programs: list[Program], *, at_once: int, seed: int) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.histories: list[WorkflowHistory] = []
        self.answered = self.ended = 0
        self.nonce = task_queue
        self.address = address
        self.programs = programs
        self.seed = seed
        self._at_once = at_once
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name=f"play {address}", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether programs are left."""
        return self._thread.is_alive()

    def wait_for_answers(self, more: int = 3, timeout: float = 90.0) -> None:
        """Waits until so many more calls are answered, or all programs have ended."""
        target, deadline = self.answered + more, time.monotonic() + timeout
        while self.answered < target and self.running:
            assert time.monotonic() < deadline, f"no {more} calls were answered within {timeout:.0f} s"
            time.sleep(0.02)

    def finish(self, timeout: float) -> None:
        """Waits until all programs have ended; those that have not are faults."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(20)
        if self._error is not None:
            raise self._error

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._error = error
        # Calls that the server's death ended are reported by asyncio when they are collected, with a traceback; Python
        # 3.11 cannot make one in the midst of parsing (gh-106905), which is where a later collection may come.
        del self.client
        gc.collect()

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._loop = task, asyncio.get_running_loop()
        # What the SDK says of a server that is gone is what these tests are about.
        quiet = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter="ERROR")))
        self.client = await Client.connect(self.address, lazy=True, runtime=quiet)
        slots = asyncio.Semaphore(self._at_once)

        async def one(program: Program) -> None:
            async with slots:
                driver = Driver(self, program)
                self.outcomes[program["id"]] = driver.outcome
                try:
                    await driver.drive()
                    self.ended += 1
                except asyncio.CancelledError:
                    driver.outcome.faults.append(f"it did not end: {', '.join(driver.waits_for)}")
                    raise
                except Exception as error:
                    driver.outcome.faults += [one.replace(self.nonce, "~") for one in _told(error)]

        async with asyncio.TaskGroup() as group:
            for program in self.programs:
                group.create_task(one(program))


class Driver:
    """One program on one server.

    Attributes:
        outcome: what came of it, as it comes.
        waits_for: calls that were not answered yet, or with a failure.
    """

    def __init__(self, play: Play, program: Program) -> None:
        self.outcome = Outcome()
        self.waits_for: list[str] = []
        self._play = play
        self._client = play.client
        self._program = program
        self._chance = random.Random(f"{play.seed}/{program['id']}")
        self._workflow_id = f"{play.nonce}:{program['id']}"
        self._signals: dict[str, bool] = {}
        self._updates: set[str] = set()

    async def drive(self) -> None:
        """Runs the program to its end and fills `outcome`."""
        program = self._program
        lanes = [[lane["kind"], lane["channel"], list(lane["items"])] for lane in program["lanes"]]
        if program["start"] == "signal_with_start":
            await self._signal_with_start(lanes[0][1], lanes[0][2].pop(0))
        elif program["start"] == "update_with_start":
            await self._update_with_start(lanes[0][1], lanes[0][2].pop(0))
        else:
            await self._start()
        async with asyncio.TaskGroup() as group:
            for kind, channel, items in lanes:
                group.create_task(self._lane(kind, channel, items))
        if lanes:
            await self._signal("close", f"{program['id']}-close", last=True)
        await self._end(program["end"]["kind"])
        await self._gather()

    # ---- what is sent -----------------------------------------------------------

    async def _lane(self, kind: str, channel: str, items: list[Any]) -> None:
        for item in items:
            await asyncio.sleep(self._chance.uniform(0, 1.0))
            await (self._signal(channel, item) if kind == "signal" else self._update(channel, item))

    async def _start(self) -> None:
        request = StartWorkflowExecutionRequest(**self._start_fields())
        service = self._client.workflow_service
        try:
            await self._until(
                lambda: service.start_workflow_execution(request, retry=False, timeout=_short()), "the start"
            )
        except Refused as refused:
            # It started, the answer was lost, and the workflow has continued or ended since.
            if not (refused.repeated and refused.error.status is RPCStatusCode.ALREADY_EXISTS):
                raise

    def _start_fields(self) -> dict[str, Any]:
        end = self._program["end"]
        fields: dict[str, Any] = {
            "namespace": NAMESPACE,
            "workflow_id": self._workflow_id,
            "workflow_type": WorkflowType(name="program"),
            "task_queue": TaskQueue(name=self._play.nonce),
            "input": _json(self._program, None),
            "request_id": f"{self._workflow_id}/start",
            "identity": "driver",
            "workflow_task_timeout": Duration(seconds=WORKFLOW_TASK_SECONDS),
            "workflow_id_reuse_policy": WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
        }
        if end["kind"] == "retried":
            fields["retry_policy"] = RetryPolicy(
                initial_interval=Duration(nanos=50_000_000),
                backoff_coefficient=1.5,
                maximum_attempts=end["attempts_max"],
            )
        if "run_timeout_ms" in end:
            fields["workflow_run_timeout"] = Duration(seconds=end["run_timeout_ms"] // 1000)
        return fields

    async def _signal_with_start(self, channel: str, text: str) -> None:
        fields = self._start_fields()
        request = SignalWithStartWorkflowExecutionRequest(
            **fields, signal_name="tell", signal_input=_json(channel, text)
        )
        service = self._client.workflow_service
        _, self._signals[text] = await self._until(
            lambda: service.signal_with_start_workflow_execution(request, retry=False, timeout=_short()),
            f"the start with signal {text}",
        )

    async def _update_with_start(self, channel: str, item: dict[str, Any]) -> None:
        async def attempt() -> Any:
            start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
                "program",
                args=[self._program, None],
                id=self._workflow_id,
                task_queue=self._play.nonce,
                task_timeout=timedelta(seconds=WORKFLOW_TASK_SECONDS),
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=ReusePolicy.REJECT_DUPLICATE,
            )
            return await self._client.execute_update_with_start_workflow(
                "deliver", args=[channel, item], id=item["text"], start_workflow_operation=start
            )

        answer, _ = await self._until(attempt, f"the start with update {item['text']}")
        self.outcome.answers[item["text"]] = answer
        self._updates.add(item["text"])

    async def _signal(self, channel: str, text: str, *, last: bool = False) -> None:
        request = SignalWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=self._workflow_id),
            signal_name="tell",
            input=_json(channel, text),
            request_id=f"{self._workflow_id}/{text}",
            identity="driver",
        )
        service = self._client.workflow_service
        try:
            _, self._signals[text] = await self._until(
                lambda: service.signal_workflow_execution(request, retry=False, timeout=_short()), f"signal {text}"
            )
        except Refused as refused:
            if not (last and _came_late(refused)):
                raise
            self._signals[text] = True

    async def _update(self, channel: str, item: dict[str, Any]) -> None:
        text = item["text"]
        stage = WorkflowUpdateStage.ACCEPTED if item["how"] == "held" else WorkflowUpdateStage.COMPLETED
        handle = self._handle()
        try:
            update, _ = await self._until(
                lambda: handle.start_update("deliver", args=[channel, item], id=text, wait_for_stage=stage),
                f"update {text}",
            )
            if item["how"] == "held":
                await self._signal("release", f"release {text}")
            answer, _ = await self._until(update.result, f"result of update {text}")
        except WorkflowUpdateFailedError as error:
            answer = described(error.cause)
        self.outcome.answers[text] = answer
        if item["how"] in NOTED_UPDATES:
            self._updates.add(text)

    async def _end(self, kind: str) -> None:
        if kind not in ENDED_BY_CLIENT:
            return
        handle, service = self._handle(), self._client.workflow_service
        by_query = self._program["end"]["tells_by"] == "query"
        waits = False
        while not waits:
            await asyncio.sleep(0.2)
            if by_query:
                waits, _ = await self._until(lambda: handle.query("waits_for_client"), "the query")
            description, _ = await self._until(handle.describe, "the description")
            if description.close_time is not None:
                return  # it ended otherwise, which its outcome will show
            waits = waits or (not by_query and "waits" in await description.memo())
        execution = WorkflowExecution(workflow_id=self._workflow_id)
        request_id = f"{self._workflow_id}/end"
        call: Callable[[], Awaitable[Any]]
        if kind == "terminated":
            terminate = TerminateWorkflowExecutionRequest(
                namespace=NAMESPACE, workflow_execution=execution, reason="as the program says", identity="driver"
            )
            call = lambda: service.terminate_workflow_execution(terminate, retry=False, timeout=_short())  # noqa: E731
        else:
            cancel = RequestCancelWorkflowExecutionRequest(
                namespace=NAMESPACE, workflow_execution=execution, request_id=request_id, identity="driver"
            )
            call = lambda: service.request_cancel_workflow_execution(cancel, retry=False, timeout=_short())  # noqa: E731
        try:
            await self._until(call, f"the call that ends it: {kind}")
        except Refused as refused:
            if not _came_late(refused):
                raise

    # ---- what came of it --------------------------------------------------------

    async def _gather(self) -> None:
        left = frozenset(
            self._child_id(step["program"]["id"])
            for step in walk(self._program)
            if step["do"] == "child" and (step["how"] == "leave" or step.get("by") == "try")
        )
        self.outcome.root = await self._chain(self._workflow_id, left, Sent(self._signals, frozenset(self._updates)))
        for name in _children(self._program):
            nobody = Sent({}, frozenset())
            self.outcome.children[name] = await self._chain(self._child_id(name), left, nobody)

    def _child_id(self, name: str) -> str:
        return f"{self._play.nonce}:{name}"

    async def _chain(self, workflow_id: str, left: frozenset[str], sent: Sent) -> Chain:
        chain = Chain()
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            chain.result, _ = await self._until(lambda: handle.result(follow_runs=True), f"result of {workflow_id}")
        except WorkflowFailureError as error:
            chain.failure = described(error.cause)
        except WorkflowContinuedAsNewError:
            chain.failure = ["continued as new"]
        description, _ = await self._until(handle.describe, f"description of {workflow_id}")
        chain.status = description.status.name if description.status else ""
        chain.memo = dict(await description.memo())
        chain.attributes = {
            pair.key.name: pair.value for pair in description.typed_search_attributes if pair.key.name != "BuildIds"
        }
        runs = await self._runs(workflow_id, description.run_id)
        chain.runs = [kind_of(events[-1]).removeprefix("WORKFLOW_EXECUTION_") if events else "none" for events in runs]
        chain.events = kinds(runs, left)
        name = workflow_id.removeprefix(self._play.nonce)
        self.outcome.faults += [f"{name}: {fault}" for fault in faults_of(runs, sent)]
        return chain

    async def _runs(self, workflow_id: str, run_id: str) -> list[list[HistoryEvent]]:
        """The histories of a chain, from the last run back to the first."""
        runs: list[list[HistoryEvent]] = []
        while run_id:
            handle = self._client.get_workflow_handle(workflow_id, run_id=run_id)
            history, _ = await self._until(handle.fetch_history, f"history of {workflow_id}")
            self._play.histories.append(history)
            runs.insert(0, list(history.events))
            run_id = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
        return runs

    # ---- calls ------------------------------------------------------------------

    def _handle(self) -> WorkflowHandle[Any, Any]:
        return self._client.get_workflow_handle(self._workflow_id)

    async def _until(self, call: Callable[[], Awaitable[T]], what: str) -> tuple[T, bool]:
        """Calls until there is an answer; returns it, and whether it took more than one call."""
        self.waits_for.append(what)
        try:
            answer = await self._repeat(call, what)
        except Exception:  # not a cancellation: then `waits_for` is what is asked for
            self.waits_for.remove(what)
            raise
        self.waits_for.remove(what)
        self._play.answered += 1
        return answer

    async def _repeat(self, call: Callable[[], Awaitable[T]], what: str) -> tuple[T, bool]:
        pause, repeated = 0.05, False
        while True:
            try:
                return await call(), repeated
            except WorkflowUpdateRPCTimeoutOrCancelledError:
                pass
            except RPCError as error:
                if error.status in REFUSALS:
                    raise Refused(what, error, repeated) from error
            repeated = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)


def _told(error: Exception) -> list[str]:
    """One sentence for each exception of a group: a refusal's own, or where it came from."""
    if isinstance(error, ExceptionGroup):
        return [text for one in error.exceptions for text in _told(one)]
    if isinstance(error, Refused):
        return [str(error)]
    return ["the driver failed: " + "".join(traceback.format_exception(error, limit=-4))]


async def histories_told(play: Play, program: Program) -> str:
    """The histories of a program and its children, an event a line, for whoever looks into a difference."""
    client = await Client.connect(play.address)
    lines: list[str] = []
    for name in (program["id"], *_children(program)):
        run_id: str | None = None
        told: list[str] = []
        while run_id != "":
            handle = client.get_workflow_handle(f"{play.nonce}:{name}", run_id=run_id)
            try:
                history = await handle.fetch_history()
            except RPCError as error:
                told.insert(0, f"== {name}: {error.message}")
                break
            events = [
                f"{event.event_time.ToJsonString()} {event.event_id} {kind_of(event)} "
                + MessageToJson(getattr(event, str(event.WhichOneof("attributes"))), indent=None)[:600]
                for event in history.events
            ]
            told[:0] = [f"== {name}, run {history.run_id}", *events]
            run_id = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
        lines += told
    return "\n".join(lines)


def _children(program: Program) -> list[str]:
    pending = [one for one in program["end"].get("pending", ()) if one["do"] == "child"]
    return [step["program"]["id"] for step in (*walk(program), *pending) if step["do"] == "child"]


def _came_late(refused: Refused) -> bool:
    """Whether a call took effect, its answer was lost, and the workflow has ended since."""
    return refused.repeated and refused.error.status is RPCStatusCode.NOT_FOUND


def _short() -> timedelta:
    return timedelta(seconds=RPC_SECONDS)


def _json(*values: Any) -> Payloads:
    return Payloads(
        payloads=[
            Payload(metadata={"encoding": b"binary/null"})
            if value is None
            else Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(value).encode())
            for value in values
        ]
    )
