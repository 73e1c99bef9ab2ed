"""What must hold when the cluster has come to rest: the log, refolded, against everything that came of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from temporalio.api.enums.v1 import event_type_pb2 as types
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import reads
from everfold.history.machine.shard_fold import LogRecord
from everfold.history.machine.state import Run, decode_run
from everfold.history.machine.step import RunKey, Step
from everfold.kernel.ids import shard_of
from everfold.schemas import codec
from everfold.schemas.topics import (
    ACTIVITY_TASKS,
    COMMANDS,
    COMMANDS_REJECTED,
    HISTORY,
    SHARD_LOG,
    VISIBILITY,
    WORKFLOW_TASKS,
)
from simulation.cluster import NAMESPACE, Cluster
from simulation.junk import read_or_empty
from simulation.ledger import Ledger, outline
from simulation.program import ACTIVITY_ENDS, ANSWERED, CHILD_ENDS, CLOSES, TOLD, value_of
from simulation.relations import check_relations
from simulation.store import SimStore
from simulation.watch import WatchedFold
from support.half_steps import break_off

_TASK_ENDS = frozenset(
    (
        types.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
        types.EVENT_TYPE_WORKFLOW_TASK_FAILED,
        types.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT,
    )
)
Place = tuple[int, int]


class Refolded:
    """A shard's log, folded from its first record, one record at a time, with a cache of next to nothing."""

    def __init__(self, cluster: Cluster, shard: int) -> None:
        self._cluster = cluster
        self.shard = shard
        self.store = SimStore()
        self.fold: WatchedFold = cluster.watch.fold(shard, self.store, 1, "the refold")
        #: places on `commands` whose records had effect, in order
        self.taken: list[Place] = []
        #: run id -> history as its steps wrote it
        self._growing: dict[str, _Growing] = defaultdict(_Growing)
        for stored in cluster.broker.logs[SHARD_LOG.name, shard].records:
            assert stored.value is not None
            position = (self.fold.meta.commands_epoch, self.fold.meta.commands_offset)
            record = LogRecord(stored.value, stored.offset, stored.epoch, stored.timestamp_ms)
            step = self._broken_off(record) or self.fold.fold(record)
            self.store.write(self.fold.take_writes())
            self.fold.written()
            self._note_origin(stored.value, step, position)
            self._note_events(step, stored.offset)
        self.runs: list[Run] = [
            decode_run(row) for key, row in self.store.rows.items() if key[2:3] == b"r" and not key.startswith(b"\xff")
        ]

    def _broken_off(self, record: LogRecord) -> Step | None:
        """Now and then a record's fold breaks off between two writes first, of which nothing may be left.

        Returns:
            The step of a record that had not so many writes.
        """
        random = self._cluster.random
        if random.random() > 0.05:
            return None
        self._cluster.watch.counts["steps broken off"] += 1
        try:
            return break_off(self.fold, record, random.choice((0, 1, 2, 4, 8)))
        except AssertionError as left:
            self._cluster.watch.problem(f"shard {self.shard} offset {record.offset}, folded half: {left}")
            return None

    def events(self, run: Run) -> list[history_pb2.HistoryEvent]:
        """The history in the store."""
        return list(reads.events_of(self.fold, run))

    def _note_origin(self, value: bytes, step: Step, position: Place) -> None:
        """Remembers whose turn on `commands` it was: of what moved the position, or had effect without moving it."""
        origin = read_or_empty(value).get("origin")
        if origin is None or origin["source"] != "COMMANDS":
            return
        place = (origin["epoch"], origin["offset"])
        now = (self.fold.meta.commands_epoch, self.fold.meta.commands_offset)
        if now != position or (now == place and not step.ignored):
            self.taken.append(place)

    def _note_events(self, step: Step, offset: int) -> None:
        for row in step.outputs:
            if row.topic == HISTORY.name:
                assert row.value is not None
                batch = codec.decode_history_batch(row.value)
                begun = [history_pb2.HistoryEvent.FromString(entry["event"]) for entry in batch["events"]]
                if batch["run_id"] not in self._growing:  # what a reset has copied is on `history` under its first run
                    run = self.fold.run_by_key(RunKey(batch["namespace_id"], batch["workflow_id"], batch["run_id"]))
                    assert run is not None
                    begun = self.events(run)
                growing = self._growing[batch["run_id"]]
                for event in begun:
                    trouble = growing.add(event)
                    if trouble:
                        self._cluster.watch.problem(
                            f"shard {self.shard} offset {offset}, {batch['workflow_id']}: {trouble}"
                        )


