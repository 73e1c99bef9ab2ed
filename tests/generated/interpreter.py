"""Runs a program of `generator.py` as a workflow, with nothing but the public Python SDK.

What it returns, or fails with, is a transcript: one entry per step, in the order of the program and not of time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Final

from temporalio import activity, workflow
from temporalio.common import RetryPolicy, SearchAttributeKey
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    FailureError,
    WorkflowAlreadyStartedError,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.workflow import ActivityCancellationType, ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from generated.failures import described
    from generated.generator import Program, Step

ATTRIBUTE: Final = SearchAttributeKey.for_keyword("CustomKeyword")
RETRY: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=50),
    backoff_coefficient=1.5,
    maximum_interval=timedelta(milliseconds=500),
    non_retryable_error_types=["Listed"],
)
START_TO_CLOSE: Final = timedelta(seconds=10)
"""Of activities that end at once: only the loss of a start (the server was killed while it answered) takes so long."""

HANG_SECONDS: Final = 30
HOLD_SECONDS: Final = 90


def elsewhere(task_queue: str) -> str:
    """The queue of the activities that no workflow task's completion can hand to the worker at once."""
    return f"{task_queue}-activities"


UNHEARD: Final = frozenset(("hold", "give_up"))
"""Activities that are run again when the server lost one: how often they are scheduled means nothing."""


# ---- activities ---------------------------------------------------------------------


@activity.defn
async def succeed(step: Step) -> str:
    return f"done {step['text']}"


@activity.defn
async def flaky(step: Step) -> str:
    if activity.info().attempt <= step["failures"]:
        delay = timedelta(milliseconds=step["delay_ms"]) if step.get("delay_ms") else None
        raise ApplicationError("not yet", type="NotYet", next_retry_delay=delay)
    return f"done at last {step['text']}"


@activity.defn
async def refuse(step: Step) -> str:
    raise ApplicationError(f"never {step['text']}", step["text"], type="Never", non_retryable=True)


@activity.defn
async def listed(step: Step) -> str:
    raise ApplicationError(f"on the list {step['text']}", type="Listed")


@activity.defn
async def give_up(step: Step) -> str:
    raise ApplicationError(f"again {step['text']}", type="Again")


@activity.defn
async def resume(step: Step) -> str:
    details = activity.info().heartbeat_details
    if not details:
        activity.heartbeat(f"half of {step['text']}")
        raise ApplicationError("interrupted", type="Interrupted")
    return f"resumed from {details[0]}"


@activity.defn
async def hang(step: Step) -> str:
    # A busy server may be seconds late with a timeout; a worker cancels what it knows to be over by itself.
    await asyncio.sleep(HANG_SECONDS)
    return "too late"


@activity.defn
async def hold(text: str) -> str:
    """Says that it has begun, then stays until it is cancelled."""
    handle = activity.client().get_workflow_handle(activity.info().workflow_id or "")
    while True:
        try:
            await handle.signal("begun", text)
            break
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return "nobody waits"
    for _ in range(HOLD_SECONDS * 5):
        activity.heartbeat()
        await asyncio.sleep(0.2)
    return "held to the end"


ALL_ACTIVITIES: Final[list[Callable[..., Any]]] = [succeed, flaky, refuse, listed, give_up, resume, hang, hold]
BY_NAME: Final = {function.__name__: function for function in ALL_ACTIVITIES}


# ---- the workflow -------------------------------------------------------------------


