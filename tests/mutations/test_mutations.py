"""No client's value stops a processor or quarantines a run: calls and commands with one field changed, by the thousand.

    EVERFOLD_MUTATIONS=99000,1000,5000   calls, requests of SDKs, records on `commands` (make mutations)
    EVERFOLD_MUTATIONS_SEED=7            repeats a run's choices

After each hundred a new workflow has to be in the lists and on `events`, nothing may be quarantined, and no dead letter
written; at the end a namespace that nobody means is as it was. Where numbers are given, a real server is asked as much:
what it answers otherwise is printed, to be mended or put into docs/temporal-differences.md.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from mutations import commands
from mutations.caller import Answer, Caller
from mutations.corpus import ATTRIBUTES, HIT, VICTIM
from mutations.programs import Programs
from mutations.proxy import Proxy
from mutations.watch import OTHER, Watch
from support.servers import Server, banner, everfold_server, free_port, logs_kept, temporal_server

SHORT: Final = "10000,20,400"
"""In CI: what fits in two minutes."""

GIVEN: Final = os.environ.get("EVERFOLD_MUTATIONS", "")
SEED: Final = int(os.environ.get("EVERFOLD_MUTATIONS_SEED") or 7)
CALLS, OF_SDKS, COMMANDS = (int(part) for part in (GIVEN or SHORT).split(","))

pytestmark = pytest.mark.timeout(0 if GIVEN else 600)

OPTIONS: Final = [
    *(part for name in (HIT, VICTIM, OTHER) for part in ("--namespace", name)),
    *(part for name, kind in ATTRIBUTES.items() for part in ("--search-attribute", f"{name}={kind}")),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[tuple[Server, Watch]]:
    directory = tmp_path_factory.mktemp("mutations")
    ports = [free_port(), free_port()]
    told = ("--metrics-port", str(ports[0]), "--topology-metrics-port", str(ports[1]), "--shards", "2")
    with logs_kept(directory, request), everfold_server(directory, *OPTIONS, *told, "--log-level", "warning") as found:
        kafka = re.search(r"Kafka:\s+(127\.0\.0\.1:\d+) ", banner(found))
        assert kafka is not None
        watch = Watch(found, kafka[1], "everfold.events", ports)
        yield found, watch
        watch.check_quiet()
        watch.close()


@pytest.fixture(scope="module")
def asked() -> list[Caller]:
    """Who has asked Everfold."""
    return []


def failed(faults: list[Answer]) -> list[str]:
    """Each kind of fault once."""
    kinds: dict[tuple[str, str], str] = {}
    for fault in faults:
        kinds.setdefault((fault.method, fault.text[:40]), str(fault))
    return list(kinds.values())


def shown(codes: Counter[tuple[str, str]]) -> str:
    """How often each code was answered."""
    by_code: Counter[str] = Counter()
    for (_, code), count in codes.items():
        by_code[code] += count
    return ", ".join(f"{code} {count}" for code, count in by_code.most_common())


async def hit(address: str, each_hundred: Callable[[], Awaitable[None]]) -> Caller:
    """All the calls to a server."""
    caller = Caller(address, SEED)
    try:
        await caller.run(CALLS, each_hundred)
    finally:
        await caller.close()
    return caller


def test_calls_of_every_method_with_one_field_changed(server: tuple[Server, Watch], asked: list[Caller]) -> None:
    found, watch = server
    caller = asyncio.run(hit(found.address, watch.look))
    asked.append(caller)
    print(f"\n{caller.mutated} changed calls: {shown(caller.codes)}; slowest look {watch.slowest_s:.1f} s")
    assert failed(caller.faults) == [], found.tail(100)


def test_sdks_with_one_request_in_a_hundred_changed(server: tuple[Server, Watch]) -> None:
    found, watch = server

    async def use() -> tuple[Proxy, Programs]:
        async with Proxy(found.address, SEED) as proxy:
            programs = Programs(f"127.0.0.1:{proxy.port}", SEED)
            enough = asyncio.Event()
            running = asyncio.create_task(programs.run(enough))
            while proxy.mutated < OF_SDKS and not running.done():
                await asyncio.sleep(0.5)
                await watch.look()
            enough.set()
            await running
        return proxy, programs

    proxy, programs = asyncio.run(use())
    print(f"\n{proxy.mutated} changed requests of SDKs in {programs.ended} programs: {shown(proxy.codes)}")
    assert programs.ended
    assert failed(proxy.faults) == [], found.tail(100)


def test_commands_with_one_field_changed(server: tuple[Server, Watch]) -> None:
    found, watch = server
    produced = commands.produce(watch.kafka, SEED, COMMANDS)
    counted = commands.outcomes(watch.kafka, found.address, produced)
    asyncio.run(watch.look())
    print(f"\n{len(produced)} changed commands: {dict(counted)}")
    assert counted["rejected"]
    assert counted["taken"]


@pytest.mark.skipif(not GIVEN, reason="a real server is asked by make mutations")
def test_a_real_server_is_asked_the_same(tmp_path: Path, asked: list[Caller]) -> None:
    """Its faults are printed, and what it answers otherwise: both have much the same mutations in other states."""

    async def nothing() -> None:
        pass

    with temporal_server(tmp_path, *OPTIONS) as real:
        caller = asyncio.run(hit(real.address, nothing))
    print(f"\na real server: {shown(caller.codes)}\nits faults:", *failed(caller.faults), sep="\n  ")
    print("what it answers otherwise:")
    for what in sorted(set(caller.answers) & set(asked[0].answers)):
        there, here = caller.answers[what], asked[0].answers[what]
        if not there & here and "UNIMPLEMENTED" not in here:
            print(f"  {what}: there {'/'.join(sorted(there))}, here {'/'.join(sorted(here))}")
