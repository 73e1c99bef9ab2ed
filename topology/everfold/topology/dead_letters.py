"""The topic `dead-letters`: what processors have put aside, with its place and the reason, for people to look at.

A letter is sent before the position moves over its record, so none is lost; a crash between the two sends it again,
under the same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from everfold.runtime.kafka import KafkaSettings
from everfold.schemas.codec import encode
from everfold.schemas.topics import DEAD_LETTERS
from everfold.topology.publisher import Output, Publisher
from everfold.topology.state import SAMPLE_BYTES_MAX, DeadLetter


class DeadLetterBox:
    """Sends dead letters. The producer is made with the first of them: most workers never need one."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._publisher: Publisher | None = None
        self.topic = kafka.topic(DEAD_LETTERS)

    async def send(self, processor: str, topic: str, partition: int, letters: Sequence[DeadLetter]) -> None:
        """Returns when all are acknowledged.

        Raises:
            PublishFailed: one was not; it is sent again, as the position has not moved.
        """
        if self._publisher is None:
            self._publisher = Publisher(self._kafka, "dead-letters")
        outputs = [_output(processor, topic, partition, letter) for letter in letters]
        await self._publisher.publish(self.topic, 0, outputs)

    def close(self) -> None:
        """Lets the producer go."""
        if self._publisher is not None:
            self._publisher.close()


def _output(processor: str, topic: str, partition: int, letter: DeadLetter) -> Output:
    record = {
        "processor": processor,
        "topic": topic,
        "partition": partition,
        "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms,
        "reason": letter.reason,
        "key": letter.key,
        "headers": [{"name": name, "value": value or b""} for name, value in letter.headers],
        "sha256": hashlib.sha256(letter.value).digest(),
        "sample": letter.value[:SAMPLE_BYTES_MAX],
        "size_bytes": len(letter.value),
    }
    return Output(f"{processor}/{topic}/{partition}/{letter.offset}".encode(), encode("DeadLetter", record), [])
