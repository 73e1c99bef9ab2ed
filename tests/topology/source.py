"""What a cluster puts on `history` and `visibility`, without a cluster: chains of records of one-activity workflows."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1 import message_pb2 as history

from everfold.kernel.ids import record_key
from everfold.schemas.codec import encode_history_batch, encode_visibility
from everfold.schemas.topics import DEAD_LETTERS, EVENTS, HISTORY, VISIBILITY, full_name
from visibility.records import NAMESPACE_ID, attributes, record

Place = tuple[int, int, int]

#: what each shard record of a one-activity workflow adds to its history
STEPS: tuple[tuple[str, ...], ...] = (
    ("WORKFLOW_EXECUTION_STARTED", "WORKFLOW_TASK_SCHEDULED"),
    ("WORKFLOW_TASK_STARTED",),
    ("WORKFLOW_TASK_COMPLETED", "ACTIVITY_TASK_SCHEDULED"),
    ("ACTIVITY_TASK_STARTED", "ACTIVITY_TASK_COMPLETED", "WORKFLOW_TASK_SCHEDULED"),
    ("WORKFLOW_TASK_STARTED",),
    ("WORKFLOW_TASK_COMPLETED", "WORKFLOW_EXECUTION_COMPLETED"),
)
EVENTS_PER_WORKFLOW = sum(map(len, STEPS))
SECOND_NS = 1_000_000_000


def event(event_id: int, event_type: str, workflow_id: str, time_ns: int) -> history.HistoryEvent:
    made = history.HistoryEvent(event_id=event_id, task_id=event_id + 1000)
    made.event_type = event_type_pb2.EventType.Value(f"EVENT_TYPE_{event_type}")
    made.event_time.FromNanoseconds(time_ns)
    if event_type == "WORKFLOW_EXECUTION_STARTED":
        started = made.workflow_execution_started_event_attributes
        started.workflow_type.name = "Order"
        started.task_queue.name = "orders"
        started.input.payloads.add(
            metadata={"encoding": b"json/plain"}, data=b'{"customer": 1234567, "items": [1, 2, 3]}'
        )
        started.workflow_run_timeout.seconds = 3600
        started.first_execution_run_id = started.original_execution_run_id = str(uuid.uuid4())
        started.identity = "4711@worker"
        started.attempt = 1
        started.workflow_id = workflow_id
    elif event_type == "WORKFLOW_TASK_SCHEDULED":
        scheduled = made.workflow_task_scheduled_event_attributes
        scheduled.task_queue.name = "orders"
        scheduled.start_to_close_timeout.seconds = 10
        scheduled.attempt = 1
    elif event_type == "WORKFLOW_TASK_STARTED":
        task = made.workflow_task_started_event_attributes
        task.scheduled_event_id = event_id - 1
        task.identity = "4711@worker"
        task.request_id = str(uuid.uuid4())
        task.history_size_bytes = 400
    elif event_type == "WORKFLOW_TASK_COMPLETED":
        completed = made.workflow_task_completed_event_attributes
        completed.scheduled_event_id = event_id - 2
        completed.started_event_id = event_id - 1
        completed.identity = "4711@worker"
        completed.worker_version.build_id = "1.0"
        completed.sdk_metadata.sdk_name = "temporal-python"
    elif event_type == "ACTIVITY_TASK_SCHEDULED":
        activity = made.activity_task_scheduled_event_attributes
        activity.activity_id = "1"
        activity.activity_type.name = "charge"
        activity.task_queue.name = "orders"
        activity.input.payloads.add(metadata={"encoding": b"json/plain"}, data=b'{"amount": 12345}')
        activity.start_to_close_timeout.seconds = 30
        activity.retry_policy.initial_interval.seconds = 1
        activity.retry_policy.backoff_coefficient = 2.0
        activity.workflow_task_completed_event_id = event_id - 1
    elif event_type == "ACTIVITY_TASK_STARTED":
        begun = made.activity_task_started_event_attributes
        begun.scheduled_event_id = event_id - 1
        begun.identity = "4711@worker"
        begun.request_id = str(uuid.uuid4())
        begun.attempt = 1
    elif event_type == "ACTIVITY_TASK_COMPLETED":
        done = made.activity_task_completed_event_attributes
        done.result.payloads.add(metadata={"encoding": b"json/plain"}, data=b'"charged"')
        done.scheduled_event_id = event_id - 2
        done.started_event_id = event_id - 1
    elif event_type == "WORKFLOW_EXECUTION_COMPLETED":
        made.workflow_execution_completed_event_attributes.result.payloads.add(
            metadata={"encoding": b"json/plain"}, data=b'"done"'
        )
    return made


@dataclass
class Shard:
    """A shard's outputs to its partitions of `history` and `visibility`, as chains.

    Attributes:
        number: the shard.
        offset: of the last record of its log.
        last: topic -> the place of the last output to it.
    """

    number: int
    epoch: int = 0
    offset: int = 100
    last: dict[str, Place] = field(default_factory=dict)

    def _origins(self, topic: str, index: int) -> dict[str, Any]:
        def as_record(place: Place) -> dict[str, Any]:
            source = {"source": "SHARD_LOG", "partition": self.number}
            return {**source, "epoch": place[0], "offset": place[1], "index": place[2]}

        place = (self.epoch, self.offset, index)
        before = self.last.get(topic)
        self.last[topic] = place
        return {"origin": as_record(place), "predecessor": None if before is None else as_record(before)}

    def workflow(self, workflow_id: str, steps: int = len(STEPS)) -> Iterator[tuple[str, dict[str, Any]]]:
        """(topic, record) of a workflow's outputs, in the order in which the shard sends them."""
        run_id = str(uuid.uuid5(uuid.NAMESPACE_OID, workflow_id))
        event_id = 1
        began = self.offset * SECOND_NS
        for number, types in enumerate(STEPS[:steps]):
            self.offset += 1
            now = self.offset * SECOND_NS
            events = []
            for event_type in types:
                message = event(event_id, event_type, workflow_id, now)
                thin = {"event_id": event_id, "event_type": event_type, "event_time_ns": now}
                events.append({**thin, "event": message.SerializeToString(deterministic=True)})
                event_id += 1
            yield (
                HISTORY.name,
                {
                    "namespace_id": NAMESPACE_ID,
                    "namespace": "default",
                    "workflow_id": workflow_id,
                    "run_id": run_id,
                    "workflow_type": "Order",
                    "first_event_id": events[0]["event_id"],
                    "part": 0,
                    "time_ns": now,
                    **self._origins(HISTORY.name, 0),
                    "events": events,
                },
            )
            if number in (0, len(STEPS) - 1):
                closed = number == len(STEPS) - 1
                yield (
                    VISIBILITY.name,
                    {
                        **record(
                            workflow_id,
                            run_id=run_id,
                            status="Completed" if closed else "Running",
                            started=began / SECOND_NS,
                            closed=now / SECOND_NS if closed else None,
                            searched=attributes(Customer=f"c{self.offset % 7}") if workflow_id.endswith("7") else b"",
                        ),
                        **self._origins(VISIBILITY.name, 1),
                    },
                )


