"""Matching on Kafka: takes task partitions by a consumer group and reads their two topics from the start.

The group is over `workflow-tasks`; partition p of `activity-tasks` goes with partition p of it, so that both types of
a queue have one owner. Nothing is committed: what is owned is read whole each time, which compaction keeps short. A
partition answers polls from the moment it is taken, and gives out tasks when both topics have been read to their
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Message

from everfold.matching.held import HeldPartition
from everfold.matching.machine.task import ACTIVITY, WORKFLOW, Task
from everfold.matching.service import MatchingService
from everfold.runtime import metrics
from everfold.runtime.kafka import (
    EndOffsets,
    GroupMembership,
    KafkaSettings,
    KafkaUnavailable,
    LogConsumer,
    PartitionTrouble,
)
from everfold.runtime.kafka.group import SESSION_MS
from everfold.runtime.membership import Membership
from everfold.schemas import codec
from everfold.schemas.topics import ACTIVITY_TASKS, WORKFLOW_TASKS

GROUP: Final = "matching"
ROLE: Final = "matching"

SIGHT_EVERY_S: Final = 5.0
"""How often backlogs, polls and lags are measured: they are counted over all queues."""

_GAUGES: Final[dict[str, Any]] = {
    "parked_polls": metrics.PARKED_POLLS,
    "backlog_tasks": metrics.BACKLOG_TASKS,
    "backlog_tasks_on_disk": metrics.BACKLOG_TASKS_ON_DISK,
    "task_queues": metrics.TASK_QUEUES,
    "task_partitions_owned": metrics.TASK_PARTITIONS_OWNED,
    "task_partitions_loading": metrics.TASK_PARTITIONS_LOADING,
    "queries_waiting": metrics.QUERIES_WAITING,
}

_FETCH_BYTES: Final = 256 * 1024
"""So much ends a fetch that can wait: some thousand records."""

REREAD_S: Final = 1.0
"""Pause before a partition whose position was lost is read again from its start."""

log = structlog.get_logger("matching")


class MatchingServer:
    """A service: the matching of this process.

    Args:
        settings: the cluster.
        service: takes and loses the partitions; it is stopped here.
        membership: told what this process holds.
        ends: tells how far behind the ends of its topics this process is, for the metrics; None measures nothing.
        session_ms: how long this process may be silent before others get its partitions.
        instance: its name in the group in every life; see `GroupMembership`.
        handed_over: every task is also handed over directly, so the records need not come at once.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        service: MatchingService,
        membership: Membership,
        ends: EndOffsets | None = None,
        *,
        session_ms: int = SESSION_MS,
        instance: str = "",
        handed_over: bool = False,
    ) -> None:
        self.service = service
        self._membership = membership
        self._ends = ends
        self._watching: asyncio.Task[None] | None = None
        #: (full topic name, partition) -> offset of the next record to be read
        self._positions: dict[tuple[str, int], int] = {}
        #: full topic name -> type of its tasks
        self._types = {settings.topic(WORKFLOW_TASKS): WORKFLOW, settings.topic(ACTIVITY_TASKS): ACTIVITY}
        self._decode = {WORKFLOW: codec.decode_workflow_task, ACTIVITY: codec.decode_activity_task}
        self._held: dict[int, HeldPartition] = {}
        self._consumer = LogConsumer(
            settings,
            name="matching-tasks",
            on_batch=self._batch,
            on_end=self._end,
            on_trouble=self._trouble,
            # Then a fetch waits its whole time (100 ms) for company, rather than costing a request per record.
            fetch_min_bytes=_FETCH_BYTES if handed_over else 1,
        )
        self._group = GroupMembership(
            settings,
            group=GROUP,
            topic=settings.topic(WORKFLOW_TASKS),
            on_assigned=self._assigned,
            on_revoked=self._revoked,
            session_ms=session_ms,
            instance=instance,
        )

    async def start(self) -> None:
        """Join the group. Partitions come when it has answered; `ready` waits for them."""
        await self._consumer.start()
        await self._group.start()
        self._watching = asyncio.get_running_loop().create_task(self._watch_for_ever())

    async def ready(self) -> None:
        """Return when the group has answered for the first time."""
        await self._group.joined()

    async def stop(self) -> None:
        """Leave the group, so that others take the partitions at once, and end what waits here."""
        if self._watching is not None:
            self._watching.cancel()
        await self._group.stop()
        await self._consumer.stop()
        await self.service.stop()

    async def _assigned(self, partitions: frozenset[int]) -> None:
        for number in partitions:
            if number in self._held:
                continue
            self._held[number] = self.service.take(number)
            for topic in self._types:
                self._consumer.assign(topic, number, OFFSET_BEGINNING)
        self._tell()

    async def _revoked(self, partitions: frozenset[int]) -> None:
        for number in partitions:
            if self._held.pop(number, None) is not None:
                for topic in self._types:
                    self._consumer.unassign(topic, number)
                    self._positions.pop((topic, number), None)
                self.service.lose(number)
        self._tell()

    def _tell(self) -> None:
        self._membership.set_partitions(ROLE, self._held)

    def _batch(self, messages: list[Message]) -> None:
        touched: dict[int, HeldPartition] = {}
        for message in messages:
            number, key = message.partition(), message.key()
            held = self._held.get(-1 if number is None else number)
            if held is None or key is None:
                continue
            self._positions[message.topic() or "", held.machine.number] = (message.offset() or 0) + 1
            task_id = key.decode(errors="replace") if isinstance(key, bytes) else key
            value = message.value()
            if value is None:
                held.machine.tombstone(task_id)
                continue
            type = self._types[message.topic() or ""]
            try:
                task = task_of(type, self._decode[type](value), held.machine.number)
            except (codec.Undecodable, KeyError, TypeError) as error:
                # Only the engine writes here, so this is a newer build's record: its shard's owner has the task, and
                # the task's timeouts bring it back.
                log.error("a task record cannot be read", type=type, offset=message.offset(), reason=str(error))
                continue
            held.machine.record(task, held.now_ns())
            touched[held.machine.number] = held
        for held in touched.values():
            held.perform()

    def _end(self, topic: str, partition: int, offset: int) -> None:
        held = self._held.get(partition)
        if held is not None:
            self._positions[topic, partition] = offset
            held.read_to_end(self._types[topic])

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SIGHT_EVERY_S)
            for (name, type), value in self.service.gauges().items():
                gauge = _GAUGES[name]
                (gauge.labels(type) if type else gauge).set(value)
            positions = dict(self._positions)
            if self._ends is None or not positions:
                continue
            with contextlib.suppress(KafkaUnavailable):
                for place, end in (await self._ends.end_offsets(positions)).items():
                    metrics.TOPIC_LAG.labels(place[0], str(place[1])).set(max(end - positions[place], 0))

    def _trouble(self, trouble: PartitionTrouble) -> None:
        log.warning("task topic", topic=trouble.topic, partition=trouble.partition, reason=trouble.text)
        if not trouble.position_lost or trouble.partition not in self._held:
            return
        # Compaction or a lost tail took the position away. Reading from the start again repeats tasks, which is
        # harmless.
        self._consumer.unassign(trouble.topic, trouble.partition)
        held = self._held[trouble.partition]
        again = functools.partial(self._read_again, trouble.topic, trouble.partition, held)
        held.loop.call_later(REREAD_S, again)

    def _read_again(self, topic: str, partition: int, held: HeldPartition) -> None:
        if self._held.get(partition) is held:
            self._consumer.assign(topic, partition, OFFSET_BEGINNING)


def task_of(type: str, record: dict[str, Any], partition: int) -> Task:
    """The task of a decoded WorkflowTask or ActivityTask record."""
    return Task(
        type=type,
        namespace_id=record["namespace_id"],
        task_queue=record["task_queue"],
        sticky=False,
        normal_queue="",
        workflow_id=record["workflow_id"],
        run_id=record["run_id"],
        scheduled_event_id=record["scheduled_event_id"],
        attempt=record["attempt"],
        stamp=record["stamp"],
        task_id=record["task_id"],
        created_at_ns=record["created_at_ns"],
        schedule_to_start_deadline_ns=record["schedule_to_start_deadline_ns"],
        priority_key=record["priority_key"],
        fairness_key=record["fairness_key"],
        fairness_weight=record["fairness_weight"],
        shard=record["shard"],
        partition=partition,
    )
