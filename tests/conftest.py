"""What every suite may use, and which suites must have the machine for themselves."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest

from support.broker import kafka, kafka_bootstrap, topic_prefix

__all__ = ["kafka", "kafka_bootstrap", "topic_prefix"]

ALONE = frozenset(
    (
        "attacks",
        "broker",
        "brokers",
        "bursts",
        "cli",
        "compose",
        "conformance",
        "crash",
        "damage",
        "differential",
        "generated",
        "integration",
        "mutations",
        "packaging",
        "simulation",
        "topology",
    )
)
"""Suites that start servers, measure seconds, or use every core: `make test` runs them one test at a time, last."""

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(HERE).parts[0] in ALONE:
            item.add_marker("alone")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves processes behind has failed: they would take time and memory from the next one."""
    if session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput"):
        return  # the children of a run on several workers are the workers
    left = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            # The host of the shared broker ends by itself when the last of its users has (support/broker.py).
            host = next((one for one in (child, *child.parents()) if "support.broker" in one.cmdline()), None)
            if host is None and child.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{child.pid} {command}")
    if left:
        print("\nprocesses left behind:", *left, sep="\n  ")
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
