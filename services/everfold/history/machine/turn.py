"""One run's part in a step: record events, apply them, and at the end derive rows, tasks, timers and outputs from them.

Deciders call `record`; everything that follows from the events and the new state (task records and their tombstones,
the timer row, the visibility record, the history batch) is derived here, in one place, so that no decider can forget
it.
"""

from __future__ import annotations

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import events, keys
from everfold.history.machine.apply import apply_event
from everfold.history.machine.context import StepContext
from everfold.history.machine.deadlines import next_deadline
from everfold.history.machine.events import framed, serialize, set_time
from everfold.history.machine.outputs import emit_history, emit_task, emit_visibility
from everfold.history.machine.priorities import merge
from everfold.history.machine.relations import announce_close
from everfold.history.machine.run_limits import check_size
from everfold.history.machine.state import Activity, Run, WorkflowTask
from everfold.history.machine.step import RunKey, TaskOffer
from everfold.schemas.topics import ACTIVITY_TASKS, WORKFLOW_TASKS, Topic

_TASK_ID_BITS = 12
"""Task ids of events: the offset above, the number within the step in these bits. Ids must not fall: a step with more
events than these bits hold gives the rest of them the last number."""


class Turn:
    """One run in one step."""

    __slots__ = ("_offers", "_voided", "ctx", "events", "run", "visible")

    def __init__(self, ctx: StepContext, run: Run) -> None:
        self.ctx = ctx
        self.run = run
        ctx.turned.add(run.run_id)
        self.events: list[history_pb2.HistoryEvent] = []
        #: the visibility record changed
        self.visible = False
        #: (topic, task partition, task id) of task records that lost their meaning
        self._voided: list[tuple[Topic, int, str]] = []
        self._offers: list[TaskOffer] = []

    # ---- recording --------------------------------------------------------------------------------------------------

    def new(self, event_type: int, at_ns: int = 0) -> history_pb2.HistoryEvent:
        """An event of this step, to be filled and given to `record`."""
        event = history_pb2.HistoryEvent(event_type=event_type)  # type: ignore[arg-type]
        set_time(event.event_time, at_ns or self.ctx.now_ns)
        return event

    def record(self, event: history_pb2.HistoryEvent) -> history_pb2.HistoryEvent:
        """Appends the event, or buffers it while a workflow task is started, and applies it."""
        run = self.run
        if run.task_started and event.event_type in events.BUFFERED:
            return self.record_behind(event)
        self._append(event)
        apply_event(run, event)
        return event

    def record_behind(self, event: history_pb2.HistoryEvent) -> history_pb2.HistoryEvent:
        """Applies the event at once, but gives it its id behind those of the commands that are being done.

        Workers count a command's event id from the commands before it, so nothing may come between (event_store.go,
        bufferEvent).
        """
        self.run.buffered.append(serialize(event))
        apply_event(self.run, event)
        return event

    def flush_buffered(self) -> None:
        """Gives the buffered events their ids, results last, and wires the references between them."""
        run = self.run
        if not run.buffered:
            return
        waiting = [history_pb2.HistoryEvent.FromString(data) for data in run.buffered]
        run.buffered = []
        first = [event for event in waiting if event.event_type not in events.FLUSHED_LAST]
        last = [event for event in waiting if event.event_type in events.FLUSHED_LAST]
        started: dict[int, int] = {}
        for event in first + last:
            self._append(event)
            if event.event_type == events.ACTIVITY_STARTED:
                started[event.activity_task_started_event_attributes.scheduled_event_id] = event.event_id
            elif event.event_type == events.CHILD_STARTED:
                initiated = event.child_workflow_execution_started_event_attributes.initiated_event_id
                started[initiated] = event.event_id
                if initiated in run.children:
                    run.children[initiated].started_event_id = event.event_id
            elif event.event_type in events.FLUSHED_LAST:
                attributes = events.attributes_of(event)
                child = event.event_type in events.CHILD_CLOSED
                since = attributes.initiated_event_id if child else attributes.scheduled_event_id
                if since in started:
                    attributes.started_event_id = started[since]
            elif event.event_type == events.SIGNALED:
                request_id = event.workflow_execution_signaled_event_attributes.request_id
                if request_id in run.request_ids:
                    run.request_ids[request_id] = event.event_id

    def _append(self, event: history_pb2.HistoryEvent) -> None:
        run = self.run
        event.event_id = run.next_event_id
        run.next_event_id += 1
        event.task_id = (self.ctx.offset + 1 << _TASK_ID_BITS) + min(len(self.events), (1 << _TASK_ID_BITS) - 1)
        self.events.append(event)

    # ---- tasks ------------------------------------------------------------------------------------------------------

    def void_task(self, topic: Topic, queue: str, task_id: str) -> None:
        """The task record has lost its meaning: started, or overtaken. It gets a tombstone."""
        if task_id:
            self._voided.append((topic, self.ctx.task_partition(self.run.namespace_id, queue), task_id))

    def void_workflow_task(self, task: WorkflowTask) -> None:
        """The workflow task's record, if it has one, has lost its meaning."""
        self.void_task(WORKFLOW_TASKS, task.queue, task.task_id)
        task.task_id = ""

    def void_activity_task(self, activity: Activity) -> None:
        """The activity task's record, if it has one, has lost its meaning."""
        self.void_task(ACTIVITY_TASKS, activity.task_queue, activity.task_id)
        activity.task_id = ""

    def void_all_tasks(self) -> None:
        """The run closes: none of its tasks can be started any more. Called before the closing event."""
        if self.run.workflow_task is not None:
            self.void_workflow_task(self.run.workflow_task)
        for activity in self.run.activities.values():
            self.void_activity_task(activity)

    def offer_workflow_task(self) -> None:
        """Offers the scheduled workflow task: on the sticky queue in memory only, else with a task record."""
        run, task = self.run, self.run.workflow_task
        assert task is not None
        run.task_stamp += 1
        task.stamp = run.task_stamp
        task.sticky = bool(run.sticky_queue)
        task.queue = run.sticky_queue or run.task_queue
        if task.sticky:
            task.task_id = ""
            task.schedule_to_start_deadline_ns = self.ctx.now_ns + run.sticky_timeout_ns
            self._offers.append(self.workflow_offer())
            return
        task.schedule_to_start_deadline_ns = 0
        task.task_id = emit_task(
            self.ctx,
            WORKFLOW_TASKS,
            "WorkflowTask",
            run,
            task.queue,
            task.scheduled_event_id,
            task.attempt,
            task.stamp,
            0,
            run.priority,
        )
        self._offers.append(self.workflow_offer())

    def workflow_offer(self) -> TaskOffer:
        """The offer of the scheduled workflow task."""
        return workflow_offer(self.ctx, self.run)

    def offer_activity_task(self, activity: Activity) -> None:
        """Offers the activity's current attempt, with a task record."""
        run = self.run
        activity.stamp += 1
        deadline = activity.scheduled_at_ns + activity.schedule_to_start_ns if activity.schedule_to_start_ns else 0
        priority = merge(run.priority, activity.priority)
        activity.task_id = emit_task(
            self.ctx,
            ACTIVITY_TASKS,
            "ActivityTask",
            run,
            activity.task_queue,
            activity.scheduled_event_id,
            activity.attempt,
            activity.stamp,
            deadline,
            priority,
        )
        self._offers.append(activity_offer(self.ctx, run, activity, deadline))

    # ---- the end of the step ----------------------------------------------------------------------------------------

    def finish(self, *, bounded: bool = True) -> None:
        """Writes the run's rows and adds its outputs to the step.

        Args:
            bounded: whether an open run that is too large is ended instead; not for what changes nothing in it.

        Raises:
            RunTooLarge: it is.
        """
        ctx, run = self.ctx, self.run
        if bounded:
            check_size(ctx.limits, run, self.events)
        run.transitions += 1
        closing = None if run.running else next((e for e in self.events if e.event_type in events.CLOSING), None)
        if closing is not None:
            namespace = ctx.namespace(run.namespace_id)
            if namespace is not None:  # what holds when the run closes (task_generator.go, getRetention)
                run.retention_ns = namespace.retention_ns
            announce_close(ctx, run, closing)
            ctx.step.closed.append(RunKey(run.namespace_id, run.workflow_id, run.run_id))
            self.visible = True
        if self.events:
            self._write_history()
        for topic, partition, task_id in self._voided:
            ctx.emit_tombstone(topic, partition, task_id.encode())
        if self.visible:
            emit_visibility(ctx, run)
        part = keys.run_part(run.namespace_id, run.workflow_id, run.run_id)
        self._write_deadline(part)
        self._write_sticky(part)
        key = ctx.put_run(run)
        ctx.cache.put(key, run)
        ctx.loaded.add(key)
        ctx.step.offers.extend(offer for offer in self._offers if self._still_offered(offer))
        ctx.step.changed.append(RunKey(run.namespace_id, run.workflow_id, run.run_id))

    def _still_offered(self, offer: TaskOffer) -> bool:
        run = self.run
        if not run.running:
            return False
        if offer.type == "workflow":
            task = run.workflow_task
            return task is not None and task.stamp == offer.stamp and not task.started_event_id
        activity = run.activities.get(offer.scheduled_event_id)
        return activity is not None and activity.stamp == offer.stamp and not activity.started

    def _write_history(self) -> None:
        run = self.run
        serialized = [serialize(event) for event in self.events]
        size = sum(map(len, serialized))
        run.history_size_bytes += size
        parts: list[bytes] = []
        at = 0
        first = self.events[0].event_id
        for event, data in zip(self.events, serialized, strict=True):
            part = framed(data)
            parts.append(part)
            if event.event_type == events.ACTIVITY_SCHEDULED:
                activity = run.activities.get(event.event_id)
                if activity is not None:
                    activity.event_row = first
                    activity.event_start = at + len(part) - len(data)
                    activity.event_end = at + len(part)
            at += len(part)
        self.ctx.rows.put(keys.history(run.slot, run.run_id, first), b"".join(parts))
        emit_history(self.ctx, run, self.events, serialized)

    def _write_deadline(self, part: bytes) -> None:
        """Keeps the run's one timer row at or before its earliest deadline.

        A deadline that moved later leaves the row where it is: the row fires early, finds nothing due, and is set anew.
        That saves a delete and a put for every workflow task of a run whose timeout is far away.
        """
        ctx, run = self.ctx, self.run
        due = next_deadline(run)
        present = run.deadline_ns
        if present and (not due or due < present or not run.running):
            ctx.rows.delete(keys.timer(present, run.slot, part))
            present = 0
        if due and not present:
            ctx.rows.put(keys.timer(due, run.slot, part), b"")
            present = due
        run.deadline_ns = present

    def _write_sticky(self, part: bytes) -> None:
        run, task = self.run, self.run.workflow_task
        wanted = task is not None and not task.started_event_id and task.sticky
        if wanted and not run.sticky_row:
            self.ctx.rows.put(keys.sticky(run.slot, part), b"")
        elif run.sticky_row and not wanted:
            self.ctx.rows.delete(keys.sticky(run.slot, part))
        run.sticky_row = wanted


