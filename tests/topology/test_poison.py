"""One record that cannot be taken stops no processor: over a real broker, in a real worker."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from confluent_kafka import Producer

from everfold.schemas import registry
from everfold.schemas.codec import decode, head
from everfold.schemas.topics import DEAD_LETTERS, EVENTS, HISTORY, VISIBILITY
from topology.source import Shard, Source
from topology.worker import WorkerProcess, await_that, read_all

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]
STARTED_S = 120

NEWER = head(registry.ID_LAST) + b"from a later Everfold"
JUNK = (b"junk", b"", head(7) + b"of a registry", head(0x45560001) + b"\0", b"\0EV")


def letters(source: Source) -> list[dict[str, Any]]:
    (records,) = read_all(source.bootstrap, source.prefix + DEAD_LETTERS.name, 1)
    return [decode(record.value())[1] for record in records]


def spoilt(shard: Shard, topic: str) -> dict[str, Any]:
    """A well-formed record, next in its chain, of which the processor can make nothing."""
    fields = next(fields for name, fields in shard.workflow("spoilt", steps=1) if name == topic)
    if topic == HISTORY.name:
        return {**fields, "events": [{**event, "event": b"\xff\xff"} for event in fields["events"]]}
    return {**fields, "search_attributes": b"\xff\xff"}


def send(source: Source, shard: int, name: str) -> None:
    for topic, fields in source.shards[shard].workflow(name):
        source.send(shard, topic, fields)


def foreign_transaction(source: Source, topic: str, partition: int) -> None:
    """Somebody produces there in transactions, which leave offsets that nobody is given."""
    producer = Producer({"bootstrap.servers": source.bootstrap, "transactional.id": source.prefix + topic})
    producer.init_transactions(30)
    for commit in (True, False):
        producer.begin_transaction()
        producer.produce(source.prefix + topic, b"in a transaction", b"key", partition)
        producer.flush(30)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)


def test_poison_is_put_aside_and_a_newer_record_holds_up_one_partition_alone(
    source: Source, workers: list[WorkerProcess]
) -> None:
    worker = workers[0]
    for topic in (HISTORY.name, VISIBILITY.name):
        send(source, 1, f"before-{topic}")
        for value in JUNK:
            source.send_raw(1, topic, value)
        source.flush()
        foreign_transaction(source, topic, 1)
        source.send(1, topic, spoilt(source.shards[1], topic))
        send(source, 1, f"behind-{topic}")
        source.send_raw(2, topic, NEWER)
    foreign_transaction(source, EVENTS.name, 1)
    send(source, 2, "waits")
    send(source, 3, "elsewhere")
    source.flush()
    expected = {f"{when}-{topic}" for when in ("before", "behind") for topic in (HISTORY.name, VISIBILITY.name)}

    def listed(*more: str) -> bool:
        return {*expected, "elsewhere", *more} <= {*worker.listed()}

    for life in ("first", "second"):
        worker.start()
        await_that(listed, STARTED_S, worker.log()[-3000:])
        await_that(lambda: worker.log().count("held up") >= 2, STARTED_S, worker.log()[-3000:])
        send(source, 1, life)
        source.flush()
        await_that(partial(listed, life), STARTED_S, worker.log()[-3000:])
        assert "waits" not in worker.listed()
        assert "upgrade this worker" in worker.log()
        assert worker.process is not None
        assert worker.process.poll() is None
        worker.kill()
    found = letters(source)
    for topic, processor in ((HISTORY.name, "events"), (VISIBILITY.name, "index")):
        by_offset = {letter["offset"]: letter for letter in found if letter["topic"] == source.prefix + topic}
        of_topic = [by_offset[offset] for offset in sorted(by_offset)]
        assert {(letter["processor"], letter["partition"]) for letter in of_topic} == {(processor, 1)}
        samples = [letter["sample"] for letter in of_topic]
        # Committed or not, a record of a foreign transaction is a record: the engine uses none, and waits for none.
        assert samples[: len(JUNK)] == list(JUNK)
        assert samples[len(JUNK) : -1] == [b"in a transaction"] * 2, samples
        assert "cannot be taken: DecodeError" in of_topic[-1]["reason"]
