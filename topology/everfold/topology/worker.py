"""One worker of the topology as a process: what `everfold topology worker` runs."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from typing import Final

import structlog
import uvloop

from everfold.runtime.lifecycle import PARENT_ENV
from everfold.runtime.scheduling import give_way
from everfold.topology.application import TopologyApp, Worker

QUIET_S: Final = 10.0
"""How long a message of the Kafka client is not repeated."""

_PR_SET_PDEATHSIG: Final = 1

log = structlog.get_logger("topology")


def run(app: TopologyApp) -> int:
    """Runs the application until SIGTERM or SIGINT, or until a processor cannot go on. Returns the exit status."""
    die_with_parent()
    give_way()  # to the services, for whose work workflows wait
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    for name in ("aiokafka", "aiokafka.consumer.fetcher", "aiokafka.consumer.group_coordinator"):
        logging.getLogger(name).addFilter(_Calm())
    # Faust is not to touch the logs: the process has configured them.
    worker = Worker(app, redirect_stdouts=False, override_logging=False, quiet=True)
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception as error:
        log.debug("stopped", error=type(error).__name__, reason=str(error))
        return 1


class _Calm(logging.Filter):
    """Lets each message of the Kafka client through once in ten seconds: while a broker is away it repeats itself many
    times a second. What it says while a new broker makes its offsets topic is no trouble at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if "GroupCoordinatorNotAvailableError" in record.getMessage():
            return False
        now = time.monotonic()
        if now - self._said.get(str(record.msg), -QUIET_S) < QUIET_S:
            return False
        self._said[str(record.msg)] = now
        return True


def die_with_parent() -> None:
    """Ends this process with its parent, if the parent asked for it."""
    expected = os.environ.get(PARENT_ENV)
    if not expected:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(expected):  # it died before the call above
        sys.exit(0)
