"""A source on a real broker, and two workers that share an index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from topology.source import Source
from topology.worker import WorkerProcess


@pytest.fixture
def source(kafka_bootstrap: str, topic_prefix: str) -> Source:
    made = Source(kafka_bootstrap, topic_prefix)
    made.create_topics()
    return made


@pytest.fixture
def workers(source: Source, tmp_path: Path) -> Iterator[list[WorkerProcess]]:
    index = tmp_path / "index" / "visibility.db"
    made = [WorkerProcess(source.bootstrap, source.prefix, tmp_path / name, index) for name in ("one", "two")]
    yield made
    for worker in made:
        if worker.process is not None and worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()
