"""What must hold between runs when the cluster has come to rest: parents and children, chains of runs, updates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from temporalio.api.enums.v1 import event_type_pb2 as types
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine.state import Run
from simulation.program import SIGNAL_ANSWERED, is_rejected, outcome_of, value_of

if TYPE_CHECKING:
    from simulation.checks import Refolded
    from simulation.cluster import Cluster
    from simulation.ledger import Ledger

Events = list[history_pb2.HistoryEvent]

_CHILD_STATUS = {
    2: types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED,
    3: types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED,
    4: types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED,
    5: types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
    7: types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT,
}


def check_relations(cluster: Cluster, ledger: Ledger, refolded: Iterable[Refolded]) -> None:
    """All checks; problems go to the watch."""
    runs = {run.run_id: (run, one.events(run)) for one in refolded for run in one.runs}
    tainted = cluster.watch.tainted
    for run, events in runs.values():
        if run.workflow_id not in tainted:
            _check_chain(cluster, ledger, runs, run, events)
            _check_children(cluster, ledger, runs, run, events)
    _check_started_once(cluster, [run for run, _ in runs.values()])
    _check_told(cluster, ledger, list(runs.values()))
    _check_updates(cluster, ledger, list(runs.values()))


def _check_chain(
    cluster: Cluster, ledger: Ledger, runs: dict[str, tuple[Run, Events]], run: Run, events: Events
) -> None:
    """A run and its successor name each other. One that a reset made follows whom the first run of its kind did."""
    last = events[-1]
    successor = _successor(last)
    if successor:
        cluster.watch.counts[f"successors after {types.EventType.Name(last.event_type)}"] += 1
        following = runs.get(successor)
        first = None if following is None else following[1][0].workflow_execution_started_event_attributes
        if first is None or first.continued_execution_run_id != run.run_id:
            cluster.watch.problem(f"{run.workflow_id} {run.run_id} continued as a run that does not know it")
        elif first.first_execution_run_id != run.first_run_id:
            cluster.watch.problem(f"{run.workflow_id} {run.run_id}: its successor is of another chain")
    before = events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    if (
        before
        and not ledger.made_by_reset(run)
        and (before not in runs or _successor(runs[before][1][-1]) != run.run_id)
    ):
        cluster.watch.problem(f"{run.workflow_id} {run.run_id} follows a run that does not know it")


def _successor(closing: history_pb2.HistoryEvent) -> str:
    """The run that a closing event names as the next one: continued as new, tried again, or the next of a cron."""
    attributes: Any = getattr(closing, str(closing.WhichOneof("attributes")))
    return str(getattr(attributes, "new_execution_run_id", ""))


def _check_told(cluster: Cluster, ledger: Ledger, runs: Iterable[tuple[Run, Events]]) -> None:
    """A signal that a workflow sent to another is there once if the answer says so, and not if it says otherwise.

    Of runs that a reset made it is not asked: they begin with answers that others were given.
    """
    #: (what was sent, run that sent it) -> how often it is in the history of which run
    heard: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    asked: Counter[tuple[str, str, int]] = Counter()
    for run, events in runs:
        for event in events:
            if event.event_type == types.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                s = event.workflow_execution_signaled_event_attributes
                if s.HasField("external_workflow_execution"):
                    heard[value_of(s.input), s.external_workflow_execution.run_id][run.run_id] += 1
            elif event.event_type == types.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
                c = event.workflow_execution_cancel_requested_event_attributes
                if c.external_workflow_execution.run_id:
                    asked[run.run_id, c.external_workflow_execution.run_id, c.external_initiated_event_id] += 1
    for sender, events in runs:
        for event in events:
            if (
                event.event_type in SIGNAL_ANSWERED
                and sender.workflow_id not in cluster.watch.tainted
                and not ledger.made_by_reset(sender)
            ):
                answer = getattr(event, SIGNAL_ANSWERED[event.event_type])
                sent = events[
                    answer.initiated_event_id - 1
                ].signal_external_workflow_execution_initiated_event_attributes
                taken = event.event_type == types.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED
                target = sent.workflow_execution.workflow_id
                if target in cluster.watch.tainted:
                    continue
                count = ledger.times(heard[value_of(sent.input), sender.run_id], target)
                cluster.watch.counts["signals from workflows" if taken else "signals refused to workflows"] += 1
                if count != taken:
                    cluster.watch.problem(
                        f"{sender.workflow_id} signalled {target} (taken: {taken}), which has heard it {count} times"
                    )
    for token, in_runs in heard.items():
        if max(in_runs.values(), default=0) > 1:
            cluster.watch.problem(f"{token} came to another workflow twice")
    for request, count in asked.items():
        if count > 1:
            cluster.watch.problem(f"cancel request {request} came to another workflow {count} times")


def _check_children(
    cluster: Cluster, ledger: Ledger, runs: dict[str, tuple[Run, Events]], run: Run, events: Events
) -> None:
    """What a parent says of a child is what the child says of itself."""
    for event in events:
        if event.event_type == types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED:
            s = event.child_workflow_execution_started_event_attributes
            child = s.workflow_execution
            if child.workflow_id in cluster.watch.tainted:
                continue
            cluster.watch.counts["children started"] += 1
            made = runs.get(child.run_id)
            # A run that a reset made goes on with the children of the one before.
            same = slice(2, 3) if ledger.made_by_reset(run) else slice(2, 5)
            own = [None, None, run.workflow_id, run.run_id, s.initiated_event_id]
            if made is None or made[0].parent[same] != own[same]:
                cluster.watch.problem(f"{run.workflow_id} has started child {child.run_id}, which is not its own")
        elif event.event_type in _CHILD_STATUS.values():
            ended: Any = getattr(event, str(event.WhichOneof("attributes"))).workflow_execution
            if ended.workflow_id in cluster.watch.tainted:
                continue
            made = runs.get(ended.run_id)
            if made is None or _CHILD_STATUS.get(int(made[0].status)) != event.event_type:
                cluster.watch.problem(f"{run.workflow_id} says that child {ended.run_id} ended as it did not")


def _check_started_once(cluster: Cluster, runs: list[Run]) -> None:
    """One initiation makes at most one chain of runs."""
    begun = Counter(
        (run.parent[2], run.parent[3], run.parent[4]) for run in runs if run.parent and run.first_run_id == run.run_id
    )
    for (workflow_id, _, initiated), count in begun.items():
        if count > 1 and workflow_id not in cluster.watch.tainted:
            cluster.watch.problem(f"event {initiated} of {workflow_id} has started {count} children")


def _check_updates(cluster: Cluster, ledger: Ledger, runs: list[tuple[Run, Events]]) -> None:
    """An update whose result was answered is in the history with that result; a rejected one is nowhere."""
    completed: Counter[tuple[str, str]] = Counter()
    for run, events in runs:
        for event in events:
            if event.event_type == types.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED:
                a = event.workflow_execution_update_completed_event_attributes
                completed[a.meta.update_id, run.run_id] += 1
                if value_of(a.outcome.success) != outcome_of(a.meta.update_id):
                    cluster.watch.problem(f"update {a.meta.update_id} has the result of another")
            elif event.event_type == types.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
                update_id = event.workflow_execution_update_accepted_event_attributes.protocol_instance_id
                if is_rejected(update_id):
                    cluster.watch.problem(f"update {update_id} was rejected and is in the history of {run.workflow_id}")
    for update_id, (workflow_id, run_id, result) in ledger.updates.items():
        if workflow_id in cluster.watch.tainted:
            continue
        cluster.watch.counts["updates answered"] += 1
        found = sum(n for (known, run), n in completed.items() if known == update_id and run_id in ("", run))
        # One that named no run may have come to the next run as well, when its answer was lost.
        if result != outcome_of(update_id) or not found or (run_id and found != 1):
            cluster.watch.problem(
                f"update {update_id} of {workflow_id} was answered with {result!r} and completed {found} times"
            )
