"""What the shell reads out of a fold: answers to reads, and replies as response bytes.

An interface, so that the shell's tests need no machine; `machine_reads.py` binds it to the machine's own functions. All
are pure, over the rows as folded; all raise StatusError for what the caller got wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from everfold.history.machine.step import Reply, RunKey
from everfold.history.queries import QueryView

if TYPE_CHECKING:
    from everfold.history.machine.shard_fold import ShardFold


class HistoryAnswer(NamedTuple):
    """An answer to a history read.

    Attributes:
        wait_for: there is nothing to say yet: read again when this run has changed. None: `response` is the answer.
        until_closed: only the run's closing matters.
    """

    response: bytes
    wait_for: RunKey | None
    until_closed: bool = False


class UpdateStatus(NamedTuple):
    """How far an update has come.

    Attributes:
        stage: UpdateWorkflowExecutionLifecycleStage.
        outcome: serialized Outcome of a completed update; empty before.
    """

    run: RunKey
    stage: int
    outcome: bytes


class Reads(Protocol):
    """The machine's read side."""

    def describe(self, fold: ShardFold, namespace_id: str, request: bytes) -> bytes:
        """DescribeWorkflowExecution."""
        ...

    def history(self, fold: ShardFold, namespace_id: str, request: bytes, *, may_wait: bool) -> HistoryAnswer:
        """GetWorkflowExecutionHistory; `may_wait` False: a long poll that must be answered with what there is."""
        ...

    def history_reverse(self, fold: ShardFold, namespace_id: str, request: bytes) -> bytes:
        """GetWorkflowExecutionHistoryReverse."""
        ...

    def response(self, fold: ShardFold, kind: str, reply: Reply) -> bytes:
        """The response to an accepted proposal, with the history that belongs into it."""
        ...

    def update_status(
        self, fold: ShardFold, namespace_id: str, workflow_id: str, run_id: str, update_id: str
    ) -> UpdateStatus:
        """How far an update of a run (the current one for an empty id) has come. Raises NOT_FOUND."""
        ...

    def query_view(self, fold: ShardFold, namespace_id: str, workflow_id: str, run_id: str) -> QueryView:
        """How a run (the current one for an empty id) can be queried. Raises NOT_FOUND."""
        ...

    def query_task(self, fold: ShardFold, run: RunKey, query: bytes, *, sticky: bool) -> bytes:
        """A PollWorkflowTaskQueueResponse with a legacy query (a serialized WorkflowQuery) and without token.

        For a sticky queue the history is there but empty, as the worker has the run in its cache.
        """
        ...
