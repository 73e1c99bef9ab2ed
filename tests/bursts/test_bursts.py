"""Bursts of commands, each produced in one flush: every one of them has effect, and has it once.

Starts, some of them with a signal behind them, some of them on the wrong partition; with and without kill -9 of the
server in the middle, on 1 and 4 shards, up to 50,000 at a time. `make bursts` runs all of that, CI a short form. How
fast they are taken is printed, and how long an RPC took meanwhile.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import pytest
from confluent_kafka import KafkaError, Message, Producer

from bursts.conftest import Stand
from bursts.pulse import Pulse
from everfold.kernel.ids import record_key, shard_of
from everfold.schemas import codec

FULL = os.environ.get("EVERFOLD_BURSTS") == "full"
SMALL = [(1, False), (10, False), (200, False), (1_000, False)]
SHAPES = (
    {
        "1 shard": (1, [*SMALL, (50_000, False)]),
        "4 shards": (4, [*SMALL, (50_000, False)]),
        "1 shard, killed": (1, [(200, True), (1_000, True), (50_000, True)]),
        "4 shards, killed": (4, [(200, True), (1_000, True), (50_000, True)]),
    }
    if FULL
    else {"short": (4, [*SMALL, (1_000, True)])}
)
"""How many shards, and the bursts: how many starts, and whether the server is killed while it takes them."""

TAKEN_PER_SECOND_MIN = 50
"""On a machine that is busy with other things."""

SERVING_SECONDS = 90.0

pytestmark = [
    pytest.mark.integration,
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.timeout(3_600 if FULL else 300),
]


def command(workflow_id: str, name: str) -> bytes:
    bodies = {
        "StartWorkflow": {"workflow_type": "burst", "task_queue": "nobody"},
        "SignalWorkflow": {"signal_name": "go"},
    }
    return codec.encode(
        "Command",
        {
            "command_id": "",
            "namespace": "default",
            "workflow_id": workflow_id,
            "request_id": "",
            "body": (name, bodies[name]),
        },
    )


def produce(stand: Stand, name: str, size: int) -> set[str]:
    """One flush of `size` starts, and signals among them; returns which workflows are signalled."""
    producer = Producer(
        {
            "bootstrap.servers": stand.broker.bootstrap,
            "enable.idempotence": True,
            "linger.ms": 2_000,
            "queue.buffering.max.messages": 2 * size + 10,
        }
    )
    failed: list[KafkaError] = []
    signalled: set[str] = set()

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    for number in range(size):
        workflow_id = f"{name}-{number}"
        partition = shard_of("default", workflow_id, stand.shards)
        if number % 50 in (5, 10):
            partition = (partition + 1) % stand.shards
        kinds = ["StartWorkflow"]
        if number % 10 == 0:
            kinds.append("SignalWorkflow")
            signalled.add(workflow_id)
        for kind in kinds:
            producer.produce(
                "everfold.commands",
                command(workflow_id, kind),
                record_key("default", workflow_id),
                partition=partition,
                on_delivery=delivered,
            )
    assert producer.flush(120) == 0
    assert failed == []
    return signalled


class Played(NamedTuple):
    """A burst that was taken.

    Attributes:
        wanted: the workflows that were to be started.
        signalled: those of them that were to be signalled.
    """

    wanted: set[str]
    signalled: set[str]
    pulse: Pulse
    seconds: float

    def __str__(self) -> str:
        size = len(self.wanted)
        return (
            f"{size} starts and {len(self.signalled)} signals taken in {self.seconds:.1f} s "
            f"({size / self.seconds:.0f}/s); {len(self.pulse.acknowledged)} RPCs meanwhile, the slowest "
            f"{self.pulse.slowest_s:.2f} s"
        )


def play(stand: Stand, size: int, killed: bool) -> Played:
    """Produce a burst, kill the server in the middle of it or not, and wait until every command has had effect."""
    seen = stand.seen
    name = f"burst-{size}-{'killed' if killed else 'quiet'}"
    wanted = {f"{name}-{number}" for number in range(size)}
    pulse = Pulse(stand.server.address, f"{name}-rpc")
    with pulse.beating():
        began = time.monotonic()
        signalled = produce(stand, name, size)
        if killed:
            assert seen.wait_for(lambda: len(wanted & seen.starts.keys()) > size // 5, SERVING_SECONDS)
            stand.server.kill()
            stand.server.start(SERVING_SECONDS)
        complete = seen.wait_for(
            lambda: wanted <= seen.starts.keys() and signalled <= seen.signals.keys(),
            SERVING_SECONDS + size / TAKEN_PER_SECOND_MIN,
        )
        seconds = time.monotonic() - began
    assert complete, f"{len(wanted - seen.starts.keys())} of {size} are not started\n{stand.server.tail()}"
    return Played(wanted, signalled, pulse, seconds)


@pytest.mark.parametrize(("stand", "bursts"), SHAPES.values(), ids=SHAPES, indirect=["stand"])
def test_every_command_of_a_burst_has_effect_once(
    stand: Stand, bursts: list[tuple[int, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    played = []
    for size, killed in bursts:
        one = play(stand, size, killed)
        played.append(one)
        with capsys.disabled():
            print(f"\n{stand.shards} shard(s){', kill -9' if killed else ''}: {one}", end="", flush=True)
    seen = stand.seen
    by_rpc = {workflow_id for one in played for workflow_id in one.pulse.acknowledged}
    assert [refusal for one in played for refusal in one.pulse.refused] == []
    assert seen.wait_for(lambda: by_rpc <= seen.starts.keys(), SERVING_SECONDS)
    for one in played:
        assert [id for id in one.wanted if seen.starts[id] != 1] == []
        assert [id for id in one.wanted if seen.signals[id] != (id in one.signalled)] == []
    assert [workflow_id for workflow_id in by_rpc if seen.starts[workflow_id] != 1] == []
    assert seen.rejected() == 0
    assert stand.shards_lost() == 0
