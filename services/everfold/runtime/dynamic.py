"""Temporal's dynamic-configuration names that Everfold knows: limits and timeouts of workflows.

Those with `folded=True` are inputs of the fold: the shard owner appends them in a `SettingsChanged` record when they
differ from what the shard last recorded, so a refold under another configuration gives the same state (law 2). The
others are read by the service that they concern. A name that is not in the table is a warning, as in Temporal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, get_type_hints

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
_SECOND_NS: Final = 1_000_000_000
_MINUTE_NS: Final = 60 * _SECOND_NS
_DURATION_UNITS_NS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True)
class _Meta:
    name: str
    help: str
    folded: bool


def _known(default: Any, name: str, help: str, *, folded: bool = False) -> Any:
    return field(default=default, metadata={"dynamic": _Meta(name, help, folded)})


@dataclass(frozen=True)
class Limits:
    """The typed values. Sizes are bytes, durations nanoseconds; 0 means no limit only where the sentence says so."""

    blob_bytes_max: int = _known(
        2 * _MIB, "limit.blobSize.error", "Largest payload set of one request or workflow command.", folded=True
    )
    memo_bytes_max: int = _known(2 * _MIB, "limit.memoSize.error", "Largest memo of a workflow.", folded=True)
    id_length_max: int = _known(
        1000,
        "limit.maxIDLength",
        "Longest workflow id, type, task queue, signal name, identity and the like.",
        folded=True,
    )
    summary_bytes_max: int = _known(400, "limit.userMetadataSummarySize", "Largest user metadata summary.", folded=True)
    details_bytes_max: int = _known(
        20_000, "limit.userMetadataDetailsSize", "Largest user metadata details.", folded=True
    )
    failure_bytes_max: int = _known(
        4 * _KIB,
        "limit.mutableStateActivityFailureSize.error",
        "Largest last failure kept for an activity that is retried; more is cut off.",
        folded=True,
    )
    mutable_state_bytes_max: int = _known(
        8 * _MIB,
        "limit.mutableStateSize.error",
        "Largest mutable state; a run that exceeds it is terminated.",
        folded=True,
    )
    history_events_max: int = _known(
        50 * _KIB, "limit.historyCount.error", "Most events of a run; a run that exceeds it is terminated.", folded=True
    )
    history_events_suggest: int = _known(
        4 * _KIB,
        "limit.historyCount.suggestContinueAsNew",
        "Events after which workflow tasks suggest to continue as new.",
        folded=True,
    )
    history_bytes_max: int = _known(
        50 * _MIB,
        "limit.historySize.error",
        "Largest history of a run; a run that exceeds it is terminated.",
        folded=True,
    )
    history_bytes_suggest: int = _known(
        4 * _MIB,
        "limit.historySize.suggestContinueAsNew",
        "History size after which workflow tasks suggest to continue as new.",
        folded=True,
    )
    pending_activities_max: int = _known(
        2000, "limit.numPendingActivities.error", "Most activities pending in a run.", folded=True
    )
    pending_children_max: int = _known(
        2000, "limit.numPendingChildExecutions.error", "Most child workflows pending in a run.", folded=True
    )
    pending_signals_max: int = _known(
        2000, "limit.numPendingSignals.error", "Most external signals pending in a run.", folded=True
    )
    pending_cancels_max: int = _known(
        2000, "limit.numPendingCancelRequests.error", "Most external cancel requests pending in a run.", folded=True
    )
    signals_max: int = _known(
        10_000, "history.maximumSignalsPerExecution", "Most signals that a run takes.", folded=True
    )
    buffered_events_max: int = _known(
        100,
        "history.maximumBufferedEventsBatch",
        "Most events buffered while a workflow task runs; beyond it the task fails.",
        folded=True,
    )
    buffered_bytes_max: int = _known(
        2 * _MIB,
        "history.maximumBufferedEventsSizeInBytes",
        "Most bytes of buffered events; beyond it the task fails.",
        folded=True,
    )
    updates_in_flight_max: int = _known(
        10, "history.maxInFlightUpdates", "Most updates in flight in a run.", folded=True
    )
    updates_max: int = _known(2000, "history.maxTotalUpdates", "Most updates that a run takes.", folded=True)
    workflow_task_timeout_ns: int = _known(
        10 * _SECOND_NS,
        "history.defaultWorkflowTaskTimeout",
        "Workflow task timeout of a start that gives none.",
        folded=True,
    )
    workflow_task_heartbeat_ns: int = _known(
        30 * _MINUTE_NS,
        "history.workflowTaskHeartbeatTimeout",
        "How long a workflow task may go on by heartbeating.",
        folded=True,
    )
    workflow_task_backoff_ns_max: int = _known(
        10 * _MINUTE_NS,
        "history.workflowTaskRetryMaxInterval",
        "Longest backoff between attempts of a failing workflow task.",
        folded=True,
    )
    reuse_interval_ns: int = _known(
        _SECOND_NS,
        "history.workflowIdReuseMinimalInterval",
        "Least time between two starts of one workflow id that end the earlier run.",
        folded=True,
    )
    retention_jitter_ns: int = _known(
        0, "history.retentionTimerJitterDuration", "Spread of the times at which closed runs are deleted.", folded=True
    )
    search_attributes_max: int = _known(
        100, "frontend.searchAttributesNumberOfKeysLimit", "Most search attributes of a workflow.", folded=True
    )
    search_attribute_bytes_max: int = _known(
        2 * _KIB, "frontend.searchAttributesSizeOfValueLimit", "Largest value of one search attribute.", folded=True
    )
    search_attributes_bytes_max: int = _known(
        40 * _KIB,
        "frontend.searchAttributesTotalSizeLimit",
        "Largest search attributes of a workflow together.",
        folded=True,
    )
    eager_start: bool = _known(
        True, "system.enableEagerWorkflowStart", "Whether a start may answer with the first workflow task.", folded=True
    )
    history_poll_ns: int = _known(
        20 * _SECOND_NS,
        "history.longPollExpirationInterval",
        "When a waiting GetWorkflowExecutionHistory answers empty.",
    )
    poll_ns: int = _known(
        60 * _SECOND_NS, "matching.longPollExpirationInterval", "When a waiting task poll answers empty."
    )
    query_poller_window_ns: int = _known(
        20 * _SECOND_NS,
        "matching.queryPollerUnavailableWindow",
        "A query is refused when no worker polled for so long.",
    )
    history_page_events_max: int = _known(256, "frontend.historyMaxPageSize", "Events in one page of history, at most.")
    visibility_page_max: int = _known(
        1000, "frontend.visibilityMaxPageSize", "Workflows in one page of a list, at most."
    )
    long_polls_max: int = _known(
        1200, "frontend.namespaceCount", "Most long polls of one kind and namespace at a time, per frontend."
    )

    def folded(self) -> dict[str, int]:
        """What the shard owner records before it counts: field name -> value, all integers."""
        return {entry.field: int(getattr(self, entry.field)) for entry in KNOWN if entry.folded}


@dataclass(frozen=True)
class Known:
    """A name in the table."""

    name: str
    field: str
    type: type
    default: Any
    help: str
    folded: bool

    @property
    def type_name(self) -> str:
        """What to write after the equals sign."""
        if self.field.endswith("_ns") or "_ns_" in self.field:
            return "duration"
        return "yes/no" if self.type is bool else "bytes" if "bytes" in self.field else "count"


def _table() -> tuple[Known, ...]:
    hints = get_type_hints(Limits)
    rows = [(f, f.metadata["dynamic"]) for f in fields(Limits)]
    return tuple(Known(m.name, f.name, hints[f.name], f.default, m.help, m.folded) for f, m in rows)


KNOWN: Final = _table()
_BY_NAME: Final = {entry.name.lower(): entry for entry in KNOWN}


@dataclass(frozen=True)
class Parsed:
    """What the given names mean: the limits, and what was wrong or unknown."""

    limits: Limits
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def parse(values: Mapping[str, str]) -> Parsed:
    """Read names and texts as `--dynamic-config-value` gives them; names are case-insensitive, as in Temporal."""
    given: dict[str, Any] = {}
    errors: list[str] = []
    warnings: list[str] = []
    for name, text in values.items():
        entry = _BY_NAME.get(name.lower())
        if entry is None:
            warnings.append(f"dynamic configuration {name!r} is not known to this server and has no effect")
            continue
        try:
            given[entry.field] = _value(entry, text)
        except ValueError as error:
            errors.append(f"dynamic configuration {name}={text}: {error}")
    return Parsed(Limits(**given), tuple(errors), tuple(warnings))


def _value(entry: Known, text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if entry.type is bool:
        if not isinstance(value, bool):
            raise ValueError("expected true or false")
        return value
    if entry.type_name == "duration":
        return duration_ns(str(value))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("expected a whole number, not negative")
    return value


def duration_ns(text: str) -> int:
    """Nanoseconds of a duration in Go's notation: `10s`, `1m30s`, `250ms`; a bare number is seconds."""
    text = text.strip()
    if text.isdigit():
        return int(text) * _SECOND_NS
    position = total = 0
    while match := _DURATION.match(text, position):
        total += round(float(match[1]) * _DURATION_UNITS_NS[match[2]])
        position = match.end()
    if not text or position != len(text):
        raise ValueError("expected a duration such as 10s, 1m30s or 250ms")
    return total
