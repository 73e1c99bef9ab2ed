"""One contract for both gateways: what a gRPC client sees must not depend on the library that serves it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import grpc
import grpc.aio
import pytest
import uvloop
from google.rpc import status_pb2

from everfold.frontend import gateway_grpcio, gateway_http2
from everfold.frontend.calls import CallContext, Handler, complete_table, known_methods
from everfold.frontend.gateway import Gateway, open_gateway
from everfold.kernel.errors import Code, StatusError

PREFIX = "/temporal.api.workflowservice.v1.WorkflowService/"
ECHO = PREFIX + "GetClusterInfo"
POLL = PREFIX + "PollWorkflowTaskQueue"
WATCH = "/grpc.health.v1.Health/Watch"

Serve = Callable[[Mapping[str, Handler]], Awaitable["Served"]]


class Served:
    """A gateway with a client on it."""

    def __init__(self, gateway: Gateway, channel: grpc.aio.Channel) -> None:
        self.gateway = gateway
        self.channel = channel

    def call(self, path: str, request: bytes = b"", **options: object) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        options.setdefault("timeout", 10)
        return self.channel.unary_unary(path)(request, **options)  # type: ignore[arg-type]

    async def error(self, path: str, request: bytes = b"", **options: object) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(path, request, **options)
        return caught.value


@pytest.fixture(params=["http2", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(kind: str, handlers: Mapping[str, Handler], scenario: Callable[[Served], Awaitable[None]]) -> None:
    """Serves `handlers` on a free port for the time of the scenario."""

    async def body() -> None:
        gateway = open_gateway(kind, "127.0.0.1", 0, complete_table(handlers), long_polls=frozenset({POLL}))
        await gateway.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
                await asyncio.wait_for(scenario(Served(gateway, channel)), 20)
        finally:
            await gateway.stop(0.2)

    uvloop.run(body())


async def echo(context: CallContext, request: bytes) -> bytes:
    return request


def test_bytes_go_through_as_they_are(kind: str) -> None:
    async def scenario(served: Served) -> None:
        data = bytes(range(256)) * 100
        assert await served.call(ECHO, data) == data
        assert await served.call(ECHO, b"") == b""

    run(kind, {ECHO: echo}, scenario)


def test_many_calls_at_once_each_get_their_own_answer(kind: str) -> None:
    async def scenario(served: Served) -> None:
        async def one(number: int) -> None:
            assert await served.call(ECHO, str(number).encode()) == str(number).encode()

        await asyncio.gather(*(one(number) for number in range(300)))

    run(kind, {ECHO: echo}, scenario)


def test_an_error_carries_code_message_and_typed_details(kind: str) -> None:
    async def fail(context: CallContext, request: bytes) -> bytes:
        details = (("temporal.api.errordetails.v1.NamespaceNotFoundFailure", b"\n\x04nope"),)
        raise StatusError(Code.NOT_FOUND, "Namespace näpe is not found.", details)

    async def scenario(served: Served) -> None:
        error = await served.error(ECHO)
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert error.details() == "Namespace näpe is not found."
        trailers = dict(error.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        assert status.code == 5
        assert status.message == "Namespace näpe is not found."
        assert [(item.type_url, item.value) for item in status.details] == [
            ("type.googleapis.com/temporal.api.errordetails.v1.NamespaceNotFoundFailure", b"\n\x04nope")
        ]

    run(kind, {ECHO: fail}, scenario)


def test_an_error_without_details_has_no_details_trailer(kind: str) -> None:
    async def fail(context: CallContext, request: bytes) -> bytes:
        raise StatusError(Code.INVALID_ARGUMENT, "WorkflowId is not set on request.")

    async def scenario(served: Served) -> None:
        error = await served.error(ECHO)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "grpc-status-details-bin" not in dict(error.trailing_metadata())

    run(kind, {ECHO: fail}, scenario)


@pytest.mark.parametrize("code", list(Code)[1:])
def test_every_status_code_arrives_as_itself(kind: str, code: Code) -> None:
    async def fail(context: CallContext, request: bytes) -> bytes:
        raise StatusError(code, "because")

    async def scenario(served: Served) -> None:
        assert (await served.error(ECHO)).code().value[0] == int(code)

    run(kind, {ECHO: fail}, scenario)


def test_a_method_without_a_handler_is_unknown_in_the_words_that_sdks_match(kind: str) -> None:
    async def scenario(served: Served) -> None:
        for path in known_methods():
            error = await served.error(path)
            service, method = path[1:].split("/")
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED
            assert error.details() == f"unknown method {method} for service {service}"

    run(kind, {}, scenario)


def test_a_path_outside_every_service_is_unimplemented(kind: str) -> None:
    async def scenario(served: Served) -> None:
        assert (await served.error("/no.such.Service/Method")).code() == grpc.StatusCode.UNIMPLEMENTED

    run(kind, {}, scenario)


def test_an_escaped_exception_is_internal_with_an_id_that_the_log_has_too(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    payload = "what must not leave"

    async def fail(context: CallContext, request: bytes) -> bytes:
        raise KeyError(payload)

    async def scenario(served: Served) -> None:
        error = await served.error(ECHO)
        assert error.code() == grpc.StatusCode.INTERNAL
        details = error.details() or ""
        assert payload not in details
        error_id = details.rpartition("error id ")[2].rstrip(")")
        assert len(error_id) == 8
        assert error_id in caplog.text
        assert "raise KeyError" in caplog.text
        assert payload not in caplog.text

    with caplog.at_level(logging.ERROR):
        run(kind, {ECHO: fail}, scenario)


def test_a_gzip_request_arrives_decompressed(kind: str) -> None:
    async def scenario(served: Served) -> None:
        data = b"x" * 100_000
        assert await served.call(ECHO, data, compression=grpc.Compression.Gzip) == data

    run(kind, {ECHO: echo}, scenario)


def test_headers_and_peer_reach_the_handler(kind: str) -> None:
    seen: list[CallContext] = []

    async def look(context: CallContext, request: bytes) -> bytes:
        seen.append(context)
        return b""

    async def scenario(served: Served) -> None:
        metadata = (("client-name", "temporal-python"), ("temporal-namespace", "default"), ("blob-bin", b"\x00\xff"))
        await served.call(ECHO, metadata=metadata)
        (context,) = seen
        assert context.method == ECHO
        assert context.header("client-name") == "temporal-python"
        assert context.header("temporal-namespace") == "default"
        assert context.header("absent") == ""
        assert ("blob-bin", b"\x00\xff") in context.metadata
        assert "127.0.0.1" in context.peer

    run(kind, {ECHO: look}, scenario)


def test_the_deadline_is_in_the_loops_time_and_absent_when_the_client_has_none(kind: str) -> None:
    remaining: list[float | None] = []

    async def look(context: CallContext, request: bytes) -> bytes:
        now = asyncio.get_running_loop().time()
        remaining.append(None if context.deadline is None else context.deadline - now)
        return b""

    async def scenario(served: Served) -> None:
        await served.call(ECHO, timeout=7)
        await served.call(ECHO, timeout=None)
        first, second = remaining
        assert first is not None
        assert 5 < first < 8
        assert second is None

    run(kind, {ECHO: look}, scenario)


def test_a_cancelled_call_cancels_its_handler(kind: str) -> None:
    async def body(end: Callable[[grpc.aio.UnaryUnaryCall[bytes, bytes]], None], timeout: float) -> None:
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def wait(context: CallContext, request: bytes) -> bytes:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return b""

        gateway = open_gateway(kind, "127.0.0.1", 0, complete_table({POLL: wait}))
        await gateway.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            call = channel.unary_unary(POLL)(b"", timeout=timeout)
            await asyncio.wait_for(begun.wait(), 10)
            end(call)
            await asyncio.wait_for(cancelled.wait(), 10)
        await gateway.stop(0.1)

    uvloop.run(body(lambda call: call.cancel() and None, 30))
    # A client whose deadline passes is gone just the same.
    uvloop.run(body(lambda call: None, 0.5))


def test_a_lost_connection_cancels_its_handlers(kind: str) -> None:
    async def body() -> None:
        begun, cancelled = asyncio.Semaphore(0), asyncio.Semaphore(0)

        async def wait(context: CallContext, request: bytes) -> bytes:
            begun.release()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.release()
                raise
            return b""

        gateway = open_gateway(kind, "127.0.0.1", 0, complete_table({POLL: wait}))
        await gateway.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}")
        calls = [channel.unary_unary(POLL)(b"") for _ in range(3)]
        for _ in calls:
            await asyncio.wait_for(begun.acquire(), 10)
        await channel.close()
        for _ in calls:
            await asyncio.wait_for(cancelled.acquire(), 10)
        await gateway.stop(0.1)

    uvloop.run(body())


def test_a_response_that_finds_no_client_is_given_back(kind: str) -> None:
    async def body() -> None:
        given_back: list[bytes] = []
        begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def stubborn(context: CallContext, request: bytes) -> bytes:
            def take_back(response: bytes) -> None:
                given_back.append(response)
                done.set()

            context.undelivered = take_back
            begun.set()
            # A handler that holds a task already must not drop it because the client went away.
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()
            return b"task"

        gateway = open_gateway(kind, "127.0.0.1", 0, complete_table({POLL: stubborn}))
        await gateway.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            call = channel.unary_unary(POLL)(b"", timeout=20)
            await asyncio.wait_for(begun.wait(), 10)
            call.cancel()
            await asyncio.wait_for(done.wait(), 10)
        assert given_back[0] == b"task"
        await gateway.stop(0.1)

    uvloop.run(body())


def test_a_request_over_four_mebibytes_is_refused_in_grpcs_own_words(kind: str) -> None:
    async def scenario(served: Served) -> None:
        size = 4 * 1024 * 1024
        assert len(await served.call(ECHO, b"x" * (size - 1000))) == size - 1000
        error = await served.error(ECHO, b"x" * (size + 1))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == f"grpc: received message larger than max ({size + 1} vs. {size})"

    def unlimited(handlers: Mapping[str, Handler]) -> None:
        async def body() -> None:
            gateway = open_gateway(kind, "127.0.0.1", 0, complete_table(handlers))
            await gateway.start()
            options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options) as channel:
                await scenario(Served(gateway, channel))
            await gateway.stop(0.1)

        uvloop.run(body())

    unlimited({ECHO: echo})


def test_a_taken_port_is_an_os_error(kind: str) -> None:
    async def scenario(served: Served) -> None:
        second = open_gateway(kind, "127.0.0.1", served.gateway.port, complete_table({}))
        with pytest.raises(OSError, match=r"."):
            await second.start()

    run(kind, {}, scenario)


def test_stopping_ends_long_polls_and_lets_answers_finish(kind: str) -> None:
    async def body() -> None:
        polling, working = asyncio.Event(), asyncio.Event()

        async def poll(context: CallContext, request: bytes) -> bytes:
            polling.set()
            await asyncio.Event().wait()
            return b""

        async def work(context: CallContext, request: bytes) -> bytes:
            working.set()
            await asyncio.sleep(0.3)
            return b"done"

        table = complete_table({POLL: poll, ECHO: work})
        gateway = open_gateway(kind, "127.0.0.1", 0, table, long_polls=frozenset({POLL}))
        await gateway.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            waiting = channel.unary_unary(POLL)(b"", timeout=60)
            answered = channel.unary_unary(ECHO)(b"", timeout=60)
            await asyncio.wait_for(asyncio.gather(polling.wait(), working.wait()), 10)
            await asyncio.wait_for(gateway.stop(5), 10)
            assert await answered == b"done"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await waiting
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    uvloop.run(body())


def test_a_stream_sends_its_messages_in_order_and_ends(kind: str) -> None:
    heard: list[tuple[str, int]] = []

    async def count(context: CallContext, request: bytes) -> AsyncGenerator[bytes, None]:
        for number in range(int(request)):
            yield str(number).encode()
            await asyncio.sleep(0)

    async def body() -> None:
        gateway = open_gateway(
            kind,
            "127.0.0.1",
            0,
            complete_table({ECHO: echo}),
            streams={WATCH: count},
            observer=lambda path, code, _: heard.append((path, code)),
        )
        await gateway.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            watch = channel.unary_stream(WATCH)
            assert [message async for message in watch(b"50", timeout=10)] == [
                str(number).encode() for number in range(50)
            ]
            assert [message async for message in watch(b"0", timeout=10)] == []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [_ async for _ in watch(b"many", timeout=10)]
            assert caught.value.code() == grpc.StatusCode.INTERNAL
            assert await channel.unary_unary(ECHO)(b"beside", timeout=10) == b"beside"
        await gateway.stop(0.1)

    uvloop.run(body())
    assert heard == [(WATCH, 0), (WATCH, 0), (WATCH, 13), (ECHO, 0)]


def test_a_stream_ends_with_its_client_and_with_the_server(kind: str) -> None:
    async def body() -> None:
        ended = asyncio.Semaphore(0)

        async def watch(context: CallContext, request: bytes) -> AsyncGenerator[bytes, None]:
            try:
                yield b"first"
                await asyncio.Event().wait()
            finally:
                ended.release()

        gateway = open_gateway(kind, "127.0.0.1", 0, complete_table({}), streams={WATCH: watch})
        await gateway.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            left = channel.unary_stream(WATCH)(b"")
            assert await asyncio.wait_for(left.read(), 10) == b"first"
            left.cancel()
            await asyncio.wait_for(ended.acquire(), 10)
            stays = channel.unary_stream(WATCH)(b"")
            assert await asyncio.wait_for(stays.read(), 10) == b"first"
            await asyncio.wait_for(gateway.stop(0.2), 10)
            await asyncio.wait_for(ended.acquire(), 10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(stays.read(), 10)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    uvloop.run(body())


def test_the_observer_hears_of_every_call(kind: str) -> None:
    heard: list[tuple[str, int]] = []

    async def fail(context: CallContext, request: bytes) -> bytes:
        raise StatusError(Code.NOT_FOUND, "no")

    async def body() -> None:
        table = complete_table({ECHO: echo, POLL: fail})
        gateway = open_gateway(kind, "127.0.0.1", 0, table, observer=lambda path, code, _: heard.append((path, code)))
        await gateway.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            await channel.unary_unary(ECHO)(b"", timeout=10)
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(POLL)(b"", timeout=10)
        await gateway.stop(0.1)

    uvloop.run(body())
    assert heard == [(ECHO, 0), (POLL, 5)]


def test_polls_go_before_the_other_requests_that_came_with_them() -> None:
    """Of our own alone: grpcio starts each handler by itself."""
    served: list[bytes] = []
    echoes = 30

    async def note(context: CallContext, request: bytes) -> bytes:
        served.append(request)
        return b""

    async def body() -> None:
        table = complete_table({ECHO: note, POLL: note})
        gateway = open_gateway("http2", "127.0.0.1", 0, table, long_polls=frozenset({POLL}))
        await gateway.start()
        with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            await asyncio.to_thread(channel.unary_unary(ECHO), b"first", timeout=10)
            calls = [channel.unary_unary(ECHO).future(str(number).encode(), timeout=10) for number in range(echoes)]
            calls.append(channel.unary_unary(POLL).future(b"poll", timeout=10))
            time.sleep(0.2)  # noqa: ASYNC251 - the loop is late: all of them wait in the socket
            await asyncio.gather(*(asyncio.to_thread(call.result, 10) for call in calls))
        await gateway.stop(0.1)

    uvloop.run(body())
    assert served[0] == b"first"
    assert served.index(b"poll") < echoes, "it came last, and was served last"
    assert sorted(served) == sorted([b"first", b"poll", *(str(number).encode() for number in range(echoes))])


def test_calls_beyond_the_bound_are_told_that_there_are_too_many(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http2, "CALLS_MAX", 2)
    monkeypatch.setattr(gateway_grpcio, "CALLS_MAX", 2)
    held = asyncio.Event()

    async def hold(context: CallContext, request: bytes) -> bytes:
        await held.wait()
        return request

    async def scenario(served: Served) -> None:
        calls = [served.call(POLL, b"1"), served.call(ECHO, b"2")]
        await asyncio.sleep(0.5)
        assert (await served.error(ECHO)).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        held.set()
        assert [await call for call in calls] == [b"1", b"2"]
        assert await served.call(ECHO, b"3") == b"3"

    run(kind, {ECHO: hold, POLL: hold}, scenario)


def test_paths_that_clients_make_up_are_counted_under_one_name_at_most(kind: str) -> None:
    heard: set[str] = set()

    async def body() -> None:
        gateway = open_gateway(
            kind, "127.0.0.1", 0, complete_table({ECHO: echo}), observer=lambda path, *_: heard.add(path)
        )
        await gateway.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            for number in range(3):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(f"{PREFIX}MadeUp{number}")(b"", timeout=10)
        await gateway.stop(0.1)

    uvloop.run(body())
    assert not [path for path in heard if "MadeUp" in path]