def encode(topic: str, fields: dict[str, Any]) -> bytes:
    return encode_history_batch(fields) if topic == HISTORY.name else encode_visibility(fields)


class Source:
    """Creates the topics on a real broker and sends shards' outputs to them."""

    def __init__(self, bootstrap: str, prefix: str, shards: int = 4) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.shards = [Shard(number) for number in range(shards)]
        self.sent: list[tuple[str, int, dict[str, Any]]] = []
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5})

    def create_topics(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        topics = [
            NewTopic(full_name(self.prefix, topic), num_partitions=len(self.shards), replication_factor=1)
            for topic in (HISTORY, VISIBILITY, EVENTS, DEAD_LETTERS)
        ]
        for created in admin.create_topics(topics).values():
            created.result(30)

    def send(self, shard: int, topic: str, fields: dict[str, Any], *, remember: bool = True) -> None:
        if remember:
            self.sent.append((topic, shard, fields))
        key = record_key(fields["namespace"], fields["workflow_id"])
        while True:
            try:
                self._producer.produce(self.prefix + topic, encode(topic, fields), key, shard)
                return
            except BufferError:
                self._producer.poll(0.1)

    def send_raw(self, shard: int, topic: str, value: bytes) -> None:
        self._producer.produce(self.prefix + topic, value, b"k", shard)

    def workflows(self, count: int, name: str = "w", seed: int = 0, resend_every: int = 0) -> None:
        """Sends whole workflows; now and then a shard repeats its last outputs, as after a failed delivery."""
        choice = random.Random(seed)
        for shard in self.shards:
            numbers = range(shard.number, count, len(self.shards))
            outputs = [output for number in numbers for output in shard.workflow(f"{name}-{number}")]
            recent: list[tuple[str, dict[str, Any]]] = []
            for topic, fields in outputs:
                self.send(shard.number, topic, fields)
                recent = [*recent[-8:], (topic, fields)]
                if resend_every and choice.randrange(resend_every) == 0:
                    for again, repeated in recent[-choice.randint(1, len(recent)) :]:
                        self.send(shard.number, again, repeated, remember=False)
            self._producer.poll(0)

    def flush(self) -> None:
        assert self._producer.flush(30) == 0
