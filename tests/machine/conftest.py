"""Makes the driver importable, and gives each test a shard of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from shard_driver import ShardDriver


@pytest.fixture
def shard() -> ShardDriver:
    """A shard that checks replay equality after every record."""
    return ShardDriver()
