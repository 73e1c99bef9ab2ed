"""Queries that wait for a workflow task, in memory only (architecture, law 11).

A query of a run whose workflow task is scheduled or started cannot be asked directly: the worker would answer from
before the events that the task brings, and a caller would not read its own signal. It waits here, travels with the next
start of the task as an entry of the response's `queries` map, and is answered by the completion's `query_results`. When
the run has no task any more (it closed, or the task ended without the answer and no new one came), the query is free to
be asked directly; when the task keeps failing, it fails too.

Temporal: service/history/api/queryworkflow/api.go and service/history/workflow/query_registry.go (v1.3x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.query.v1 import message_pb2 as query_pb2

from everfold.history.machine.step import RunKey, Step
from everfold.kernel.errors import Code, StatusError

FAILED_ATTEMPTS_MAX: Final = 3
"""A task at this attempt has failed too often for a query to wait for it.
Temporal: failQueryWorkflowTaskAttemptCount."""


class QueryView(NamedTuple):
    """What decides how a run can be queried.

    Attributes:
        status: WorkflowExecutionStatus.
        sticky_queue: empty for none.
        task_pending: a workflow task is scheduled or started.
        task_attempt: of that task.
        task_completed: some workflow task of the run was completed.
        task_known: the run has or had a workflow task (False while a start is delayed).
    """

    run: RunKey
    workflow_type: str
    status: int
    running: bool
    task_queue: str
    sticky_queue: str
    sticky_timeout_ns: int
    task_pending: bool
    task_attempt: int
    task_completed: bool
    task_known: bool


def not_ready(text: str) -> StatusError:
    """FAILED_PRECONDITION with WorkflowNotReadyFailure."""
    detail = errordetails.WorkflowNotReadyFailure()
    return StatusError(Code.FAILED_PRECONDITION, text, ((detail.DESCRIPTOR.full_name, detail.SerializeToString()),))


def failing() -> StatusError:
    """The status for a query of a run whose workflow task keeps failing; Temporal's text."""
    return not_ready("Unable to query workflow due to Workflow Task in failed state.")


Outcome = query_pb2.WorkflowQueryResult | StatusError | None
"""The worker's answer, a status, or None: ask directly."""


class WaitingQuery:
    """One query that waits."""

    __slots__ = ("_owner", "done", "query", "query_id", "run", "travelling")

    def __init__(
        self,
        owner: Queries,
        query_id: str,
        run: RunKey,
        query: query_pb2.WorkflowQuery,
        done: Callable[[Outcome], None],
    ) -> None:
        self._owner = owner
        self.query_id = query_id
        self.run = run
        self.query = query
        self.done = done
        #: whether it went out with a workflow task that has not ended
        self.travelling = False

    def cancel(self) -> None:
        """The caller waits no longer; harmless when answered."""
        self._owner.forget(self)


class Queries:
    """The waiting queries of a shard.

    Args:
        view: how a run can be queried, by the fold; None when it is gone.
    """

    def __init__(self, view: Callable[[RunKey], QueryView | None], per_run_max: int, in_all_max: int) -> None:
        self._view = view
        self._per_run_max = per_run_max
        self._in_all_max = in_all_max
        #: run -> query id -> query, in order of arrival
        self._by_run: dict[RunKey, dict[str, WaitingQuery]] = {}
        self._count = 0
        self._ids = 0

    def __len__(self) -> int:
        return self._count

    def wait(self, run: RunKey, query: query_pb2.WorkflowQuery, done: Callable[[Outcome], None]) -> WaitingQuery | None:
        """Wait for the run's workflow task; `done` is called once. None: too many wait already."""
        waiting = self._by_run.get(run)
        if self._count >= self._in_all_max or (waiting is not None and len(waiting) >= self._per_run_max):
            return None
        self._ids += 1
        one = WaitingQuery(self, f"q{self._ids}", run, query, done)
        self._by_run.setdefault(run, {})[one.query_id] = one
        self._count += 1
        return one

    def any_for(self, run: RunKey) -> bool:
        """Whether queries wait for the run; cheap, asked for each workflow task."""
        return run in self._by_run

    def travel(self, run: RunKey) -> dict[str, query_pb2.WorkflowQuery]:
        """The queries to put into a workflow task that is being handed to a worker."""
        waiting = self._by_run.get(run, {})
        for one in waiting.values():
            one.travelling = True
        return {query_id: one.query for query_id, one in waiting.items()}

    def answered(self, run: RunKey, results: Mapping[str, query_pb2.WorkflowQueryResult]) -> None:
        """A workflow task was completed with these results."""
        waiting = self._by_run.get(run, {})
        for query_id, result in results.items():
            one = waiting.get(query_id)
            if one is not None:
                self._end(one, result)
        for one in list(self._by_run.get(run, {}).values()):
            one.travelling = False

    def on_steps(self, steps: Sequence[Step]) -> None:
        """Records were folded: see whether those who wait for the changed runs still have something to wait for."""
        if not self._by_run:
            return
        for step in steps:
            for run in step.changed:
                if run in self._by_run:
                    self._look(run)

    def close(self, reason: StatusError) -> None:
        """The shard is gone."""
        for waiting in list(self._by_run.values()):
            for one in list(waiting.values()):
                self._end(one, reason)

    def forget(self, one: WaitingQuery) -> None:
        """Drop one."""
        waiting = self._by_run.get(one.run)
        if waiting is not None and waiting.pop(one.query_id, None) is not None:
            self._count -= 1
            if not waiting:
                del self._by_run[one.run]

    def _look(self, run: RunKey) -> None:
        view = self._view(run)
        outcome: Outcome
        if view is None:
            outcome = StatusError(Code.NOT_FOUND, "workflow execution is gone")
        elif not view.running or not view.task_pending:
            outcome = None
        elif view.task_attempt >= FAILED_ATTEMPTS_MAX:
            outcome = failing()
        else:
            return
        for one in list(self._by_run.get(run, {}).values()):
            self._end(one, outcome)

    def _end(self, one: WaitingQuery, outcome: Outcome) -> None:
        self.forget(one)
        one.done(outcome)
