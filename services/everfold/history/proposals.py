"""Own records on their way: appended to the shard log, not folded yet.

A proposal is known by (instance, sequence), which the record carries. It ends in one of four ways: its record is
folded (the verdict is the answer), its delivery fails (the outcome is unknown: the record may still be in the log, or
come), Kafka loses it with the log's tail (another record is folded from its offset), or the shard is given up. A caller
that went away leaves its proposal in here, as the record is still on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from temporalio.api.enums.v1 import failed_cause_pb2 as failed_cause
from temporalio.api.errordetails.v1 import message_pb2 as errordetails

from everfold.history.machine.step import Reply
from everfold.kernel.errors import Code, StatusError

Verdict = Reply | StatusError
"""What a proposal ends with: the fold's reply (which may hold a rejection), or UNAVAILABLE for an unknown outcome."""

OnVerdict = Callable[[Verdict], None]


def unavailable(text: str) -> StatusError:
    """The status for trouble that another try may not meet."""
    return StatusError(Code.UNAVAILABLE, text)


def overloaded(text: str) -> StatusError:
    """The status for what is refused before anything is produced, because too much is under way."""
    detail = errordetails.ResourceExhaustedFailure(
        cause=failed_cause.RESOURCE_EXHAUSTED_CAUSE_SYSTEM_OVERLOADED,
        scope=failed_cause.RESOURCE_EXHAUSTED_SCOPE_SYSTEM,
    )
    name = detail.DESCRIPTOR.full_name
    return StatusError(Code.RESOURCE_EXHAUSTED, text, ((name, detail.SerializeToString(deterministic=True)),))


WorkflowKey = tuple[str, str]
"""Namespace id and workflow id."""


class _Proposal(NamedTuple):
    on_verdict: OnVerdict
    sent_at_ns: int
    workflow: WorkflowKey
    request_bytes: int


class Proposals:
    """All own records under way, by sequence."""

    def __init__(self, instance: int) -> None:
        self.instance = instance
        self._next = 1
        #: sequence -> proposal; bounded by the shard's in_flight_max and the shell's own few
        self._open: dict[int, _Proposal] = {}
        #: offset that Kafka has acknowledged -> sequence of the record that is, or was, there
        self._at: dict[int, int] = {}
        #: workflow -> how many of them are about it
        self._about: dict[WorkflowKey, int] = {}
        #: size of their requests
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def last_sequence(self) -> int:
        """The last sequence given out, 0 for none."""
        return self._next - 1

    def add(self, on_verdict: OnVerdict, sent_at_ns: int, workflow: WorkflowKey, request_bytes: int) -> int:
        """Register a proposal about a workflow; returns its sequence."""
        sequence = self._next
        self._next += 1
        self._open[sequence] = _Proposal(on_verdict, sent_at_ns, workflow, request_bytes)
        self.bytes += request_bytes
        self._about[workflow] = self._about.get(workflow, 0) + 1
        return sequence

    def any_about(self, workflow: WorkflowKey) -> bool:
        """Whether the outcome of a record about the workflow is open."""
        return workflow in self._about

    def withdraw(self, sequence: int) -> None:
        """The record was not produced after all."""
        self._take(sequence)

    def folded(self, sequence: int, reply: Reply | None) -> int | None:
        """The record was folded: answer. Returns when it was proposed (wall clock), or None if it had ended before."""
        proposal = self._take(sequence)
        if proposal is None:
            return None
        proposal.on_verdict(reply if reply is not None else Reply())
        return proposal.sent_at_ns

    def acknowledged(self, sequence: int, offset: int) -> None:
        """Kafka has the record there."""
        if sequence in self._open:  # as a rule it is folded later
            self._at[offset] = sequence

    def passed(self, offset: int, own: int | None) -> None:
        """The record at that offset is folded; `own` is its sequence if it is an own one."""
        sequence = self._at.pop(offset, None)
        if sequence is not None and sequence != own:
            self.failed(sequence, LookupError("it was acknowledged, and lost by Kafka"))

    def failed(self, sequence: int, error: BaseException) -> None:
        """The delivery failed: nobody knows whether the record is, or will be, in the log."""
        proposal = self._take(sequence)
        if proposal is not None:
            proposal.on_verdict(unavailable(f"the record could not be appended to the shard log: {error}"))

    def close(self, reason: StatusError) -> None:
        """The shard is gone: everybody gets this status."""
        proposals = list(self._open.values())
        self._open.clear()
        self._at.clear()
        self._about.clear()
        self.bytes = 0
        for proposal in proposals:
            proposal.on_verdict(reason)

    def _take(self, sequence: int) -> _Proposal | None:
        proposal = self._open.pop(sequence, None)
        if proposal is not None:
            self.bytes -= proposal.request_bytes
            left = self._about[proposal.workflow] - 1
            if left:
                self._about[proposal.workflow] = left
            else:
                del self._about[proposal.workflow]
        return proposal
