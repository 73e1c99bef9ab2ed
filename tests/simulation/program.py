"""Workflow programs as data: what a scripted worker does with a history.

A program is a list of steps, carried as JSON in the workflow's input. `decide` is a pure function of the history, so a
worker that was given a task twice, or after another one, decides the same:

    ["act", {...}]     run an activity to its end; the options say how it behaves
    ["timer", s]       sleep
    ["both", s, {...}] an activity and a timer; the timer is cancelled when the activity ends first
    ["sig", n]         wait until n signals have come in all, or 15 s
    ["drop", {...}]    start an activity and a timer of a second, then cancel the activity and wait for its end
    ["mark"]           a marker
    ["child", {...}]   a child workflow with a program of its own, to its end
    ["tell", {...}]    signal another workflow, or ask for its cancellation, and wait for the answer
    ["next", [...]]    continue as new with that program
    ["fail"]           fail; the run's retry policy may begin another

Updates are answered beside the program: `answer_updates` says how, by the update's id.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from random import Random
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import command_type_pb2 as command_types
from temporalio.api.enums.v1 import event_type_pb2 as types
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.protocol.v1 import message_pb2 as protocol_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2

from everfold.kernel.time import SECOND_NS

Step = list[Any]

ACTIVITY_ENDS = {
    types.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: "activity_task_completed_event_attributes",
    types.EVENT_TYPE_ACTIVITY_TASK_FAILED: "activity_task_failed_event_attributes",
    types.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: "activity_task_timed_out_event_attributes",
    types.EVENT_TYPE_ACTIVITY_TASK_CANCELED: "activity_task_canceled_event_attributes",
}

CHILD_ENDS = {
    types.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED: "start_child_workflow_execution_failed_event_attributes",
    types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: "child_workflow_execution_completed_event_attributes",
    types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: "child_workflow_execution_failed_event_attributes",
    types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: "child_workflow_execution_canceled_event_attributes",
    types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: "child_workflow_execution_timed_out_event_attributes",
    types.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: "child_workflow_execution_terminated_event_attributes",
}
CLOSES = frozenset(
    (
        types.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
        types.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
        types.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT,
        types.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED,
        types.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
        types.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW,
    )
)
"""Events that end a run."""

TOLD = {
    types.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: (
        "signal_external_workflow_execution_initiated_event_attributes"
    ),
    types.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: (
        "request_cancel_external_workflow_execution_initiated_event_attributes"
    ),
}
"""What is sent to another workflow."""

SIGNAL_ANSWERED = {
    types.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED: "external_workflow_execution_signaled_event_attributes",
    types.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: (
        "signal_external_workflow_execution_failed_event_attributes"
    ),
}
ANSWERED = {
    **SIGNAL_ANSWERED,
    types.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED: (
        "external_workflow_execution_cancel_requested_event_attributes"
    ),
    types.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: (
        "request_cancel_external_workflow_execution_failed_event_attributes"
    ),
}


def write_program(random: Random) -> list[Step]:
    """A program of two to five steps, and at times a second one for the run after it."""
    steps = [_write_step(random) for _ in range(random.randint(2, 5))]
    if random.random() < 0.15:
        steps.append(["next", [_write_plain(random) for _ in range(random.randint(1, 3))]])
    return steps


def _write_step(random: Random) -> Step:
    if random.random() < 0.15:
        return ["child", {"program": [_write_plain(random)], "policy": random.choice((0, 1, 2, 3))}]
    return _write_plain(random)


def _write_plain(random: Random) -> Step:
    kind = random.choice(("act", "act", "act", "timer", "both", "sig", "drop", "mark", "tell"))
    if kind == "tell":
        return [kind, {"to": f"client-{random.randint(1, 8)}-w", "cancel": random.random() < 0.25}]
    if kind == "timer":
        return [kind, random.choice((0.2, 1, 3, 8))]
    if kind == "both":
        return [kind, random.choice((1, 4)), _write_activity(random)]
    if kind == "sig":
        return [kind, random.randint(1, 2)]
    if kind == "mark":
        return [kind]
    return [kind, _write_activity(random)]


def _write_activity(random: Random) -> dict[str, Any]:
    return {
        "fail": random.choice((0, 0, 0, 1, 2)),  # attempts that fail
        "hang": random.choice((0, 0, 0, 0, 1)),  # attempts that never answer
        "beats": random.choice((0, 0, 0, 2)),
        "by_id": random.random() < 0.15,
        "most": random.choice((0, 0, 2)),  # maximum attempts
        "eager": random.random() < 0.3,
    }


def duration(seconds: float) -> Duration:
    """Seconds as protobuf."""
    out = Duration()
    out.FromNanoseconds(int(seconds * SECOND_NS))
    return out


def payloads(value: Any) -> common_pb2.Payloads:
    """JSON as the payload that every SDK decodes."""
    payload = common_pb2.Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(value).encode())
    return common_pb2.Payloads(payloads=[payload])


def value_of(found: common_pb2.Payloads) -> Any:
    """The JSON in a payload."""
    return json.loads(found.payloads[0].data)


class _Seen:
    """What a history says."""

    def __init__(self, events: Iterable[history_pb2.HistoryEvent]) -> None:
        self.steps: list[Step] = []
        self.scheduled: dict[str, int] = {}
        self.ended: set[int] = set()
        self.cancel_asked: set[int] = set()
        self.timers: dict[str, int] = {}
        self.timers_over: set[str] = set()
        self.markers: set[str] = set()
        #: what the signals carried
        self.signals: list[Any] = []
        self.cancelled = False
        self.workflow_id = ""
        self.children: dict[str, int] = {}
        self.children_over: set[int] = set()
        #: control -> initiated event id, of signals and cancel requests to other workflows
        self.told: dict[str, int] = {}
        self.answered: set[int] = set()
        self.original_run_id = ""
        #: update id -> whether it was completed
        self.updates: dict[str, bool] = {}
        #: ids of updates that a reset brought along, not answered yet
        self.admitted: list[str] = []
        for event in events:
            self._read(event)

    def _read(self, event: history_pb2.HistoryEvent) -> None:
        kind = event.event_type
        if kind == types.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            given = event.workflow_execution_started_event_attributes.input
            self.steps = value_of(given) if given.payloads else []
            self.workflow_id = event.workflow_execution_started_event_attributes.workflow_id
            self.original_run_id = event.workflow_execution_started_event_attributes.original_execution_run_id
        elif kind == types.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            self.scheduled[event.activity_task_scheduled_event_attributes.activity_id] = event.event_id
        elif kind in ACTIVITY_ENDS:
            self.ended.add(getattr(event, ACTIVITY_ENDS[kind]).scheduled_event_id)
        elif kind == types.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED:
            self.cancel_asked.add(event.activity_task_cancel_requested_event_attributes.scheduled_event_id)
        elif kind == types.EVENT_TYPE_TIMER_STARTED:
            self.timers[event.timer_started_event_attributes.timer_id] = event.event_id
        elif kind == types.EVENT_TYPE_TIMER_FIRED:
            self.timers_over.add(event.timer_fired_event_attributes.timer_id)
        elif kind == types.EVENT_TYPE_TIMER_CANCELED:
            self.timers_over.add(event.timer_canceled_event_attributes.timer_id)
        elif kind == types.EVENT_TYPE_MARKER_RECORDED:
            self.markers.add(event.marker_recorded_event_attributes.marker_name)
        elif kind == types.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            given = event.workflow_execution_signaled_event_attributes.input
            self.signals.append(value_of(given) if given.payloads else None)
        elif kind == types.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
            self.cancelled = True
        elif kind == types.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
            workflow_id = event.start_child_workflow_execution_initiated_event_attributes.workflow_id
            self.children[workflow_id] = event.event_id
        elif kind in CHILD_ENDS:
            self.children_over.add(getattr(event, CHILD_ENDS[kind]).initiated_event_id)
        elif kind in TOLD:
            self.told[getattr(event, TOLD[kind]).control] = event.event_id
        elif kind in ANSWERED:
            self.answered.add(getattr(event, ANSWERED[kind]).initiated_event_id)
        elif kind == types.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
            update_id = event.workflow_execution_update_accepted_event_attributes.protocol_instance_id
            self.updates[update_id] = False
            if update_id in self.admitted:
                self.admitted.remove(update_id)
        elif kind == types.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED:
            self.admitted.append(event.workflow_execution_update_admitted_event_attributes.request.meta.update_id)
        elif kind == types.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED:
            self.updates[event.workflow_execution_update_completed_event_attributes.meta.update_id] = True


def decide(events: Iterable[history_pb2.HistoryEvent]) -> list[command_pb2.Command]:
    """The commands that the history calls for."""
    seen = _Seen(events)
    if seen.cancelled:
        command = command_pb2.Command(command_type=7)
        command.cancel_workflow_execution_command_attributes.SetInParent()
        return [command]
    commands: list[command_pb2.Command] = []
    for at, step in enumerate(seen.steps):
        if not _STEPS[step[0]](seen, at, step, commands):
            return commands
    command = command_pb2.Command(command_type=4)
    command.complete_workflow_execution_command_attributes.result.CopyFrom(payloads(len(seen.steps)))
    return [*commands, command]


def _act(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    name = f"a{at}"
    if name not in seen.scheduled:
        commands.append(_schedule(name, step[-1]))
        return False
    return seen.scheduled[name] in seen.ended


def _timer(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    return _sleep(seen, f"t{at}", step[1], commands)


def _sleep(seen: _Seen, name: str, seconds: float, commands: list[command_pb2.Command]) -> bool:
    if name not in seen.timers:
        command = command_pb2.Command(command_type=3)
        command.start_timer_command_attributes.timer_id = name
        command.start_timer_command_attributes.start_to_fire_timeout.CopyFrom(duration(seconds))
        commands.append(command)
        return False
    return name in seen.timers_over


def _cancel_timer(seen: _Seen, name: str, commands: list[command_pb2.Command]) -> None:
    if name in seen.timers and name not in seen.timers_over:
        command = command_pb2.Command(command_type=6)
        command.cancel_timer_command_attributes.timer_id = name
        commands.append(command)


def _both(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    slept = _sleep(seen, f"t{at}", step[1], commands)
    ended = _act(seen, at, step, commands)
    if ended and not slept:
        _cancel_timer(seen, f"t{at}", commands)
    return ended


def _sig(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    if len(seen.signals) >= step[1]:
        _cancel_timer(seen, f"s{at}", commands)
        return True
    return _sleep(seen, f"s{at}", 15, commands)


def _drop(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    ended = _act(seen, at, step, commands)
    slept = _sleep(seen, f"t{at}", 1, commands)
    if ended:
        _cancel_timer(seen, f"t{at}", commands)
        return True
    scheduled = seen.scheduled.get(f"a{at}")
    if slept and scheduled is not None and scheduled not in seen.cancel_asked:
        command = command_pb2.Command(command_type=2)
        command.request_cancel_activity_task_command_attributes.scheduled_event_id = scheduled
        commands.append(command)
    return False


def _mark(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    if f"m{at}" not in seen.markers:
        command = command_pb2.Command(command_type=9)
        command.record_marker_command_attributes.marker_name = f"m{at}"
        commands.append(command)
    return True


def _child(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    workflow_id = f"{seen.workflow_id}-c{at}"
    if workflow_id not in seen.children:
        command = command_pb2.Command(command_type=11)
        a = command.start_child_workflow_execution_command_attributes
        a.workflow_id = workflow_id
        a.workflow_type.name = "program"
        a.task_queue.name = "queue"
        a.input.CopyFrom(payloads(step[1]["program"]))
        a.parent_close_policy = step[1]["policy"]
        commands.append(command)
        return False
    return seen.children[workflow_id] in seen.children_over


def _tell(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    control = f"x{at}"
    if control in seen.told:
        return seen.told[control] in seen.answered
    command = command_pb2.Command()
    if step[1]["cancel"]:
        command.command_type = command_types.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION
        cancel = command.request_cancel_external_workflow_execution_command_attributes
        cancel.workflow_id = step[1]["to"]
        cancel.control = control
    else:
        command.command_type = command_types.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION
        signal = command.signal_external_workflow_execution_command_attributes
        signal.execution.workflow_id = step[1]["to"]
        signal.signal_name = "go"
        signal.input.CopyFrom(payloads(f"told by {seen.original_run_id} at {at}"))
        signal.control = control
    commands.append(command)
    return False


def _fail(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    command = command_pb2.Command(command_type=command_types.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION)
    command.fail_workflow_execution_command_attributes.failure.application_failure_info.SetInParent()
    commands.append(command)
    return False


def _next(seen: _Seen, at: int, step: Step, commands: list[command_pb2.Command]) -> bool:
    command = command_pb2.Command(command_type=10)
    a = command.continue_as_new_workflow_execution_command_attributes
    a.workflow_type.name = "program"
    a.task_queue.name = "queue"
    a.input.CopyFrom(payloads(step[1]))
    commands.append(command)
    return False


_STEPS = {
    "act": _act,
    "timer": _timer,
    "both": _both,
    "sig": _sig,
    "drop": _drop,
    "mark": _mark,
    "child": _child,
    "tell": _tell,
    "next": _next,
    "fail": _fail,
}


def answer_query(events: Iterable[history_pb2.HistoryEvent]) -> common_pb2.Payloads:
    """The answer to every query: what the signals have carried that the workflow has seen."""
    return payloads(_Seen(events).signals)


def outcome_of(update_id: str) -> str:
    """The result of an update that is not rejected."""
    return f"outcome of {update_id}"


def is_rejected(update_id: str) -> bool:
    """Whether workers reject the update."""
    return zlib.crc32(update_id.encode()) % 4 == 0


def answer_updates(
    events: Iterable[history_pb2.HistoryEvent], asked: Iterable[protocol_pb2.Message]
) -> tuple[list[command_pb2.Command], list[protocol_pb2.Message]]:
    """The commands and messages by which a worker answers what its task carries, and completes what it accepted before.

    One in four is rejected, one in four accepted now and completed with a later task.
    """
    commands: list[command_pb2.Command] = []
    messages: list[protocol_pb2.Message] = []

    def say(update_id: str, what: str, body: Any) -> None:
        message = protocol_pb2.Message(id=f"{update_id}/{what}", protocol_instance_id=update_id)
        message.body.Pack(body)
        messages.append(message)
        if what != "reject":
            command = command_pb2.Command(command_type=14)
            command.protocol_message_command_attributes.message_id = message.id
            commands.append(command)

    def complete(update_id: str) -> None:
        response = update_pb2.Response()
        response.meta.update_id = update_id
        response.outcome.success.CopyFrom(payloads(outcome_of(update_id)))
        say(update_id, "complete", response)

    seen = _Seen(events)
    for update_id, completed in seen.updates.items():
        if not completed:
            complete(update_id)
    for update_id in seen.admitted:
        say(update_id, "accept", update_pb2.Acceptance(accepted_request_message_id=f"{update_id}/request"))
        complete(update_id)
    for request in asked:
        update_id = request.protocol_instance_id
        if is_rejected(update_id):
            rejection = update_pb2.Rejection(
                rejected_request_message_id=request.id, rejected_request_sequencing_event_id=request.event_id
            )
            rejection.failure.message = "no"
            say(update_id, "reject", rejection)
            continue
        acceptance = update_pb2.Acceptance(
            accepted_request_message_id=request.id, accepted_request_sequencing_event_id=request.event_id
        )
        request.body.Unpack(acceptance.accepted_request)
        say(update_id, "accept", acceptance)
        if zlib.crc32(update_id.encode()) % 4 != 1:
            complete(update_id)
    return commands, messages


def _schedule(name: str, options: dict[str, Any]) -> command_pb2.Command:
    command = command_pb2.Command(command_type=1)
    a = command.schedule_activity_task_command_attributes
    a.activity_id = name
    a.activity_type.name = "work"
    a.task_queue.name = "queue"
    a.input.CopyFrom(payloads(options))
    a.start_to_close_timeout.CopyFrom(duration(4))
    a.schedule_to_close_timeout.CopyFrom(duration(60))
    if options["beats"]:
        a.heartbeat_timeout.CopyFrom(duration(2))
    a.retry_policy.initial_interval.CopyFrom(duration(0.5))
    a.retry_policy.backoff_coefficient = 2.0
    a.retry_policy.maximum_attempts = options["most"]
    a.request_eager_execution = options["eager"]
    return command
