"""Workflow tasks that workers of this process have before the start is in the log (`machine/decide/hand_out.py`).

Who has polled here gets the task at once. Its start is appended

    with the next record    that this owner appends about the workflow, as a part of it: as a rule the completion, some
                            milliseconds later. Proposals keep no order among themselves, so each one that is appended
                            until one of them is folded has the start in it
    when it is read         alone: the read waits for the fold of the start
    after HELD_NS           alone, when the worker takes its time

and then as often as it takes until the log has said what became of it. A shard that is given up with tasks in workers'
hands knows nothing of them any more: matching, which keeps them until it hears of the start, queues them again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from everfold.history.machine.decide.hand_out import Start
from everfold.history.machine.step import Reply, RunKey
from everfold.history.ports import Cancellable, ShardPorts
from everfold.history.proposals import OnVerdict, Verdict, WorkflowKey
from everfold.kernel.errors import Code
from everfold.kernel.time import MILLISECOND_NS

HELD_NS: Final = 100 * MILLISECOND_NS
"""A start is appended after this at the latest. Well above what a workflow task takes, a few milliseconds; well below
any timeout that begins with the start."""

HELD_MAX: Final = 1_000
"""Tasks in workers' hands per shard; beyond, starts go into the log first. More than a host has pollers."""

Settled = Callable[[bool], None]
"""Called once: True when the log holds the start, or something that overtook it; False when nobody can know."""


class HeldTask:
    """One task in a worker's hands.

    Attributes:
        start: body of the record that says so.
        appended: whether a record with the start was ever given to Kafka.
        asked: whether a record with the start alone is on its way.
        behind: what waits until it is known what became of the start.
    """

    __slots__ = ("appended", "asked", "behind", "run", "settled", "since_ns", "start")

    def __init__(self, run: RunKey, start: Start, settled: Settled, since_ns: int) -> None:
        self.run = run
        self.start = start
        self.settled = settled
        self.since_ns = since_ns
        self.appended = self.asked = False
        self.behind: list[Callable[[], None]] = []


class HandedOut:
    """See the module.

    Args:
        append: appends START_WORKFLOW_TASK for that run: (run, body, what to call with the verdict).
    """

    def __init__(self, ports: ShardPorts, append: Callable[[RunKey, dict[str, Any], OnVerdict], None]) -> None:
        self._ports = ports
        self._append = append
        #: a workflow has one open run, and so one workflow task
        self._held: dict[WorkflowKey, HeldTask] = {}
        #: how many wait behind them
        self.waiting = 0
        self._timer: Cancellable | None = None
        self._closed = False

    def room_for(self, workflow: WorkflowKey) -> bool:
        """Whether a task of this workflow may be handed out."""
        return not self._closed and workflow not in self._held and len(self._held) < HELD_MAX

    def add(self, run: RunKey, start: Start, settled: Settled) -> None:
        """The task is given to its worker now."""
        self._held[run.namespace_id, run.workflow_id] = HeldTask(run, start, settled, self._ports.boottime_ns())
        if self._timer is None:
            self._timer = self._ports.call_later(HELD_NS, self._look)

    def of(self, workflow: WorkflowKey) -> HeldTask | None:
        """The workflow's task, if a worker has it."""
        return self._held.get(workflow)

    def carried_by(self, held: HeldTask, on_verdict: OnVerdict) -> OnVerdict:
        """A record about the workflow is about to be appended with the start in it: what to call with its verdict."""
        held.appended = True

        def verdict(result: Verdict) -> None:
            if self._is_held(held):
                if isinstance(result, Reply) and result.error is None:
                    self._drop(held, over=True)
                else:  # nothing of it was done, or nobody knows: the start must become known all the same
                    self._ask(held)
            on_verdict(result)

        return verdict

    def when_settled(self, workflow: WorkflowKey, then: Callable[[], None]) -> bool:
        """Call `then` when the log has said what became of the start, or the shard is given up. False: there is none to
        wait for, and `then` is not called.
        """
        held = self._held.get(workflow)
        if held is None:
            return False
        held.behind.append(then)
        self.waiting += 1
        self._ask(held)
        return True

    def take_back(self, workflow: WorkflowKey, request_id: str) -> bool:
        """The poller is gone. True when the start has not been appended: then it never will be."""
        held = self._held.get(workflow)
        if held is None or held.appended or held.start["request_id"] != request_id:
            return False
        self._drop(held, over=False)
        return True

    def close(self) -> None:
        """The shard is given up."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for held in list(self._held.values()):
            self._drop(held, over=False)

    def _ask(self, held: HeldTask) -> None:
        if held.asked:
            return
        held.asked = held.appended = True

        def verdict(result: Verdict) -> None:
            held.asked = False
            if isinstance(result, Reply) and self._is_held(held):
                # Started, or overtaken: then the fold has offered the task again, if it still waits. Any other refusal
                # (the run is quarantined) is for matching to meet again.
                self._drop(held, over=result.error is None or result.error.code == Code.NOT_FOUND)

        self._append(held.run, held.start, verdict)

    def _look(self) -> None:
        self._timer = None
        before_ns = self._ports.boottime_ns() - HELD_NS
        for held in list(self._held.values()):
            if held.since_ns <= before_ns:
                self._ask(held)
        if self._held and not self._closed:
            self._timer = self._ports.call_later(HELD_NS, self._look)

    def _is_held(self, held: HeldTask) -> bool:
        return self._held.get((held.run.namespace_id, held.run.workflow_id)) is held

    def _drop(self, held: HeldTask, *, over: bool) -> None:
        del self._held[held.run.namespace_id, held.run.workflow_id]
        self.waiting -= len(held.behind)
        held.settled(over)
        for then in held.behind:
            then()
