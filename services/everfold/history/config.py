"""What the history process is told of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from everfold.history.ports import ShellLimits
from everfold.history.stopped import OnLostTail
from everfold.runtime.kafka.group import SESSION_MS
from everfold.runtime.kafka.producer import QUEUE_BYTES_MAX


@dataclass(frozen=True)
class HistoryConfig:
    """What the history process is told.

    Attributes:
        cluster_id: of this Everfold cluster; part of all ids.
        shard_count: partitions of `shard-log`, fixed when the cluster was made.
        data_dir: stores live here, one directory per shard.
        owner: for people, in ShardTaken.
        feature_level: to raise shards to; 0 leaves them as they are.
        settings: settings that change outcomes, by the fold's names (`kernel.limits`); others have their defaults.
        run_cache_bytes: decoded runs in memory, over all shards.
        run_cache_runs: the same as a number of runs; 0 leaves it to the bytes.
        block_cache_bytes, write_buffer_bytes: RocksDB's, over all shards.
        flush_interval_s: memtables go to disk this often: bounds what a crash has to refold. At most 60 s.
        producer_bytes_max: records waiting for Kafka, over all producers.
        outputs_linger_ms: how long outputs wait for company that no workflow waits for; a request per record is most of
            a broker's work under light load.
        tasks_linger: whether task records are among those: where all of matching is in this process, tasks are handed
            over directly, and their records only serve its next life.
        session_ms: how long this process may be silent before others get its shards.
        instance: its name in the group in every life; see `GroupMembership`.
        on_lost_tail: what to do when a log lacks what was acknowledged.
    """

    cluster_id: str
    shard_count: int
    data_dir: Path
    owner: str
    feature_level: int = 0
    settings: Mapping[str, int] = field(default_factory=dict)
    run_cache_bytes: int = 128 * 1024 * 1024
    run_cache_runs: int = 0
    block_cache_bytes: int = 32 * 1024 * 1024
    write_buffer_bytes: int = 32 * 1024 * 1024
    flush_interval_s: float = 5.0
    producer_bytes_max: int = QUEUE_BYTES_MAX
    outputs_linger_ms: float = 100.0
    tasks_linger: bool = False
    session_ms: int = SESSION_MS
    instance: str = ""
    on_lost_tail: OnLostTail = OnLostTail.STOP
    limits: ShellLimits = field(default_factory=ShellLimits)