@workflow.defn(name="program")
class Interpreter:
    """One program, or what is left of it after a continue-as-new."""

    @workflow.init
    def __init__(self, program: Program, carried: dict[str, Any] | None = None) -> None:
        carried = carried or {"transcript": [], "inbox": {}, "taken": {}, "seen": [], "runs": 0}
        self._transcript: list[Any] = carried["transcript"]
        self._inbox: dict[str, list[str]] = carried["inbox"]
        self._taken: dict[str, int] = carried["taken"]
        # A server dedupes signals and updates within a run; one that is sent again after a continue-as-new, because its
        # answer was lost, comes twice. A list, as the order of a set is not the same in a replay.
        self._seen: list[str] = carried["seen"]
        self._runs: int = carried["runs"] + 1
        self._begun: list[str] = []
        self._waits_for_client = False

    @workflow.run
    async def run(self, program: Program, carried: dict[str, Any] | None = None) -> dict[str, Any]:
        steps = program["steps"]
        for place, step in enumerate(steps):
            if step["do"] == "continue_as_new":
                # A signal that came with what begins this run is handled after these first steps, but before the next
                # turn of the loop.
                await asyncio.sleep(0)
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(args=[{**program, "steps": steps[place + 1 :]}, self._carried()])
            self._transcript.append(await self._step(step))
        return await self._end(program["end"])

    def _carried(self) -> dict[str, Any]:
        return {
            "transcript": self._transcript,
            "inbox": self._inbox,
            "taken": self._taken,
            "seen": self._seen,
            "runs": self._runs,
        }

    # ---- from outside -----------------------------------------------------------

    @workflow.signal
    def tell(self, channel: str, text: str) -> None:
        self._note(channel, text)

    @workflow.signal
    def begun(self, text: str) -> None:
        self._begun.append(text)

    @workflow.query
    def waits_for_client(self) -> bool:
        return self._waits_for_client

    @workflow.update
    async def deliver(self, channel: str, item: dict[str, Any]) -> str:
        how, text = item["how"], item["text"]
        if text not in self._seen:
            if how == "fail":
                raise ApplicationError(f"cannot take {text}", text, type="CannotTake")
            if how == "slow":
                await asyncio.sleep(0.1)
            elif how == "work":
                await workflow.execute_activity(succeed, item, start_to_close_timeout=START_TO_CLOSE)
            elif how == "held":
                await workflow.wait_condition(lambda: f"release {text}" in self._seen)
            self._note(channel, text)
        return f"took {text}"

    @deliver.validator
    def _check(self, channel: str, item: dict[str, Any]) -> None:
        if item["how"] == "reject":
            raise ApplicationError(f"does not want {item['text']}", type="Refused")

    def _note(self, channel: str, text: str) -> None:
        if text not in self._seen:
            self._seen.append(text)
            self._inbox.setdefault(channel, []).append(text)

    async def _take(self, channel: str, count: int) -> list[str]:
        """The next ones of a channel, as they came."""
        await workflow.wait_condition(lambda: len(self._inbox.get(channel, [])) >= self._taken.get(channel, 0) + count)
        begin = self._taken.get(channel, 0)
        self._taken[channel] = begin + count
        return self._inbox[channel][begin : begin + count]

    # ---- the end ----------------------------------------------------------------

    async def _end(self, end: dict[str, Any]) -> dict[str, Any]:
        kind = end["kind"]
        if kind == "retried":
            if workflow.info().attempt <= end["failures"]:
                raise ApplicationError("not this time", type="NotThisTime")
        elif kind == "fail":
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise ApplicationError("as the program says", self._result(), type="ProgramFailed", non_retryable=True)
        elif kind in ("terminated", "timed_out"):
            if kind == "terminated":
                await self._tell_client(end["tells_by"])
            await workflow.wait_condition(lambda: False)
        elif kind in ("cancelled", "caught"):
            ended = await self._wait_for_cancellation(end)
            if end.get("cleanup"):
                # The cancellation was delivered; what is awaited from now on is not touched by it.
                await workflow.execute_activity(succeed, {"text": "cleanup"}, start_to_close_timeout=START_TO_CLOSE)
            if end.get("tells"):
                await self._do_signal_parent(end["tells"])
            if kind == "cancelled":
                raise CancelledError("as the client asked")
            self._transcript.append(["cancelled", *ended])
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._result()

    async def _wait_for_cancellation(self, end: dict[str, Any]) -> list[Any]:
        pending = [asyncio.create_task(self._pending(one)) for one in end.get("pending", ())]
        try:
            await workflow.wait_condition(lambda: self._ready_to_cancel == len(pending))
            if workflow.info().parent is None:
                await self._tell_client(end["tells_by"])
            if "ready" in end:
                # The answer to this may come after the cancellation.
                ready = asyncio.create_task(self._do_signal_parent(end["ready"]))
            await workflow.wait_condition(lambda: False)
        except asyncio.CancelledError:
            for task in pending:
                task.cancel()
        if "ready" in end:
            await ready
        return await asyncio.gather(*pending)

    async def _tell_client(self, by: str) -> None:
        if by == "memo":
            workflow.upsert_memo({"waits": True})
            return
        # A query may be answered by a task whose completion the server then never gets. Once this timer has fired, the
        # commands until here are in the history.
        await asyncio.sleep(0.01)
        self._waits_for_client = True

    _ready_to_cancel = 0

    async def _pending(self, one: dict[str, Any]) -> Any:
        """Something that is under way when the cancellation comes, and what then becomes of it."""
        if one["do"] == "child":
            handle = await self._start_child(one)
            await self._take(one["program"]["id"], 1)
            return await self._outcome(self._until_cancelled(handle))
        if one["do"] == "activity":
            return await self._outcome(
                self._until_cancelled(self._hold("pending", ActivityCancellationType.TRY_CANCEL))
            )
        return await self._outcome(self._until_cancelled(asyncio.create_task(asyncio.sleep(3600))))

    async def _until_cancelled(self, task: Any) -> Any:
        self._ready_to_cancel += 1
        return await task

    def _result(self) -> dict[str, Any]:
        return {"transcript": self._transcript, "runs": self._runs}

    # ---- steps ------------------------------------------------------------------

    async def _step(self, step: Step) -> Any:
        return await getattr(self, f"_do_{step['do']}")(step)

    async def _outcome(self, what: Coroutine[Any, Any, Any]) -> Any:
        """What it gave, or its failure."""
        try:
            return await what
        except asyncio.CancelledError:
            return "cancelled"
        except (FailureError, WorkflowAlreadyStartedError) as error:
            return described(error)

    async def _do_timer(self, step: Step) -> str:
        await asyncio.sleep(step["ms"] / 1000)
        return "slept"

    async def _do_cancel_timer(self, step: Step) -> Any:
        timer = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0.01)
        timer.cancel()
        return await self._outcome(_awaited(timer))

    async def _do_never(self, step: Step) -> str:
        try:
            await workflow.wait_condition(lambda: False, timeout=step["ms"] / 1000)
        except TimeoutError:
            return "timed out"
        return "it happened"

    async def _do_wait(self, step: Step) -> list[str]:
        return await self._take(step["channel"], step["count"])

    async def _do_patched(self, step: Step) -> bool:
        return workflow.patched(step["text"])

    async def _do_memo(self, step: Step) -> str:
        workflow.upsert_memo({step["text"]: 1, **({"note": step["text"]} if step["overwrites"] else {})})
        return "noted"

    async def _do_attribute(self, step: Step) -> str:
        workflow.upsert_search_attributes([ATTRIBUTE.value_set(step["text"])])
        return "set"

    async def _do_parallel(self, step: Step) -> list[Any]:
        return list(await asyncio.gather(*(self._branch(branch) for branch in step["branches"])))

    async def _branch(self, steps: list[Step]) -> list[Any]:
        return [await self._step(step) for step in steps]

    async def _do_scope(self, step: Step) -> list[Any]:
        """Steps in a task of their own that is cancelled when they are done."""
        done: list[Any] = []

        async def scope() -> None:
            for one in step["steps"]:
                done.append(await self._step(one))
            done.append("cancel me")
            await asyncio.sleep(3600)

        task = asyncio.create_task(scope())
        await workflow.wait_condition(lambda: done[-1:] == ["cancel me"])
        await asyncio.sleep(0.01)
        task.cancel()
        return [*done, await self._outcome(_awaited(task))]

    # ---- activities -------------------------------------------------------------

    async def _do_activity(self, step: Step) -> Any:
        while True:
            outcome = await self._outcome(self._activity(step))
            # A start that was lost with the server counts as an attempt and may have been the last one allowed.
            if step["act"] == "give_up" and outcome[1]["class"] == "TimeoutError":
                continue
            return outcome

    async def _activity(self, step: Step) -> Any:
        act = step["act"]
        options: dict[str, Any] = {"retry_policy": RETRY, "start_to_close_timeout": START_TO_CLOSE}
        if act == "give_up":
            options["retry_policy"] = _attempts(step["failures"])
        elif act == "nobody":
            options |= {"task_queue": "nobody", "schedule_to_start_timeout": timedelta(milliseconds=300)}
        elif act == "hang":
            options |= {"start_to_close_timeout": timedelta(milliseconds=400), "retry_policy": _attempts(2)}
        elif step["elsewhere"]:
            options["task_queue"] = elsewhere(workflow.info().task_queue)
        return await workflow.execute_activity("succeed" if act == "nobody" else act, step, **options)

    async def _do_local_activity(self, step: Step) -> Any:
        function = BY_NAME[step["act"]]
        options: dict[str, Any] = {"retry_policy": RETRY, "start_to_close_timeout": START_TO_CLOSE}
        return await self._outcome(_awaited(workflow.start_local_activity(function, step, **options)))

    async def _do_cancel_activity(self, step: Step) -> Any:
        kind = {
            "try": ActivityCancellationType.TRY_CANCEL,
            "wait": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            "abandon": ActivityCancellationType.ABANDON,
        }[step["how"]]
        number = 0
        while True:
            number += 1
            text = f"{step['text']}#{number}"
            task = self._hold(text, kind)
            await workflow.wait_condition(lambda: text in self._begun)  # noqa: B023
            task.cancel()
            outcome = await self._outcome(_awaited(task))
            # As above: an attempt that was lost after it had begun ends by its timeout.
            if outcome != "cancelled" and outcome[-1]["class"] == "TimeoutError":
                continue
            return outcome

    def _hold(self, text: str, kind: ActivityCancellationType) -> Any:
        return workflow.start_activity(
            hold,
            text,
            start_to_close_timeout=timedelta(seconds=20),
            retry_policy=RETRY,
            cancellation_type=kind,
        )

    # ---- other workflows --------------------------------------------------------

    async def _do_child(self, step: Step) -> Any:
        how, name = step["how"], step["program"]["id"]
        outcome: list[Any] = [how]
        handle = await self._start_child(step)
        for place, text in enumerate(step["signals"]):
            target = handle if place % 2 else workflow.get_external_workflow_handle(handle.id)
            await target.signal("tell", args=["p", text])
        if step["hears"]:
            outcome.append(await self._take(name, step["hears"]))
        if how == "leave":
            return [*outcome, "left"]
        if how == "duplicate":
            outcome.append(await self._outcome(self._start_child(step)))
        if how in ("cancel", "duplicate"):
            if step.get("by") == "external":
                await workflow.get_external_workflow_handle(handle.id).cancel()
            else:
                handle.cancel()
        outcome.append(await self._outcome(_awaited(handle)))
        if step.get("by") == "try":
            # The request is dropped when its workflow closes first.
            outcome.append(await self._take(name, 1))
        return outcome

    async def _start_child(self, step: Step) -> workflow.ChildWorkflowHandle[Any, Any]:
        program = step["program"]
        kind = ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED
        if step.get("by") == "try":
            kind = ChildWorkflowCancellationType.TRY_CANCEL
        timeout = timedelta(milliseconds=step["run_timeout_ms"]) if "run_timeout_ms" in step else None
        return await workflow.start_child_workflow(
            "program",
            args=[program, None],
            id=f"{workflow.info().workflow_id.split(':')[0]}:{program['id']}",
            parent_close_policy=ParentClosePolicy[step["policy"]],
            cancellation_type=kind,
            run_timeout=timeout,
            retry_policy=_attempts(program["end"]["attempts_max"]) if program["end"]["kind"] == "retried" else None,
            task_timeout=workflow.info().task_timeout,
        )

    async def _do_signal_parent(self, step: Step) -> str:
        parent = workflow.info().parent
        assert parent is not None
        handle = workflow.get_external_workflow_handle(parent.workflow_id)
        await handle.signal("tell", args=[step["channel"], step["text"]])
        return "told"

    async def _do_signal_nobody(self, step: Step) -> Any:
        handle = workflow.get_external_workflow_handle(f"{workflow.info().workflow_id}-nobody")
        if step["cancel"]:
            return await self._outcome(handle.cancel())
        return await self._outcome(handle.signal("tell", args=["x", "y"]))


def _attempts(most: int) -> RetryPolicy:
    return RetryPolicy(initial_interval=timedelta(milliseconds=50), backoff_coefficient=1.5, maximum_attempts=most)


async def _awaited(task: Any) -> Any:
    return await task
