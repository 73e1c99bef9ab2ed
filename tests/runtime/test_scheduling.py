from __future__ import annotations

import os
import sys
import threading

import pytest

from everfold.runtime.scheduling import give_way, starting_threads_that_give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the batch policy")


def policy_in_a_thread(prepare: bool = False) -> int:
    seen: list[int] = []

    def look() -> None:
        if prepare:
            give_way()
        seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return seen[0]


def test_threads_started_within_give_way_and_later_ones_do_not() -> None:
    assert policy_in_a_thread() == os.SCHED_OTHER
    with starting_threads_that_give_way():
        assert policy_in_a_thread() == os.SCHED_BATCH
    assert policy_in_a_thread() == os.SCHED_OTHER


def test_the_starting_thread_itself_stays_as_it_was() -> None:
    with pytest.raises(RuntimeError), starting_threads_that_give_way():
        raise RuntimeError
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_thread_may_give_way_for_good() -> None:
    assert policy_in_a_thread(prepare=True) == os.SCHED_BATCH


def test_a_forbidden_policy_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    give_way()
    with starting_threads_that_give_way():
        assert policy_in_a_thread() == os.SCHED_OTHER
