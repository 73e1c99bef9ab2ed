"""A gRPC proxy that changes one field of one request in so many, by a seed, and lets everything else through."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any, Final

import grpc
from google.protobuf import message_factory

from mutations import corpus
from mutations.caller import Answer
from mutations.mutator import Mutation, mutate

ONE_IN: Final = 100


class Proxy:
    """Between SDKs and a server.

    Attributes:
        port: where it listens, on the loopback address.
        mutated: how many requests were changed.
        faults: answers that say that the server does not know what went wrong.
    """

    def __init__(self, address: str, seed: int, one_in: int = ONE_IN) -> None:
        self.port = 0
        self.mutated = 0
        self.codes: Counter[tuple[str, str]] = Counter()
        self.faults: list[Answer] = []
        self._random = Random(seed)
        self._one_in = one_in
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((_Everything(self),))

    async def __aenter__(self) -> Proxy:
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0.5)
        await self._channel.close()

    async def pass_on(self, path: str, data: bytes, context: Any) -> bytes:
        """Sends a request to the server, perhaps changed, and gives the answer back as it comes."""
        method = path.rpartition("/")[2]
        mutation: Mutation | None = None
        if method in corpus.METHODS and self._random.randrange(self._one_in) == 0:
            request = message_factory.GetMessageClass(corpus.METHODS[method].input_type).FromString(data)
            data, mutation = mutate(self._random, request)
            self.mutated += 1
        metadata = [(key, value) for key, value in context.invocation_metadata() if not key.startswith(("grpc-", ":"))]
        metadata = [(key, value) for key, value in metadata if key != "user-agent"]
        method_call: Any = self._channel.unary_unary(path)
        call: Any = method_call(data, timeout=context.time_remaining(), metadata=metadata)
        try:
            answer: bytes = await call
        except grpc.aio.AioRpcError as error:
            found = Answer(method, mutation, data, error.code().name, error.details() or "")
            self.codes[method, found.code] += mutation is not None
            if found.is_fault:
                self.faults.append(found)
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            raise AssertionError("abort raises") from None
        except asyncio.CancelledError:
            call.cancel()
            raise
        self.codes[method, "OK"] += mutation is not None
        return answer


class _Everything(grpc.GenericRpcHandler):
    """Every method there is, in bytes."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def service(self, details: Any) -> Any:
        """One handler for each call, which knows its path."""
        path: str = details.method

        async def handle(data: bytes, context: Any) -> bytes:
            return await self._proxy.pass_on(path, data, context)

        return grpc.unary_unary_rpc_method_handler(handle)
