"""What is asked of a broker before any client library does: is it there, does it serve?

Two requests, written out by hand, as a client library would bring threads and backoffs into a start of two seconds.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

_METADATA: Final = 3
_INIT_PRODUCER_ID: Final = 22
_ANSWER_BYTES_MAX: Final = 64 * 1024
"""The answer names one broker and no topics: some 60 bytes. More means that something else listens there."""


async def serves(host: str, port: int, timeout: float = 1.0) -> bool:
    """Whether a Kafka broker at this address counts itself among the live ones and hands out producer ids.

    The second matters because the first idempotent producer to ask a new broker for an id is refused until the broker
    has fetched a block of them from the controller, and librdkafka asks again only after half a second.
    """
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                # Metadata v1 for an empty list of topics: header (key, version, correlation, client id), array of 0.
                body = struct.pack(">hhih", _METADATA, 1, 1, 5) + b"probe" + struct.pack(">i", 0)
                answer = await _ask(reader, writer, body)
                correlation, brokers = struct.unpack_from(">ii", answer)
                if correlation != 1 or brokers < 1:
                    return False
                # InitProducerId v0 without a transactional id (-1) and with a transaction timeout that is not used.
                body = struct.pack(">hhih", _INIT_PRODUCER_ID, 0, 2, 5) + b"probe" + struct.pack(">hi", -1, 1000)
                answer = await _ask(reader, writer, body)
                correlation, _throttled, error = struct.unpack_from(">iih", answer)
                return bool(correlation == 2 and error == 0)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, struct.error):
        return False


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    writer.write(struct.pack(">i", len(body)) + body)
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    if length > _ANSWER_BYTES_MAX:
        raise OSError("that is no Kafka broker")
    return await reader.readexactly(length)
