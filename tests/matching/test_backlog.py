"""A long backlog: its tail on disk, its order and its memory kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.matching.machine import backlog
from everfold.matching.machine.backlog import Spill
from everfold.matching.spill import SqliteSpill
from matching.machine_table import MemorySpill, Table, task


@pytest.fixture(params=["memory", "sqlite"])
def spill(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spill]:
    if request.param == "memory":
        yield MemorySpill()
        return
    sqlite = SqliteSpill(tmp_path / "deep" / "backlog.sqlite")
    yield sqlite
    sqlite.close()
    assert not list(tmp_path.glob("**/*.sqlite*"))


def test_tasks_beyond_the_bound_go_to_disk_and_come_back_in_order(spill: Spill) -> None:
    table = Table(spill=spill, memory_tasks_max=50)
    tasks = [task(f"t{i:04}", age_s=2000 - i) for i in range(2000)]
    random.Random(7).shuffle(tasks)
    table.record(*tasks)
    assert table.backlog() == 2000
    assert len(table.partition.entries) <= 51
    assert table.drain() == [f"t{i:04}" for i in range(2000)]
    assert table.backlog() == 0
    assert table.partition.budget.used == 0


def test_tombstones_and_repeats_find_tasks_on_disk(spill: Spill) -> None:
    table = Table(spill=spill, memory_tasks_max=10)
    tasks = [task(f"t{i:03}", age_s=200 - i) for i in range(100)]
    table.record(*tasks)
    table.record(*tasks)
    assert table.backlog() == 100
    table.tombstone(*(f"t{i:03}" for i in range(100) if i % 3))
    assert table.drain() == [f"t{i:03}" for i in range(100) if not i % 3]


def test_a_backlog_whose_tasks_are_all_void_is_empty(spill: Spill) -> None:
    table = Table(spill=spill, memory_tasks_max=10)
    table.record(*(task(f"t{i}") for i in range(300)))
    table.tombstone(*(f"t{i}" for i in range(300)))
    assert table.backlog() == 0
    assert table.drain() == []
    assert table.partition.budget.used == 0


def test_dropped_entries_do_not_pile_up_in_memory() -> None:
    table = Table()
    table.record(task("keep"))
    for i in range(5000):
        table.record(task(f"t{i}"))
        table.tombstone(f"t{i}")
    queue = table.partition.queues["activity", "ns", "orders"]
    lane = queue.backlog._levels[3].lanes[""]
    assert len(lane.heap) < 200
    assert table.drain() == ["keep"]


@given(
    st.lists(st.tuples(st.sampled_from("rtp"), st.integers(0, 30), st.integers(0, 3), st.integers(0, 20)), max_size=120)
)
def test_a_small_memory_changes_nothing_but_where_tasks_wait(steps: list[tuple[str, int, int, int]]) -> None:
    """The same records, tombstones and polls with room for everything and with room for five tasks.

    Ages are distinct per task, as equal ones may leave in either order.
    """
    roomy, tight = Table(), Table(spill=MemorySpill(), memory_tasks_max=5)
    for kind, number, priority, age in steps:
        name = f"t{number}-{priority}-{age}"
        one = task(name, priority=priority, fairness=str(number % 3), age_s=age + number / 100)
        if kind == "r":
            assert roomy.record(one) == tight.record(one)
        elif kind == "t":
            assert roomy.tombstone(name) == tight.tombstone(name)
        else:
            served = roomy.poll("p")
            assert served == tight.poll("p")
            if served:
                for table in (roomy, tight):
                    table.partition.started(table.handed[served[0].split(" -> ")[0]])
            else:
                roomy.disconnect("p")
                tight.disconnect("p")
        if ("activity", "ns", "orders") in roomy.partition.queues:
            assert roomy.backlog() == tight.backlog()
    assert roomy.drain() == tight.drain()


def test_fairness_keys_beyond_the_bound_share_lanes_and_lose_nothing(
    spill: Spill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "LANES_MAX", 5)
    monkeypatch.setattr(backlog, "SHARED_LANES", 3)
    table = Table(spill=spill, memory_tasks_max=10)
    names = [f"t{i:03}" for i in range(100)]
    table.record(*(task(name, age_s=200 - i, fairness=f"key-{i}") for i, name in enumerate(names)))
    (queue,) = table.partition.queues.values()
    (level,) = queue.backlog._levels.values()
    assert len(level.lanes) <= 5 + 3
    table.tombstone(*names[::7])
    assert sorted(table.drain()) == [name for i, name in enumerate(names) if i % 7]
