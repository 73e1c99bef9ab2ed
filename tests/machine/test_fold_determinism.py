"""One log has one meaning: however it is folded, the same rows, hash, outputs and replies come out of it (law 2)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_logs import CHOICES, SHARDS, WORKFLOWS, Player, Program, digest, plain, program_of
from shard_driver import NAMESPACE_ID, DictRows
from temporalio.api.enums.v1.event_type_pb2 import EventType

from everfold.history.machine import keys, reads
from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.history.machine.state import Run, decode_run
from everfold.kernel.ids import SLOTS
from everfold.schemas.topics import (
    ACTIVITY_TASKS,
    COMMANDS_REJECTED,
    HISTORY,
    SHARD_LOG,
    VISIBILITY,
    WORKFLOW_TASKS,
)

PROGRAMS: st.SearchStrategy[Program] = st.lists(
    st.tuples(st.sampled_from(CHOICES), st.lists(st.integers(0, 255), max_size=24)), min_size=10, max_size=60
)


def logs_of_many_programs(count: int, length: int) -> Iterator[Player]:
    for seed in range(count):
        player = Player()
        player.play(program_of(seed, length))
        yield player


def in_one_go(log: list[LogRecord], said: list[dict[str, object]]) -> DictRows:
    """No row is written before the end, and no run is kept decoded but the last."""
    rows = DictRows()
    fold = ShardFold(0, rows, 1)
    for record, expected in zip(log, said, strict=True):
        assert plain(fold.fold(record)) == expected, f"offset {record.offset}"
    rows.write(fold.take_writes())
    return rows


def with_restarts(log: list[LogRecord], said: list[dict[str, object]], choose: Random) -> DictRows:
    """Batches of any size, reads at any time, and processes that stop cleanly or die with a batch not yet written."""
    rows = DictRows()
    fold = ShardFold(0, rows, choose.choice((1, 1 << 20)))
    while fold.meta.applied_offset + 1 < len(log):
        at = fold.meta.applied_offset + 1
        for record, expected in zip(log[at : at + choose.randrange(1, 12)], said[at:], strict=False):
            assert plain(fold.fold(record)) == expected, f"offset {record.offset}"
            if choose.random() < 0.2:
                look_around(fold)
        dies = choose.random() < 0.2
        if not dies:
            rows.write(fold.take_writes())
            fold.written()
        if dies or choose.random() < 0.3:
            fold = ShardFold(0, rows, choose.choice((1, 1 << 20)))
    return rows


def look_around(fold: ShardFold) -> None:
    """What the shell asks a fold between records must change nothing."""
    fold.next_timer()
    fold.due_timers(1 << 62, 3)
    fold.outbox(None, 3)
    fold.unrecorded_tasks()
    for workflow_id in WORKFLOWS:
        run = fold.run(NAMESPACE_ID, "default", workflow_id, "")
        if run is not None:
            reads.events_of(fold, run)


@settings(max_examples=70, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(program=PROGRAMS, seed=st.integers(0, 1 << 16))
def test_a_log_means_the_same_whatever_is_cached_written_or_restarted_meanwhile(program: Program, seed: int) -> None:
    player = Player()
    player.play(program)
    note(f"{len(player.log)} records")
    said = [plain(step) for step in player.steps]
    assert in_one_go(player.log, said).rows == player.store.rows
    assert with_restarts(player.log, said, Random(seed)).rows == player.store.rows


def test_a_long_log_means_the_same_as_well() -> None:
    for player in logs_of_many_programs(4, 300):
        said = [plain(step) for step in player.steps]
        assert in_one_go(player.log, said).rows == player.store.rows
        assert with_restarts(player.log, said, Random(len(said))).rows == player.store.rows


def test_another_process_with_other_hashes_folds_a_log_to_the_same(tmp_path: Path) -> None:
    """Sets and hashes of text have an order of their own in every process."""
    logs = [player.log for player in logs_of_many_programs(8, 250)]
    file = tmp_path / "logs"
    file.write_bytes(pickle.dumps(logs))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("random_logs.py")), str(file)],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [digest(log) for log in logs], done.stderr


def test_the_programs_reach_what_they_are_meant_to_reach() -> None:
    """Programs that are refused from the first step on would make all of the above hold of nothing."""
    types: set[str] = set()
    topics: set[str] = set()
    for player in logs_of_many_programs(12, 200):
        topics |= {row.topic for step in player.steps for row in step.outputs}
        for run in runs_of(player.fold):
            types |= {EventType.Name(event.event_type) for event in reads.events_of(player.fold, run)}
        assert player.defects == []
    every = (COMMANDS_REJECTED, HISTORY, SHARD_LOG, WORKFLOW_TASKS, ACTIVITY_TASKS, VISIBILITY)
    assert topics == {topic.name for topic in every}
    assert len(types) >= 30, sorted(types)


def runs_of(fold: ShardFold) -> Iterator[Run]:
    for slot in range(0, SLOTS, SHARDS):
        for _, row in fold.rows.scan(*keys.kind_of_slot(slot, b"r")):
            yield decode_run(row)
