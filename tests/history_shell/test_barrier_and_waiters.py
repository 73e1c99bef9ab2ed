"""Reads see what was acknowledged before they came; long polls wake when their run changes."""

from __future__ import annotations

import pytest

from everfold.history.machine.step import RunKey
from everfold.history.ports import ShellGuards
from everfold.history.waiters import Waiters
from everfold.kernel.errors import StatusError
from everfold.kernel.time import SECOND_NS
from everfold.schemas.topics import SHARD_LOG
from history_shell.messages import signal, start
from history_shell.world import WORKFLOW, Owner, World


@pytest.fixture
def world() -> World:
    return World()


def opened(world: World) -> Owner:
    owner = Owner(world).take()
    verdicts = owner.propose("START_WORKFLOW", start())
    world.run_until(lambda: verdicts)
    world.run(5 * SECOND_NS)
    return owner


def test_a_read_waits_until_records_of_another_owner_are_folded(world: World) -> None:
    owner = opened(world)
    other = Owner(world).take()
    acknowledged = other.propose("SIGNAL_WORKFLOW", signal())
    owner.reader.pause()
    world.run_until(lambda: acknowledged)
    end = len(world.logs[SHARD_LOG.name, 0])
    done: list[int] = []
    owner.shard.read(WORKFLOW, lambda error: done.append(owner.fold.meta.applied_offset))
    world.run(SECOND_NS)
    assert done == []
    owner.reader.resume()
    world.run_until(lambda: done)
    assert done[0] + 1 >= end


def test_without_the_barrier_a_read_is_stale(world: World) -> None:
    owner = Owner(world, guards=ShellGuards(read_barrier=False)).take()
    done: list[StatusError | None] = []
    owner.reader.pause()
    owner.shard.read(WORKFLOW, done.append)
    assert done == [None]


def test_reads_that_wait_share_one_question_and_later_ones_the_next(world: World) -> None:
    owner = opened(world)
    asked = world.questions
    done: list[StatusError | None] = []
    owner.shard.read(WORKFLOW, done.append)
    for _ in range(10):
        owner.shard.read(WORKFLOW, done.append)
    world.run_until(lambda: len(done) == 11)
    assert world.questions - asked == 2


def test_an_own_record_produced_after_the_read_came_releases_it(world: World) -> None:
    owner = opened(world)
    world.answers_ends = False
    done: list[StatusError | None] = []
    verdicts = owner.propose("SIGNAL_WORKFLOW", signal(request_id="before"))
    owner.shard.read(WORKFLOW, done.append)
    world.run_until(lambda: verdicts)
    assert done == []  # that record was produced before the read came: another owner may have answered meanwhile
    verdicts = owner.propose("SIGNAL_WORKFLOW", signal(request_id="after"))
    world.run_until(lambda: verdicts)
    assert done == [None]


def test_a_question_without_an_answer_is_asked_again(world: World) -> None:
    owner = opened(world)
    world.answers_ends = False
    done: list[StatusError | None] = []
    owner.shard.read(WORKFLOW, done.append)
    world.run(SECOND_NS)
    assert done == []
    world.answers_ends = True
    world.run(SECOND_NS)
    assert done == [None]


def test_a_read_that_was_given_up_is_not_called(world: World) -> None:
    owner = opened(world)
    done: list[StatusError | None] = []
    owner.shard.read(WORKFLOW, done.append).cancel()
    world.run(SECOND_NS)
    assert done == []
    assert len(owner.shard.barrier) == 0


def test_waiters_are_woken_once_by_a_change_of_their_run_only() -> None:
    waiters = Waiters(10)
    run, other = RunKey("n", "w", "r"), RunKey("n", "w", "other")
    woken: list[bool] = []
    assert waiters.park(run, woken.append) is not None
    waiters.changed([other])
    assert woken == []
    waiters.changed([run])
    waiters.changed([run])
    assert woken == [True]
    assert len(waiters) == 0


def test_waiters_are_bounded_and_forget_those_who_left() -> None:
    waiters = Waiters(2)
    run = RunKey("n", "w", "r")
    woken: list[bool] = []
    first = waiters.park(run, woken.append)
    assert waiters.park(run, woken.append) is not None
    assert waiters.park(run, woken.append) is None
    assert first is not None
    first.cancel()
    first.cancel()
    assert len(waiters) == 1
    waiters.close()
    assert woken == [False]


def test_a_step_wakes_the_long_polls_of_its_run(world: World) -> None:
    owner = opened(world)
    run = owner.offers[0]
    woken: list[bool] = []
    owner.shard.waiters.park(RunKey(run.namespace_id, run.workflow_id, run.run_id), woken.append)
    owner.propose("SIGNAL_WORKFLOW", signal())
    world.run(SECOND_NS)
    assert woken == [True]
