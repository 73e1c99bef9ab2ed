"""Memory and descriptors: what is free goes back, and clients leave the engine its own."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
import sys

import pytest

from everfold.runtime import descriptors, memory
from everfold.runtime.tracebacks import let_go

MB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc")


def test_freed_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "EVERY_S", 0.1)

    async def body() -> None:
        # Blocks below the size from which glibc takes each from the system, the last one kept: nothing goes back by
        # itself.
        ctypes.CDLL(None).mallopt(ctypes.c_int(-3), ctypes.c_int(64 * MB))
        giving = asyncio.create_task(memory.give_memory_back())
        await asyncio.sleep(0.05)
        before = memory.resident_bytes()
        blocks = [b"x" * 1_900_000 for _ in range(150)]
        grown = memory.resident_bytes()
        assert grown > before + 200 * MB
        kept = blocks[-1]
        blocks.clear()
        async with asyncio.timeout(20):
            while memory.resident_bytes() > before + 60 * MB:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert len(kept) == 1_900_000
        giving.cancel()

    asyncio.run(body())


def test_a_soft_limit_of_open_files_is_raised_and_a_part_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [256, 4_096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))

    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        limits[:] = wanted

    monkeypatch.setattr(resource, "setrlimit", set_limit)
    descriptors.raise_limit()
    assert limits == [4_096, 4_096]
    assert descriptors.for_clients() == 4_096 - descriptors.RESERVED
    limits[0] = 512
    assert descriptors.for_clients() == 128
    limits[:] = [resource.RLIM_INFINITY, resource.RLIM_INFINITY]
    descriptors.raise_limit()
    assert descriptors.for_clients() > 100_000


def test_an_exception_that_was_let_go_keeps_no_frame() -> None:
    class Payload:
        alive = 0

        def __init__(self) -> None:
            Payload.alive += 1

        def __del__(self) -> None:
            Payload.alive -= 1

    async def wait(payload: Payload, future: asyncio.Future[None]) -> None:
        try:
            await future
        except ValueError as error:
            raise KeyError from error

    async def body() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError())
        try:
            await wait(Payload(), future)
        except KeyError as error:
            let_go(error)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(body())
        assert Payload.alive == 0
    finally:
        gc.enable()
