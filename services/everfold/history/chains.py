"""Sends records in order per partition, and again from the first unacknowledged one on when a delivery fails.

One chain per (topic, partition). A chain's records are produced in the order given, any number in flight. When a
delivery fails, or its outcome is unknown, nothing is known about the records behind it either: some may be in the log
although the failed one is not. So the chain starts a new *generation*: everything from the first unacknowledged record
on counts as unsent, later acknowledged ones included, and goes out again after a pause (architecture, law 6). Readers
drop what they had and see no hole. Acknowledgements of an earlier generation are ignored, as they speak of the copy
before the hole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from everfold.history.ports import Cancellable, Headers, Metrics, NoMetrics, ProducerFull, ShardPorts
from everfold.kernel.ids import Origin
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS

_RESEND_FIRST_NS: Final = 100 * MILLISECOND_NS
_RESEND_MAX_NS: Final = 5 * SECOND_NS
_FULL_PAUSE_NS: Final = 20 * MILLISECOND_NS
"""How long a chain waits when the producer's queue is full; deliveries wake it earlier."""


class Entry:
    """One record to send: where, what, and whether and where its latest copy is acknowledged.

    Attributes:
        offset: where the acknowledged copy is; -1 when Kafka does not say.
    """

    __slots__ = ("acknowledged", "headers", "key", "offset", "origin", "partition", "topic", "value")

    def __init__(
        self, origin: Origin, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers = ()
    ) -> None:
        self.origin = origin
        self.topic = topic
        self.partition = partition
        self.key = key
        self.value = value
        self.headers = headers
        self.acknowledged = False
        self.offset = -1

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key) + len(self.value or b"")


class _Chain:
    __slots__ = ("backoff_ns", "generation", "sent", "timer", "unsent")

    def __init__(self) -> None:
        self.unsent: deque[Entry] = deque()
        self.sent: deque[Entry] = deque()
        self.generation = 0
        self.backoff_ns = _RESEND_FIRST_NS
        self.timer: Cancellable | None = None


class Chains:
    """All chains of one sender.

    Args:
        ports: where records go.
        on_progress: called after an acknowledgement.
        resend: off only in the simulator, to prove that it is needed: a failed record then counts as sent.
    """

    def __init__(
        self,
        ports: ShardPorts,
        on_progress: Callable[[], None],
        *,
        metrics: Metrics | None = None,
        resend: bool = True,
    ) -> None:
        self._ports = ports
        self._on_progress = on_progress
        self._metrics = metrics or NoMetrics()
        self._resend = resend
        #: (topic, partition) -> chain; as many as there are partitions that this shard ever sent to
        self._chains: dict[tuple[str, int], _Chain] = {}
        self._closed = False
        self.resent = 0

    def send(self, entry: Entry) -> None:
        """Add to the end of its chain, and produce it as soon as the chain may."""
        key = (entry.topic, entry.partition)
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = _Chain()
        chain.unsent.append(entry)
        self._pump(chain)

    def close(self) -> None:
        """Send nothing more; late acknowledgements are ignored."""
        self._closed = True
        for chain in self._chains.values():
            if chain.timer is not None:
                chain.timer.cancel()
        self._chains.clear()

    def _pump(self, chain: _Chain) -> None:
        if chain.timer is not None or self._closed:
            return
        unsent, sent = chain.unsent, chain.sent
        while unsent:
            entry = unsent[0]
            try:
                self._ports.produce(
                    entry.topic,
                    entry.partition,
                    entry.key,
                    entry.value,
                    entry.headers,
                    partial(self._delivered, chain, entry, chain.generation),
                )
            except ProducerFull:
                self._pause(chain, _FULL_PAUSE_NS)
                return
            sent.append(unsent.popleft())

    def _pause(self, chain: _Chain, delay_ns: int) -> None:
        def wake() -> None:
            chain.timer = None
            self._pump(chain)

        if chain.timer is not None:
            chain.timer.cancel()
        chain.timer = self._ports.call_later(delay_ns, wake)

    def _delivered(
        self, chain: _Chain, entry: Entry, generation: int, error: BaseException | None, offset: int
    ) -> None:
        if self._closed or generation != chain.generation:
            return
        if error is not None and self._resend:
            self._failed(chain)
            return
        entry.acknowledged, entry.offset = True, offset
        chain.backoff_ns = _RESEND_FIRST_NS
        sent = chain.sent
        while sent and sent[0].acknowledged:
            sent.popleft()
        self._on_progress()

    def _failed(self, chain: _Chain) -> None:
        chain.generation += 1
        again = len(chain.sent)
        self.resent += again
        self._metrics.count("outputs_resent", again, topic=chain.sent[0].topic if again else "none")
        while chain.sent:
            entry = chain.sent.pop()
            entry.acknowledged = False
            chain.unsent.appendleft(entry)
        self._pause(chain, chain.backoff_ns)
        chain.backoff_ns = min(chain.backoff_ns * 2, _RESEND_MAX_NS)
