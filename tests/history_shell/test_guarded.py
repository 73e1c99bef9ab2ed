"""Whatever fails in what calls back into a shard gives the shard up, and the next owner has everything.

The kinds of callbacks are met by living through all of them, so that none can be forgotten here. The faults are put
inside of the guard: without it each of them comes out of the loop, which is `World.run` here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from everfold.history import shard as shard_module
from everfold.history.guarded import guarded
from everfold.history.machine.step import RunKey
from everfold.kernel.errors import StatusError
from everfold.kernel.ids import shard_of
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas.topics import COMMANDS, SHARD_LOG
from history_shell.messages import run_id_of, signal, start
from history_shell.test_handed_out import Worker
from history_shell.test_ingress import command, put
from history_shell.world import DictStore, Owner, World

KINDS = (
    "Barrier._answered",
    "Barrier._answered.<locals>.again",
    "Chains._delivered",
    "Chains._pause.<locals>.wake",
    "HandedOut._look",
    "Ingress._go_on",
    "Ingress._look_up.<locals>.done",
    "Ingress._on_commands",
    "Ingress._pass_on.<locals>.delivered",
    "SentAnnouncer._fire",
    "Shard._append.<locals>.delivered",
    "Shard._offer_tasks_again",
    "Taking._again.<locals>.run",
    "Taking._end_known",
    "Taking._end_known_again",
    "Timers._alarm",
)
"""All that a shard registers with the world, by the function that is called."""

WRONG = next(f"w{n}" for n in range(100) if shard_of("default", f"w{n}", 2) == 1)
RIGHT = [f"w{n}" for n in range(100) if shard_of("default", f"w{n}", 2) == 0]


class Fault(Exception):
    """A defect."""


class Faults:
    """Stands between each guard and its callback.

    Attributes:
        met: the kinds of callbacks that were called.
        fails: the kind whose next call fails.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.met: set[str] = set()
        self.fails = ""
        monkeypatch.setattr(shard_module, "guarded", self._guarded)

    def _guarded(self, callback: Callable[..., None], fail: Callable[[Exception], None]) -> Callable[..., None]:
        kind = (callback.func if isinstance(callback, partial) else callback).__qualname__

        def faulty(*arguments: Any) -> None:
            self.met.add(kind)
            if kind == self.fails:
                self.fails = ""
                raise Fault(kind)
            callback(*arguments)

        return guarded(faulty, fail)


