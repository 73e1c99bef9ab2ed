"""What the bursts run on: a broker of their own, which outlives the server, and a server with so many shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bursts.seen import Seen
from crash.conftest import Broker
from support.metrics import sample
from support.servers import everfold_server, free_port, logs_kept


class Stand:
    """A broker, a server on it, and what is seen on the topic of histories.

    Attributes:
        shards: partitions of `commands`.
    """

    def __init__(self, directory: Path, shards: int) -> None:
        self.shards = shards
        self.broker = Broker(directory)
        self._metrics = free_port()
        self.server = everfold_server(
            directory, "--metrics-port", str(self._metrics), "--shards", str(shards), kafka=self.broker.bootstrap
        )

    def start(self) -> None:
        self.broker.start()
        self.server.start()
        self.seen = Seen(self.broker.bootstrap, self.shards)

    def stop(self) -> None:
        if hasattr(self, "seen"):
            self.seen.close()
        for process in (self.server, self.broker):
            if process.running:
                process.stop()

    def shards_lost(self) -> float:
        """How many shards the server has given up since its start."""
        return sample(self._metrics, "everfold_shards_lost_total")


@pytest.fixture
def stand(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stand]:
    stand = Stand(tmp_path, request.param)
    with logs_kept(tmp_path, request):
        try:
            stand.start()
            yield stand
        finally:
            stand.stop()
