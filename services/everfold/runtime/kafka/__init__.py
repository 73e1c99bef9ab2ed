"""Kafka for the engine's own loops, over confluent-kafka: everything here is driven from one asyncio loop thread.

    KafkaSettings      how to reach the cluster
    Producer           idempotent, delivery reports on the loop
    PromptProducer     for records somebody waits for: at once when few, gathered when many
    LogConsumer        assigned partitions from given positions, batches handed to the loop
    EndOffsets         where partitions end, for many waiters at once
    GroupMembership    which process owns which partitions
    ask_metadata, known_offset
                       what Kafka answers, looked at before it is believed

What a record offers is confluent-kafka's `Message`: `value()`, `key()`, `offset()`, `partition()`, `leader_epoch()`,
`timestamp()` -> (type, broker's milliseconds), `headers()`.
"""

from everfold.runtime.kafka.answers import Metadata, ask_metadata, known_offset
from everfold.runtime.kafka.consumer import LogConsumer, PartitionTrouble
from everfold.runtime.kafka.errors import KafkaTrouble, KafkaUnavailable, ProducerQueueFull
from everfold.runtime.kafka.group import GroupMembership
from everfold.runtime.kafka.offsets import EndOffsets
from everfold.runtime.kafka.producer import Delivery, Headers, Producer
from everfold.runtime.kafka.prompt import PromptProducer
from everfold.runtime.kafka.settings import KafkaSettings

__all__ = [
    "Delivery",
    "EndOffsets",
    "GroupMembership",
    "Headers",
    "KafkaSettings",
    "KafkaTrouble",
    "KafkaUnavailable",
    "LogConsumer",
    "Metadata",
    "PartitionTrouble",
    "Producer",
    "ProducerQueueFull",
    "PromptProducer",
    "ask_metadata",
    "known_offset",
]
