"""Why a workflow command cannot be done, and the checks that commands share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from temporalio.api.enums.v1 import failed_cause_pb2

from everfold.history.machine.relations import Outgoing
from everfold.kernel.limits import Limits

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
        camel = "".join(word.capitalize() for word in self._name.split("_"))
        return f"{camel}: {self.reason}" if self.reason else camel


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
    limit = limits["limit.maxIDLength"]
    if len(value.encode()) > limit:
        raise CommandFailed(
            cause, f"{what} on {command} exceeds length limit. {what}={value} Length={len(value)} Limit={limit}"
        )


def check_blob(size: int, limit: int, cause: str, reason: str) -> None:
    """Ends the run over a payload that is too large, as Temporal does."""
    if size > limit:
        raise CommandFailed(cause, reason, terminates=True)
