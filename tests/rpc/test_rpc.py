"""Calls between processes, over real loopback sockets."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
import uvloop

from everfold.kernel.errors import Code, ShardLost, StatusError
from everfold.runtime import rpc
from everfold.runtime.rpc import ConnectionLost, NotOwner, RpcPool, RpcServer


class Echo:
    """A service with one method per way to answer."""

    METHODS = frozenset({"echo", "plain", "refuse", "elsewhere", "hang", "read_a_damaged_row", "fail", "left"})

    def __init__(self) -> None:
        self.hanging = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.let_go = asyncio.Event()
        self.undelivered_calls: list[tuple[str, list[Any]]] = []

    async def echo(self, *args: object) -> object:
        return list(args)

    def plain(self, value: int) -> int:
        return value + 1

    async def refuse(self) -> None:
        raise StatusError(Code.ALREADY_EXISTS, "is there", (("everfold.Detail", b"\x01"), ("everfold.More", b"")))

    async def elsewhere(self) -> None:
        raise NotOwner(7)

    async def hang(self) -> str:
        self.hanging.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "after all"

    async def read_a_damaged_row(self) -> None:
        raise ShardLost("the store is damaged")

    async def fail(self) -> None:
        raise ZeroDivisionError("a defect")

    async def left(self, timeout: float, other: int) -> float:
        return timeout

    async def secret(self) -> None:
        raise AssertionError("not on the list")

    def undelivered(self, method: str, args: list[Any]) -> None:
        self.undelivered_calls.append((method, args))


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Echo, RpcServer, RpcPool]]:
    service = Echo()
    server = RpcServer({"echo": service}, cluster="c1")
    await server.start()
    pool = RpcPool("c1")
    try:
        yield service, server, pool
    finally:
        await pool.stop()
        await server.stop()


Body = Callable[[Echo, RpcServer, RpcPool], Awaitable[None]]


def connection(body: Body) -> Callable[[], None]:
    """Runs a test with a server and a pool, on a loop of its own: the one that servers use, and asyncio's."""

    def run() -> None:
        async def main() -> None:
            async with asyncio.timeout(20), connected() as (service, server, pool):
                await body(service, server, pool)

        for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(main())

    run.__name__ = body.__name__  # type: ignore[attr-defined]
    return run


