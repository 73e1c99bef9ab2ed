"""Waiting for a child's end on the event loop, without asyncio's own subprocess machinery.

asyncio and uvloop each bring a child watcher with a thread or a signal handler of its own; a pidfd is a file descriptor
that becomes readable when the process ends, which any loop can wait for. Elsewhere than on Linux the child is looked at
every 50 ms.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import Final

_LOOK_S: Final = 0.05


async def wait_exit(process: subprocess.Popen[bytes]) -> int:
    """Waits until the process has ended, reaps it, and returns its exit code (negative: the signal that ended it)."""
    if process.poll() is None and hasattr(os, "pidfd_open"):
        loop = asyncio.get_running_loop()
        fd = os.pidfd_open(process.pid)
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(fd, _mark, ended)
        try:
            await ended
        finally:
            loop.remove_reader(fd)
            os.close(fd)
    while (code := process.poll()) is None:  # noqa: ASYNC110 - nothing would set an event
        await asyncio.sleep(_LOOK_S)
    return code


def _mark(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


async def exited(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Waits at most `timeout` seconds for the process's end; tells whether it has ended."""
    try:
        await asyncio.wait_for(wait_exit(process), timeout)
    except TimeoutError:
        return False
    return True
