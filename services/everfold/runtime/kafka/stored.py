"""What a partition holds at an offset, batch by batch, as the broker stores it: for when a consumer cannot say.

A consumer is given records. Where there are none it says nothing of why: it may be a transaction's marker, a batch
whose checksum is broken, or nothing at all. The answer to a fetch has it: librdkafka does not show it, aiokafka's
protocol layer does. A connection is made for each look, as looks are rare.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from everfold.runtime.kafka.errors import KafkaUnavailable
from everfold.runtime.kafka.security import security_of
from everfold.runtime.kafka.settings import MESSAGE_BYTES_MAX, KafkaSettings

_LOOK_BYTES: Final = 64 * 1024
"""The broker gives a first batch whole, however large it is; there is no need to see many."""

_ANSWER_MS: Final = 10_000
"""A leader that takes longer is asked again."""

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
"""A batch's header in format 2: base offset, length, leader epoch, magic, CRC-32C of all that follows it, attributes,
last offset's distance, first and largest timestamp, producer id and epoch, first sequence, number of records."""

_BEHIND_LENGTH: Final = 12
_BEHIND_CRC: Final = 21
_CONTROL: Final = 1 << 5

_OUT_OF_RANGE: Final = 1
_CORRUPT: Final = 2


class StoredBatch(NamedTuple):
    """One batch in the log.

    Attributes:
        first, last: its offsets.
        epoch: of the leader that took it.
        timestamp_ms: its largest.
        records: how many it says it has.
        marker: whether it is a transaction's marker, of which consumers are told nothing.
        intact: whether its checksum holds. What a broken one says of itself may be wrong.
    """

    first: int
    last: int
    epoch: int
    timestamp_ms: int
    records: int
    marker: bool
    intact: bool


class Stored(NamedTuple):
    """What the leader answers.

    Attributes:
        batches: from the one that has the offset on, or the next one there is; not all up to the end.
        end: the partition's end; -1 where the broker does not say.
        unreadable: the broker itself stumbles over what it has there.
    """

    batches: list[StoredBatch]
    end: int
    unreadable: bool = False


async def stored_at(settings: KafkaSettings, topic: str, partition: int, offset: int) -> Stored:
    """Ask the leader what it has at an offset of a partition; `topic` is the full name.

    Raises:
        KafkaUnavailable: it did not answer.
    """
    security = security_of(settings.properties)
    client: Any = AIOKafkaClient(
        bootstrap_servers=settings.bootstrap.split(","),
        client_id=f"{settings.prefix}stored",
        request_timeout_ms=_ANSWER_MS,
        security_protocol=security.protocol.upper(),
        ssl_context=security.context,
        sasl_mechanism=security.mechanism or "PLAIN",
        sasl_plain_username=security.username or None,
        sasl_plain_password=security.password or None,
    )
    client.set_topics([topic])
    try:
        await client.bootstrap()
        await client.force_metadata_update()
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        if leader is None or leader < 0:
            raise KafkaUnavailable(f"{topic}[{partition}] has no leader")
        wanted = [(topic, [(partition, offset, _LOOK_BYTES)])]
        answer = await client.send(leader, FetchRequest(100, 1, MESSAGE_BYTES_MAX, 0, wanted))
    except (KafkaError, OSError, TimeoutError) as error:
        raise KafkaUnavailable(f"{topic}[{partition}]: {error}") from error
    finally:
        await client.close()
    ((_, (found,)),) = answer.topics
    code, end, data = found[1], found[2], found[-1] or b""
    if code not in (0, _OUT_OF_RANGE, _CORRUPT):
        raise KafkaUnavailable(f"{topic}[{partition}]: error {code}")  # of a leader that is changing
    return Stored([batch for batch in batches_in(data) if batch.last >= offset], end, code == _CORRUPT)


def batches_in(data: bytes) -> Iterator[StoredBatch]:
    """The batches of a fetch's answer, but for the last one if it is cut off."""
    at = 0
    while at + _HEADER.size <= len(data):
        first, length, epoch, magic, crc, attributes, distance, _, timestamp, *_, count = _HEADER.unpack_from(data, at)
        end = at + _BEHIND_LENGTH + length
        if end > len(data) and at:
            return
        intact = (
            magic == 2 and at + _HEADER.size <= end <= len(data) and calc_crc32c(data[at + _BEHIND_CRC : end]) == crc
        )
        yield StoredBatch(first, first + max(distance, 0), epoch, timestamp, count, bool(attributes & _CONTROL), intact)
        if end < at + _HEADER.size:
            return  # its length is broken: where the next one begins nobody can tell
        at = end
