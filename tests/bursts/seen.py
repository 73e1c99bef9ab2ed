"""What commands came to, as anybody sees it who reads the topic `history`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from confluent_kafka import Consumer, TopicPartition

from everfold.schemas import codec

HISTORY = "everfold.history"
REJECTED = "everfold.commands-rejected"


class Seen:
    """Counts starts and signals in the histories of all workflows, each output once (architecture, law 6).

    Attributes:
        starts: WorkflowExecutionStarted by workflow id.
        signals: WorkflowExecutionSignaled by workflow id.
    """

    def __init__(self, bootstrap: str, shards: int) -> None:
        self.starts: Counter[str] = Counter()
        self.signals: Counter[str] = Counter()
        self._last: dict[int, tuple[int, int, int]] = {}
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bursts", "enable.auto.commit": False})
        self._consumer.assign([TopicPartition(HISTORY, number, 0) for number in range(shards)])

    def close(self) -> None:
        self._consumer.close()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Read on until the condition holds: whether it does in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            for record in self._consumer.consume(1000, 0.1):
                value = record.value()
                if record.error() is None and value is not None:
                    self._take(value)
        return True

    def rejected(self) -> int:
        """How many commands are on the topic of rejections."""
        watermarks = self._consumer.get_watermark_offsets(TopicPartition(REJECTED, 0), timeout=10)
        assert watermarks is not None
        return int(watermarks[1])

    def _take(self, value: bytes) -> None:
        batch = codec.decode(value)[1]
        origin = batch["origin"]
        place = (origin["epoch"], origin["offset"], origin["index"])
        if place <= self._last.get(origin["partition"], (-1, -1, -1)):
            return
        self._last[origin["partition"]] = place
        for event in batch["events"]:
            if event["event_type"] == "WORKFLOW_EXECUTION_STARTED":
                self.starts[batch["workflow_id"]] += 1
            elif event["event_type"] == "WORKFLOW_EXECUTION_SIGNALED":
                self.signals[batch["workflow_id"]] += 1
