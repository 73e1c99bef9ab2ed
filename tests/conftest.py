"""What every suite may use, and which suites must have the machine for themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.broker import kafka, kafka_bootstrap, topic_prefix

__all__ = ["kafka", "kafka_bootstrap", "topic_prefix"]

ALONE = frozenset(
    ("broker", "cli", "compose", "conformance", "crash", "differential", "integration", "packaging", "topology")
)
"""Suites that start servers, or measure seconds: `make test` runs them one test at a time, after the others."""

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(HERE).parts[0] in ALONE:
            item.add_marker("alone")