def workflow_offer(ctx: StepContext, run: Run) -> TaskOffer:
    """The offer of a run's scheduled workflow task."""
    task = run.workflow_task
    assert task is not None
    priority = common_pb2.Priority.FromString(run.priority or b"")
    return TaskOffer(
        "workflow",
        run.namespace_id,
        task.queue,
        task.sticky,
        run.task_queue if task.sticky else "",
        run.workflow_id,
        run.run_id,
        task.scheduled_event_id,
        task.attempt,
        task.stamp,
        task.task_id,
        task.scheduled_at_ns,
        task.schedule_to_start_deadline_ns,
        priority.priority_key,
        priority.fairness_key,
        priority.fairness_weight,
        ctx.facts.shard,
        ctx.task_partition(run.namespace_id, task.queue),
    )


def activity_offer(ctx: StepContext, run: Run, activity: Activity, deadline_ns: int) -> TaskOffer:
    """The offer of an activity's current attempt."""
    priority = common_pb2.Priority.FromString(merge(run.priority, activity.priority) or b"")
    return TaskOffer(
        "activity",
        run.namespace_id,
        activity.task_queue,
        False,
        "",
        run.workflow_id,
        run.run_id,
        activity.scheduled_event_id,
        activity.attempt,
        activity.stamp,
        activity.task_id,
        activity.scheduled_at_ns,
        deadline_ns,
        priority.priority_key,
        priority.fairness_key,
        priority.fairness_weight,
        ctx.facts.shard,
        ctx.task_partition(run.namespace_id, activity.task_queue),
    )
