"""Who polled a queue lately, and how fast its tasks come and go. Both are for DescribeTaskQueue and for the windows of
sticky queues and queries; neither decides which poll gets a task.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from everfold.kernel.time import MINUTE_NS, SECOND_NS

SEEN_NS: Final = 5 * MINUTE_NS
"""How long a poller is listed after its last poll. Temporal: pollerHistoryTTL."""

POLLERS_MAX: Final = 1000
"""Pollers remembered per queue: workers poll under one identity each, so this is a thousand workers; beyond it the one
seen longest ago is forgotten, which only shortens a listing."""

RATE_BUCKET_NS: Final = 5 * SECOND_NS
RATE_BUCKETS: Final = 6
"""Rates are counted over the last 30 s, as Temporal's, in steps of 5 s."""


@dataclass(slots=True)
class Poller:
    """One identity that polls.

    Attributes:
        rate_per_second: the limit that it asked for; 0 for none.
        capabilities: serialized WorkerVersionCapabilities, empty for none.
        deployment_options: serialized WorkerDeploymentOptions, empty for none.
    """

    identity: str
    last_access_at_ns: int
    rate_per_second: float = 0.0
    capabilities: bytes = b""
    deployment_options: bytes = b""


class Pollers:
    """The pollers of one queue, the one seen last at the end."""

    __slots__ = ("_by_identity", "last_seen_at_ns")

    def __init__(self) -> None:
        self._by_identity: OrderedDict[str, Poller] = OrderedDict()
        #: None when nobody ever polled
        self.last_seen_at_ns: int | None = None

    def seen(self, poller: Poller, now_ns: int) -> None:
        """This poller polls, or was just answered."""
        poller.last_access_at_ns = now_ns
        self.last_seen_at_ns = now_ns
        known = self._by_identity
        known[poller.identity] = poller
        known.move_to_end(poller.identity)
        oldest = next(iter(known.values()))
        if len(known) > POLLERS_MAX or oldest.last_access_at_ns < now_ns - SEEN_NS:
            del known[oldest.identity]

    def recent(self, now_ns: int) -> Iterator[Poller]:
        """Those seen within SEEN_NS, the latest first."""
        for poller in reversed(self._by_identity.values()):
            if poller.last_access_at_ns < now_ns - SEEN_NS:
                return
            yield poller


class RateMeter:
    """Events per second over the last RATE_BUCKETS * RATE_BUCKET_NS."""

    __slots__ = ("_bucket", "_counts", "_since_ns")

    def __init__(self, now_ns: int) -> None:
        self._counts = [0] * RATE_BUCKETS
        self._bucket = now_ns // RATE_BUCKET_NS
        self._since_ns = now_ns

    def _advance(self, now_ns: int) -> None:
        bucket = now_ns // RATE_BUCKET_NS
        passed = bucket - self._bucket
        if passed > 0:
            for step in range(1, min(passed, RATE_BUCKETS) + 1):
                self._counts[(self._bucket + step) % RATE_BUCKETS] = 0
            self._bucket = bucket

    def count(self, now_ns: int) -> None:
        """One event happened."""
        self._advance(now_ns)
        self._counts[self._bucket % RATE_BUCKETS] += 1

    def per_second(self, now_ns: int) -> float:
        """The rate over the window, or over the meter's life when that is shorter (at least one second)."""
        self._advance(now_ns)
        window_ns = (RATE_BUCKETS - 1) * RATE_BUCKET_NS + now_ns % RATE_BUCKET_NS
        lived_ns = max(now_ns - self._since_ns, SECOND_NS)
        return sum(self._counts) * SECOND_NS / min(window_ns, lived_ns)