class _Growing:
    """Rules of one history, checked event by event."""

    def __init__(self) -> None:
        self._next = 1
        self._task = ""
        self._activities: set[int] = set()
        self._timers: dict[str, tuple[int, int]] = {}
        #: initiated event id -> whether the child has started
        self._children: dict[int, bool] = {}
        #: initiated event ids of what was sent to other workflows and not answered
        self._told: set[int] = set()
        #: update id -> id of the event that accepted it; 0 once it is completed
        self._updates: dict[str, int] = {}
        self._closed = False

    def add(self, event: history_pb2.HistoryEvent) -> str:
        """Returns what is wrong, or nothing."""
        if event.event_id != self._next:
            return f"expected event {self._next}, found {event.event_id}"
        self._next += 1
        kind = event.event_type
        if self._closed:
            return f"event {event.event_id} behind the end"
        self._closed = kind in CLOSES
        if kind == types.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED:
            return self._move("", "scheduled")
        if kind == types.EVENT_TYPE_WORKFLOW_TASK_STARTED:
            return self._move("scheduled", "started")
        if kind in _TASK_ENDS:
            if kind == types.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT and self._task == "scheduled":
                self._task = "started"  # a sticky task that nobody took
            return self._move("started", "")
        if kind == types.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            self._activities.add(event.event_id)
        elif kind in ACTIVITY_ENDS:
            scheduled = getattr(event, ACTIVITY_ENDS[kind]).scheduled_event_id
            if scheduled not in self._activities:
                return f"activity {scheduled} ends twice, or was never scheduled"
            self._activities.remove(scheduled)
        elif kind == types.EVENT_TYPE_TIMER_STARTED:
            a = event.timer_started_event_attributes
            self._timers[a.timer_id] = (event.event_time.ToNanoseconds(), a.start_to_fire_timeout.ToNanoseconds())
        elif kind == types.EVENT_TYPE_TIMER_CANCELED:
            self._timers.pop(event.timer_canceled_event_attributes.timer_id)
        elif kind == types.EVENT_TYPE_TIMER_FIRED:
            timer = event.timer_fired_event_attributes.timer_id
            if timer not in self._timers:
                return f"timer {timer} fired twice, or was never started"
            began, lasts = self._timers.pop(timer)
            if event.event_time.ToNanoseconds() < began + lasts:
                return f"timer {timer} fired early"
        elif kind in TOLD:
            self._told.add(event.event_id)
        elif kind in ANSWERED:
            initiated = getattr(event, ANSWERED[kind]).initiated_event_id
            if initiated not in self._told:
                return f"what event {initiated} sent is answered twice, or was never sent"
            self._told.remove(initiated)
        return self._child(event) or self._update(event)

    def _child(self, event: history_pb2.HistoryEvent) -> str:
        kind = event.event_type
        if kind == types.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
            self._children[event.event_id] = False
        elif kind == types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED:
            initiated = event.child_workflow_execution_started_event_attributes.initiated_event_id
            if self._children.get(initiated) is not False:
                return f"child {initiated} starts twice, or was never initiated"
            self._children[initiated] = True
        elif kind in CHILD_ENDS:
            initiated = getattr(event, CHILD_ENDS[kind]).initiated_event_id
            failed = kind == types.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED
            if self._children.pop(initiated, None) is not (not failed):
                return f"child {initiated} ends twice, or without having started"
        return ""

    def _update(self, event: history_pb2.HistoryEvent) -> str:
        if event.event_type == types.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
            update_id = event.workflow_execution_update_accepted_event_attributes.protocol_instance_id
            if update_id in self._updates:
                return f"update {update_id} is accepted twice"
            self._updates[update_id] = event.event_id
        elif event.event_type == types.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED:
            a = event.workflow_execution_update_completed_event_attributes
            if not a.accepted_event_id or self._updates.get(a.meta.update_id) != a.accepted_event_id:
                return f"update {a.meta.update_id} completes twice, or was never accepted"
            self._updates[a.meta.update_id] = 0
        return ""

    def _move(self, before: str, after: str) -> str:
        was, self._task = self._task, after
        return "" if was == before else f"workflow task {was or 'none'} becomes {after or 'ended'}"