def soon(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


@connection
async def test_arguments_and_results_keep_their_types(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    args = ["text", b"bytes", 1 << 62, -1, 0.5, None, True, ["list"], {"k": b"v"}]
    assert await pool.call(server.address, "echo", "echo", args, 5) == args
    assert await pool.call(server.address, "echo", "plain", [1], 5) == 2


@connection
async def test_large_messages_pass_and_too_large_ones_are_refused(
    service: Echo, server: RpcServer, pool: RpcPool
) -> None:
    data = b"x" * (9 * 1024 * 1024)
    assert await pool.call(server.address, "echo", "echo", [data], 15) == [data]
    bound = rpc.FRAME_BYTES_MAX
    rpc.FRAME_BYTES_MAX = 1000  # type: ignore[misc]
    try:
        with pytest.raises(StatusError, match="larger than max") as error:
            await pool.call(server.address, "echo", "echo", [data], 5)
    finally:
        rpc.FRAME_BYTES_MAX = bound  # type: ignore[misc]
    assert error.value.code == Code.RESOURCE_EXHAUSTED
    assert await pool.call(server.address, "echo", "plain", [1], 5) == 2


@connection
async def test_many_calls_share_a_connection_and_answer_in_any_order(
    service: Echo, server: RpcServer, pool: RpcPool
) -> None:
    slow = soon(pool.call(server.address, "echo", "hang", [], 5))
    answers = await asyncio.gather(*(pool.call(server.address, "echo", "plain", [i], 5) for i in range(100)))
    assert answers == list(range(1, 101))
    assert not slow.done()
    service.let_go.set()
    assert await slow == "after all"
    assert len(server.connections) == 1


@connection
async def test_errors_arrive_as_they_were_raised(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    with pytest.raises(StatusError) as refused:
        await pool.call(server.address, "echo", "refuse", [], 5)
    assert refused.value.code is Code.ALREADY_EXISTS
    assert refused.value.message == "is there"
    assert refused.value.details == (("everfold.Detail", b"\x01"), ("everfold.More", b""))
    with pytest.raises(NotOwner) as elsewhere:
        await pool.call(server.address, "echo", "elsewhere", [], 5)
    assert elsewhere.value.partition == 7
    with pytest.raises(StatusError) as lost:
        await pool.call(server.address, "echo", "read_a_damaged_row", [], 5.0)
    assert lost.value.code is Code.UNAVAILABLE, "as in the same process: the shard is taken anew, and clients try again"
    with pytest.raises(StatusError) as defect:
        await pool.call(server.address, "echo", "fail", [], 5)
    assert defect.value.code is Code.INTERNAL
    # The exception's own text may be a client's payload: it crosses no process.
    assert re.fullmatch(r"internal error in fail \(error id [0-9a-f]{8}\)", defect.value.message)


@connection
async def test_only_listed_methods_can_be_called(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    for method in ("secret", "__init__", "undelivered", "nothing"):
        with pytest.raises(StatusError) as error:
            await pool.call(server.address, "echo", method, [], 5)
        assert error.value.code is Code.UNIMPLEMENTED


@connection
async def test_a_method_learns_how_much_time_is_left(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    assert 1.5 < await pool.call(server.address, "echo", "left", [60.0, 1], 2) <= 2
    assert await pool.call(server.address, "echo", "left", [0.5, 1], 2) == 0.5


@connection
async def test_a_call_that_the_caller_cancels_is_cancelled_in_the_server(
    service: Echo, server: RpcServer, pool: RpcPool
) -> None:
    call = soon(pool.call(server.address, "echo", "hang", [], 30))
    await service.hanging.wait()
    call.cancel()
    await service.cancelled.wait()


@connection
async def test_a_call_past_its_deadline_ends_on_both_sides(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    with pytest.raises(StatusError) as error:
        await pool.call(server.address, "echo", "hang", [], 0.1)
    assert error.value.code is Code.DEADLINE_EXCEEDED
    await service.cancelled.wait()


@connection
async def test_a_server_that_stops_breaks_the_calls_that_wait(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    call = soon(pool.call(server.address, "echo", "hang", [], 30))
    await service.hanging.wait()
    for one in list(server.connections):
        one.abort()
    with pytest.raises(ConnectionLost):
        await call
    assert await pool.call(server.address, "echo", "plain", [1], 5) == 2  # over a new connection


@connection
async def test_nobody_listening_is_a_lost_connection(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    address = server.address
    await server.stop()
    with pytest.raises(ConnectionLost):
        await pool.call(address, "echo", "plain", [1], 5)


@connection
async def test_a_client_that_goes_away_cancels_its_calls(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    call = soon(pool.call(server.address, "echo", "hang", [], 30))
    await service.hanging.wait()
    pool.drop(server.address)
    await service.cancelled.wait()
    with pytest.raises(ConnectionLost):
        await call


@connection
async def test_an_answer_whose_caller_is_gone_is_reported_to_the_service(
    service: Echo, server: RpcServer, pool: RpcPool
) -> None:
    call = soon(pool.call(server.address, "echo", "hang", [], 30))
    await service.hanging.wait()
    (one,) = server.connections
    work = next(iter(one.calls.values()))
    service.let_go.set()
    assert one.transport is not None
    one.transport.close()  # the answer comes while the connection is closing
    await work
    assert service.undelivered_calls == [("hang", [])]
    with pytest.raises(ConnectionLost):
        await call


@connection
async def test_a_member_of_another_cluster_is_turned_away(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    stranger = RpcPool("c2")
    with pytest.raises(ConnectionLost):
        await stranger.call(server.address, "echo", "plain", [1], 5)
    await stranger.stop()


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 1 << 31),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        b"\x00\x00\x00\x00",
    ],
)
def test_noise_on_the_port_is_hung_up_on(noise: bytes) -> None:
    async def body(service: Echo, server: RpcServer, pool: RpcPool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(noise)
        assert await reader.read() == b""
        writer.close()
        assert await pool.call(server.address, "echo", "plain", [1], 5) == 2

    connection(body)()


@connection
async def test_frames_may_arrive_in_any_pieces(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    frames = [[0, rpc.PROTOCOL_VERSION, "c1"], [1, 1, "echo", "plain", [1], 5.0], [1, 2, "echo", "plain", [2], 5.0]]
    data = b"".join(struct.pack(">I", len(p)) + p for p in (msgpack.packb(frame) for frame in frames))
    for i in range(len(data)):
        writer.write(data[i : i + 1])
        await writer.drain()
    answers = []
    for _ in range(2):
        (size,) = struct.unpack(">I", await reader.readexactly(4))
        answers.append(msgpack.unpackb(await reader.readexactly(size)))
    assert answers == [[2, 1, 2], [2, 2, 3]]
    writer.close()


@connection
async def test_who_does_not_say_in_time_who_it_is_is_hung_up_on(
    service: Echo, server: RpcServer, pool: RpcPool
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rpc, "GREETING_TIMEOUT_S", 0.2)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await pool.call(server.address, "echo", "plain", [1], 5)
        await asyncio.sleep(0.4)
        assert await pool.call(server.address, "echo", "plain", [1], 5) == 2
    assert len(server.connections) == 1


@connection
async def test_no_large_frame_is_taken_before_the_greeting(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(struct.pack(">I", rpc.GREETING_BYTES_MAX + 1))
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@connection
async def test_connections_are_bounded(service: Echo, server: RpcServer, pool: RpcPool) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rpc, "CONNECTIONS_MAX", 1)
        await pool.call(server.address, "echo", "plain", [1], 5)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert await pool.call(server.address, "echo", "plain", [1], 5) == 2
