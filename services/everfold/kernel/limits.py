"""Limits that change what the machine decides, with Temporal's defaults (common/dynamicconfig/constants.go, 1.32).

They travel in the log (`SettingsChanged`), because a fold may not read a configuration (law 2). The keys are Temporal's
dynamic-config names; the values are integers (sizes in bytes, counts, durations in nanoseconds).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from everfold.kernel.time import MINUTE_NS, SECOND_NS

MILLION: Final = 1_000_000
"""Ratios are settings in millionths: the fold knows no floating-point numbers."""

DEFAULTS: Final[Mapping[str, int]] = {
    "limit.blobSize.error": 2 * 1024 * 1024,
    "limit.memoSize.error": 2 * 1024 * 1024,
    "limit.historyCount.error": 51_200,
    "limit.historyCount.suggestContinueAsNew": 4_096,
    "limit.historySize.error": 50 * 1024 * 1024,
    "limit.historySize.suggestContinueAsNew": 4 * 1024 * 1024,
    "limit.mutableStateSize.error": 8 * 1024 * 1024,
    "limit.numPendingActivities.error": 2_000,
    "limit.numPendingChildExecutions.error": 2_000,
    "limit.numPendingSignals.error": 2_000,
    "limit.numPendingCancelRequests.error": 2_000,
    "limit.maxIDLength": 1_000,
    "limit.numberOfSearchAttributeKeys": 100,
    "limit.searchAttributeSizeOfValue": 2 * 1024,
    "limit.searchAttributeTotalSize": 40 * 1024,
    "history.maximumSignalsPerExecution": 10_000,
    "history.maximumBufferedEventsBatch": 100,
    "history.maximumBufferedEventsSizeInBytes": 2 * 1024 * 1024,
    "history.maxInFlightUpdates": 10,
    "history.maxInFlightUpdatePayloads": 20 * 1024 * 1024,
    "history.maxTotalUpdates": 2_000,
    "history.maxTotalUpdates.suggestContinueAsNewThreshold": 900_000,
    "history.defaultWorkflowTaskTimeout": 10 * SECOND_NS,
    "history.maxWorkflowTaskTimeout": 120 * SECOND_NS,
    "history.workflowTaskHeartbeatTimeout": 30 * MINUTE_NS,
    "history.workflowTaskRetryMaxInterval": 10 * MINUTE_NS,
    "history.workflowIdReuseMinimalInterval": SECOND_NS,
    "history.rateLimit.requestIds": 10_000,
    "history.activityFailureSize": 4 * 1024,
    "system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute": 5,
    "system.enableActivityEagerExecution": 1,
    "system.enableEagerWorkflowStart": 1,
    "matching.partitions": 2,
}
"""Every setting the machine knows. A name that is not here never enters the log."""


class Limits:
    """The settings in force on a shard: the defaults with what `SettingsChanged` records have changed."""

    __slots__ = ("changed",)

    def __init__(self, changed: Mapping[str, int] | None = None) -> None:
        self.changed: dict[str, int] = dict(changed or {})

    def reached(self, name: str, count: int) -> bool:
        """Whether there are so many already that no more may come. As in Temporal, a limit of 0 is none."""
        return 0 < self[name] <= count

    def __getitem__(self, name: str) -> int:
        value = self.changed.get(name)
        return DEFAULTS[name] if value is None else value
