"""Ownership of partitions: hand-over between members, and loss."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import uvloop
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from everfold.runtime.kafka import GroupMembership, KafkaSettings

pytestmark = pytest.mark.broker

PARTITIONS = 4


def create(settings: KafkaSettings) -> str:
    name = settings.prefix + "log"
    admin = AdminClient(settings.client("test"))
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1)]).values():
        future.result(timeout=20)
    return name


class Owner:
    """A member that notes what it is told; `slow` is how long it takes to give a partition up."""

    def __init__(self, settings: KafkaSettings, topic: str, others: list[Owner], slow: float = 0) -> None:
        self.held: set[int] = set()
        self.lost: set[int] = set()
        self.slow = slow
        self.others = others
        others.append(self)
        self.member = GroupMembership(
            settings, group="owners", topic=topic, on_assigned=self.take, on_revoked=self.give, on_lost=self.lose
        )

    async def take(self, partitions: frozenset[int]) -> None:
        for other in self.others:
            assert other is self or not (other.held & partitions), "two owners at once"
        self.held |= partitions

    async def give(self, partitions: frozenset[int]) -> None:
        await asyncio.sleep(self.slow)
        self.held -= partitions

    async def lose(self, partitions: frozenset[int]) -> None:
        self.lost |= partitions
        self.held -= partitions


async def until_held(owner: Owner, count: int, seconds: float) -> float:
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while len(owner.held) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return time.monotonic() - began


def test_partitions_move_to_a_new_member_and_back_without_two_owners(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def run() -> None:
        owners: list[Owner] = []
        first = Owner(kafka, topic, owners, slow=0.3)
        await first.member.start()
        await first.member.joined()
        await until_held(first, PARTITIONS, 20)
        assert first.member.partitions == frozenset(range(PARTITIONS))

        second = Owner(kafka, topic, owners)
        await second.member.start()
        await until_held(second, PARTITIONS // 2, 20)
        assert first.held | second.held == set(range(PARTITIONS))
        assert not first.held & second.held

        await second.member.stop()
        assert second.held == set()
        await until_held(first, PARTITIONS, 10)
        assert first.lost == second.lost == set()
        await first.member.stop()
        assert first.held == set()

    uvloop.run(run())


_MEMBER = """
import asyncio, sys
from everfold.runtime.kafka import GroupMembership, KafkaSettings

async def main():
    async def take(partitions):
        print("has", len(member.partitions), flush=True)

    async def give(partitions):
        print("gave", len(partitions), flush=True)

    async def lose(partitions):
        print("lost", len(partitions), flush=True)

    settings = KafkaSettings(sys.argv[1], sys.argv[2])
    member = GroupMembership(
        settings, group="owners", topic=sys.argv[3], on_assigned=take, on_revoked=give, on_lost=lose
    )
    await member.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_the_partitions_of_a_silent_member_go_to_the_others_within_ten_seconds(
    kafka: KafkaSettings, how: signal.Signals
) -> None:
    topic = create(kafka)

    async def run() -> None:
        owner = Owner(kafka, topic, [])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _MEMBER,
            kafka.bootstrap,
            kafka.prefix,
            topic,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                await _line(process.stdout, b"has 4")
                await owner.member.start()
                await until_held(owner, 2, 30)
                process.send_signal(how)
                waited = await until_held(owner, PARTITIONS, 15)
                print(f"taken over after {waited:.1f} s")
                assert waited < 10
                if how == signal.SIGSTOP:
                    process.send_signal(signal.SIGCONT)
                    await _line(process.stdout, b"lost 2")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await owner.member.stop()

    asyncio.run(run())


async def _line(stream: asyncio.StreamReader, wanted: bytes) -> None:
    while True:
        line = await stream.readline()
        assert line, f"ended without {wanted!r}"
        if line.strip() == wanted:
            return