def check(cluster: Cluster, ledger: Ledger, *, finished: bool) -> None:
    """All checks; problems go to the watch."""
    refolded = [Refolded(cluster, shard) for shard in range(cluster.shard_count)]
    if cluster.watch.problems:
        return
    if finished:
        _check_tasks(cluster)
    cluster.watch.tainted |= ledger.deleted  # from here on: what is gone keeps no promises
    for one in refolded:
        _check_stores(cluster, one)
        _check_commands_taken(cluster, one)
        _check_outputs(cluster, ledger, one)
    _check_promises(cluster, ledger, refolded)
    check_relations(cluster, ledger, refolded)


def _check_stores(cluster: Cluster, one: Refolded) -> None:
    """Every store that has folded to the end holds the very same bytes."""
    compared = 0
    for process in cluster.processes:
        held = process.shards.get(one.shard)
        if held is None or not held.shard.serving:
            continue
        compared += 1
        store = process.host.stores[one.shard]
        if held.shard.fold.meta.state_hash != one.fold.meta.state_hash:
            cluster.watch.problem(f"shard {one.shard}: {process.name} has another state hash than the refold")
        elif store.rows != one.store.rows:
            keys = [
                key for key in set(store.rows) | set(one.store.rows) if store.rows.get(key) != one.store.rows.get(key)
            ]
            cluster.watch.problem(f"shard {one.shard}: rows of {process.name} differ from the refold's: {keys[:3]}")
    if not compared:
        cluster.watch.problem(f"shard {one.shard}: nobody serves it")


def _check_commands_taken(cluster: Cluster, one: Refolded) -> None:
    """Each visible record of `commands` entered the log once, in order."""
    log = cluster.broker.logs[COMMANDS.name, one.shard]
    visible = [(record.epoch, record.offset) for record in log.records if not record.hidden]
    if one.taken != visible:
        missing = sorted(set(visible) - set(one.taken))
        more = [place for place, count in Counter(one.taken).items() if count > 1 or place not in visible]
        cluster.watch.problem(f"commands {one.shard}: never taken {missing[:5]}, taken more than once {more[:5]}")


def _deduped(cluster: Cluster, topic: str, partition: int, name: str) -> list[dict[str, Any]]:
    """What a reader that follows the chains (law 6) takes from a partition."""
    last: dict[int, tuple[int, int, int]] = {}
    taken = []
    for stored in cluster.broker.logs[topic, partition].records:
        if stored.value is None:
            continue
        record = codec.decode(stored.value)[1]
        origin, predecessor = record["origin"], record["predecessor"]
        shard, place = origin["partition"], _place(origin)
        known = last.get(shard, (-1, -1, -1))
        if place <= known or (predecessor is not None and _place(predecessor) > known):
            continue
        last[shard] = place
        taken.append(record)
    return taken


def _place(origin: dict[str, Any]) -> tuple[int, int, int]:
    return origin["epoch"], origin["offset"], origin["index"]


def _check_outputs(cluster: Cluster, ledger: Ledger, one: Refolded) -> None:
    """`history` and `visibility` say what the store says; nothing is left to send."""
    waiting = one.fold.outbox(None, 5)
    if waiting:
        cluster.watch.problem(f"shard {one.shard}: outputs from {waiting[0].origin} on were never acknowledged")
    told: dict[str, list[bytes]] = defaultdict(list)
    for batch in _deduped(cluster, HISTORY.name, one.shard, "HistoryBatch"):
        told[batch["run_id"]].extend(entry["event"] for entry in batch["events"])
    shown: dict[str, int] = {}
    for row in _deduped(cluster, VISIBILITY.name, one.shard, "VisibilityRecord"):
        shown[row["run_id"]] = row["status"]
    for run in one.runs:
        if run.workflow_id in cluster.watch.tainted:
            continue
        stored = [event.SerializeToString(deterministic=True) for event in one.events(run)]
        heard = [
            history_pb2.HistoryEvent.FromString(event).SerializeToString(deterministic=True)
            for event in told[run.run_id]
        ]
        if ledger.made_by_reset(run):
            stored = stored[len(stored) - len(heard) :]
        if stored != heard:
            cluster.watch.problem(
                f"{run.workflow_id} {run.run_id}: {len(stored)} events in the store, {len(heard)} on `history`"
            )
        if shown.get(run.run_id) != int(run.status):
            cluster.watch.problem(f"{run.workflow_id} {run.run_id}: status {run.status}, shown {shown.get(run.run_id)}")


