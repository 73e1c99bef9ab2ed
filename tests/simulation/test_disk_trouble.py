"""What the simulator found about disks that fail: the shard is given up, since the next host may do better (law 9)."""

from __future__ import annotations

import pytest

from everfold.history.giving_up import Aftermath, aftermath
from everfold.history.machine import keys
from everfold.kernel.time import SECOND_NS
from history_shell import messages
from history_shell.world import Owner, World


class Trouble(Exception):
    """What rocksdict raises: a plain exception."""


def owner_with_a_timer() -> Owner:
    """A shard with a workflow whose run timeout is a minute away."""
    owner = Owner(World()).take()
    owner.propose("START_WORKFLOW", messages.start(run_timeout_s=60))
    owner.world.run(SECOND_NS)
    assert owner.lost is None
    return owner


def test_a_store_that_fails_inside_a_step_quarantines_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = owner_with_a_timer()
    get = owner.store.get
    failures = [Trouble("IO error")]

    def fail(key: bytes) -> bytes | None:
        if key[2:3] == b"c" and failures:
            raise failures.pop()
        return get(key)

    monkeypatch.setattr(owner.store, "get", fail)
    verdicts = owner.propose("SIGNAL_WORKFLOW", messages.signal())
    owner.world.run(SECOND_NS)
    assert owner.lost is not None
    assert aftermath(owner.lost) is Aftermath.AGAIN
    assert len(verdicts) == 1


def test_timers_that_cannot_be_read_at_an_alarm_give_the_shard_up(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = owner_with_a_timer()
    scan = owner.store.scan

    def fail(start: bytes, end: bytes, *, reverse: bool = False) -> object:
        if start.startswith(keys.TIMERS):
            raise Trouble("IO error")
        return scan(start, end, reverse=reverse)

    monkeypatch.setattr(owner.store, "scan", fail)
    owner.world.run(120 * SECOND_NS)
    assert isinstance(owner.lost, Trouble)
