"""Reading a small topic whole, at one go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from everfold.runtime.kafka.errors import KafkaUnavailable
from everfold.runtime.kafka.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Message

_SILENT_S: Final = 10.0
"""A broker that gives nothing for so long is away."""


def read_whole(settings: KafkaSettings, topic: str) -> list[Message]:
    """All records of partition 0 of a topic (full name), to its end as of some moment after the call. Blocks.

    Raises:
        KafkaUnavailable: the broker did not answer.
    """
    config: dict[str, Any] = settings.client(
        "whole",
        group_id=f"{settings.prefix}whole",  # librdkafka wants one; nothing is ever committed under it
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        enable_partition_eof=True,
    )
    consumer = Consumer(config)
    found: list[Message] = []
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while True:
            message = consumer.poll(_SILENT_S)
            if message is None:
                raise KafkaUnavailable(f"{topic}: nothing came for {_SILENT_S:.0f} s")
            error = message.error()
            if error is None:
                found.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                return found
            else:
                raise KafkaUnavailable(f"{topic}: {error.str()}")
    except KafkaException as error:
        raise KafkaUnavailable(f"{topic}: {error}") from error
    finally:
        consumer.close()
