"""The per-user cache: jars, the archive of loaded classes, the template of a formatted data directory.

Everything in it can be deleted at any time and is made again. Entries are built beside their final name and renamed, so
that a reader finds a whole one or none; builders exclude one another by a file lock, which dies with its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """The cache's directory: `EVERFOLD_CACHE_DIR`, else the platform's per-user cache. Not created here."""
    chosen = os.environ.get("EVERFOLD_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("everfold", appauthor=False))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive file lock; blocks until the present holder is done or dead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
