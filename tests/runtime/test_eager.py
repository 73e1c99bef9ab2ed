"""Tasks that take their first step at once."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import pytest
import uvloop

from everfold.runtime.eager import start_now


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=request.param)


async def in_callback(function: Callable[[asyncio.AbstractEventLoop], asyncio.Task[object]]) -> asyncio.Task[object]:
    """Calls the function as the loop calls a callback, outside of any task."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[asyncio.Task[object]] = loop.create_future()
    loop.call_soon(lambda: done.set_result(function(loop)))
    return await asyncio.wait_for(done, 10)


def test_the_first_step_is_taken_before_start_now_returns(runner: asyncio.Runner) -> None:
    steps: list[str] = []

    async def work() -> str:
        steps.append("first")
        await asyncio.sleep(0)
        steps.append("second")
        return "done"

    def start(loop: asyncio.AbstractEventLoop) -> asyncio.Task[object]:
        task: asyncio.Task[object] = start_now(loop, work())
        steps.append("started")
        return task

    async def body() -> None:
        assert await (await in_callback(start)) == "done"
        assert steps == ["first", "started", "second"]

    with runner:
        runner.run(body())


def test_work_that_waits_for_nothing_is_done_at_once(runner: asyncio.Runner) -> None:
    async def work() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("no")

    async def body() -> None:
        assert await (await in_callback(lambda loop: start_now(loop, work()))) == 7
        with pytest.raises(ValueError, match="no"):
            await (await in_callback(lambda loop: start_now(loop, fail())))

    with runner:
        runner.run(body())


def test_the_first_step_has_its_task_so_that_timeouts_and_cancellation_work(runner: asyncio.Runner) -> None:
    async def late() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        except TimeoutError:
            return "late"
        return "in time"

    async def named() -> asyncio.Task[object] | None:
        return asyncio.current_task()

    async def for_ever() -> None:
        await asyncio.Event().wait()

    async def body() -> None:
        assert await (await in_callback(lambda loop: start_now(loop, late()))) == "late"
        task = await in_callback(lambda loop: start_now(loop, named()))
        assert await task is task
        endless = await in_callback(lambda loop: start_now(loop, for_ever()))
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless

    with runner:
        runner.run(body())


def test_the_first_step_changes_a_context_of_its_own(runner: asyncio.Runner) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")

    async def work() -> str:
        variable.set("inside")
        await asyncio.sleep(0)
        return variable.get()

    async def body() -> None:
        assert await (await in_callback(lambda loop: start_now(loop, work()))) == "inside"
        assert variable.get() == "outside"

    with runner:
        runner.run(body())


def test_the_loop_is_as_before(runner: asyncio.Runner) -> None:
    """Also after work that the task's constructor refuses."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TypeError):
            start_now(loop, None)  # type: ignore[arg-type]
        called = asyncio.Event()
        loop.call_soon(called.set)
        await asyncio.wait_for(called.wait(), 10)

    with runner:
        runner.run(body())
