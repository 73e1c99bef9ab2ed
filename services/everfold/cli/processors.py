"""`everfold topology worker` and `everfold worker`: the stream processors here, or in a child of start-dev."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Final

import structlog

from everfold.cli import topics
from everfold.cli.directories import in_directory, open_data_dir
from everfold.runtime import config
from everfold.runtime.config import OPTIONS, Settings
from everfold.runtime.datadir import WORKER
from everfold.runtime.lifecycle import PARENT_ENV, Fatal

log = structlog.get_logger("everfold")

CHILD_NICENESS: Final = 5
"""Beside everything else on one machine the processors give way: workers wait for tasks, and nobody for the index."""


def run(settings: Settings) -> None:
    """Run the processors until SIGINT or SIGTERM. Raises Fatal when one cannot go on."""
    from everfold.topology.app import create_app, options_of
    from everfold.topology.worker import run as run_worker

    topics.kafka_settings(settings)
    if PARENT_ENV in os.environ:  # a child works in its parent's directory, which the parent holds
        os.nice(CHILD_NICENESS)
        status = run_worker(create_app(options_of(settings)))
    else:
        data = open_data_dir(settings, default=WORKER)
        data.acquire()
        try:
            options = options_of(in_directory(settings, data))
            log.info("state", directory=str(data.path), index=options.visibility_url)
            status = run_worker(create_app(options))
        finally:
            data.release()
    if status:
        raise Fatal("the stream processors stopped; the log says why")


def child_command() -> tuple[str, ...]:
    """What start-dev runs as its child."""
    return (sys.executable, "-m", "everfold.cli", "topology", "worker")


def child_environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, those at their defaults left out: how a child gets its parent's own.

    The variables that this process was given are taken out of its environment, or a child would see one where a flag
    of its parent said otherwise. They have been read, and nobody looks at them again. The parent's own metrics port is
    the one thing that a child does not get.
    """
    for option in OPTIONS.values():
        os.environ.pop(option.env, None)
    return environment_of(dataclasses.replace(settings, metrics=dataclasses.replace(settings.metrics, port=0)))


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as environment variables: how a child gets exactly its parent's. Defaults are left out."""
    found: dict[str, str] = {config.CONFIG_ENV: ""}
    for option in OPTIONS.values():
        value = getattr(getattr(settings, option.section), option.name)
        if value == option.default or option.section == "broker":
            continue
        if isinstance(value, (dict, tuple)):
            text = json.dumps(value)
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
        found[option.env] = text
    return found
