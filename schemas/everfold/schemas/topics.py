"""The topics: names, who partitions them how, how long they keep, what each carries. Everything else reads this table.

`partitions` is SHARDS (one per history shard), TASKS (one per task partition) or a number. Every topic uses
LogAppendTime, so that a record's timestamp is the broker's and the shard clock can rest on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SHARDS: Final = "shards"
TASKS: Final = "tasks"

RECORD_BYTES_MAX: Final = 8 * 1024 * 1024
"""Largest record that broker and clients take: above Temporal's 4 MiB message, below what would stall a partition."""

_DAY_MS: Final = 24 * 3600 * 1000
KEPT_MS: Final = 7 * _DAY_MS
"""How long the topics kept "by time" keep their records, unless set otherwise."""


@dataclass(frozen=True)
class Topic:
    """One topic as the cluster must have it.

    Attributes:
        name: without the cluster's prefix.
        partitions: SHARDS, TASKS, or a number.
        value: the Avro record it carries.
        help: who writes it and who reads it.
        config: topic configuration beyond what all topics share.
    """

    name: str
    partitions: str | int
    value: str
    help: str
    config: dict[str, str] = field(default_factory=dict)

    def partition_count(self, shard_count: int, task_partitions: int) -> int:
        """The number of partitions in a cluster of that shape."""
        if isinstance(self.partitions, int):
            return self.partitions
        return shard_count if self.partitions == SHARDS else task_partitions

    def full_config(self) -> dict[str, str]:
        """The whole topic configuration that `topics apply` sets and an owner checks."""
        return {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(RECORD_BYTES_MAX), **self.config}


_BY_TIME: Final = {"cleanup.policy": "delete", "retention.ms": str(KEPT_MS)}
_FOR_EVER: Final = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_COMPACTED: Final = {"cleanup.policy": "compact", "segment.ms": "600000"}
_TASKS: Final = {
    "cleanup.policy": "compact",
    "segment.bytes": str(16 * 1024 * 1024),
    "segment.ms": "60000",
    "delete.retention.ms": "60000",
    "min.cleanable.dirty.ratio": "0.1",
}

COMMANDS: Final = Topic("commands", SHARDS, "Command", "written by anyone, read by the history owners", _BY_TIME)
SHARD_LOG: Final = Topic(
    "shard-log", SHARDS, "ShardRecord", "the truth: written and read by the history owners", _FOR_EVER
)
COMMANDS_REJECTED: Final = Topic(
    "commands-rejected", 1, "RejectedCommand", "written by history, read by operators", _BY_TIME
)
HISTORY: Final = Topic(
    "history", SHARDS, "HistoryBatch", "written by history, read by the topology and auditors", _BY_TIME
)
EVENTS: Final = Topic(
    "events", SHARDS, "HistoryEvent", "written by the topology from history, read by anyone", _BY_TIME
)
WORKFLOW_TASKS: Final = Topic("workflow-tasks", TASKS, "WorkflowTask", "written by history, read by matching", _TASKS)
ACTIVITY_TASKS: Final = Topic("activity-tasks", TASKS, "ActivityTask", "written by history, read by matching", _TASKS)
VISIBILITY: Final = Topic(
    "visibility", SHARDS, "VisibilityRecord", "written by history, read by the topology", _BY_TIME
)
NAMESPACES: Final = Topic("namespaces", 1, "Namespace", "written by shard 0, read by every service", _COMPACTED)
CLUSTER: Final = Topic("cluster", 1, "Member", "written and read by every service", _COMPACTED)

TOPICS: Final = (
    COMMANDS,
    SHARD_LOG,
    COMMANDS_REJECTED,
    HISTORY,
    EVENTS,
    WORKFLOW_TASKS,
    ACTIVITY_TASKS,
    VISIBILITY,
    NAMESPACES,
    CLUSTER,
)


def full_name(prefix: str, topic: Topic) -> str:
    """The topic's name on the broker, e.g. `everfold.shard-log`."""
    return prefix + topic.name
