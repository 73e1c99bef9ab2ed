"""What a fold step returns: values only. The shell performs them; a follower or an audit drops them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from everfold.kernel.errors import StatusError
from everfold.kernel.ids import Origin


class RunKey(NamedTuple):
    """One run of one workflow id."""

    namespace_id: str
    workflow_id: str
    run_id: str


class TaskOffer(NamedTuple):
    """A task that is ready for a worker, for the direct hand-off to matching.

    Attributes:
        type: "workflow" or "activity".
        sticky: True for a worker's own queue; such tasks have no task record and live in matching's memory only.
        normal_queue: the queue to fall back to, for a sticky task.
        stamp: counts the offers of this task's attempt; a start with another stamp is refused.
        task_id: key of the task record; empty for a sticky task.
        schedule_to_start_deadline_ns: when the offer loses its meaning; 0 for never.
        partition: task partition of the queue; for a sticky task that of its normal queue (the shell routes by name).
    """

    type: str
    namespace_id: str
    task_queue: str
    sticky: bool
    normal_queue: str
    workflow_id: str
    run_id: str
    scheduled_event_id: int
    attempt: int
    stamp: int
    task_id: str
    created_at_ns: int
    schedule_to_start_deadline_ns: int
    priority_key: int
    fairness_key: str
    fairness_weight: float
    shard: int
    partition: int


class OutboxRow(NamedTuple):
    """One output of the shard: a record for another topic, or for another shard's log. `value` None is a tombstone."""

    origin: Origin
    topic: str
    partition: int
    key: bytes
    value: bytes | None


class DueTimer(NamedTuple):
    """A timer row whose time has come: the run's earliest deadline."""

    namespace_id: str
    workflow_id: str
    run_id: str
    due_at_ns: int


class Reply(NamedTuple):
    """The verdict on a proposal: the response's protobuf bytes, or an error.

    Attributes:
        response: serialized response of the Temporal RPC (empty bytes are a valid, empty response).
        error: set when the proposal was refused.
        history: for a started workflow task: (run, first event id, end event id exclusive, virtual suffix) of the
            events that belong to the response; the shell appends them, as rows are copied and not converted.
    """

    response: bytes = b""
    error: StatusError | None = None
    history: HistoryRange | None = None


class HistoryRange(NamedTuple):
    """Events [first, end) of a run, and serialized events that are not in it: a transient task's scheduled and
    started.
    """

    run: RunKey
    first_event_id: int
    end_event_id: int
    suffix: tuple[bytes, ...]
    #: number of the response's field that holds the workflow task; 0 when the response is the task itself
    field: int = 0


class UpdateNews(NamedTuple):
    """What a step did to an update.

    Attributes:
        stage: "admitted", "accepted", "completed", "rejected", "aborted" by the run's end, "failed" or "moved".
        outcome: serialized temporal.api.update.v1.Outcome of a completed or rejected update.
        error: why an aborted or failed update has no outcome.
        run_id: of a moved update, the run that has it now.
    """

    run: RunKey
    update_id: str
    stage: str
    outcome: bytes = b""
    error: StatusError | None = None
    run_id: str = ""


@dataclass(slots=True)
class Step:
    """Everything that one record did, as values."""

    reply: Reply | None = None
    outputs: list[OutboxRow] = field(default_factory=list)
    offers: list[TaskOffer] = field(default_factory=list)
    #: runs whose history grew or whose state changed
    changed: list[RunKey] = field(default_factory=list)
    #: runs that closed in this step
    closed: list[RunKey] = field(default_factory=list)
    #: (run, scheduled event id) of workflow tasks completed, failed or timed out: piggy-backed queries end with them
    workflow_tasks_ended: list[tuple[RunKey, bool]] = field(default_factory=list)
    #: what became of updates, for those who wait for them
    updates: list[UpdateNews] = field(default_factory=list)
    #: (instance, sequence) of whoever proposed the record, by which it knows its answer; the fold itself never looks
    proposer: tuple[int, int] = (0, 0)
    #: (offset, leader epoch, state hash) that an OutputsSent record claims
    outputs_sent: tuple[int, int, bytes] | None = None
    #: True when the record was a repeat or stale, and changed nothing
    ignored: bool = False
    #: why the record is garbage and changed nothing but a count; "" when it is none
    set_aside: str = ""
    #: the source whose messages before this one are gone with a tail of the log that Kafka lost; "" for none
    messages_lost: str = ""
    #: gRPC code with which a record of `commands` was refused
    rejected: int | None = None
    #: runs quarantined by this step, with the reason
    quarantined: list[tuple[RunKey, str]] = field(default_factory=list)

    def copy(self) -> Step:
        """The step as it is now, with lists of its own."""
        twin = copy(self)
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, list):
                setattr(twin, one.name, list(value))
        return twin


@dataclass(frozen=True, slots=True)
class Guards:
    """The checks that the laws rest on. All on; the simulator switches one off to prove that it would notice."""

    start_dedupe: bool = True
    request_id_dedupe: bool = True
    origin_chain: bool = True
    shard_clock: bool = True
    epoch_check: bool = True
    task_start: bool = True
    task_leftover: bool = True
    offer_again: bool = True
    feature_level: bool = True
