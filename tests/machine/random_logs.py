"""Logs of a shard made from numbers, and what a fold of one did, as plain values.

A program is a list of (operation, numbers). Each operation takes from its numbers whatever it has to choose, 0 where
they have run out, so that any list is a program and a shorter one is a simpler one. The operations know no more than a
client, a worker or the shard's owner does: they answer tasks that were offered, ask for what may not exist, repeat
themselves, and send what is no message at all.

    python random_logs.py FILE      folds the pickled logs of a file and prints the digest of what they did
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from shard_driver import (
    NAMESPACE_ID,
    DictRows,
    ShardDriver,
    cancel_activity,
    cancel_external,
    cancel_timer,
    cancel_workflow,
    complete_workflow,
    continue_as_new,
    duration,
    fail_workflow,
    record_marker,
    schedule_activity,
    signal_external,
    start_child,
    start_timer,
    sticky,
)
from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.protocol.v1 import message_pb2 as protocol_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import reads
from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.history.machine.step import RunKey, Step, TaskOffer
from everfold.kernel.errors import StatusError
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.ids import shard_of
from everfold.kernel.time import MILLISECOND_NS

T = TypeVar("T")

Program = Sequence[tuple[str, Sequence[int]]]

SHARDS: Final = 64
"""Of the cluster; this is the first of them. Some records walk over all slots of a shard, and few are walked sooner."""

IDS: Final = tuple(islice((f"w{n}" for n in count() if shard_of("default", f"w{n}", SHARDS) == 0), 40))
WORKFLOWS: Final = IDS[:3]
SETTINGS: Final[tuple[dict[str, int], ...]] = (
    {},
    {"limit.historyCount.error": 30, "limit.historyCount.suggestContinueAsNew": 5},
    {"history.maximumBufferedEventsBatch": 2, "history.maximumSignalsPerExecution": 4},
    {"limit.numPendingActivities.error": 1, "limit.numPendingChildExecutions.error": 1},
    {"limit.blobSize.error": 20, "history.maxInFlightUpdates": 1, "history.maxTotalUpdates": 2},
    {"history.defaultWorkflowTaskTimeout": 1, "history.workflowIdReuseMinimalInterval": 0, "no.such.setting": 7},
)
REQUESTS: Final = (
    "START_WORKFLOW",
    "SIGNAL_WORKFLOW",
    "SIGNAL_WITH_START_WORKFLOW",
    "REQUEST_CANCEL_WORKFLOW",
    "TERMINATE_WORKFLOW",
    "UPDATE_WORKFLOW",
    "RESET_WORKFLOW",
    "DELETE_WORKFLOW",
    "MULTI_OPERATION",
    "RESET_ACTIVITY",
    "COMPLETE_WORKFLOW_TASK",
    "FAIL_WORKFLOW_TASK",
    "COMPLETE_ACTIVITY",
    "FAIL_ACTIVITY",
    "CANCEL_ACTIVITY",
    "HEARTBEAT_ACTIVITY",
    "COMPLETE_ACTIVITY_BY_ID",
    "REGISTER_NAMESPACE",
    "CROSS_RUN",
)


class Numbers:
    """The choices of one operation."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._left = list(reversed(numbers))

    def copy(self) -> Numbers:
        return Numbers(self._left[::-1])

    def next(self) -> int:
        return self._left.pop() if self._left else 0

    def of(self, values: Sequence[T]) -> T:
        return values[self.next() % len(values)]

    def one_in(self, many: int) -> bool:
        """Rarely; never once the numbers have run out."""
        return self.next() % many == many - 1

    def rest(self) -> bytes:
        rest = bytes(number % 256 for number in reversed(self._left))
        self._left.clear()
        return rest


