"""Memory that is free goes back to the system.

What Python and the libraries free, glibc keeps for later: after a burst of large payloads a process would stay as large
as it was at the worst moment. `malloc_trim` gives back each page that nothing is on. It also takes huge pages apart
(`huge_pages.py`) and costs some milliseconds in a thread, so it is called only when the process has grown.

Measured in docs/decisions/0036-memory-comes-back.md.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

EVERY_S: Final = 10.0
"""How often the process looks at its size: memory is back within a minute."""

GROWN_BYTES: Final = 64 * 1024 * 1024
"""Growth since the last time, or since the start, that makes it look for free pages. Above what huge pages add."""

_STATM: Final = Path("/proc/self/statm")
_PAGE: Final = 4096


async def give_memory_back() -> None:
    """Trims the heap when it has grown, until it is cancelled. Ends at once where there is no `malloc_trim`."""
    trim = _malloc_trim()
    if trim is None:
        return
    floor = resident_bytes()
    while True:
        await asyncio.sleep(EVERY_S)
        if resident_bytes() > floor + GROWN_BYTES:
            await asyncio.to_thread(trim)
            floor = resident_bytes()
        else:
            floor = min(floor, resident_bytes())


def resident_bytes() -> int:
    """Memory of this process that is in RAM; proc_pid_statm(5)."""
    return int(_STATM.read_text().split()[1]) * _PAGE


def _malloc_trim() -> Callable[[], object] | None:
    if sys.platform != "linux":
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None  # not glibc
    return lambda: trim(ctypes.c_size_t(0))
