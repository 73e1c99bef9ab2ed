"""`history` to `events`, over a publisher that is a list."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from everfold.kernel.ids import record_key
from everfold.runtime.kafka import KafkaSettings
from everfold.schemas.codec import decode
from everfold.schemas.topics import HISTORY
from everfold.topology import events as module
from everfold.topology.events import ORIGIN, PREDECESSOR, SOURCE, TypedEvents, parse_place
from everfold.topology.projection import Batch, Watermarks
from everfold.topology.publisher import Output, Publisher, PublishFailed, Tail
from everfold.topology.state import ProcessorState
from topology.source import EVENTS_PER_WORKFLOW, Shard, encode
from topology.test_projection import Rec


class Topic:
    """A partition of `events`, and the publisher to it."""

    def __init__(self) -> None:
        self.records: list[Output] = []
        self.fail_after: int | None = None

    async def publish(self, topic: str, partition: int, outputs: Iterable[Output]) -> None:
        assert (topic, partition) == ("p.events", 3)
        for output in outputs:
            if self.fail_after is not None and len(self.records) >= self.fail_after:
                raise PublishFailed("killed")
            self.records.append(output)

    def tails(self, *_arguments: Any) -> dict[int, Tail]:
        if not self.records:
            return {}
        headers = {name: value for name, value in self.records[-1].headers if isinstance(value, bytes)}
        return {3: Tail(len(self.records) - 1, headers)}

    def ids(self) -> list[tuple[int, int, int, int]]:
        return [parse_place(header(record, ORIGIN)) for record in self.records]


def header(record: Output, name: str) -> bytes:
    value = dict(record.headers)[name]
    assert isinstance(value, bytes)
    return value


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    made = Topic()
    monkeypatch.setattr(module, "read_tails", made.tails)
    return made


def history(workflows: int) -> list[Rec]:
    shard = Shard(3)
    outputs = [output for n in range(workflows) for output in shard.workflow(f"w{n}")]
    values = [encode(name, fields) for name, fields in outputs if name == HISTORY.name]
    return [Rec(offset, b"k", value) for offset, value in enumerate(values)]


async def worker(topic: Topic, path: Path, records: list[Rec], step: int) -> None:
    """One life of a worker: takes the partition, reads to the end."""
    state = ProcessorState(path)
    try:
        processor = TypedEvents(state, cast("Publisher", topic), KafkaSettings("", "p."))
        start = (await processor.open({3: Watermarks(0, len(records))}))[3]
        for at in range(start, len(records), step):
            await processor.process(Batch("p.history", 3, records[at : at + step]))
    finally:
        state.close()


def test_each_event_becomes_a_typed_record_in_a_chain(topic: Topic, tmp_path: Path) -> None:
    asyncio.run(worker(topic, tmp_path, history(2), step=4))
    assert len(topic.records) == 2 * EVENTS_PER_WORKFLOW
    decoded = [decode(record.value)[1] for record in topic.records]
    assert [event["event_id"] for event in decoded] == [*range(1, EVENTS_PER_WORKFLOW + 1)] * 2
    assert [event["event_type"] for event in decoded[:2]] == ["WORKFLOW_EXECUTION_STARTED", "WORKFLOW_TASK_SCHEDULED"]
    assert {event["workflow_id"] for event in decoded} == {"w0", "w1"}
    assert topic.records[0].key == record_key("default", "w0")
    assert header(topic.records[-1], SOURCE) == b"3:11"
    assert topic.ids() == sorted(set(topic.ids()))
    assert PREDECESSOR not in dict(topic.records[0].headers)
    before = [parse_place(header(record, PREDECESSOR)) for record in topic.records[1:]]
    assert before == topic.ids()[:-1]


@pytest.mark.parametrize("keep_state", [True, False])
@pytest.mark.parametrize("fail_after", [0, 1, 5, 6, 11, 12, 30])
def test_a_worker_killed_while_publishing_goes_on_behind_the_last_event_sent(
    topic: Topic, tmp_path: Path, fail_after: int, keep_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = history(4)
    topic.fail_after = fail_after
    with pytest.raises(PublishFailed):
        asyncio.run(worker(topic, tmp_path / "first", records, step=5))
    topic.fail_after = None
    asyncio.run(worker(topic, tmp_path / ("first" if keep_state else "second"), records, step=5))
    whole = Topic()
    monkeypatch.setattr(module, "read_tails", whole.tails)
    asyncio.run(worker(whole, tmp_path / "whole", records, step=100))
    assert topic.ids() == whole.ids(), "every event once, in order, without a repeat"
    assert [record.value for record in topic.records] == [record.value for record in whole.records]


def test_a_worker_whose_outputs_were_trimmed_goes_on_from_its_own_state(topic: Topic, tmp_path: Path) -> None:
    records = history(3)
    asyncio.run(worker(topic, tmp_path, records[:10], step=5))
    last = topic.ids()[-1]
    topic.records.clear()
    asyncio.run(worker(topic, tmp_path, records, step=5))
    assert parse_place(header(topic.records[0], PREDECESSOR)) == last
    assert topic.ids()[0] > last