class Player(ShardDriver):
    """A shard that programs are played on. Its own fold writes its rows after every record, and forgets no run."""

    def __init__(self) -> None:
        #: (task, how its start goes into the log; None when it is there)
        self.tasks: list[tuple[ws.PollWorkflowTaskQueueResponse, dict[str, Any] | None]] = []
        self.activities: list[ws.PollActivityTaskQueueResponse] = []
        self.starts: list[tuple[TaskOffer, str]] = []
        self.requests: list[tuple[str, bytes, str, str]] = []
        self.sent: list[bytes] = []
        #: runs set aside by a record that was not made to be nonsense
        self.defects: list[str] = []
        self._sane = True
        self._commands = 0
        self._timers = 0
        super().__init__(replay=False, shard_count=SHARDS)

    def check_runs(self) -> None:
        """Not after every step here: other tests do, and logs are long."""

    def play(self, program: Program) -> None:
        for name, numbers in program:
            self._sane = name not in ("nonsense", "mangled", "release")
            try:
                OPERATIONS[name](self, Numbers(numbers))
            except StatusError:
                continue
            for row in self.messages:
                self.sent.append(row)
            self.messages.clear()

    def _fold(self, value: bytes) -> Step:
        self.now_ns += MILLISECOND_NS
        step = super()._fold(value)
        if self._sane:
            self.defects += [reason for _, reason in step.quarantined]
        return step

    # ---- clients ----------------------------------------------------------------------------------------------------

    def ask(self, kind: str, message: Message, numbers: Numbers, workflow_id: str, run_id: str = "") -> None:
        """A request, now and then one that came by the topic `commands`."""
        data = message.SerializeToString(deterministic=True)
        self.requests.append((kind, data, workflow_id, run_id))
        origin = None
        if numbers.one_in(5):
            self._commands += numbers.of((1, 1, 0))  # one in three was taken before
            origin = {"source": "COMMANDS", "partition": 0, "epoch": 0, "offset": self._commands, "index": 0}
        step = self.append(kind, {"message": data}, workflow_id=workflow_id, run_id=run_id, origin=origin)
        if step.reply is not None and step.reply.error is None:
            reads.assemble(self.fold, step.reply)

    def some_request_id(self, numbers: Numbers) -> str:
        return "again" if numbers.one_in(3) else self.request_id()

    def some_run_id(self, workflow_id: str, numbers: Numbers) -> str:
        return self.current(workflow_id) if numbers.one_in(3) else ""

    def current(self, workflow_id: str) -> str:
        run = self.fold.run(NAMESPACE_ID, "default", workflow_id, "")
        return "" if run is None else run.run_id

    def start_request(self, numbers: Numbers, workflow_id: str) -> ws.StartWorkflowExecutionRequest:
        message = ws.StartWorkflowExecutionRequest(workflow_id=workflow_id, request_id=self.some_request_id(numbers))
        message.workflow_type.name = "Greeting"
        message.task_queue.name = numbers.of(("queue", "other"))
        message.workflow_id_reuse_policy = numbers.of((1, 2, 3))  # type: ignore[assignment]
        message.workflow_id_conflict_policy = numbers.of((1, 2, 3))  # type: ignore[assignment]
        if numbers.one_in(3):
            for name in ("one", "two", "three"):
                message.memo.fields[name].data = name.encode()
                message.header.fields[name].data = name.encode()
            word = message.search_attributes.indexed_fields["CustomKeyword"]
            word.metadata["encoding"] = b"json/plain"
            word.data = b'"word"'
        if numbers.one_in(4):
            message.workflow_run_timeout.CopyFrom(duration(numbers.of((1, 5, 20))))
        if numbers.one_in(4):
            message.retry_policy.maximum_attempts = 3
            message.retry_policy.initial_interval.CopyFrom(duration(1))
            message.retry_policy.backoff_coefficient = 2
        if numbers.one_in(6):
            message.cron_schedule = "* * * * *"
        elif numbers.one_in(6):
            message.workflow_start_delay.CopyFrom(duration(2))
        message.request_eager_execution = numbers.one_in(6)
        return message

    def op_start(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        self.ask("START_WORKFLOW", self.start_request(numbers, workflow_id), numbers, workflow_id)

    def op_signal(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        message = ws.SignalWorkflowExecutionRequest(signal_name="go", request_id=self.some_request_id(numbers))
        message.workflow_execution.workflow_id = workflow_id
        message.workflow_execution.run_id = self.some_run_id(workflow_id, numbers)
        message.input.payloads.add().data = b"x" * numbers.of((0, 10, 30))
        self.ask("SIGNAL_WORKFLOW", message, numbers, workflow_id)

    def op_signal_with_start(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        message = ws.SignalWithStartWorkflowExecutionRequest(
            workflow_id=workflow_id, signal_name="go", request_id=self.some_request_id(numbers)
        )
        message.workflow_type.name = "Greeting"
        message.task_queue.name = "queue"
        message.workflow_id_reuse_policy = 1
        message.workflow_id_conflict_policy = numbers.of((2, 3))  # type: ignore[assignment]
        self.ask("SIGNAL_WITH_START_WORKFLOW", message, numbers, workflow_id)

    def op_cancel(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        message = ws.RequestCancelWorkflowExecutionRequest(request_id=self.some_request_id(numbers))
        message.workflow_execution.workflow_id = workflow_id
        self.ask("REQUEST_CANCEL_WORKFLOW", message, numbers, workflow_id)

    def op_terminate(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        message = ws.TerminateWorkflowExecutionRequest(reason="enough")
        message.workflow_execution.workflow_id = workflow_id
        self.ask("TERMINATE_WORKFLOW", message, numbers, workflow_id)

    def op_delete(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        message = ws.DeleteWorkflowExecutionRequest()
        message.workflow_execution.workflow_id = workflow_id
        message.workflow_execution.run_id = self.current(workflow_id)
        self.ask("DELETE_WORKFLOW", message, numbers, workflow_id)

    def update_request(self, numbers: Numbers, workflow_id: str) -> ws.UpdateWorkflowExecutionRequest:
        message = ws.UpdateWorkflowExecutionRequest()
        message.workflow_execution.workflow_id = workflow_id
        message.request.meta.update_id = numbers.of(("u1", "u2", "u3"))
        message.request.input.name = "change"
        return message

    def op_update(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        self.ask("UPDATE_WORKFLOW", self.update_request(numbers, workflow_id), numbers, workflow_id)

    def op_update_with_start(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        message = ws.ExecuteMultiOperationRequest()
        message.operations.add().update_workflow.CopyFrom(self.update_request(numbers, workflow_id))
        start = self.start_request(numbers, workflow_id)
        start.cron_schedule, start.request_eager_execution = "", False
        start.ClearField("workflow_start_delay")
        message.operations.insert(0, ws.ExecuteMultiOperationRequest.Operation(start_workflow=start))
        self.ask("MULTI_OPERATION", message, numbers, workflow_id)

    def op_reset(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        message = ws.ResetWorkflowExecutionRequest(request_id=self.some_request_id(numbers), reason="again")
        message.workflow_execution.workflow_id = workflow_id
        message.workflow_execution.run_id = self.some_run_id(workflow_id, numbers)
        message.workflow_task_finish_event_id = numbers.of((4, 3, 5, 8, 10))
        self.ask("RESET_WORKFLOW", message, numbers, workflow_id)

    def op_reset_activity(self, numbers: Numbers) -> None:
        workflow_id = numbers.of(WORKFLOWS)
        message = ws.ResetActivityRequest(id=numbers.of(("a", "b")), reset_heartbeat=True)
        message.execution.workflow_id = workflow_id
        self.ask("RESET_ACTIVITY", message, numbers, workflow_id)

    def op_again(self, numbers: Numbers) -> None:
        """A request that was made before: its caller did not hear the answer."""
        if self.requests:
            kind, data, workflow_id, run_id = numbers.of(self.requests[::-1])
            self.append(kind, {"message": data}, workflow_id=workflow_id, run_id=run_id)

    def op_nonsense(self, numbers: Numbers) -> None:
        """Bytes where a message is expected. They set a run aside, so that most of them are about none."""
        kind, workflow_id = numbers.of(REQUESTS), numbers.of((WORKFLOWS[0], "", *IDS[-8:]))
        body: dict[str, Any] = {"message": numbers.rest()}
        if kind == "CROSS_RUN":
            body["message_kind"] = "SignalExternal"
        self.append(kind, body, workflow_id=workflow_id)

    def op_mangled(self, numbers: Numbers) -> None:
        """A request with one byte changed and its end cut off."""
        if self.requests and numbers.one_in(3):
            kind, data, workflow_id, run_id = numbers.of(self.requests[::-1])
            bad = bytearray(data)
            if bad:
                bad[numbers.next() % len(bad)] ^= numbers.next() % 256
                del bad[len(bad) - numbers.next() % 3 :]
            self.append(kind, {"message": bytes(bad)}, workflow_id=workflow_id, run_id=run_id)

    # ---- workers ----------------------------------------------------------------------------------------------------

    def start_body(self, offer: TaskOffer, request_id: str) -> dict[str, Any]:
        poll = ws.PollWorkflowTaskQueueRequest(identity="worker")
        poll.task_queue.name = offer.task_queue
        poll.task_queue.kind = 2 if offer.sticky else 1
        return {
            "scheduled_event_id": offer.scheduled_event_id,
            "attempt": offer.attempt,
            "stamp": offer.stamp,
            "request_id": request_id,
            "poll": poll.SerializeToString(),
            "task_id": offer.task_id,
        }

    def some_offer(self, type_: str, numbers: Numbers) -> TaskOffer | None:
        """The latest task, sometimes an older one, which may be no more."""
        offers = [offer for offer in reversed(self.offers) if offer.type == type_]
        if not offers:
            return None
        offer = offers[numbers.next() % len(offers) if numbers.one_in(5) else 0]
        if not numbers.one_in(5):
            self.offers.remove(offer)
        return offer

    def op_poll(self, numbers: Numbers) -> None:
        offer = self.some_offer("workflow", numbers)
        if offer is not None:
            self.starts.append((offer, self.request_id()))
            self.tasks.append((self.poll(offer=offer, request_id=self.starts[-1][1]), None))

    def op_poll_again(self, numbers: Numbers) -> None:
        """A poll whose answer was lost on the way."""
        if self.starts:
            offer, request_id = numbers.of(self.starts[::-1])
            (self.poll if offer.type == "workflow" else self.poll_activity)(offer=offer, request_id=request_id)

    def op_hand_out(self, numbers: Numbers) -> None:
        """A task that a worker has before its start is in the log."""
        offer = self.some_offer("workflow", numbers)
        if offer is None:
            return
        key = RunKey(NAMESPACE_ID, offer.workflow_id, offer.run_id)
        found = self.fold.hand_out(key, self.start_body(offer, self.request_id()), self.now_ns)
        if found is not None:
            task = ws.PollWorkflowTaskQueueResponse.FromString(reads.assemble(self.fold, found.reply))
            self.tasks.append((task, found.start))

    def op_start_alone(self, numbers: Numbers) -> None:
        """The start of a handed-out task goes into the log by itself."""
        for at, (task, start) in enumerate(self.tasks):
            if start is not None:
                self.tasks[at] = (task, None)
                execution = task.workflow_execution
                self.append("START_WORKFLOW_TASK", start, workflow_id=execution.workflow_id, run_id=execution.run_id)
                return

    def op_complete(self, numbers: Numbers) -> None:
        """The latest task is answered, sometimes an older one, or one twice."""
        if not self.tasks:
            self.op_poll(numbers)
        if not self.tasks:
            return
        at = numbers.next() % len(self.tasks) if numbers.one_in(5) else len(self.tasks) - 1
        task, start = self.tasks[at] if numbers.one_in(6) else self.tasks.pop(at)
        execution = task.workflow_execution
        message = ws.RespondWorkflowTaskCompletedRequest(task_token=task.task_token, identity="worker")
        if numbers.one_in(3):
            message.MergeFrom(ws.RespondWorkflowTaskCompletedRequest(**sticky()))
        self.answer_updates(task, message, numbers)
        message.return_new_workflow_task = numbers.one_in(3)
        message.force_create_new_workflow_task = numbers.one_in(5)
        for _ in range(numbers.of((1, 0, 1, 2, 3, 4))):
            message.commands.extend(self.commands(numbers))
        if numbers.one_in(5):
            message.commands.append(numbers.of((complete_workflow, continue_as_new, fail_workflow, cancel_workflow))())
        data = message.SerializeToString(deterministic=True)
        names = (execution.workflow_id, execution.run_id)
        self.requests.append(("COMPLETE_WORKFLOW_TASK", data, *names))
        step = self.append(
            "COMPLETE_WORKFLOW_TASK", {"message": data}, workflow_id=names[0], run_id=names[1], start=start
        )
        if step.reply is not None and step.reply.error is None:
            answer = ws.RespondWorkflowTaskCompletedResponse.FromString(reads.assemble(self.fold, step.reply))
            if answer.HasField("workflow_task"):
                self.tasks.append((answer.workflow_task, None))
            self.activities.extend(answer.activity_tasks)

    def answer_updates(
        self,
        task: ws.PollWorkflowTaskQueueResponse,
        answer: ws.RespondWorkflowTaskCompletedRequest,
        numbers: Numbers,
    ) -> None:
        for request in task.messages:
            update_id = request.protocol_instance_id
            accepted = update_pb2.Acceptance(accepted_request_message_id=request.id)
            done = update_pb2.Response()
            done.meta.update_id = update_id
            done.outcome.success.payloads.add().data = b"done"
            refused = update_pb2.Rejection()
            refused.failure.message = "no"
            bodies: tuple[Message, ...] = numbers.of(((accepted, done), (accepted,), (refused,), ()))
            for body in bodies:
                message = protocol_pb2.Message(id=f"{update_id}/{type(body).__name__}", protocol_instance_id=update_id)
                message.body.Pack(body)
                answer.messages.append(message)
                if not isinstance(body, update_pb2.Rejection):
                    command = answer.commands.add(command_type=14)
                    command.protocol_message_command_attributes.message_id = message.id

    def commands(self, numbers: Numbers) -> list[command_pb2.Command]:
        """One, or one several times under other names."""
        state = numbers.copy()
        several = [self.command(numbers)]
        for _ in range(numbers.of((0, 0, 0, 1, 2))):
            several.append(self.command(state.copy()))
        return several

    def command(self, numbers: Numbers) -> command_pb2.Command:
        self._timers += 1
        which = numbers.next() % 17
        if which < 5:
            return schedule_activity(
                numbers.of((f"c{self._timers}", "a", "b")),
                start_to_close=numbers.of((10, 2)),
                heartbeat=numbers.of((5, 1)),
                attempts=numbers.of((1, 0, 3)),
                eager=numbers.one_in(3),
            )
        if which < 8:
            return start_timer(numbers.of((f"t{self._timers}", "t")), numbers.of((1, 3, 30)))
        if which < 10:
            return start_child(
                numbers.of((*3 * (IDS[self._timers % len(IDS)],), *WORKFLOWS[1:])), numbers.of((1, 2, 3))
            )
        if which == 10:
            return signal_external(numbers.of(WORKFLOWS))
        if which == 11:
            return cancel_external(numbers.of(WORKFLOWS))
        if which == 12:
            return cancel_activity(numbers.of((5, 6, 11)))
        if which == 13:
            return cancel_timer(numbers.of(("t", "t1", "t2")))
        if which == 14:
            return record_marker(numbers.of(("m", "")))
        if which == 15:
            command = command_pb2.Command(command_type=13)
            fields = command.upsert_workflow_search_attributes_command_attributes.search_attributes.indexed_fields
            fields[numbers.of(("CustomKeyword", "Unknown"))].data = b'"other"'
            fields["CustomKeyword"].metadata["encoding"] = b"json/plain"
            return command
        return complete_workflow()

    def op_fail_task(self, numbers: Numbers) -> None:
        if self.tasks:
            task, start = self.tasks.pop()
            message = ws.RespondWorkflowTaskFailedRequest(task_token=task.task_token, identity="worker", cause=24)
            execution = task.workflow_execution
            self.append(
                "FAIL_WORKFLOW_TASK",
                {"message": message.SerializeToString()},
                workflow_id=execution.workflow_id,
                run_id=execution.run_id,
                start=start,
            )

    def op_poll_activity(self, numbers: Numbers) -> None:
        offer = self.some_offer("activity", numbers)
        if offer is not None:
            self.starts.append((offer, self.request_id()))
            self.activities.append(self.poll_activity(offer=offer, request_id=self.starts[-1][1]))

    def op_answer_activity(self, numbers: Numbers) -> None:
        if not self.activities:
            return
        task = numbers.of(self.activities[::-1])
        execution = task.workflow_execution
        token, named = task.task_token, {"activity_id": task.activity_id, "workflow_id": execution.workflow_id}
        kind, message = numbers.of(
            (
                ("COMPLETE_ACTIVITY", ws.RespondActivityTaskCompletedRequest(task_token=token)),
                ("HEARTBEAT_ACTIVITY", ws.RecordActivityTaskHeartbeatRequest(task_token=token)),
                ("FAIL_ACTIVITY", ws.RespondActivityTaskFailedRequest(task_token=token)),
                ("CANCEL_ACTIVITY", ws.RespondActivityTaskCanceledRequest(task_token=token)),
                ("COMPLETE_ACTIVITY_BY_ID", ws.RespondActivityTaskCompletedByIdRequest(**named)),
                ("FAIL_ACTIVITY_BY_ID", ws.RespondActivityTaskFailedByIdRequest(**named)),
                ("HEARTBEAT_ACTIVITY_BY_ID", ws.RecordActivityTaskHeartbeatByIdRequest(**named)),
            )
        )
        if kind.startswith("FAIL"):
            message.failure.message = "no"  # type: ignore[attr-defined]
            message.failure.application_failure_info.non_retryable = numbers.one_in(3)  # type: ignore[attr-defined]
        elif kind.startswith("HEARTBEAT"):
            message.details.payloads.add().data = b"half"  # type: ignore[attr-defined]
        by_id = kind.endswith("_BY_ID")
        self.ask(kind, message, numbers, execution.workflow_id, "" if by_id else execution.run_id)

    def op_return_task(self, numbers: Numbers) -> None:
        """A worker was gone before its task reached it."""
        if self.starts:
            offer, request_id = numbers.of(self.starts[::-1])
            body = {
                "task_type": offer.type.upper(),
                "scheduled_event_id": offer.scheduled_event_id,
                "attempt": offer.attempt,
                "request_id": request_id,
            }
            self.append("RETURN_TASK", body, workflow_id=offer.workflow_id, run_id=offer.run_id)

    def op_sticky_gone(self, numbers: Numbers) -> None:
        offer = next((offer for offer in reversed(self.offers) if offer.sticky), None)
        if offer is not None:
            body = {"scheduled_event_id": offer.scheduled_event_id, "stamp": offer.stamp}
            self.append("STICKY_WORKER_GONE", body, workflow_id=offer.workflow_id, run_id=offer.run_id)

    # ---- the owner --------------------------------------------------------------------------------------------------

    def op_sleep(self, numbers: Numbers) -> None:
        self.sleep(numbers.of((1, 0.1, 3, 12, 70)))

    def op_deliver(self, numbers: Numbers) -> None:
        """The next message between runs arrives; sometimes an earlier one arrives again."""
        if self.sent:
            self._fold(self.sent[0])
            if not numbers.one_in(3):
                self.sent.pop(0)

    def op_settings(self, numbers: Numbers) -> None:
        self.append("SETTINGS_CHANGED", {"settings": numbers.of(SETTINGS)})

    def op_outputs_sent(self, numbers: Numbers) -> None:
        rows = self.fold.outbox(None, 1_000)
        if rows:
            position = numbers.of(rows[::-1]).origin._asdict()
            meta = self.fold.meta
            self.append(
                "OUTPUTS_SENT",
                {
                    "position": position,
                    "offset": meta.applied_offset,
                    "epoch": meta.applied_epoch,
                    "state_hash": meta.state_hash,
                },
            )

    def op_new_leader(self, numbers: Numbers) -> None:
        """Another broker leads the log, and another process may have taken the shard."""
        self.epoch += 1
        if numbers.one_in(2):
            self.append("SHARD_TAKEN", {"owner": "somebody"})
        self.append("OFFER_TASKS_AGAIN", {})

    def op_feature_level(self, numbers: Numbers) -> None:
        self.append("FEATURE_LEVEL_RAISED", {"feature_level": numbers.of((0, FEATURE_LEVEL))})

    def op_release(self, numbers: Numbers) -> None:
        self.append("RELEASE_WORKFLOW", {}, workflow_id=numbers.of(WORKFLOWS))

    def op_reset_sticky(self, numbers: Numbers) -> None:
        self.append("RESET_STICKY", {"message": b""}, workflow_id=numbers.of(WORKFLOWS))

    def op_republish(self, numbers: Numbers) -> None:
        self.append("REPUBLISH_VISIBILITY", {})

    def op_namespace(self, numbers: Numbers) -> None:
        version = 2 + numbers.next() % 4
        attributes = {"CustomKeyword": "Keyword", "Other": "Int"}
        self.know_namespace(attributes, version, deleted=numbers.one_in(50))


OPERATIONS: Final[dict[str, Callable[[Player, Numbers], None]]] = {
    name.removeprefix("op_"): method for name, method in vars(Player).items() if name.startswith("op_")
}

OFTEN: Final = (
    "start",
    "signal",
    "poll",
    "hand_out",
    "complete",
    "poll_activity",
    "answer_activity",
    "sleep",
    "deliver",
)
"""What gets a workflow somewhere is done more often than the rest."""

SELDOM: Final = ("nonsense", "mangled", "namespace", "delete", "terminate", "republish")
"""What may end it for good."""

CHOICES: Final = (
    *SELDOM,
    *(2 * tuple(sorted(OPERATIONS.keys() - set(SELDOM)))),
    *(6 * OFTEN),
    *(12 * ("start", "poll", "complete")),
)


def program_of(seed: int, length: int) -> Program:
    """A program by a number."""
    random = Random(seed)
    return [(random.choice(CHOICES), [random.randrange(256) for _ in range(24)]) for _ in range(length)]


# ---- what a fold did, as plain values --------------------------------------------------------------------------------


def plain(step: Step) -> dict[str, object]:
    """Everything that a step says, errors by what is in them."""
    values: dict[str, object] = {name: getattr(step, name) for name in step.__slots__}
    if step.reply is not None:
        values["reply"] = (step.reply.response, _error(step.reply.error), step.reply.history)
    values["updates"] = [(*item[:4], _error(item.error), item.run_id) for item in step.updates]
    return values


def _error(error: StatusError | None) -> object:
    return None if error is None else (int(error.code), error.message, error.details)


def digest(log: Iterable[LogRecord]) -> str:
    """Of every step, and of the rows that they leave behind."""
    rows = DictRows()
    fold = ShardFold(0, rows, 1 << 20)
    said = hashlib.sha256()
    for record in log:
        said.update(repr(plain(fold.fold(record))).encode())
    rows.write(fold.take_writes())
    said.update(repr(sorted(rows.rows.items())).encode())
    return said.hexdigest()


if __name__ == "__main__":
    print(*(digest(log) for log in pickle.loads(Path(sys.argv[1]).read_bytes())))
