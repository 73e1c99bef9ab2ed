"""What came of a program: plain data that must be equal on two servers, and what no history may ever show."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from generated.interpreter import UNHEARD

CLOSING: Final = frozenset(
    f"WORKFLOW_EXECUTION_{how}"
    for how in ("COMPLETED", "FAILED", "TIMED_OUT", "CANCELED", "TERMINATED", "CONTINUED_AS_NEW")
)


@dataclass
class Chain:
    """The runs of one workflow id, the first one first.

    Attributes:
        status: of the last run.
        result: of the last run; None unless it completed.
        failure: of the last run, as `failures.described` puts it.
        runs: how each run ended.
        events: how many of each kind there are in all runs; those that depend on time left out (`kinds`).
        memo, attributes: as described at the end.
    """

    status: str = ""
    result: Any = None
    failure: list[Any] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of one root program.

    Attributes:
        root: its runs.
        children: by program id.
        answers: what the client's calls gave, by what they were; updates by their texts.
        faults: what no server may do, one sentence each; empty when nothing is wrong.
    """

    root: Chain = field(default_factory=Chain)
    children: dict[str, Chain] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def lines(self, nonce: str) -> list[str]:
        """For the comparison: JSON, without what is different in every run of the tests."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False)
        return text.replace(nonce, "~").splitlines()


def difference(expected: list[str], got: list[str]) -> str:
    """What is not the same, with what is around it; empty when everything is."""
    return "\n".join(difflib.unified_diff(expected, got, "temporal", "everfold", lineterm="", n=6))


@dataclass(frozen=True)
class Sent:
    """What the server acknowledged.

    Attributes:
        signals: text -> whether the call was repeated, because its first answer was lost.
        updates: ids of updates that were accepted.
    """

    signals: dict[str, bool]
    updates: frozenset[str]


def kind_of(event: HistoryEvent) -> str:
    """The event's type, without the prefix that all have."""
    return EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")


def faults_of(runs: list[list[HistoryEvent]], sent: Sent) -> list[str]:
    """What is wrong with the histories of a chain."""
    faults: list[str] = []
    for number, events in enumerate(runs, 1):
        where = f"run {number} of {len(runs)}"
        ids = [event.event_id for event in events]
        if ids != list(range(1, len(events) + 1)):
            faults.append(f"{where}: event ids are not 1 to {len(events)}: {ids}")
        closing = [place for place, event in enumerate(events) if kind_of(event) in CLOSING]
        if closing != [len(events) - 1]:
            faults.append(f"{where}: closing events at {closing} of {len(events)}")
        for text, count in Counter(_signals(events)).items():
            if count != 1:
                faults.append(f"{where}: signal {text} is there {count} times")
        for update, count in Counter(_accepted(events)).items():
            if count != 1:
                faults.append(f"{where}: update {update} was accepted {count} times")
        faults += [f"{where}: {fault}" for fault in _unended(events)]
    signals = Counter(text for events in runs for text in _signals(events))
    for text, repeated in sent.signals.items():
        # A server knows a request id for one run: sent again, a signal may reach the next run as well.
        if not 1 <= signals[text] <= (len(runs) if repeated else 1):
            faults.append(f"signal {text} was acknowledged and is there {signals[text]} times")
    accepted = {update for events in runs for update in _accepted(events)}
    faults += [f"update {update} has an answer and is not there" for update in sorted(sent.updates - accepted)]
    return faults


def _signals(events: Iterable[HistoryEvent]) -> list[str]:
    """The texts of the signals that carry one of their own."""
    found = []
    for event in events:
        attributes = event.workflow_execution_signaled_event_attributes
        if event.HasField("workflow_execution_signaled_event_attributes") and attributes.signal_name == "tell":
            found.append(json.loads(attributes.input.payloads[1].data))
    return found


def _accepted(events: Iterable[HistoryEvent]) -> list[str]:
    return [
        event.workflow_execution_update_accepted_event_attributes.protocol_instance_id
        for event in events
        if event.HasField("workflow_execution_update_accepted_event_attributes")
    ]


def _unended(events: list[HistoryEvent]) -> list[str]:
    """Workflow tasks that ended more than once or, but for one at the close, not at all."""
    counts = Counter(kind_of(event) for event in events)
    begun = counts["WORKFLOW_TASK_SCHEDULED"]
    ended = sum(counts[f"WORKFLOW_TASK_{how}"] for how in ("COMPLETED", "FAILED", "TIMED_OUT"))
    return [] if ended <= begun <= ended + 1 else [f"{begun} workflow tasks were scheduled, {ended} ended"]


def kinds(runs: list[list[HistoryEvent]], left: frozenset[str]) -> dict[str, int]:
    """How many events of each kind a chain has, of those that do not depend on time.

    Left out are workflow tasks; starts of activities, as one that is cancelled may not have begun; what `hold` and
    `give_up` do; repeated signals and updates; and the ends of children that were left behind.
    """
    counts: Counter[str] = Counter()
    once: set[str] = set()
    for events in runs:
        types: dict[int, str] = {}
        for event in events:
            kind = kind_of(event)
            if kind.startswith("WORKFLOW_TASK_") or kind == "ACTIVITY_TASK_STARTED":
                continue
            attributes: Any = getattr(event, event.WhichOneof("attributes") or "", None)
            name = ""
            if kind.startswith("ACTIVITY_TASK_"):
                if kind == "ACTIVITY_TASK_SCHEDULED":
                    types[event.event_id] = attributes.activity_type.name
                name = types[attributes.scheduled_event_id if kind != "ACTIVITY_TASK_SCHEDULED" else event.event_id]
                if name in UNHEARD:
                    continue
            elif kind == "WORKFLOW_EXECUTION_SIGNALED":
                name = attributes.signal_name
                text = attributes.input.payloads[-1].data.decode()
                if name == "begun" or text in once:
                    continue
                once.add(text)
            elif kind.startswith("WORKFLOW_EXECUTION_UPDATE_"):
                update = _update_id(attributes)
                if f"{kind} {update}" in once:
                    continue
                once.add(f"{kind} {update}")
            elif kind.startswith("CHILD_WORKFLOW_EXECUTION_") and kind != "CHILD_WORKFLOW_EXECUTION_STARTED":
                if attributes.workflow_execution.workflow_id in left:
                    continue
            elif kind == "MARKER_RECORDED":
                name = attributes.marker_name
            counts[f"{kind} {name}".strip()] += 1
    return dict(counts)


def _update_id(attributes: Any) -> str:
    if hasattr(attributes, "protocol_instance_id"):
        return str(attributes.protocol_instance_id)
    return str(attributes.meta.update_id if hasattr(attributes, "meta") else attributes.request.meta.update_id)
