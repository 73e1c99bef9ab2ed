"""The run cache: what it keeps, and what goes first."""

from __future__ import annotations

from everfold.history.machine.cache import CLOSED_MAX, RUN_BYTES_MIN, RunCache
from everfold.history.machine.state import Run, Status


def a_run(number: int, status: Status = Status.RUNNING) -> tuple[bytes, Run]:
    run = Run()
    run.status = status
    return b"%d" % number, run


def test_the_least_recently_used_run_goes_first() -> None:
    cache = RunCache(3 * RUN_BYTES_MIN)
    for number in range(3):
        cache.put(*a_run(number))
    assert cache.get(b"0") is not None
    cache.put(*a_run(3))
    assert cache.get(b"1") is None
    assert all(cache.get(key) is not None for key in (b"0", b"2", b"3"))
    assert cache.bytes == 3 * RUN_BYTES_MIN


def test_only_the_last_closed_runs_are_kept_while_there_is_room_for_open_ones() -> None:
    cache = RunCache(1 << 30)
    cache.put(*a_run(-1))
    for number in range(CLOSED_MAX + 10):
        key, run = a_run(number)
        cache.put(key, run)
        run.status = Status.COMPLETED
        cache.put(key, run)
    assert len(cache) == CLOSED_MAX + 1
    assert cache.get(b"-1") is not None
    assert cache.get(b"9") is None
    assert cache.get(b"10") is not None
    assert cache.bytes == (CLOSED_MAX + 1) * RUN_BYTES_MIN


def test_a_run_that_is_forgotten_frees_its_place_among_the_closed() -> None:
    cache = RunCache(1 << 30)
    for number in range(CLOSED_MAX):
        cache.put(*a_run(number, Status.COMPLETED))
    cache.drop(b"0")
    cache.put(*a_run(CLOSED_MAX, Status.COMPLETED))
    assert cache.get(b"1") is not None
    assert len(cache) == CLOSED_MAX