def _check_tasks(cluster: Cluster) -> None:
    """All workflows are closed: every task has had its tombstone, and stands on top of none."""
    for task in tasks_left(cluster):
        cluster.watch.problem(f"task {task['task_id']} of {task['workflow_id']} stays for ever")


def tasks_left(cluster: Cluster) -> list[dict[str, Any]]:
    """The tasks that compaction leaves on their topics.

    Not those of workflows that Kafka lost records of: a start in the lost tail may have been answered while its
    tombstone was never sent. Matching takes such a task for started until it takes its partition anew.
    """
    left = []
    for topic in (WORKFLOW_TASKS.name, ACTIVITY_TASKS.name):
        for partition in range(cluster.task_partitions):
            for record in cluster.broker.logs[topic, partition].compacted():
                if record.value is not None:
                    task = codec.decode(record.value)[1]
                    if task["workflow_id"] not in cluster.watch.tainted:
                        left.append(task)
    return left


def _check_promises(cluster: Cluster, ledger: Ledger, refolded: list[Refolded]) -> None:
    watch = cluster.watch
    made: dict[str, list[Run]] = defaultdict(list)
    #: what came -> how often in the history of which run
    signals: dict[str, Counter[str]] = defaultdict(Counter)
    results: dict[str, Counter[str]] = defaultdict(Counter)
    workflow_of: dict[str, str] = {}
    for one in refolded:
        for run in one.runs:
            made[run.create_request_id].append(run)
            for event in one.events(run):
                if event.event_type == types.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                    attributes = event.workflow_execution_signaled_event_attributes
                    if attributes.input.payloads:
                        signals[value_of(attributes.input)][run.run_id] += 1
                elif event.event_type == types.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                    result = value_of(event.activity_task_completed_event_attributes.result)
                    results[result][run.run_id] += 1
                    workflow_of[result] = run.workflow_id
            known = ledger.seen.get((run.workflow_id, run.run_id), [])
            if run.workflow_id not in watch.tainted and known != [outline(e) for e in one.events(run)[: len(known)]]:
                watch.problem(f"{run.workflow_id} {run.run_id}: its worker has seen another history: {known}")
    rejected: Counter[Place] = Counter()
    for record in _deduped(cluster, COMMANDS_REJECTED.name, 0, "RejectedCommand"):
        rejected[record["partition"], record["offset"]] += 1
    for request_id, (workflow_id, run_id, once) in ledger.starts.items():
        if workflow_id in watch.tainted:
            continue
        runs = made.get(request_id, [])
        if once and len(runs) > 1:
            watch.problem(f"start {request_id} of {workflow_id} made {len(runs)} runs")
        if run_id and run_id not in [run.run_id for run in runs]:
            watch.problem(f"start {request_id} was answered with run {run_id}, which does not exist")
        for place in ledger.commands.get(request_id, ()):
            if not runs and not rejected[place]:
                watch.problem(f"command {place} made no run and was not rejected")
    for token, (workflow_id, acknowledged) in ledger.signals.items():
        if workflow_id in watch.tainted:
            continue
        count = ledger.times(signals[token], workflow_id)
        if count > 1 or (acknowledged and count != 1):
            watch.problem(f"signal {token} (acknowledged: {acknowledged}) is {count} times in {workflow_id}'s history")
        places = ledger.commands.get(token, [])
        # What was passed on is rejected, if at all, at its second place.
        if places and not count and not rejected.keys() & set(places) and not _passed(cluster, places, workflow_id):
            watch.problem(f"command {places} signalled nobody and was not rejected")
    for token in ledger.aborted:
        if signals[token]:
            watch.problem(f"signal {token} of an aborted transaction is in a history")
    for result, workflow_id in ledger.results.items():
        count = ledger.times(results[result], workflow_id)
        if workflow_id not in watch.tainted and count != 1:
            watch.problem(f"activity result {result} was acknowledged and is {count} times in a history")
    for result, runs_with in results.items():
        count = ledger.times(runs_with, workflow_of.get(result, ""))
        if count > 1:
            watch.problem(f"activity result {result} is {count} times in histories")
    if not watch.cut_shards:
        for place in ledger.malformed:
            if rejected[place] != 1:
                watch.problem(f"malformed command {place} was rejected {rejected[place]} times")


def _passed(cluster: Cluster, places: list[Place], workflow_id: str) -> bool:
    return any(partition != shard_of(NAMESPACE, workflow_id, cluster.shard_count) for partition, _ in places)
