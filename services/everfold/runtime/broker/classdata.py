"""Java's archive of loaded classes, which halves the broker's start: CDS on Java 17 to 24, the AOT cache from 25 on.

The archive comes from a rehearsal: a broker on a throw-away data directory is started, used a little, and stopped; Java
writes the archive as it exits. It fits one Java build and one class path only, so its name carries both. Java checks
the fit itself and starts without an archive that does not, so nothing depends on it but time.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from everfold.runtime.broker.configuration import HOST, Ports, Runtime, java_command, tied_to
from everfold.runtime.broker.errors import BrokerError, StartFailed
from everfold.runtime.broker.java import Java
from everfold.runtime.broker.process import exited
from everfold.runtime.broker.storage import DataDirectory
from everfold.runtime.broker.wire import serves

_START_SECONDS_MAX: Final = 60.0
_DUMP_SECONDS_MAX: Final = 120.0
"""Writing the archive at exit takes 5 to 10 s on an idle machine."""


def archive_path(installation: Path, java: Java) -> Path:
    """Where the archive for this Java lies, beside the jars it is for."""
    return installation / f"classes-{java.identity}.{'aot' if java.major >= 25 else 'jsa'}"


async def build_archive(runtime: Runtime, path: Path, niceness: int = 0) -> None:
    """Makes the archive, unless another process is at it or has made it meanwhile.

    Args:
        runtime: Java and jars; its own archive is not used.
        path: where the archive goes, by rename.
        niceness: scheduling priority of the rehearsal; 19 leaves the machine to others.

    Raises:
        BrokerError: the rehearsal failed. Nothing is left behind.
    """
    with (path.parent / f"{path.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        if path.is_file():  # noqa: ASYNC240 - one look at a local file
            return
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix="rehearsal-"))
        try:
            staged = work / path.name
            await _rehearse(runtime._replace(archive=None), work / "data", staged, niceness)
            if not staged.is_file():
                raise BrokerError(f"Java {runtime.java.major} at {runtime.java.path} wrote no class archive")
            staged.replace(path)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, True)


async def _rehearse(runtime: Runtime, directory: Path, archive: Path, niceness: int) -> None:
    data = DataDirectory(directory)
    await asyncio.to_thread(data.acquire)
    process: subprocess.Popen[bytes] | None = None
    try:
        _, ports = await asyncio.to_thread(data.prepare, runtime, path_of_template(archive), 0)
        flag = "-XX:AOTCacheOutput" if runtime.java.major >= 25 else "-XX:ArchiveClassesAtExit"
        command = java_command(
            runtime,
            "kafka.Kafka",
            [str(data.properties_file)],
            heap_mb=256,
            options=[f"{flag}={archive}", f"-Deverfold.broker.log={data.log_file}"],
        )
        with data.out_file.open("wb") as out:
            process = subprocess.Popen(  # noqa: ASYNC220 - tied to this thread, see `tied_to`
                tied_to(os.getpid(), ["/usr/bin/env", "nice", "-n", str(niceness), *command] if niceness else command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        await _until_serving(process, ports, data)
        await asyncio.to_thread(_use, f"{HOST}:{ports.client}")
        process.send_signal(signal.SIGTERM)
        if not await exited(process, _DUMP_SECONDS_MAX):
            raise StartFailed("the rehearsal did not end")
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        data.release()


def path_of_template(archive: Path) -> Path:
    """A template of the rehearsal's own, so that the format is rehearsed by Kafka and the cache is left alone."""
    return archive.with_name("template.checkpoint")


async def _until_serving(process: subprocess.Popen[bytes], ports: Ports, data: DataDirectory) -> None:
    deadline = time.monotonic() + _START_SECONDS_MAX
    while not await serves(HOST, ports.client):
        if time.monotonic() > deadline or await exited(process, 0.1):
            raise StartFailed(f"the rehearsal's broker does not serve:\n{data.last_words()}")


def _use(bootstrap: str) -> None:
    """Loads the classes behind topics and produce requests."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    for future in admin.create_topics([NewTopic("rehearsal", 1, 1)]).values():
        future.result(timeout=20)
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "log_level": 2})
    producer.produce("rehearsal", b"value", b"key", partition=0)
    producer.flush(20)
