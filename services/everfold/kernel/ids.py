"""Who is where: slots, shards, task partitions, origins, and ids derived from a place in the log.

A workflow id belongs to one of 4096 slots for ever; slots map onto the S shards of a cluster (S a power of two), and a
shard is a Kafka partition. The slot is murmur2 of the record key `namespace/workflow_id`, so that Kafka's own default
partitioner (Java's, or `murmur2_random` in librdkafka) sends an outsider's record to the very shard that owns it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final, NamedTuple

SLOTS: Final = 4096
"""Fixed for ever: slot numbers are the prefix of the keys in the shards' stores."""


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 (org.apache.kafka.common.utils.Utils.murmur2), unsigned."""
    length = len(data)
    m = 0x5BD1E995
    h = (0x9747B28C ^ length) & 0xFFFFFFFF
    end = length & ~3
    for i in range(0, end, 4):
        k = (data[i] | data[i + 1] << 8 | data[i + 2] << 16 | data[i + 3] << 24) * m & 0xFFFFFFFF
        k = (k ^ (k >> 24)) * m & 0xFFFFFFFF
        h = (h * m & 0xFFFFFFFF) ^ k
    rest = length & 3
    if rest == 3:
        h ^= data[end + 2] << 16
    if rest >= 2:
        h ^= data[end + 1] << 8
    if rest >= 1:
        h = (h ^ data[end]) * m & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * m & 0xFFFFFFFF
    return h ^ (h >> 15)


def record_key(namespace: str, workflow_id: str) -> bytes:
    """The Kafka key of everything about a workflow id: the namespace's *name*, a slash, the workflow id."""
    return f"{namespace}/{workflow_id}".encode()


# murmur2 in Python costs as much as the rest of a call's routing, so that names are remembered. Callers refuse those
# over `limit.maxIDLength` before they ask.
@lru_cache(maxsize=16_384)
def slot_of(namespace: str, workflow_id: str) -> int:
    """The slot (0..4095) of a workflow id in a namespace, given by name."""
    return (murmur2(record_key(namespace, workflow_id)) & 0x7FFFFFFF) % SLOTS


def shard_of(namespace: str, workflow_id: str, shard_count: int) -> int:
    """The shard (= Kafka partition) of a workflow id. The same as Kafka's default partitioner's."""
    return slot_of(namespace, workflow_id) % shard_count


@lru_cache(maxsize=8_192)
def task_partition(namespace_id: str, task_queue: str, task_partitions: int, queue_partition: int = 0) -> int:
    """The partition of the task topics, and so the matching owner, of a task queue (both types alike)."""
    return (murmur2(f"{namespace_id}/{task_queue}/{queue_partition}".encode()) & 0x7FFFFFFF) % task_partitions


class Origin(NamedTuple):
    """Where an output or a message was made. Ordered: of one source and partition, a later origin compares greater.

    Attributes:
        source: "SHARD_LOG" or "COMMANDS".
        partition: the shard, or the partition of `commands`.
        epoch: the leader epoch of the record that made it.
        offset: the offset of that record.
        index: the output's number within that step, from 0.
    """

    source: str
    partition: int
    epoch: int
    offset: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an origin

    @property
    def place(self) -> tuple[int, int, int]:
        """What is compared between origins of one source and partition."""
        return (self.epoch, self.offset, self.index)


def derived_uuid(cluster_id: str, shard: int, epoch: int, offset: int, index: int, at_ns: int) -> str:
    """A UUID made from a place in the log and the shard's time there, so that every fold of the record makes the same.

    Version 7 of RFC 9562, as a real server's run ids are: the milliseconds of the time, then bits of the place's hash
    where others put random ones.
    """
    seed = f"{cluster_id}/{shard}/{epoch}/{offset}/{index}".encode()
    raw = bytearray(hashlib.blake2b(seed, digest_size=16).digest())
    raw[:6] = (at_ns // 1_000_000 & 0xFFFF_FFFF_FFFF).to_bytes(6, "big")
    raw[6] = (raw[6] & 0x0F) | 0x70
    raw[8] = (raw[8] & 0x3F) | 0x80
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
