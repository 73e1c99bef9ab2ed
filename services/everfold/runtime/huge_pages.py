"""The heap on huge pages.

A workflow touches small objects all over tens of megabytes, and each page of 4 KiB wants an entry in the processor's
translation buffer; a page of 2 MiB wants one for all of its 512. Linux makes huge pages by itself only where the whole
system is set to `always`. So the process asks: `MADV_COLLAPSE` (madvise(2), Linux 6.1) makes one of what is there, at
once, and promises nothing about what will be, so nothing grows later. Ranges that are half empty are left alone.

Measured in docs/decisions/0022-huge-pages.md.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HUGE: Final = 2 * 1024 * 1024
"""Bytes of a huge page where a page has 4 KiB: on x86-64, and on most ARM systems."""

RESIDENT_MIN: Final = 0.5
"""The part of a range that has to be in memory already: what the process may grow by is the rest of it."""

EVERY_S: Final = 30.0
"""The heap grows for some minutes after a start. A round costs a millisecond or two, in a thread."""

_PAGE: Final = 4096
_MADV_COLLAPSE: Final = 25
_MODE: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


async def keep_heap_on_huge_pages() -> None:
    """Collapses what can be, now and every `EVERY_S` seconds, until it is cancelled. Ends at once where it cannot."""
    while allowed():
        await asyncio.to_thread(collapse)
        await asyncio.sleep(EVERY_S)


def allowed() -> bool:
    """Whether this system has huge pages for those who ask: Linux 6.1, not switched off by its administrator."""
    if sys.platform != "linux" or mmap.PAGESIZE != _PAGE:
        return False
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is None or (int(release[1]), int(release[2])) < (6, 1):
        return False
    try:
        return "[never]" not in _MODE.read_text()
    except OSError:
        return False


def collapse() -> int:
    """Makes huge pages of the process's anonymous memory. Returns how many ranges are on one now.

    A range that is on one already counts, and costs nothing. Where the kernel refuses (no huge page is free),
    everything stays as it was.
    """
    libc = ctypes.CDLL(None)
    resident = (ctypes.c_ubyte * (HUGE // _PAGE))()
    wanted = RESIDENT_MIN * len(resident)
    on_huge_pages = 0
    for start in _ranges():
        address = ctypes.c_void_p(start)
        # The mapping may be gone since it was listed. Then both calls fail, and nothing is lost.
        if libc.mincore(address, ctypes.c_size_t(HUGE), resident) or bytes(resident).count(1) < wanted:
            continue
        on_huge_pages += libc.madvise(address, ctypes.c_size_t(HUGE), _MADV_COLLAPSE) == 0
    return on_huge_pages


def _ranges() -> Iterator[int]:
    """Addresses of whole, aligned ranges of private, writable, anonymous memory; proc_pid_maps(5)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, access, _, _, _, *name = line.split(maxsplit=5)
        if access != "rw-p" or (name and name[0] != "[heap]"):
            continue
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        yield from range(-(-start // HUGE) * HUGE, end - HUGE + 1, HUGE)
