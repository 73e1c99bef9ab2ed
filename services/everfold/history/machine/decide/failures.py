"""Why a workflow command cannot be done, and the checks that commands share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import failed_cause_pb2, task_queue_pb2
from temporalio.api.taskqueue.v1 import message_pb2 as taskqueue_pb2

from everfold.history.machine.decide.activity_options import InvalidActivity, check_retry_policy, fill_retry_policy
from everfold.history.machine.durations import InvalidDuration, checked_ns
from everfold.history.machine.relations import Outgoing
from everfold.kernel import gotext
from everfold.kernel.enums import symbol
from everfold.kernel.gotext import camel
from everfold.kernel.limits import Limits
from everfold.kernel.names import queue_error, too_long

_cause = failed_cause_pb2.WorkflowTaskFailedCause.Value
_PREFIX: Final = "WORKFLOW_TASK_FAILED_CAUSE_"


class CommandFailed(Exception):
    """The workflow task fails with `cause`; `reason` explains.

    `terminates` is set when the run cannot go on: a blob is too large.
    """

    def __init__(self, cause: str, reason: str = "", *, terminates: bool = False) -> None:
        super().__init__(f"{cause}: {reason}")
        self.cause = _cause(_PREFIX + cause)
        self.reason = reason
        self.terminates = terminates
        self._name = cause

    def text(self) -> str:
        """`BadStartTimerAttributes: TimerId is not set …`, as Temporal words it."""
        name = camel(self._name)
        return f"{name}: {self.reason}" if self.reason else name


@dataclass(slots=True)
class Completion:
    """What the commands did beyond events."""

    #: of the worker that completed the task
    identity: str
    #: events that the worker has not seen wait behind the task: the workflow may not close
    unseen: bool = False
    #: an activity that no worker had was cancelled, or another workflow cannot be reached: the workflow must hear of it
    wants_task: bool = False
    #: scheduled event ids of activities handed to the completing worker in the answer
    eager: list[int] = field(default_factory=list)
    #: messages to other workflows, sent if the run is still open after the last command
    messages: list[Outgoing] = field(default_factory=list)


def check_id(limits: Limits, what: str, value: str, command: str, cause: str) -> None:
    """Refuses an empty or too long id."""
    if not value:
        raise CommandFailed(cause, f"{what} is not set on {command}.")
    check_length(limits, what, value, command, cause, f"{what}={value}")


def check_length(limits: Limits, what: str, value: str, command: str, cause: str, before: str, after: str = "") -> None:
    """Refuses an id that is too long; the text names other fields of the command before and after its length."""
    if too_long(value, limit := limits["limit.maxIDLength"]):
        text = f"{what} on {command} exceeds length limit. {before} Length={len(value.encode())} Limit={limit} {after}"
        raise CommandFailed(cause, text.rstrip())


def check_queue(cause: str, queue: taskqueue_pb2.TaskQueue, own: str, limit: int, what: str, about: str) -> None:
    """Refuses a task queue that cannot be used; one without a name is the workflow's own.

    Args:
        cause: of the refusal.
        queue: what the command names.
        own: the workflow's queue.
        limit: of names, in bytes.
        what: begins the text.
        about: ends it.
    """
    if error := queue_error(queue.name or own, queue.normal_name, limit):
        raise CommandFailed(cause, f"{what}: {error}. {about}")


def shown_queue(queue: taskqueue_pb2.TaskQueue, own: str) -> str:
    """A command's task queue as Temporal's texts hold it: the message, filled in."""
    kind = symbol(task_queue_pb2.TaskQueueKind, queue.kind or task_queue_pb2.TASK_QUEUE_KIND_NORMAL)
    fields = [("name", gotext.quoted(queue.name or own)), ("kind", kind)]
    if queue.normal_name:
        fields.append(("normal_name", gotext.quoted(queue.normal_name)))
    return gotext.message(fields)


def check_duration(cause: str, field: Duration, what: str, about: str) -> int:
    """Nanoseconds of a duration that may be given; `what` and `about` begin and end the text of a refusal."""
    try:
        return checked_ns(field)
    except InvalidDuration as error:
        raise CommandFailed(cause, f"{what}: {error}. {about}") from None


def check_filled_retry_policy(cause: str, policy: common_pb2.RetryPolicy, what: str, about: str) -> None:
    """Fills and checks a workflow's retry policy; `what` and `about` begin and end the text of a refusal."""
    fill_retry_policy(policy)
    try:
        check_retry_policy(policy)
    except InvalidActivity as error:
        raise CommandFailed(cause, f"{what}: {error}. {about}") from None


def check_blob(size: int, limit: int, cause: str, reason: str) -> None:
    """Ends the run over a payload that is too large, as Temporal does."""
    if size > limit:
        raise CommandFailed(cause, reason, terminates=True)
