"""Runs a program on an event loop: start, wait for the end, stop."""

from __future__ import annotations

import asyncio
import gc
from typing import Protocol

import structlog
import uvloop

from everfold.runtime import descriptors
from everfold.runtime.broker import BrokerError
from everfold.runtime.huge_pages import keep_heap_on_huge_pages
from everfold.runtime.kafka import KafkaTrouble
from everfold.runtime.lifecycle import Fatal, Supervisor, catch_signals
from everfold.runtime.memory import give_memory_back

log = structlog.get_logger("everfold")


class Program(Protocol):
    """What a process does."""

    async def start(self, supervisor: Supervisor) -> None:
        """Start the services through the supervisor; return when everything serves."""
        ...

    def close(self) -> None:
        """Called at the end, after all services have stopped, also after a failed start."""
        ...


def run(program: Program) -> None:
    """Run until SIGINT, SIGTERM or a failure. Raises Fatal with what to tell the user."""
    descriptors.raise_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failure = runner.run(_main(program))
    if failure is not None:
        raise Fatal(_told(failure)) from failure


async def _main(program: Program) -> BaseException | None:
    supervisor = Supervisor()
    catch_signals(supervisor)
    # Long-lived state (schemas, protobuf modules) is not worth walking at every collection.
    gc.freeze()
    # Requests and records are freed by reference count; the default of 700 objects walks the run cache for nothing.
    gc.set_threshold(50_000, 20, 50)
    starting = asyncio.ensure_future(program.start(supervisor))
    ended = asyncio.ensure_future(supervisor.wait_ended())
    tasks = [starting, ended]
    try:
        await asyncio.wait((starting, ended), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            tasks.append(asyncio.ensure_future(keep_heap_on_huge_pages()))
            tasks.append(asyncio.ensure_future(give_memory_back()))
            await ended
    except Exception as error:
        supervisor.end(error) if supervisor.failure is None and not _expected(error) else None
        return error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await supervisor.stop()
        program.close()
    return supervisor.failure


def _expected(error: BaseException) -> bool:
    return isinstance(error, (Fatal, KafkaTrouble, BrokerError, OSError, TimeoutError))


def _told(failure: BaseException) -> str:
    if isinstance(failure, (Fatal, KafkaTrouble, BrokerError)):
        return str(failure)
    return f"{type(failure).__name__}: {failure}"
