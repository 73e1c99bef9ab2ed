"""What clients and workers were told, to be compared with what is in the log at the end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine.state import Run

if TYPE_CHECKING:
    from simulation.cluster import Cluster


class Ledger:
    """Promises made to clients.

    Attributes:
        starts: request id -> [workflow id, run id that was answered or "", whether the workflow id is used once only].
        signals: token -> [workflow id, acknowledged].
        commands: token or request id -> places on `commands` of the records that carry it.
        malformed: places on `commands` of what must be rejected.
        aborted: tokens that must never appear.
        results: results of activities whose completion was acknowledged -> workflow id.
        seen: (workflow id, run id) -> what the worker had seen whose completion was acknowledged last.
        deleted: workflow ids of which somebody asked to delete a run.
        resets: request id of a reset -> workflow id.
        updates: update id -> (workflow id, run that was named or "", result that was answered).
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.starts: dict[str, tuple[str, str, bool]] = {}
        self.signals: dict[str, tuple[str, bool]] = {}
        self.commands: dict[str, list[tuple[int, int]]] = {}
        self.malformed: list[tuple[int, int]] = []
        self.aborted: list[str] = []
        self.results: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.resets: dict[str, str] = {}
        self.updates: dict[str, tuple[str, str, str]] = {}
        self.seen: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        self.reads = 0
        self._count = 0

    def made_by_reset(self, run: Run) -> bool:
        """Whether a reset made the run: it begins with a copy of another one's history."""
        return run.create_request_id in self.resets

    def times(self, runs: Counter[str], workflow_id: str) -> int:
        """How often something is in the histories of a workflow's runs, copies that a reset made not counted."""
        if workflow_id in self.resets.values():
            return max(runs.values(), default=0)
        return sum(runs.values())

    def token(self, prefix: str) -> str:
        """A name that is used once."""
        self._count += 1
        return f"{prefix}-{self._count}"

    def result(self, run_id: str, activity_id: str, attempt: int) -> str:
        """The result that one run of an activity's code has."""
        return self.token(f"{run_id[:8]}/{activity_id}/{attempt}")

    def completed(self, workflow_id: str, run_id: str, result: str) -> None:
        """The completion was acknowledged."""
        self.results[result] = workflow_id

    def activity_given(self, run_id: str, activity_id: str, attempt: int) -> None:
        """A worker was given an activity."""
        self._cluster.watch.counts["activities given"] += 1

    def workflow_task_completed(self, workflow_id: str, run_id: str, events: list[history_pb2.HistoryEvent]) -> None:
        """The completion of a task with these events was acknowledged: it rests on them."""
        seen = [outline(event) for event in events]
        if len(seen) > len(self.seen.get((workflow_id, run_id), ())):
            self.seen[workflow_id, run_id] = seen

    def workflow_task_given(
        self,
        workflow_id: str,
        run_id: str,
        started_event_id: int,
        attempt: int,
        events: list[history_pb2.HistoryEvent],
    ) -> None:
        """A worker was given a workflow task: its history must be whole, and end with its start."""
        self._cluster.watch.counts["workflow tasks given"] += 1
        ids = [event.event_id for event in events]
        if ids != list(range(1, started_event_id + 1)):
            self._cluster.watch.problem(
                f"workflow task of {workflow_id} {run_id} started {started_event_id} came with events {ids}"
            )


def outline(event: history_pb2.HistoryEvent) -> tuple[int, int, int]:
    """What a workflow's code can tell an event by: id, type, and time in nanoseconds."""
    return event.event_id, int(event.event_type), event.event_time.ToNanoseconds()
