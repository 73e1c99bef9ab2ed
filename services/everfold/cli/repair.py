"""`everfold shard repair`: an operator lets go the tail that a shard's log has lost."""

from __future__ import annotations

import asyncio
import getpass
import os
import time

import click
from confluent_kafka import Message

from everfold.history.machine.shard_meta import ShardMeta
from everfold.history.tail import LogFacts, Tail
from everfold.kernel.errors import ShardLost
from everfold.kernel.positions import ShardPosition, without_tail
from everfold.runtime.cluster_topic import ClusterTopic
from everfold.runtime.kafka import EndOffsets, KafkaSettings, KafkaTrouble, LogConsumer, Producer
from everfold.runtime.lifecycle import Fatal
from everfold.runtime.membership import Member, new_member_id
from everfold.schemas.topics import SHARD_LOG

_READ_S = 20.0

NO_KEEP_STORE = (
    "--keep-store is not possible: inputs that only a store has seen cannot be appended to the log again, since ids "
    "are made from places in the log. It needs snapshots, which Everfold does not have yet. --keep-log renames the "
    "store's directory and deletes nothing."
)


def repair(kafka: KafkaSettings, shard: int, *, keep_log: bool) -> None:
    """Say what the log lacks, and with `keep_log` let it go.

    Raises:
        Fatal: there is no such shard, nothing is lost, or Kafka does not answer.
    """
    try:
        asyncio.run(_repair(kafka, shard, keep_log=keep_log))
    except KafkaTrouble as error:
        raise Fatal(str(error)) from None


async def _repair(kafka: KafkaSettings, shard: int, *, keep_log: bool) -> None:
    ends, producer = EndOffsets(kafka, name="repair"), Producer(kafka, name="repair")
    topic = ClusterTopic(kafka, producer, ends, Member(new_member_id()))
    try:
        await topic.read()
        known = await topic.position(shard)
        log_topic = kafka.topic(SHARD_LOG)
        if known is None:
            raise Fatal(
                f"Nobody has said how far the log of shard {shard} was folded. If a process says that the shard is "
                "stopped, try again while it runs; else look at the number of the shard and at --kafka."
            )
        end = await ends.end_offset(log_topic, shard)
        topic_id = await ends.topic_id(log_topic)
        missing = await _missing(kafka, log_topic, known, end, topic_id)
        if missing is None:
            raise Fatal(
                f"The log of shard {shard} has what was folded of it: up to offset {known.offset}, of {end}. There is "
                "nothing to repair. If the shard is not served, the log of its owner says why."
            )
        click.echo(f"{str(missing)[0].upper()}{str(missing)[1:]}.")
        if not keep_log:
            raise Fatal("Nothing was changed. To let the missing records go: --keep-log.")
        by = f"{getpass.getuser()}@{os.uname().nodename}"
        await topic.settle(without_tail(known, end=end, topic_id=topic_id, at_ns=time.time_ns(), by=by))
        click.echo(
            "They are let go. Owners set stores of that tail aside (renamed and kept), and fold the log as it is; a "
            "stopped shard is taken again within seconds."
        )
    finally:
        await topic.stop_reading()
        await producer.close()
        ends.close()


async def _missing(
    kafka: KafkaSettings, log_topic: str, known: ShardPosition, end: int, topic_id: str
) -> ShardLost | None:
    """What the log lacks, by the checks of those who take the shard, with an empty store."""
    tail = Tail(ShardMeta(known.shard), LogFacts(known, topic_id), enabled=True)
    wrong = tail.of_topic() or tail.of_end(end)
    if wrong is not None or known.offset < 0 or known.epoch < 0:
        return wrong
    return tail.folded(known.offset, await _epoch_at(kafka, log_topic, known), known.state_hash)


async def _epoch_at(kafka: KafkaSettings, log_topic: str, known: ShardPosition) -> int:
    read: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def batch(messages: list[Message]) -> None:
        if not read.done():
            epoch = messages[0].leader_epoch()
            read.set_result(-1 if epoch is None else epoch)

    consumer = LogConsumer(kafka, name="repair-log", on_batch=batch, batch_records_max=1)
    await consumer.start()
    try:
        consumer.assign(log_topic, known.shard, known.offset)
        return await asyncio.wait_for(read, _READ_S)
    except TimeoutError:
        raise Fatal(f"{log_topic}[{known.shard}] could not be read at offset {known.offset}.") from None
    finally:
        await consumer.stop()
