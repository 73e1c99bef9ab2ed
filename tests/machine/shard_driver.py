"""A shard to test the machine with: a fold over a dictionary, a log kept in memory, and a worker played by the test.

Every record that a test appends is folded; after every step the driver checks replay equality (a second fold of the
log from its first record has the same rows and hash) unless told not to, and the invariants of every run.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import reads
from everfold.history.machine.decide.hand_out import HandOut
from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.history.machine.state import decode_run, encode_run
from everfold.history.machine.step import Guards, Reply, RunKey, Step, TaskOffer
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.time import DAY_NS, MILLISECOND_NS, SECOND_NS
from everfold.schemas import codec

NAMESPACE_ID = "5d9c1a06-0000-4000-8000-000000000001"
NAMESPACE = "default"
START_NS = 1_700_000_000 * SECOND_NS


class DictRows:
    """Rows in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self._sorted: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        found = self._sorted[bisect_left(self._sorted, start) : bisect_left(self._sorted, end)]
        for key in reversed(found) if reverse else found:
            yield key, self.rows[key]

    def write(self, writes: dict[bytes, bytes | None]) -> None:
        for key, value in writes.items():
            if value is None:
                if self.rows.pop(key, None) is not None:
                    del self._sorted[bisect_left(self._sorted, key)]
                continue
            if key not in self.rows:
                insort(self._sorted, key)
            self.rows[key] = value


