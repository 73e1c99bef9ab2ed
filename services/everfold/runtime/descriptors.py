"""File descriptors: the engine's own, and what is left for the connections of clients.

A process without a free descriptor cannot reach Kafka again, open a store's file, or take an answer from a child. So
the connections of clients are bounded below the limit, and the limit is as high as the system lets it be.
"""

from __future__ import annotations

import resource
from typing import Final

RESERVED: Final = 384
"""The engine's: RocksDB's open files (256 at most), Kafka's sockets, the other processes', logs, pipes to children. A
fresh `start-dev` has some 120 open."""

LIMIT_MAX: Final = 1_048_576
"""Where the hard limit is none, this is what is asked for: the highest that Linux gives without being told."""


def raise_limit() -> None:
    """Makes the soft limit of open files the hard one; it has no purpose where nobody uses select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = LIMIT_MAX if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return  # the system's own limit is lower than what it says; the soft one stays


def for_clients() -> int:
    """How many descriptors the connections of clients may take: what is not reserved, and a quarter of few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = LIMIT_MAX if soft == resource.RLIM_INFINITY else soft
    return max(limit - RESERVED, limit // 4)
