"""What the gateway bounds, met by clients that speak HTTP/2 by hand."""

from __future__ import annotations

import asyncio
import gc
import gzip
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import FrameType
from typing import TypeVar

import grpc
import grpc.aio
import pytest
import uvloop
from hpack import Decoder

from everfold.frontend import gateway_http2
from everfold.frontend.calls import CallContext, Handler, complete_table
from everfold.frontend.gateway import open_gateway
from everfold.frontend.gateway_http2 import Http2Gateway
from everfold.frontend.http2 import bytes_held, connection, request_body
from everfold.kernel.errors import Code, StatusError
from support.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SERVICE,
    SETTINGS,
    Stranger,
    frame,
    headers,
    literal,
    message,
    settings,
    window,
)

ECHO = SERVICE + "GetClusterInfo"
MB = 2**20
T = TypeVar("T")


async def echo(context: CallContext, request: bytes) -> bytes:
    return request


class Served:
    def __init__(self, gateway: Http2Gateway) -> None:
        self.gateway = gateway
        self.address = f"127.0.0.1:{gateway.port}"

    async def stranger(self, work: Callable[[Stranger], T]) -> T:
        """A stranger's doings, beside the loop."""

        def run() -> T:
            with Stranger(self.address, window=2**31 - 1) as stranger:
                return work(stranger)

        return await asyncio.to_thread(run)

    async def nothing_held(self) -> None:
        async with asyncio.timeout(10):
            while self.gateway.requests.held or self.gateway.answers.held or self.gateway._calls:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def works(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            assert await channel.unary_unary(ECHO)(b"hello", timeout=10) == b"hello"


def run(handlers: Mapping[str, Handler], scenario: Callable[[Served], Awaitable[None]], **options: int) -> None:
    async def body() -> None:
        gateway = open_gateway("http2", "127.0.0.1", 0, complete_table(handlers), **options)  # type: ignore[arg-type]
        assert isinstance(gateway, Http2Gateway)
        await gateway.start()
        try:
            served = Served(gateway)
            await asyncio.wait_for(scenario(served), 30)
            await served.works()
            await served.nothing_held()
        finally:
            await gateway.stop(0.2)

    uvloop.run(body())


def status(frames: list[tuple[int, int, int, bytes]]) -> tuple[int, str]:
    """What a refusal says."""
    (block,) = [payload for kind, flags, _, payload in frames if kind == HEADERS and flags & END_STREAM]
    _, _, rest = block.partition(b"\x0bgrpc-status")
    return int(rest[1 : 1 + rest[0]]), rest.partition(b"\x0cgrpc-message")[2][1:].decode()


def test_a_message_is_refused_by_the_size_that_it_announces() -> None:
    async def scenario(served: Served) -> None:
        def announce(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            stranger.ask(1, "GetClusterInfo")
            stranger.send(frame(DATA, 0, 1, b"\0" + (4 * MB + 1).to_bytes(4, "big")))
            found = stranger.frames(10, until=RST_STREAM)
            stranger.send(frame(DATA, 0, 1, bytes(FRAME_BYTES)) * 100)  # and goes on, in vain
            return found

        assert status(await served.stranger(announce)) == (
            8,
            f"grpc: received message larger than max ({4 * MB + 1} vs. {4 * MB})",
        )

    run({ECHO: echo}, scenario)


@pytest.mark.parametrize("members", [1, 3])
def test_a_message_is_refused_by_what_it_inflates_to(members: int) -> None:
    async def scenario(served: Served) -> None:
        data = gzip.compress(bytes(4 * MB // members + 100)) * members

        def call(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            stranger.call(1, "GetClusterInfo", message(data, compressed=True), grpc_encoding="gzip")
            return stranger.frames(10, until=HEADERS)

        code, text = status(await served.stranger(call))
        assert (code, text) == (8, f"grpc: received message after decompression larger than max {4 * MB}")

    run({ECHO: echo}, scenario)


def test_what_does_not_inflate_is_refused() -> None:
    async def scenario(served: Served) -> None:
        def call(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            stranger.call(1, "GetClusterInfo", message(b"no gzip", compressed=True), grpc_encoding="gzip")
            return stranger.frames(10, until=HEADERS)

        code, text = status(await served.stranger(call))
        assert code == 13
        assert "failed to decompress" in text

    run({ECHO: echo}, scenario)


def test_a_second_message_is_refused() -> None:
    async def scenario(served: Served) -> None:
        def call(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            stranger.call(1, "GetClusterInfo", message(b"one") + message(b"two"))
            return stranger.frames(10, until=HEADERS)

        assert status(await served.stranger(call))[0] == 13

    run({ECHO: echo}, scenario)


def test_unfinished_requests_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http2, "REQUESTS_HELD_MAX", 4 * MB)

    async def scenario(served: Served) -> None:
        def begin(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            prefix = frame(DATA, 0, 1, b"\0" + MB.to_bytes(4, "big"))
            for number in (1, 3, 5):
                stranger.ask(number, "GetClusterInfo")
                stranger.send(prefix[:5] + number.to_bytes(4, "big") + prefix[9:])
                stranger.send(frame(DATA, 0, number, bytes(FRAME_BYTES)) * 63)
            found = stranger.frames(10, until=RST_STREAM)
            assert 0 < served.gateway.requests.held <= 2 * MB  # half of the budget is for others
            return found

        code, text = status(await served.stranger(begin))
        assert code == 8
        assert "too many bytes of requests" in text

    run({ECHO: echo}, scenario)


def test_many_large_requests_at_once_wait_for_room_and_none_is_refused() -> None:
    async def slow(context: CallContext, request: bytes) -> bytes:
        await asyncio.sleep(0.05)
        return str(len(request)).encode() if len(request) > 5 else request

    async def scenario(served: Served) -> None:
        async with grpc.aio.insecure_channel(served.address) as channel:
            call = channel.unary_unary(ECHO)
            answers = await asyncio.gather(*(call(bytes(2 * MB), timeout=25) for _ in range(60)))
        assert answers == [str(2 * MB).encode()] * 60

    run({ECHO: slow}, scenario)


def test_an_unfinished_request_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http2, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connection, "UNFINISHED_SECONDS", 0.2)

    async def scenario(served: Served) -> None:
        def begin(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            stranger.ask(1, "GetClusterInfo")
            stranger.send(frame(DATA, 0, 1, message(bytes(100))[:50]))
            return stranger.frames(10, until=RST_STREAM)

        assert status(await served.stranger(begin))[0] == 4

    run({ECHO: echo}, scenario)


def test_headers_count_as_what_they_unfold_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http2, "REQUESTS_HELD_MAX", 200_000)
    held = asyncio.Event()

    async def hold(context: CallContext, request: bytes) -> bytes:
        if not request:
            await held.wait()
        return request

    async def scenario(served: Served) -> None:
        def call(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            value = b"x" * 3_000
            # Into the table once (literal with incremental indexing), then by its number (62), a byte each.
            entry = b"\x40\x03pad\x7f" + bytes(((len(value) - 127) % 128 + 128, (len(value) - 127) // 128)) + value
            block = headers(ECHO)
            for number in range(1, 21, 2):
                pad = (entry if number == 1 else b"") + b"\xbe" * 10
                stranger.send(frame(HEADERS, END_HEADERS, number, block + pad))
                stranger.send(frame(DATA, END_STREAM, number, message(b"")))
            return stranger.frames(10, until=HEADERS)

        found = await served.stranger(call)
        assert found[-1][0] == HEADERS
        assert found[-1][1] & END_STREAM  # a refusal, while the others wait
        held.set()

    run({ECHO: hold}, scenario)


def test_answers_that_are_not_read_are_given_back_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http2, "ANSWERS_HELD_MAX", 8 * MB)
    monkeypatch.setattr(gateway_http2, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connection, "UNREAD_SWEEPS", 60)
    given_back = 0

    async def large(context: CallContext, request: bytes) -> bytes:
        def undelivered(response: bytes) -> None:
            nonlocal given_back
            given_back += 1

        context.undelivered = undelivered
        return bytes(MB) if request == b"large" else request

    async def scenario(served: Served) -> None:
        def ask(stranger: Stranger) -> bool:
            for number in range(1, 41, 2):
                stranger.call(number, "GetClusterInfo", message(b"large"))
            assert served.gateway.answers.held <= 4 * MB
            return _abandoned(served)

        assert await served.stranger(ask), "the connection of a client that reads nothing was not cut"
        assert given_back >= 10

    run({ECHO: large}, scenario)


def _abandoned(served: Served) -> bool:
    deadline = time.monotonic() + 10
    while served.gateway._connections and time.monotonic() < deadline:
        time.sleep(0.05)
    return not served.gateway._connections


def test_a_connection_that_never_greets_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http2, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connection, "GREETING_SECONDS", 0.3)

    async def scenario(served: Served) -> None:
        def silent(beginning: bytes) -> bool:
            with Stranger(served.address, greet=False) as stranger:
                stranger.send(beginning)
                return stranger.closed_within(5)

        for beginning in (b"", b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            assert await asyncio.to_thread(silent, beginning)

    run({ECHO: echo}, scenario)


@pytest.mark.parametrize("beginning", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", bytes(100)])
def test_what_is_not_http2_is_closed_at_once(beginning: bytes) -> None:
    async def scenario(served: Served) -> None:
        def other() -> bool:
            with Stranger(served.address, greet=False) as stranger:
                stranger.send(beginning)
                return stranger.closed_within(5)

        assert await asyncio.to_thread(other)

    run({ECHO: echo}, scenario)


def test_an_idle_connection_is_told_to_go_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http2, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(connection, "LEAVING_SECONDS", 0.2)

    async def scenario(served: Served) -> None:
        def idle(stranger: Stranger) -> bool:
            assert stranger.frames(10, until=GOAWAY)[-1][0] == GOAWAY
            return stranger.closed_within(5)

        assert await served.stranger(idle)

    run({ECHO: echo}, scenario)


def test_an_old_connection_is_told_to_go_and_its_calls_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http2, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connection, "AGE_SECONDS", 0.3)
    monkeypatch.setattr(connection, "LEAVING_SECONDS", 0.2)

    async def slow(context: CallContext, request: bytes) -> bytes:
        await asyncio.sleep(1.5 if request == b"slow" else 0)
        return request

    connections: set[connection.Connection] = set()

    async def scenario(served: Served) -> None:
        admit = served.gateway.admit
        monkeypatch.setattr(served.gateway, "admit", lambda one: connections.add(one) or admit(one))
        async with grpc.aio.insecure_channel(served.address) as channel:
            call = channel.unary_unary(ECHO)(b"slow", timeout=10)
            while not call.done():
                assert await channel.unary_unary(ECHO)(b"beside", timeout=10) == b"beside"
                await asyncio.sleep(0.01)
            assert await call == b"slow"
        assert len(connections) > 1

    run({ECHO: slow}, scenario)


def test_connections_beyond_the_bound_are_turned_away() -> None:
    async def scenario(served: Served) -> None:
        def many() -> tuple[int, int]:
            strangers = [Stranger(served.address) for _ in range(10)]
            closed = sum(stranger.closed_within(0.5) for stranger in strangers)
            for stranger in strangers:
                stranger.close()
            return closed, len(strangers)

        assert await asyncio.to_thread(many) == (6, 10)
        async with asyncio.timeout(5):
            while served.gateway._connections:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    run({ECHO: echo}, scenario, descriptors_max=4)


def test_frames_may_come_a_byte_at_a_time_and_headers_in_pieces() -> None:
    async def scenario(served: Served) -> None:
        def drip(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            block = headers(ECHO)
            frames = frame(HEADERS, 0, 1, block[:10]) + frame(CONTINUATION, END_HEADERS, 1, block[10:])
            body = message(b"drop by drop")
            frames += b"".join(frame(DATA, 0, 1, body[at : at + 1]) for at in range(len(body)))
            frames += frame(DATA, END_STREAM, 1)
            for byte in frames:
                stranger.send(bytes((byte,)))
            return stranger.frames(10, until=DATA)

        assert (await served.stranger(drip))[-1][3] == message(b"drop by drop")

    run({ECHO: echo}, scenario)


def test_padding_and_pings_pass() -> None:
    async def scenario(served: Served) -> None:
        def padded(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            stranger.send(frame(HEADERS, END_HEADERS | 8, 1, b"\x07" + headers(ECHO) + bytes(7)))
            stranger.send(frame(PING, 0, 0, b"12345678"))
            stranger.send(frame(DATA, END_STREAM | 8, 1, b"\x09" + message(b"soft") + bytes(9)))
            return stranger.frames(10, until=DATA)

        found = await served.stranger(padded)
        assert found[-1][3] == message(b"soft")
        assert (PING, 1, 0, b"12345678") in found

    run({ECHO: echo}, scenario)


def test_a_frame_that_is_too_large_ends_the_connection() -> None:
    async def scenario(served: Served) -> None:
        def send(stranger: Stranger) -> bool:
            stranger.send(frame(DATA, 0, 1, bytes(FRAME_BYTES + 1)))
            return stranger.closed_within(5)

        assert await served.stranger(send)

    run({ECHO: echo}, scenario)


def test_an_answer_waits_for_the_clients_windows_and_others_pass_it() -> None:
    async def large(context: CallContext, request: bytes) -> bytes:
        return b"x" * 100_000 if request == b"large" else request

    async def scenario(served: Served) -> None:
        def narrow() -> None:
            with Stranger(served.address, window=1_000) as stranger:
                stranger.call(1, "GetClusterInfo", message(b"large"))
                assert [len(payload) for kind, *_, payload in stranger.frames(0.3) if kind == DATA] == [1_000]
                stranger.call(3, "GetClusterInfo", message(b"small"))
                beside = stranger.frames(10, until=DATA)
                assert beside[-1][2:] == (3, message(b"small"))
                # Smaller than what was sent already: the window of the first call is below zero from here on.
                stranger.send(settings(window=400))
                stranger.send(window(1, 700))
                got = [payload for kind, _, number, payload in stranger.frames(0.3) if (kind, number) == (DATA, 1)]
                assert sum(map(len, got)) == 100
                stranger.send(window(1, 2**20))
                # The connection's window is what is left of 65,535 bytes.
                got += [payload for kind, _, number, payload in stranger.frames(0.5) if (kind, number) == (DATA, 1)]
                assert sum(map(len, got)) == 65_535 - 1_000 - len(message(b"small"))
                stranger.send(window(0, 2**20))
                found = stranger.frames(10, until=HEADERS)
                got += [payload for kind, _, number, payload in found if (kind, number) == (DATA, 1)]
                assert sum(map(len, got)) == 100_000 + 5 - 1_000
                assert found[-1][1] & END_STREAM

        await asyncio.to_thread(narrow)

    run({ECHO: large}, scenario)


@pytest.mark.parametrize(("where", "count", "error"), [(1, 2**31 - 1, 3), (1, 0, 1), (0, 2**31 - 1, 3), (0, 0, 1)])
def test_a_window_that_grows_too_far_or_not_at_all_is_an_error(where: int, count: int, error: int) -> None:
    held = asyncio.Event()

    async def hold(context: CallContext, request: bytes) -> bytes:
        if request == b"hold":
            await held.wait()
        return request

    async def scenario(served: Served) -> None:
        def widen(stranger: Stranger) -> tuple[int, int]:
            stranger.call(1, "GetClusterInfo", message(b"hold"))
            stranger.send(window(where, count))
            kind, _, _, payload = stranger.frames(10, until=RST_STREAM if where else GOAWAY)[-1]
            return kind, int.from_bytes(payload[-4:], "big")

        assert await served.stranger(widen) == (RST_STREAM if where else GOAWAY, error)
        held.set()

    run({ECHO: hold}, scenario)


def test_calls_beyond_a_connections_bound_are_to_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STREAMS_PER_CONNECTION_MAX", 2)
    held = asyncio.Event()

    async def hold(context: CallContext, request: bytes) -> bytes:
        if request == b"hold":
            await held.wait()
        return request

    async def scenario(served: Served) -> None:
        def ask(stranger: Stranger) -> tuple[int, int, int, bytes]:
            for number in (1, 3, 5):
                stranger.call(number, "GetClusterInfo", message(b"hold"))
            return stranger.frames(10, until=RST_STREAM)[-1]

        refused_stream = 7
        assert await served.stranger(ask) == (RST_STREAM, 0, 5, refused_stream.to_bytes(4, "big"))
        held.set()

    run({ECHO: hold}, scenario)


def test_settings_and_windows_cost_the_same_however_many_answers_wait() -> None:
    waiting = 1_500

    async def scenario(served: Served) -> None:
        def flood(stranger: Stranger) -> float:
            stranger.send(settings(window=0))
            for number in range(1, 2 * waiting, 2):
                stranger.call(number, "GetClusterInfo", message(b"x"))
            stranger.send(frame(PING, 0, 0, b"all come"))
            stranger.frames(20, until=PING)
            began = time.monotonic()
            stranger.send(settings(window=0) * 30 + window(0, 1) * 2_000)
            stranger.send(frame(PING, 0, 0, b"the last"))
            stranger.frames(20, until=PING)
            return time.monotonic() - began

        assert await served.stranger(flood) < 2

    run({ECHO: echo}, scenario)


def test_too_many_settings_end_the_connection() -> None:
    async def scenario(served: Served) -> None:
        def flood(stranger: Stranger) -> tuple[bool, bool]:
            stranger.send(settings(window=1) * 200)
            with Stranger(served.address) as other:
                other.send(frame(SETTINGS, 0, 0, b"\x00\x04\x00\x00\x00\x01" * 2_000))
                return stranger.closed_within(5), other.closed_within(5)

        assert await served.stranger(flood) == (True, True)

    run({ECHO: echo}, scenario)


def test_a_header_of_many_binary_values_is_refused() -> None:
    async def scenario(served: Served) -> None:
        def ask(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            entry = literal("a-bin", "," * 120)
            stranger.send(frame(HEADERS, END_HEADERS, 1, headers(ECHO) + entry * 2))
            return stranger.frames(10, until=RST_STREAM)

        code, text = status(await served.stranger(ask))
        assert (code, text) == (8, "expected at most 128 values of binary headers, found more")

    run({ECHO: echo}, scenario)


def test_a_clients_value_in_a_refusal_is_cut() -> None:
    async def scenario(served: Served) -> None:
        def ask(stranger: Stranger) -> bytes:
            stranger.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, headers(ECHO) + _long("grpc-encoding", 4_000)))
            return stranger.frames(10, until=HEADERS)[-1][3]

        assert len(await served.stranger(ask)) < 500

    run({ECHO: echo}, scenario)


def _long(name: str, length: int) -> bytes:
    size = bytes((127, (length - 127) % 128 + 128, (length - 127) // 128))
    return b"\x00" + bytes((len(name),)) + name.encode() + size + b"x" * length


def test_refusals_that_nobody_reads_are_bounded() -> None:
    async def scenario(served: Served) -> None:
        def flood(stranger: Stranger) -> int:
            block = headers(SERVICE + "M" * 60)
            calls = [
                frame(HEADERS, END_HEADERS, number, block) + frame(DATA, END_STREAM, number, message(b""))
                for number in range(1, 120_001, 2)
            ]
            stranger.send(b"".join(calls), timeout=5)
            return max(one._transport.get_write_buffer_size() for one in served.gateway._connections)

        assert await served.stranger(flood) < 2 * MB

    run({ECHO: echo}, scenario)


def test_refused_calls_whose_rest_never_comes_leave_the_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DROPPED_STREAMS_MAX", 10)

    async def scenario(served: Served) -> None:
        def ask(stranger: Stranger) -> bytes:
            for number in range(1, 101, 2):
                stranger.ask(number, "GetClusterInfo")
                stranger.send(frame(DATA, 0, number, b"\0" + (5 * MB).to_bytes(4, "big")))
            stranger.call(201, "GetClusterInfo", message(b"still here"))
            return stranger.frames(10, until=DATA)[-1][3]

        assert await served.stranger(ask) == message(b"still here")

    run({ECHO: echo}, scenario)


def test_a_large_request_goes_on_beside_thousands_of_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PACED_BYTES", 100_000)
    held = asyncio.Event()

    async def hold(context: CallContext, request: bytes) -> bytes:
        if request == b"poll":
            await held.wait()
        return request

    async def scenario(served: Served) -> None:
        async with grpc.aio.insecure_channel(served.address) as channel:
            call = channel.unary_unary(ECHO)
            polls = [asyncio.ensure_future(call(b"poll", timeout=25)) for _ in range(200)]
            assert len(await call(bytes(MB), timeout=10)) == MB
            held.set()
            await asyncio.gather(*polls)

    run({ECHO: hold}, scenario)


def test_many_unfinished_requests_cost_no_more_each_than_few() -> None:
    async def scenario(served: Served) -> None:
        def flood(stranger: Stranger) -> float:
            for number in range(1, 24_001, 2):
                stranger.ask(number, "GetClusterInfo")
            prefix = b"\0" + (3 * MB).to_bytes(4, "big")
            last = [23_999 - 2 * at for at in range(10)]
            for number in last:
                stranger.send(frame(DATA, 0, number, prefix) + frame(DATA, 0, number, bytes(FRAME_BYTES)) * 9)
            began = time.monotonic()
            stranger.send(frame(DATA, 0, last[0], b"") * 5_000)
            stranger.send(b"".join(frame(RST_STREAM, 0, number, bytes(4)) for number in range(1, 10_001, 2)))
            stranger.send(frame(PING, 0, 0, b"the last"))
            stranger.frames(25, until=PING)
            return time.monotonic() - began

        assert await served.stranger(flood) < 3

    run({ECHO: echo}, scenario)


def test_an_answer_that_still_waits_when_its_client_leaves_is_given_back() -> None:
    given_back: list[bytes] = []

    async def task(context: CallContext, request: bytes) -> bytes:
        if request == b"poll":
            context.undelivered = given_back.append
            return b"task"
        return request

    async def scenario(served: Served) -> None:
        def leave(stranger: Stranger) -> None:
            stranger.send(settings(window=0))
            stranger.call(1, "GetClusterInfo", message(b"poll"))
            stranger.frames(10, until=HEADERS)
            stranger.send(frame(RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
            stranger.send(frame(PING, 0, 0, b"12345678"))
            stranger.frames(10, until=PING)

        await served.stranger(leave)
        assert given_back == [b"task"]

    run({ECHO: task}, scenario)


@pytest.mark.parametrize("kind", ["small", "large", "refused", "no gRPC"])
def test_a_client_that_wants_no_table_of_headers_is_told_that_there_is_none(kind: str) -> None:
    """RFC 7541, 4.2: the next block begins with the table's new size. The library's decoder insists on it."""

    async def answer(context: CallContext, request: bytes) -> bytes:
        if request == b"refused":
            raise StatusError(Code.NOT_FOUND, "no")
        return bytes(50_000) if request == b"large" else request

    async def scenario(served: Served) -> None:
        def ask(stranger: Stranger) -> list[bytes]:
            stranger.send(frame(SETTINGS, 0, 0, b"\x00\x01\x00\x00\x00\x00"))
            more = {"content-type": "text/plain"} if kind == "no gRPC" else {}
            for number in (1, 3):
                stranger.call(number, "GetClusterInfo", message(kind.encode()), **more)
            stranger.send(frame(PING, 0, 0, b"12345678"))
            found = stranger.frames(2)
            return [payload for what, _, _, payload in found if what == HEADERS]

        decoder = Decoder()
        decoder.max_allowed_table_size = 0
        for block in await served.stranger(ask):
            assert decoder.decode(block)

    run({ECHO: answer}, scenario)


def test_trailers_end_a_request() -> None:
    async def scenario(served: Served) -> None:
        def trail(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            stranger.ask(1, "GetClusterInfo")
            stranger.send(frame(DATA, 0, 1, message(b"and that was all")))
            stranger.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, literal("x-sum", "42")))
            return stranger.frames(10, until=DATA)

        assert (await served.stranger(trail))[-1][3] == message(b"and that was all")

    run({ECHO: echo}, scenario)


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"content-type": "text/plain"}, ":status\x03415"),
        ({"grpc-timeout": "soon"}, "malformed grpc-timeout"),
        ({"grpc-timeout": "123456789S"}, "malformed grpc-timeout"),
        ({"grpc-encoding": "snappy"}, "Decompressor is not installed for grpc-encoding"),
        ({"blob-bin": "@"}, "malformed binary metadata"),
    ],
)
def test_headers_that_grpc_does_not_have_are_refused(fields: dict[str, str], answer: str) -> None:
    async def scenario(served: Served) -> None:
        def ask(stranger: Stranger) -> bytes:
            stranger.call(1, "GetClusterInfo", message(b""), **fields)
            kind, flags, _, payload = stranger.frames(10, until=HEADERS)[-1]
            assert (kind, flags & END_STREAM) == (HEADERS, END_STREAM)
            return payload

        assert answer.encode() in await served.stranger(ask)

    run({ECHO: echo}, scenario)


@pytest.mark.parametrize("ended", [True, False])
def test_a_body_that_ends_too_early_is_refused(ended: bool) -> None:
    async def scenario(served: Served) -> None:
        def ask(stranger: Stranger) -> list[tuple[int, int, int, bytes]]:
            stranger.call(1, "GetClusterInfo", message(bytes(100))[:50] if ended else b"")
            return stranger.frames(10, until=HEADERS)

        code, text = status(await served.stranger(ask))
        assert code == 13
        assert ("found 45 and the end" if ended else "found none") in text

    run({ECHO: echo}, scenario)


def test_a_header_block_without_end_closes_the_connection() -> None:
    async def scenario(served: Served) -> None:
        def flood(stranger: Stranger) -> bool:
            stranger.send(frame(HEADERS, 0, 1, headers(ECHO)))
            stranger.send(frame(CONTINUATION, 0, 1, literal("pad", "x" * 100) * 100) * 10)
            return stranger.closed_within(5)

        assert await served.stranger(flood)

    run({ECHO: echo}, scenario)


def test_headers_that_unfold_to_too_much_are_refused_and_the_connection_goes_on() -> None:
    async def scenario(served: Served) -> None:
        def unfold(stranger: Stranger) -> tuple[int, str]:
            value = b"x" * 3_000
            entry = b"\x40\x03pad\x7f" + bytes(((len(value) - 127) % 128 + 128, (len(value) - 127) // 128)) + value
            stranger.send(frame(HEADERS, END_HEADERS, 1, headers(ECHO) + entry + b"\xbe" * 10_000))
            found = status(stranger.frames(10, until=RST_STREAM))
            stranger.send(frame(HEADERS, END_HEADERS, 3, headers(ECHO) + b"\xbe"))
            stranger.send(frame(DATA, END_STREAM, 3, message(b"on")))
            assert stranger.frames(10, until=DATA)[-1][3] == message(b"on")
            return found

        assert await served.stranger(unfold) == (8, "received header list size exceeds limit of 65536 bytes")

    run({ECHO: echo}, scenario)


@pytest.fixture
def rings() -> Iterator[Callable[[], list[FrameType]]]:
    """Frames that only the collector of cycles would have freed."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)

    def found() -> list[FrameType]:
        gc.collect()
        return [one for one in gc.garbage if isinstance(one, FrameType)]

    yield found
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def test_a_refused_request_is_not_kept_by_its_own_exception(rings: Callable[[], list[FrameType]]) -> None:
    async def refuse(context: CallContext, request: bytes) -> bytes:
        if request == b"hello":
            return request
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, StatusError(Code.RESOURCE_EXHAUSTED, "busy"))
        return await future

    async def scenario(served: Served) -> None:
        async with grpc.aio.insecure_channel(served.address) as channel:
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(ECHO)(b"refused", timeout=10)
        kept = [
            one.f_code.co_name
            for one in rings()
            if "frontend" in one.f_code.co_filename or one.f_code.co_name == "refuse"
        ]
        assert kept == []

    run({ECHO: refuse}, scenario)


def test_an_inflater_counts_for_what_it_holds() -> None:
    account = bytes_held.Account(bytes_held.Budget(4 * request_body.INFLATER_BYTES))
    bodies = [request_body.RequestBody(account, MB) for _ in range(3)]
    prefix = message(bytes(100), compressed=True)[:5]
    assert [body.take(prefix) is None for body in bodies] == [True, True, False]
