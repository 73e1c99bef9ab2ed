"""Whether the embedded broker writes each record through to the disk, so that a loss of power loses nothing.

With `flush.messages=1` Kafka asks the disk for every batch before it acknowledges it. On a disk that is quick about it
that costs nothing that can be measured; on a slow one it is most of a workflow's time. So the disk is asked first
(docs/decisions/0028-the-embedded-broker-writes-through.md).
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

FAST_S: Final = 0.004
"""An fsync up to this is fast: a workflow of one activity waits for some five of them, one after the other."""

_TRIES: Final = 24
_SECONDS_MAX: Final = 0.5
_BLOCK: Final = bytes(4096)


class WriteThrough(NamedTuple):
    """Whether, and why, in words for people."""

    on: bool
    why: str


def decide(directory: Path, *, wanted: bool) -> WriteThrough:
    """Ask the disk of a directory, unless it is not wanted anyway. Blocks for half a second at most, or one fsync."""
    if not wanted:
        return WriteThrough(False, "--no-fsync")
    took_ms = fsync_seconds(directory) * 1000
    if took_ms <= FAST_S * 1000:
        return WriteThrough(True, f"an fsync takes {took_ms:.1f} ms")
    return WriteThrough(False, f"an fsync takes {took_ms:.1f} ms here, too long to wait for it at every record")


def fsync_seconds(directory: Path) -> float:
    """How long an fsync of 4 KiB takes: the lower quartile of a few, as other work on the machine only adds to it."""
    directory.mkdir(parents=True, exist_ok=True)
    took: list[float] = []
    with tempfile.TemporaryFile(dir=directory) as file:
        ends_at = time.monotonic() + _SECONDS_MAX
        while len(took) < _TRIES and (not took or time.monotonic() < ends_at):
            file.write(_BLOCK)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 4]
