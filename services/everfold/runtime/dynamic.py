"""Temporal's dynamic-configuration names that Everfold knows: limits and timeouts of workflows.

Those with a `key` are inputs of the fold: they go into the log under that key, in a `SettingsChanged` record, when they
differ from what the shard last recorded, so that a refold under another configuration gives the same state (law 2).
Their defaults are the machine's own (`kernel.limits`). The others are read by the service that they concern. A name
that is not in the table is a warning, as in Temporal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from everfold.kernel.limits import DEFAULTS, MILLION
from everfold.kernel.time import HOUR_NS, MICROSECOND_NS, MILLISECOND_NS, MINUTE_NS, SECOND_NS

COUNT: Final = "count"
BYTES: Final = "bytes"
DURATION: Final = "duration"
FLAG: Final = "true/false"
RATIO: Final = "ratio"
"""0 to 1; in millionths where it is read."""

_UNITS_NS: Final = {
    "ns": 1,
    "us": MICROSECOND_NS,
    "µs": MICROSECOND_NS,
    "ms": MILLISECOND_NS,
    "s": SECOND_NS,
    "m": MINUTE_NS,
    "h": HOUR_NS,
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True)
class Known:
    """A name in the table.

    Attributes:
        name: Temporal's.
        kind: COUNT, BYTES, DURATION, FLAG or RATIO.
        help: one sentence.
        key: what the fold calls it; empty when the fold does not read it.
        default: the value when nothing is given; durations in nanoseconds.
    """

    name: str
    kind: str
    help: str
    key: str
    default: int


def _folded(name: str, kind: str, help: str, key: str = "") -> Known:
    return Known(name, kind, help, key or name, DEFAULTS[key or name])


FOLDED: Final = (
    _folded("limit.blobSize.error", BYTES, "Largest payloads of one request or workflow command."),
    _folded("limit.memoSize.error", BYTES, "Largest memo of a workflow."),
    _folded("limit.maxIDLength", COUNT, "Longest workflow id, type, task queue, signal name, identity and the like."),
    _folded("limit.historyCount.error", COUNT, "Most events of a run; a run that exceeds it is terminated."),
    _folded("limit.historyCount.suggestContinueAsNew", COUNT, "Events from which on continue-as-new is suggested."),
    _folded("limit.historySize.error", BYTES, "Largest history of a run; a run that exceeds it is terminated."),
    _folded(
        "limit.historySize.suggestContinueAsNew", BYTES, "History size from which on continue-as-new is suggested."
    ),
    _folded("limit.mutableStateSize.error", BYTES, "Largest mutable state; a run that exceeds it is terminated."),
    _folded(
        "limit.mutableStateActivityFailureSize.error",
        BYTES,
        "Largest failure kept of an activity that is retried; more is cut off.",
        "history.activityFailureSize",
    ),
    _folded("limit.numPendingActivities.error", COUNT, "Most activities pending in a run."),
    _folded("limit.numPendingChildExecutions.error", COUNT, "Most child workflows pending in a run."),
    _folded("limit.numPendingSignals.error", COUNT, "Most signals to other workflows pending in a run."),
    _folded("limit.numPendingCancelRequests.error", COUNT, "Most cancel requests to other workflows pending in a run."),
    _folded("history.maximumSignalsPerExecution", COUNT, "Most signals that a run takes."),
    _folded("history.maximumBufferedEventsBatch", COUNT, "Most events that wait for a running workflow task."),
    _folded("history.maximumBufferedEventsSizeInBytes", BYTES, "Most bytes of events that wait for a workflow task."),
    _folded("history.maxInFlightUpdates", COUNT, "Most updates in flight in a run."),
    _folded("history.maxInFlightUpdatePayloads", BYTES, "Most bytes of requests of the updates in flight in a run."),
    _folded("history.maxTotalUpdates", COUNT, "Most updates that a run takes."),
    _folded(
        "history.maxTotalUpdates.suggestContinueAsNewThreshold",
        RATIO,
        "Part of them from which on continue-as-new is suggested.",
    ),
    _folded("history.defaultWorkflowTaskTimeout", DURATION, "Workflow task timeout of a start that gives none."),
    _folded("history.workflowTaskHeartbeatTimeout", DURATION, "How long a workflow task may go on by heartbeating."),
    _folded("history.workflowTaskRetryMaxInterval", DURATION, "Longest backoff of a workflow task that keeps failing."),
    _folded("history.workflowIdReuseMinimalInterval", DURATION, "Least time from a start to one that ends its run."),
    _folded(
        "frontend.searchAttributesNumberOfKeysLimit",
        COUNT,
        "Most search attributes of a workflow.",
        "limit.numberOfSearchAttributeKeys",
    ),
    _folded(
        "frontend.searchAttributesSizeOfValueLimit",
        BYTES,
        "Largest value of one search attribute.",
        "limit.searchAttributeSizeOfValue",
    ),
    _folded(
        "frontend.searchAttributesTotalSizeLimit",
        BYTES,
        "Largest search attributes of a workflow together.",
        "limit.searchAttributeTotalSize",
    ),
    _folded(
        "system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute",
        COUNT,
        "Failed workflow tasks in a row from which on TemporalReportedProblems says so; 0 for never.",
    ),
    _folded("system.enableActivityEagerExecution", FLAG, "Whether a completion may answer with activity tasks."),
    _folded("system.enableEagerWorkflowStart", FLAG, "Whether a start may answer with the first workflow task."),
)
"""What the fold reads."""


def _known(default: int, name: str, kind: str, help: str) -> Any:
    return field(default=default, metadata={"dynamic": (name, kind, help)})


@dataclass(frozen=True)
class ServiceLimits:
    """What services read themselves. Sizes are bytes, durations nanoseconds."""

    history_poll_ns: int = _known(
        20 * SECOND_NS,
        "history.longPollExpirationInterval",
        DURATION,
        "When a waiting GetWorkflowExecutionHistory answers empty.",
    )
    poll_ns: int = _known(
        60 * SECOND_NS, "matching.longPollExpirationInterval", DURATION, "When a waiting task poll answers empty."
    )
    query_poller_window_ns: int = _known(
        20 * SECOND_NS,
        "matching.queryPollerUnavailableWindow",
        DURATION,
        "A query is refused when no worker has polled for so long.",
    )
    history_page_events_max: int = _known(
        256, "frontend.historyMaxPageSize", COUNT, "Events in one page of history, at most."
    )
    visibility_page_max: int = _known(
        1000, "frontend.visibilityMaxPageSize", COUNT, "Workflows in one page of a list, at most."
    )
    long_polls_max: int = _known(
        10_000, "frontend.namespaceCount", COUNT, "Most long polls of one kind and namespace at a time, per frontend."
    )
    rps: int = _known(
        10_000, "frontend.namespaceRPS", COUNT, "Calls per second and namespace, per frontend, polls not counted."
    )
    visibility_rps: int = _known(
        100, "frontend.namespaceRPS.visibility", COUNT, "Lists and counts per second and namespace, per frontend."
    )
    namespace_writes_rps: int = _known(
        20,
        "frontend.namespaceRPS.namespaceReplicationInducingAPIs",
        COUNT,
        "Changes of namespaces and search attributes per second, per frontend.",
    )


def _service_known(entry: Any) -> Known:
    name, kind, help = entry.metadata["dynamic"]
    return Known(name, kind, help, "", entry.default)


_SERVICE: Final = {entry.name: _service_known(entry) for entry in fields(ServiceLimits)}
KNOWN: Final = (*FOLDED, *_SERVICE.values())
_BY_NAME: Final = {entry.name.lower(): entry for entry in KNOWN}
_FIELD_OF: Final = {entry.name: name for name, entry in _SERVICE.items()}


@dataclass(frozen=True)
class Parsed:
    """What the given names mean.

    Attributes:
        folded: the fold's key -> value, only what was given.
        service: the services' limits, defaults included.
        errors: values that cannot be taken.
        warnings: names that have no meaning here.
    """

    folded: dict[str, int]
    service: ServiceLimits
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def parse(values: Mapping[str, str]) -> Parsed:
    """Read names and texts as `--dynamic-config-value` gives them; names are case-insensitive, as in Temporal."""
    folded: dict[str, int] = {}
    service: dict[str, int] = {}
    errors: list[str] = []
    warnings: list[str] = []
    for name, text in values.items():
        entry = _BY_NAME.get(name.lower())
        if entry is None:
            warnings.append(f"dynamic configuration {name} is not known to this server and has no effect")
            continue
        try:
            value = _value(entry.kind, text)
        except ValueError as error:
            errors.append(f"dynamic configuration {name}={text}: {error}")
            continue
        if entry.key:
            folded[entry.key] = value
        else:
            service[_FIELD_OF[entry.name]] = value
    return Parsed(folded, ServiceLimits(**service), tuple(errors), tuple(warnings))


def _value(kind: str, text: str) -> int:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if kind == FLAG:
        if not isinstance(value, bool):
            raise ValueError("expected true or false")
        return int(value)
    if kind == DURATION:
        return duration_ns(str(value))
    if kind == RATIO:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError("expected a number from 0 to 1")
        return round(value * MILLION)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("expected a whole number, not negative")
    return value


def duration_ns(text: str) -> int:
    """Nanoseconds of a duration in Go's notation: `10s`, `1m30s`, `250ms`; a bare number is seconds."""
    text = text.strip()
    if text.isdigit():
        return int(text) * SECOND_NS
    position = total = 0
    while match := _DURATION.match(text, position):
        total += round(float(match[1]) * _UNITS_NS[match[2]])
        position = match.end()
    if not text or position != len(text):
        raise ValueError("expected a duration such as 10s, 1m30s or 250ms")
    return total


def shown(kind: str, value: int) -> str:
    """A value as people write it."""
    if kind == FLAG:
        return "true" if value else "false"
    if kind == DURATION:
        for unit, size in (("h", HOUR_NS), ("m", MINUTE_NS), ("s", SECOND_NS), ("ms", MILLISECOND_NS)):
            if value and value % size == 0:
                return f"{value // size}{unit}"
        return f"{value}ns" if value else "0s"
    if kind == BYTES:
        for unit, size in (("MiB", 1024 * 1024), ("KiB", 1024)):
            if value and value % size == 0:
                return f"{value} ({value // size} {unit})"
    if kind == RATIO:
        return str(value / MILLION)
    return str(value)
