"""Everything a broker needs before its first start, fetched and built once per user."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from everfold.runtime.broker.classdata import archive_path, build_archive
from everfold.runtime.broker.configuration import Runtime
from everfold.runtime.broker.errors import BrokerError
from everfold.runtime.broker.jars import KAFKA_VERSION, Progress, ensure_jars, installation_dir
from everfold.runtime.broker.java import find_java


@dataclass(frozen=True)
class Prepared:
    """A broker that can be started.

    Attributes:
        kafka_version: of the jars.
        runtime: Java, the jars, and the class archive if there is one.
    """

    kafka_version: str
    runtime: Runtime


def template_path() -> Path:
    """The cached checkpoint of a formatted data directory (see `storage`)."""
    return installation_dir() / "template.checkpoint"


def prepare(progress: Progress | None = None, *, archive: bool = True) -> Prepared:
    """Fetches the jars, finds a Java, and builds the class archive. Blocks: a minute the first time, later 0.1 s.

    Args:
        progress: told what is being done when it takes long.
        archive: whether to build the class archive when there is none (ten seconds); a broker starts without it too,
            in twice the time. Not to be asked for on a thread with a running event loop.

    Raises:
        BrokerError: see `broker.errors`.
    """
    say = progress or (lambda text: None)
    java = find_java()
    lib = ensure_jars(say)
    path = archive_path(installation_dir(), java)
    runtime = Runtime(java, lib, path if path.is_file() else None)
    if archive and runtime.archive is None:
        say("Building the class archive that halves the broker's start-up time (10 s, once)")
        try:
            asyncio.run(build_archive(runtime, path))
            runtime = runtime._replace(archive=path)
        except (BrokerError, OSError) as error:
            say(f"No class archive, the broker will start more slowly: {error}")
    return Prepared(KAFKA_VERSION, runtime)