class Life:
    """A shard's life in which every kind of callback is called. Whenever it is given up, another owner goes on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = DictStore()
        self.losses: list[BaseException] = []
        Owner(world, 0, 2).take().crash()  # leaves a log that is folded anew
        world.run(SECOND_NS)
        self.owner = self._new()

    def _new(self) -> Owner:
        owner = Owner(self.world, 0, 2, store=self.store)
        owner.namespaces.after_refresh = {"namespace-2": ("new", 1)}
        return owner

    def run(self) -> None:
        for _ in self.stages():
            self.goes_on()

    def goes_on(self) -> None:
        """The present owner serves, or the next one that does."""
        while True:
            self.world.run_until(lambda: self.owner.served or self.owner.lost)
            if self.owner.lost is None:
                break
            self.losses.append(self.owner.lost)
            self.owner.crash()
            self.owner = self._new().take(wait=False)
        if self.owner.ingress is None:
            self.owner.open_ingress()
        self.world.run(5 * MILLISECOND_NS)

    def stages(self) -> Iterator[None]:
        world = self.world
        world.answers_ends = False
        self.owner.take(wait=False)
        self.owner.reader.pause()
        world.run(SECOND_NS)
        world.answers_ends = True
        world.run(7 * SECOND_NS)
        self.owner.reader.resume()
        yield
        # each way of a command, and Kafka in trouble
        world.fates[COMMANDS.name] = ["lost"]
        world.fates[SHARD_LOG.name] = ["ok", "lost"]
        put(world, command("StartWorkflow", RIGHT[0]))
        put(world, command("StartWorkflow", RIGHT[1], namespace="new"))
        put(world, command("StartWorkflow", WRONG))
        world.run(2 * SECOND_NS)
        yield
        # a worker that is slow, a run that times out, outputs that are sent
        worker = Worker(world, self.owner)
        worker.take()
        self.owner.propose("START_WORKFLOW", start(RIGHT[2], "r2", run_timeout_s=1), RIGHT[2])
        world.run(3 * SECOND_NS)
        yield
        world.answers_ends = False
        self.owner.shard.read(("namespace-1", RIGHT[0]), self._read)
        world.run(SECOND_NS)
        world.answers_ends = True
        world.run(SECOND_NS)
        yield
        # the next owner offers tasks again, which the log does not take at once
        self.owner.crash()
        world.epoch = 1
        self.owner = owner = self._new()

        def served() -> None:
            owner.served = world.full = True

        owner.on_serving = served  # type: ignore[method-assign]
        owner.take()
        world.run(SECOND_NS // 2)
        world.full = False
        world.run(3 * SECOND_NS)
        yield

    def _read(self, error: StatusError | None) -> None:
        pass


def test_every_kind_of_callback_is_known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(monkeypatch)
    life = Life(World())
    life.run()
    assert life.losses == []
    assert sorted(faults.met) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_a_callback_costs_the_shard_and_no_command(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    world = World()
    life = Life(world)
    Faults(monkeypatch).fails = kind
    life.run()
    assert [str(loss) for loss in life.losses] == [kind]
    assert all(isinstance(loss, Fault) for loss in life.losses)
    fold = life.owner.fold
    assert fold.meta.commands_offset == 2
    assert fold.run("namespace-1", "default", RIGHT[0], "") is not None
    assert fold.run("namespace-2", "new", RIGHT[1], "") is not None
    assert world.logs[COMMANDS.name, 1]


HOOKS = ("after_batch", "on_verdict", "wake", "serving", "offers", "settled")


@pytest.mark.parametrize("hook", HOOKS)
def test_a_fault_in_a_hook_costs_the_shard_and_comes_no_further(hook: str) -> None:
    def fault(*_: Any) -> None:
        raise Fault(hook)

    world = World()
    owner = Owner(world)
    if hook == "serving":
        owner.on_serving = fault  # type: ignore[method-assign]
    if hook == "offers":
        owner.on_offers = fault  # type: ignore[method-assign]
    owner.take(wait=False)
    if hook == "settled":
        owner.shard.when_settled(fault)
    world.run_until(lambda: owner.shard.serving or owner.lost)
    applied = owner.fold.meta.applied_offset
    if hook == "after_batch":
        owner.shard.after_batch.append(fault)
    elif hook == "wake":
        verdicts = owner.propose("START_WORKFLOW", start())
        world.run_until(lambda: verdicts)
        run = RunKey("namespace-1", "w", run_id_of(verdicts[0].response))  # type: ignore[union-attr]
        assert owner.shard.waiters.park(run, fault) is not None
        owner.propose("SIGNAL_WORKFLOW", signal())
    if owner.lost is None:
        on_verdict = fault if hook == "on_verdict" else lambda _: None
        owner.shard.propose("START_WORKFLOW", "namespace-1", "w", "", {"message": start()}, on_verdict)
        world.run(SECOND_NS)
    assert isinstance(owner.lost, Fault)
    again = Owner(world, store=owner.store).take()
    world.run(SECOND_NS)
    assert again.fold.meta.applied_offset > applied
    assert again.lost is None


def test_a_fault_at_the_end_of_a_shard_does_not_keep_the_others_from_hearing_of_it() -> None:
    world = World()
    owner = Owner(world).take()
    heard: list[Any] = []

    def fault(*_: Any) -> None:
        raise Fault("at the end")

    owner.shard.propose("START_WORKFLOW", "namespace-1", "w", "", {"message": start()}, fault)
    owner.shard.on_close += [fault, heard.append]
    owner.shard.fail(RuntimeError("a disk"))
    assert len(heard) == 1
    assert str(owner.lost) == "a disk"


def test_a_request_that_cannot_be_encoded_is_its_callers_trouble_and_leaves_nothing_behind() -> None:
    world = World()
    owner = Owner(world).take()
    verdicts = owner.propose("START_WORKFLOW", start())
    world.run_until(lambda: verdicts)
    with pytest.raises(UnicodeEncodeError):
        owner.shard.propose("START_WORKFLOW", "namespace-1", "w\ud800", "", {"message": start()}, verdicts.append)
    assert owner.shard.in_flight == 0
    assert owner.lost is None
