"""The two questions asked of a broker before any client library is: is it there, and does it serve?"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

_METADATA: Final = 3
_ANSWER_BYTES_MAX: Final = 64 * 1024
"""The answer names one broker and no topics: some 60 bytes. More means that something else listens there."""


async def serves(host: str, port: int, timeout: float = 1.0) -> bool:
    """Whether a Kafka broker at this address answers a metadata request and counts itself among the live brokers."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                # Metadata v1 for an empty list of topics: header (key, version, correlation, client id), array of 0.
                body = struct.pack(">hhih", _METADATA, 1, 1, 5) + b"probe" + struct.pack(">i", 0)
                writer.write(struct.pack(">i", len(body)) + body)
                (length,) = struct.unpack(">i", await reader.readexactly(4))
                if not 12 <= length <= _ANSWER_BYTES_MAX:
                    return False
                answer = await reader.readexactly(length)
                correlation, brokers = struct.unpack_from(">ii", answer)
                return bool(correlation == 1 and brokers > 0)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
