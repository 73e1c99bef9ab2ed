"""The heap on huge pages: what is full gets one, what is not does not grow."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.runtime import huge_pages
from everfold.runtime.huge_pages import HUGE

pytestmark = pytest.mark.skipif(not huge_pages.allowed(), reason="no MADV_COLLAPSE: it is Linux 6.1's")


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """Four huge pages' worth of anonymous memory, of which nothing is there yet."""
    with mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        yield memory


def kilobytes(memory: mmap.mmap, what: str) -> int:
    """A line of the memory's entry in smaps (proc_pid_smaps(5)); its neighbours of the same kind may be part of it."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(bound, 16) for bound in first.split("-"))
            inside = start <= address < end
        elif inside and first == f"{what}:":
            return int(rest[0])
    raise AssertionError(f"no {what} of the memory at {address:x}")


def test_full_ranges_get_huge_pages(memory: mmap.mmap) -> None:
    memory.write(b"x" * len(memory))
    assert huge_pages.collapse() >= 3  # four ranges, of which the first need not begin at a multiple
    assert kilobytes(memory, "AnonHugePages") >= 3 * HUGE // 1024
    assert memory[:] == b"x" * len(memory)


def test_ranges_that_are_nearly_empty_do_not_grow(memory: mmap.mmap) -> None:
    for at in range(0, len(memory), HUGE // 4):
        memory[at] = 1
    before = kilobytes(memory, "Rss")
    huge_pages.collapse()
    assert kilobytes(memory, "Rss") < before + HUGE // 1024


def test_an_administrators_never_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mode = tmp_path / "enabled"
    monkeypatch.setattr(huge_pages, "_MODE", mode)
    assert not huge_pages.allowed()
    mode.write_text("always madvise [never]\n")
    assert not huge_pages.allowed()
    mode.write_text("always [madvise] never\n")
    assert huge_pages.allowed()
