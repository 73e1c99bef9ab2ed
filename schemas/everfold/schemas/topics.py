"""The topics: names, who partitions them how, how long they keep, what each carries. Everything else reads this table.

`partitions` is SHARDS (one per history shard), TASKS (one per task partition) or a number. Every topic uses
LogAppendTime, so that a record's timestamp is the broker's and the shard clock can rest on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

AT_LEAST: Final = frozenset(
    ("retention.ms", "retention.bytes", "delete.retention.ms", "min.insync.replicas", "max.message.bytes")
)
"""Settings of which more than Everfold asks for is their owner's right; -1, unlimited, is the most."""

OWNERS_CHOICE: Final = frozenset(("segment.ms", "segment.bytes", "min.cleanable.dirty.ratio"))
"""Settings that a topic is created with and nobody looks at again: how often to compact is their owner's business."""

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
        also: further records it carries, under keys of their own.
        written_by, read_by: services, and parties outside.
        config: topic configuration beyond what all topics share.
        note: what else there is to say.
    """

    name: str
    partitions: str | int
    value: str
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    config: dict[str, str] = field(default_factory=dict)
    note: str = ""
    also: tuple[str, ...] = ()

    @property
    def records(self) -> tuple[str, ...]:
        """All Avro records that it carries."""
        return (self.value, *self.also)

    @property
    def help(self) -> str:
        """Who writes it and who reads it, in words."""
        words = f"written by {', '.join(self.written_by)}; read by {', '.join(self.read_by)}"
        return f"{words} ({self.note})" if self.note else words

    def partition_count(self, shard_count: int, task_partitions: int) -> int:
        """The number of partitions in a cluster of that shape."""
        if isinstance(self.partitions, int):
            return self.partitions
        return shard_count if self.partitions == SHARDS else task_partitions

    def full_config(self) -> dict[str, str]:
        """The whole topic configuration, as `topics apply` creates it. `will_do` tells what else is good enough."""
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

PRODUCERS: Final = "your producers"
CONSUMERS: Final = "your consumers"
OPERATORS: Final = "operators"
FRONTEND: Final = "frontend"
HISTORY_OWNERS: Final = "history"
MATCHING: Final = "matching"
WORKER: Final = "worker"
_SERVICES: Final = (FRONTEND, HISTORY_OWNERS, MATCHING)
"""Services that know of one another. A worker knows the topics alone."""

COMMANDS: Final = Topic("commands", SHARDS, "Command", (PRODUCERS,), (HISTORY_OWNERS,), _BY_TIME)
SHARD_LOG: Final = Topic(
    "shard-log", SHARDS, "ShardRecord", (HISTORY_OWNERS,), (HISTORY_OWNERS,), _FOR_EVER, note="the truth"
)
COMMANDS_REJECTED: Final = Topic(
    "commands-rejected", 1, "RejectedCommand", (HISTORY_OWNERS,), (PRODUCERS, OPERATORS), _BY_TIME
)
HISTORY: Final = Topic("history", SHARDS, "HistoryBatch", (HISTORY_OWNERS,), (WORKER, CONSUMERS), _BY_TIME)
EVENTS: Final = Topic("events", SHARDS, "HistoryEvent", (WORKER,), (CONSUMERS,), _BY_TIME)
WORKFLOW_TASKS: Final = Topic("workflow-tasks", TASKS, "WorkflowTask", (HISTORY_OWNERS,), (MATCHING,), _TASKS)
ACTIVITY_TASKS: Final = Topic("activity-tasks", TASKS, "ActivityTask", (HISTORY_OWNERS,), (MATCHING,), _TASKS)
VISIBILITY: Final = Topic("visibility", SHARDS, "VisibilityRecord", (HISTORY_OWNERS,), (WORKER,), _BY_TIME)
DEAD_LETTERS: Final = Topic("dead-letters", 1, "DeadLetter", (WORKER,), (OPERATORS,), _BY_TIME)
INTERVENTIONS: Final = Topic(
    "interventions", 1, "Intervention", (OPERATORS,), (HISTORY_OWNERS,), _COMPACTED, note="whole, before a fold"
)
NAMESPACES: Final = Topic("namespaces", 1, "Namespace", (HISTORY_OWNERS,), _SERVICES, _COMPACTED, note="by shard 0")
CLUSTER: Final = Topic(
    "cluster",
    1,
    "Member",
    _SERVICES,
    _SERVICES,
    _COMPACTED,
    note="who is there, and where; how far each shard's log was folded",
    also=("ShardPosition",),
)

TOPICS: Final = (
    COMMANDS,
    SHARD_LOG,
    COMMANDS_REJECTED,
    HISTORY,
    EVENTS,
    WORKFLOW_TASKS,
    ACTIVITY_TASKS,
    VISIBILITY,
    DEAD_LETTERS,
    INTERVENTIONS,
    NAMESPACES,
    CLUSTER,
)


def will_do(setting: str, wanted: str, found: str) -> bool:
    """Whether a topic may stay as it is found: exactly as wanted, or with more where more is harmless.

    Args:
        setting: a key of the topic's configuration.
        wanted: as Everfold creates it.
        found: as the brokers say it is; "" when they say nothing.
    """
    if found == wanted or setting in OWNERS_CHOICE:
        return True
    if setting not in AT_LEAST or wanted == _UNLIMITED or not found:
        return False
    return found == _UNLIMITED or int(found) >= int(wanted)


_UNLIMITED: Final = "-1"


def full_name(prefix: str, topic: Topic) -> str:
    """The topic's name on the broker, e.g. `everfold.shard-log`."""
    return prefix + topic.name