class ShardDriver:
    """One shard (of one), its log, and helpers to drive a workflow through it."""

    def __init__(
        self,
        *,
        guards: Guards | None = None,
        replay: bool = True,
        settings: dict[str, int] | None = None,
        shard_count: int = 1,
    ) -> None:
        self.store = DictRows()
        self.guards = guards
        self.fold = ShardFold(0, self.store, 1 << 20, guards=guards)
        self.log: list[LogRecord] = []
        self.now_ns = START_NS
        #: of the log's leader
        self.epoch = 0
        self.replay = replay
        self.offers: list[TaskOffer] = []
        self.steps: list[Step] = []
        self.messages: list[bytes] = []
        self._requests = 0
        self.append(
            "GENESIS", {"cluster_id": "test", "shard": 0, "shard_count": shard_count, "feature_level": FEATURE_LEVEL}
        )
        if settings:
            self.append("SETTINGS_CHANGED", {"settings": settings})
        self.know_namespace({"CustomKeyword": "Keyword"})

    # ---- records ----------------------------------------------------------------------------------------------------

    def know_namespace(
        self,
        search_attributes: dict[str, str],
        version: int = 1,
        *,
        deleted: bool = False,
        retention_ns: int = DAY_NS,
    ) -> None:
        record = {
            "namespace_id": NAMESPACE_ID,
            "name": NAMESPACE,
            "version": version,
            "state": 1,
            "description": "",
            "owner_email": "",
            "data": {},
            "retention_ns": retention_ns,
            "search_attributes": search_attributes,
            "created_at_ns": START_NS,
            "deleted": deleted,
            "config": b"",
            "origin": None,
            "predecessor": None,
        }
        self.append("NAMESPACE_CHANGED", {"version": version, "namespace": codec.encode("Namespace", record)})

    def append(
        self,
        kind: str,
        body: dict[str, Any],
        *,
        workflow_id: str = "",
        run_id: str = "",
        namespace_id: str = NAMESPACE_ID,
        origin: dict[str, Any] | None = None,
        facts: dict[str, str] | None = None,
        start: dict[str, Any] | None = None,
    ) -> Step:
        """Appends a record to the log and folds it."""
        value = codec.encode_shard_record(
            {
                "kind": kind,
                "namespace_id": namespace_id,
                "workflow_id": workflow_id,
                "run_id": run_id,
                "origin": origin,
                "predecessor": None,
                "proposer": {"instance": 1, "sequence": len(self.log), "clock_ns": self.now_ns},
                "trace": {},
                "facts": facts or {},
                "start": start,
                "body": (codec.body_of(kind), body),
            }
        )
        return self._fold(value)

    def _fold(self, value: bytes) -> Step:
        record = LogRecord(value, len(self.log), self.epoch, self.now_ns // MILLISECOND_NS)
        self.log.append(record)
        step = self.fold.fold(record)
        self.store.write(self.fold.take_writes())
        self.fold.written()
        self.steps.append(step)
        self.offers.extend(step.offers)
        self.messages.extend(row.value for row in step.outputs if row.topic == "shard-log" and row.value is not None)
        self.check_runs()
        if self.replay:
            self.check_replay()
        return step

    def deliver(self) -> None:
        """Appends the messages that runs have sent to other runs, until none is left: this shard is everybody's."""
        sent = 0
        while sent < len(self.messages):
            value = self.messages[sent]
            sent += 1
            self._fold(value)
        self.messages.clear()

    def request(self, kind: str, message: Message, *, workflow_id: str = "", run_id: str = "") -> Reply:
        """Appends a Temporal request; raises what the machine answered if that is an error."""
        step = self.append(kind, {"message": message.SerializeToString()}, workflow_id=workflow_id, run_id=run_id)
        assert step.reply is not None
        if step.reply.error is not None:
            raise step.reply.error
        return step.reply

    def check_replay(self) -> None:
        """The whole log, folded anew without any cache, gives the same rows."""
        rows = DictRows()
        again = ShardFold(0, rows, 1, guards=self.guards)
        for record in self.log:
            again.fold(record)
            rows.write(again.take_writes())
            again.written()
        assert again.meta.state_hash == self.fold.meta.state_hash
        assert rows.rows == self.store.rows

    def check_runs(self) -> None:
        """What holds of every run at every step."""
        for key, row in self.store.rows.items():
            if key[2:3] != b"r" or key.startswith(b"\xff"):
                continue
            run = decode_run(row)
            assert encode_run(run) == row
            ids = [event.event_id for event in reads.events_of(self.fold, run)]
            assert ids == list(range(1, run.next_event_id)), f"event ids of {run.workflow_id}: {ids}"

    # ---- time -------------------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Lets shard time pass, firing what falls due on the way."""
        until = self.now_ns + int(seconds * SECOND_NS)
        while True:
            due = self.fold.next_timer()
            if due is None or due > until:
                break
            self.now_ns = max(self.now_ns, due + MILLISECOND_NS)
            for timer in self.fold.due_timers(self.now_ns, 100):
                self.append(
                    "FIRE_TIMER",
                    {"due_at_ns": timer.due_at_ns},
                    workflow_id=timer.workflow_id,
                    run_id=timer.run_id,
                    namespace_id=timer.namespace_id,
                )
        self.now_ns = max(self.now_ns, until)

    # ---- clients ----------------------------------------------------------------------------------------------------

    def request_id(self) -> str:
        self._requests += 1
        return f"request-{self._requests}"

    def start(self, workflow_id: str = "w", **fields: Any) -> str:
        request = ws.StartWorkflowExecutionRequest(workflow_id=workflow_id, request_id=self.request_id(), **fields)
        request.workflow_type.name = request.workflow_type.name or "Greeting"
        request.task_queue.name = request.task_queue.name or "queue"
        reply = self.request("START_WORKFLOW", request, workflow_id=workflow_id)
        return ws.StartWorkflowExecutionResponse.FromString(reply.response).run_id

    def signal(self, name: str = "go", workflow_id: str = "w", request_id: str = "") -> None:
        request = ws.SignalWorkflowExecutionRequest(signal_name=name, request_id=request_id or self.request_id())
        request.workflow_execution.workflow_id = workflow_id
        self.request("SIGNAL_WORKFLOW", request, workflow_id=workflow_id)

    def cancel(self, workflow_id: str = "w") -> None:
        request = ws.RequestCancelWorkflowExecutionRequest(request_id=self.request_id())
        request.workflow_execution.workflow_id = workflow_id
        self.request("REQUEST_CANCEL_WORKFLOW", request, workflow_id=workflow_id)

    def terminate(self, workflow_id: str = "w") -> None:
        request = ws.TerminateWorkflowExecutionRequest(reason="enough")
        request.workflow_execution.workflow_id = workflow_id
        self.request("TERMINATE_WORKFLOW", request, workflow_id=workflow_id)

    # ---- the worker -------------------------------------------------------------------------------------------------

    def take_offer(self, type_: str = "workflow", workflow_id: str = "") -> TaskOffer:
        """The latest offer of that type."""
        for at in range(len(self.offers) - 1, -1, -1):
            if self.offers[at].type == type_ and workflow_id in ("", self.offers[at].workflow_id):
                return self.offers.pop(at)
        raise AssertionError(f"no {type_} task is offered")

    def poll(
        self, workflow_id: str = "", *, request_id: str = "", offer: TaskOffer | None = None, **fields: Any
    ) -> ws.PollWorkflowTaskQueueResponse:
        """Takes the offered workflow task as a worker would; `fields` are more of its poll."""
        offer = offer or self.take_offer(workflow_id=workflow_id)
        poll = ws.PollWorkflowTaskQueueRequest(identity="worker", **fields)
        poll.task_queue.name = offer.task_queue
        poll.task_queue.kind = 2 if offer.sticky else 1
        step = self.append(
            "START_WORKFLOW_TASK",
            {
                "scheduled_event_id": offer.scheduled_event_id,
                "attempt": offer.attempt,
                "stamp": offer.stamp,
                "request_id": request_id or self.request_id(),
                "poll": poll.SerializeToString(),
                "task_id": offer.task_id,
            },
            workflow_id=offer.workflow_id,
            run_id=offer.run_id,
        )
        assert step.reply is not None
        if step.reply.error is not None:
            raise step.reply.error
        return ws.PollWorkflowTaskQueueResponse.FromString(reads.assemble(self.fold, step.reply))

    def hand_out(self) -> HandOut | None:
        """Takes the offered workflow task ahead of the log, if that may be; its start is in no record yet."""
        offer = self.take_offer()
        poll = ws.PollWorkflowTaskQueueRequest(identity="worker")
        poll.task_queue.name = offer.task_queue
        start = {
            "scheduled_event_id": offer.scheduled_event_id,
            "attempt": offer.attempt,
            "stamp": offer.stamp,
            "request_id": self.request_id(),
            "poll": poll.SerializeToString(),
            "task_id": offer.task_id,
        }
        return self.fold.hand_out(RunKey(NAMESPACE_ID, offer.workflow_id, offer.run_id), start, self.now_ns)

    def poll_activity(
        self, *, offer: TaskOffer | None = None, request_id: str = ""
    ) -> ws.PollActivityTaskQueueResponse:
        """Takes the offered activity task as a worker would."""
        offer = offer or self.take_offer("activity")
        poll = ws.PollActivityTaskQueueRequest(identity="worker")
        poll.task_queue.name = offer.task_queue
        step = self.append(
            "START_ACTIVITY_TASK",
            {
                "scheduled_event_id": offer.scheduled_event_id,
                "attempt": offer.attempt,
                "stamp": offer.stamp,
                "request_id": request_id or self.request_id(),
                "poll": poll.SerializeToString(),
                "task_id": offer.task_id,
            },
            workflow_id=offer.workflow_id,
            run_id=offer.run_id,
        )
        assert step.reply is not None
        if step.reply.error is not None:
            raise step.reply.error
        return ws.PollActivityTaskQueueResponse.FromString(step.reply.response)

    def complete(
        self, task: ws.PollWorkflowTaskQueueResponse, *commands: command_pb2.Command, **fields: Any
    ) -> ws.RespondWorkflowTaskCompletedResponse:
        """Answers a workflow task with commands."""
        request = ws.RespondWorkflowTaskCompletedRequest(
            task_token=task.task_token, commands=commands, identity="worker", **fields
        )
        execution = task.workflow_execution
        reply = self.request(
            "COMPLETE_WORKFLOW_TASK", request, workflow_id=execution.workflow_id, run_id=execution.run_id
        )
        return ws.RespondWorkflowTaskCompletedResponse.FromString(reads.assemble(self.fold, reply))

    def fail_task(self, task: ws.PollWorkflowTaskQueueResponse) -> None:
        request = ws.RespondWorkflowTaskFailedRequest(task_token=task.task_token, identity="worker", cause=24)
        execution = task.workflow_execution
        self.request("FAIL_WORKFLOW_TASK", request, workflow_id=execution.workflow_id, run_id=execution.run_id)

    def complete_activity(self, task: ws.PollActivityTaskQueueResponse) -> None:
        request = ws.RespondActivityTaskCompletedRequest(task_token=task.task_token, identity="worker")
        execution = task.workflow_execution
        self.request("COMPLETE_ACTIVITY", request, workflow_id=execution.workflow_id, run_id=execution.run_id)

    def fail_activity(self, task: ws.PollActivityTaskQueueResponse, message: str = "no", **info: Any) -> None:
        request = ws.RespondActivityTaskFailedRequest(task_token=task.task_token, identity="worker")
        request.failure.message = message
        request.failure.application_failure_info.SetInParent()
        for name, value in info.items():
            setattr(request.failure.application_failure_info, name, value)
        execution = task.workflow_execution
        self.request("FAIL_ACTIVITY", request, workflow_id=execution.workflow_id, run_id=execution.run_id)

    # ---- looking ----------------------------------------------------------------------------------------------------

    def history(self, workflow_id: str = "w", run_id: str = "") -> str:
        """The history as text: one event per line, numbered, with the attributes that matter where there are any."""
        run = self.fold.run(NAMESPACE_ID, NAMESPACE, workflow_id, run_id)
        assert run is not None
        return "\n".join(f"{event.event_id} {event_name(event)}" for event in reads.events_of(self.fold, run))

    def describe(self, workflow_id: str = "w", run_id: str = "") -> ws.DescribeWorkflowExecutionResponse:
        request = ws.DescribeWorkflowExecutionRequest()
        request.execution.workflow_id = workflow_id
        request.execution.run_id = run_id
        namespace = self.fold.namespace(NAMESPACE_ID)
        assert namespace is not None
        data = reads.describe(self.fold, namespace, request.SerializeToString())
        return ws.DescribeWorkflowExecutionResponse.FromString(data)


_SHORT = {"WORKFLOW_EXECUTION": "Workflow", "WORKFLOW_TASK": "WorkflowTask", "ACTIVITY_TASK": "ActivityTask"}


def event_name(event: history_pb2.HistoryEvent) -> str:
    """`WorkflowTaskFailed cause=…`: the type and, for some events, what tells them apart."""
    name = event_type_pb2.EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
    text = "".join(word.capitalize() for word in name.split("_")).replace("WorkflowExecution", "Workflow")
    attributes = MessageToDict(getattr(event, str(event.WhichOneof("attributes"))), preserving_proto_field_name=True)
    notes = []
    for key in ("signal_name", "timer_id", "activity_id", "cause", "timeout_type", "marker_name"):
        if key in attributes:
            value = str(attributes[key])
            for prefix in ("WORKFLOW_TASK_FAILED_CAUSE_", "TIMEOUT_TYPE_"):
                value = value.removeprefix(prefix)
            notes.append(f"{key}={value}")
    if event.event_type == 5 and attributes.get("attempt", 1) != 1:
        notes.append(f"attempt={attributes['attempt']}")
    if event.event_type == 11 and attributes.get("attempt", 1) != 1:
        notes.append(f"attempt={attributes['attempt']}")
    return " ".join([text, *notes])


def duration(seconds: float) -> Duration:
    out = Duration()
    out.FromNanoseconds(int(seconds * SECOND_NS))
    return out


def schedule_activity(activity_id: str = "a", **fields: Any) -> command_pb2.Command:
    command = command_pb2.Command(command_type=1)
    a = command.schedule_activity_task_command_attributes
    a.activity_id = activity_id
    a.activity_type.name = "greet"
    a.task_queue.name = fields.pop("queue", "queue")
    a.start_to_close_timeout.CopyFrom(duration(fields.pop("start_to_close", 10)))
    for name in ("schedule_to_close", "schedule_to_start", "heartbeat"):
        if name in fields:
            getattr(a, f"{name}_timeout").CopyFrom(duration(fields.pop(name)))
    if "attempts" in fields:
        a.retry_policy.maximum_attempts = fields.pop("attempts")
    a.request_eager_execution = fields.pop("eager", False)
    assert not fields, fields
    return command


def cancel_activity(scheduled_event_id: int) -> command_pb2.Command:
    command = command_pb2.Command(command_type=2)
    command.request_cancel_activity_task_command_attributes.scheduled_event_id = scheduled_event_id
    return command


def start_timer(timer_id: str, seconds: float) -> command_pb2.Command:
    command = command_pb2.Command(command_type=3)
    command.start_timer_command_attributes.timer_id = timer_id
    command.start_timer_command_attributes.start_to_fire_timeout.CopyFrom(duration(seconds))
    return command


def cancel_timer(timer_id: str) -> command_pb2.Command:
    command = command_pb2.Command(command_type=6)
    command.cancel_timer_command_attributes.timer_id = timer_id
    return command


def complete_workflow() -> command_pb2.Command:
    command = command_pb2.Command(command_type=4)
    command.complete_workflow_execution_command_attributes.SetInParent()
    return command


def cancel_workflow() -> command_pb2.Command:
    command = command_pb2.Command(command_type=7)
    command.cancel_workflow_execution_command_attributes.SetInParent()
    return command


def record_marker(name: str) -> command_pb2.Command:
    command = command_pb2.Command(command_type=9)
    command.record_marker_command_attributes.marker_name = name
    return command


def sticky(queue: str = "sticky-of-worker", seconds: float = 10) -> dict[str, Any]:
    """Keyword arguments of `complete` that make the run sticky."""
    request = ws.RespondWorkflowTaskCompletedRequest()
    request.sticky_attributes.worker_task_queue.name = queue
    request.sticky_attributes.worker_task_queue.kind = 2
    request.sticky_attributes.schedule_to_start_timeout.CopyFrom(duration(seconds))
    return {"sticky_attributes": request.sticky_attributes}


def fail_workflow(message: str = "no", **info: Any) -> command_pb2.Command:
    command = command_pb2.Command(command_type=5)
    failure = command.fail_workflow_execution_command_attributes.failure
    failure.message = message
    failure.application_failure_info.SetInParent()
    for name, value in info.items():
        setattr(failure.application_failure_info, name, value)
    return command


def continue_as_new(**fields: Any) -> command_pb2.Command:
    command = command_pb2.Command(command_type=10)
    a = command.continue_as_new_workflow_execution_command_attributes
    a.workflow_type.name = fields.pop("type", "Greeting")
    a.task_queue.name = "queue"
    assert not fields, fields
    return command


def start_child(workflow_id: str, policy: int = 0) -> command_pb2.Command:
    command = command_pb2.Command(command_type=11)
    a = command.start_child_workflow_execution_command_attributes
    a.workflow_id = workflow_id
    a.workflow_type.name = "Child"
    a.parent_close_policy = policy  # type: ignore[assignment]
    return command


def signal_external(workflow_id: str, *, child_only: bool = False) -> command_pb2.Command:
    command = command_pb2.Command(command_type=12)
    a = command.signal_external_workflow_execution_command_attributes
    a.execution.workflow_id = workflow_id
    a.signal_name = "from-afar"
    a.child_workflow_only = child_only
    return command


def cancel_external(workflow_id: str) -> command_pb2.Command:
    command = command_pb2.Command(command_type=8)
    command.request_cancel_external_workflow_execution_command_attributes.workflow_id = workflow_id
    return command
