"""The broker's data directory: layout, format, ports, and who may use it.

    <data dir>/everfold.lock          flock of the server that uses the directory; dies with it
    <data dir>/broker.json            what we must know again: cluster id, Kafka version, ports
    <data dir>/broker.pid             the broker's process, while one runs
    <data dir>/server.properties      written anew at each start
    <data dir>/broker.log, .out       Kafka's log; what the process itself printed
    <data dir>/kafka/                 Kafka's own (`log.dirs`), with Kafka's own `.lock`

A new directory is formatted by Kafka's `StorageTool`, the supported way, which takes a JVM a second or two. What it
writes is a `meta.properties` with the cluster's id and one checkpoint with feature levels, the same for every cluster
of one Kafka version. So the checkpoint is kept in the cache as a template, and the next new directory is a copy.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

from everfold.runtime.broker.configuration import HOST, NODE_ID, Ports, Runtime, java_command, server_properties
from everfold.runtime.broker.errors import BrokerError, DataDirectoryInUse, DataDirectoryNewer, StartFailed
from everfold.runtime.broker.jars import KAFKA_VERSION

_LAYOUT: Final = 1
"""Version of this directory layout, in `broker.json`."""

_FORMAT_SECONDS_MAX: Final = 60
_ORPHAN_SECONDS_MAX: Final = 10.0
"""A broker whose server died is killed by the kernel at once; the exit of a JVM with its files takes milliseconds."""

_PORTS: Final = range(20_000, 32_000)
"""Below Linux's ephemeral range (32768 on): there, any outgoing connection can take the port while the broker restarts,
and a client that reconnects to a dead port in that range can even end up connected to itself."""

_CHECKPOINT: Final = Path("__cluster_metadata-0") / "00000000000000000000-0000000000.checkpoint"


@dataclass(frozen=True)
class Identity:
    """What `broker.json` holds."""

    layout: int
    kafka_version: str
    cluster_id: str
    client_port: int
    controller_port: int


class DataDirectory:
    """One broker's data directory, held by this process between `acquire` and `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kafka = path / "kafka"
        self.log_file = path / "broker.log"
        self.out_file = path / "broker.out"
        self.properties_file = path / "server.properties"
        self._identity_file = path / "broker.json"
        self._pid_file = path / "broker.pid"
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the directory for this process, and sees to it that no earlier broker still uses it. Blocks.

        Raises:
            DataDirectoryInUse: another living process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "everfold.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise DataDirectoryInUse(
                f"The data directory {self.path} is in use by another Everfold server (process {holder}). "
                "Stop that one, or give this one a directory of its own: --data-dir DIR."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        try:
            self._await_orphan()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Gives the directory up. Safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def prepare(self, runtime: Runtime, template: Path, port: int) -> tuple[Identity, Ports]:
        """Formats a new directory, checks an old one, chooses the ports and writes the configuration. Blocks.

        Args:
            runtime: used to format, when there is no template yet.
            template: the checkpoint in the cache; read, or written after the first format.
            port: the client port, or 0 for the last one used if it is free, else any.

        Raises:
            DataDirectoryNewer: a later version wrote it.
            StartFailed: the format failed.
        """
        known = self._read_identity()
        ports = self._choose_ports(known, port)
        cluster_id = known.cluster_id if known is not None else _new_uuid()
        self.properties_file.write_text(server_properties(self.kafka, ports), encoding="utf-8")
        if not (self.kafka / "meta.properties").is_file():
            if self.kafka.exists() and known is None and any(self.kafka.glob("*-*/*.log")):
                raise BrokerError(f"{self.kafka} holds data of another Kafka; choose another --data-dir.")
            shutil.rmtree(self.kafka, ignore_errors=True)
            self._format(runtime, template, cluster_id)
        identity = Identity(_LAYOUT, KAFKA_VERSION, cluster_id, ports.client, ports.controller)
        if identity != known:
            staged = self._identity_file.with_suffix(".new")
            staged.write_text(json.dumps(asdict(identity), indent=1) + "\n", encoding="utf-8")
            staged.replace(self._identity_file)
        return identity, ports

    def note_pid(self, pid: int | None) -> None:
        """Remembers which process serves the directory, for the next start to end if it were still there."""
        if pid is None:
            self._pid_file.unlink(missing_ok=True)
        else:
            self._pid_file.write_text(f"{pid}\n", encoding="utf-8")

    def last_words(self, lines: int = 15) -> str:
        """The end of what the broker printed and logged, for an error message."""
        found: list[str] = []
        for file in (self.out_file, self.log_file):
            with contextlib.suppress(OSError), file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - 16_384))
                found += stream.read().decode(errors="replace").splitlines()[-lines:]
        return "\n".join(found)

    def _read_identity(self) -> Identity | None:
        try:
            stored = json.loads(self._identity_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            text = f"{self._identity_file} is damaged: {error}. Restore it, or start with another --data-dir."
            raise BrokerError(text) from error
        if stored.get("layout", 0) > _LAYOUT or _numbers(stored["kafka_version"]) > _numbers(KAFKA_VERSION):
            raise DataDirectoryNewer(
                f"The data directory {self.path} was written by Kafka {stored['kafka_version']} "
                f"(layout {stored.get('layout')}); "
                f"this Everfold brings Kafka {KAFKA_VERSION} (layout {_LAYOUT}), which cannot read it. "
                "Upgrade Everfold, or start with another --data-dir."
            )
        return Identity(**{name: stored[name] for name in Identity.__dataclass_fields__})

    def _choose_ports(self, known: Identity | None, port: int) -> Ports:
        if port:
            client = port
        elif known is not None and _is_free(known.client_port):
            client = known.client_port
        else:
            client = _free_port(set())
        if known is not None and known.controller_port != client and _is_free(known.controller_port):
            controller = known.controller_port
        else:
            controller = _free_port({client})
        return Ports(client, controller)

    def _format(self, runtime: Runtime, template: Path, cluster_id: str) -> None:
        if template.is_file():
            # Beside the final name and renamed, so that a crash leaves no half-formatted directory.
            staged = self.path / "kafka.new"
            shutil.rmtree(staged, ignore_errors=True)
            checkpoint = staged / _CHECKPOINT
            checkpoint.parent.mkdir(parents=True)
            shutil.copyfile(template, checkpoint)
            (staged / "meta.properties").write_text(
                f"version=1\ncluster.id={cluster_id}\nnode.id={NODE_ID}\ndirectory.id={_new_uuid()}\n", encoding="utf-8"
            )
            staged.rename(self.kafka)
            return
        command = java_command(
            runtime,
            "kafka.tools.StorageTool",
            ["format", "--cluster-id", cluster_id, "--config", str(self.properties_file)],
            heap_mb=128,
            options=[f"-Deverfold.broker.log={self.log_file}"],
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_SECONDS_MAX, check=False)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-800:]
            raise StartFailed(f"Kafka's StorageTool could not format {self.kafka}: {said}")
        made = self.kafka / _CHECKPOINT
        if made.is_file():
            template.parent.mkdir(parents=True, exist_ok=True)
            staged = template.with_suffix(f".{os.getpid()}")
            shutil.copyfile(made, staged)
            staged.replace(template)

    def _await_orphan(self) -> None:
        """Waits for a broker whose server died; ends it when it does not go by itself."""
        deadline = time.monotonic() + _ORPHAN_SECONDS_MAX
        killed = False
        while self._kafka_lock_held():
            waited = _ORPHAN_SECONDS_MAX - (deadline - time.monotonic())
            if waited > _ORPHAN_SECONDS_MAX / 4 and not killed:
                killed = self._kill_orphan()
            if time.monotonic() > deadline:
                raise DataDirectoryInUse(
                    f"A Kafka broker that this server did not start holds {self.kafka / '.lock'} and does not go away. "
                    "End that process, or choose another --data-dir."
                )
            time.sleep(0.05)
        self.note_pid(None)

    def _kafka_lock_held(self) -> bool:
        try:
            with (self.kafka / ".lock").open("r+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def _kill_orphan(self) -> bool:
        try:
            pid = int(self._pid_file.read_text(encoding="utf-8"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return False
        # The pid may be someone else's by now: only a process started with this directory's configuration is ours.
        if str(self.properties_file).encode() not in command.split(b"\0"):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _new_uuid() -> str:
    """A UUID as Kafka writes it: URL-safe base64, never starting with a dash, which its tools take for an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Java does: connections in TIME_WAIT don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_port(taken: set[int]) -> int:
    for _ in range(1000):
        port = random.choice(_PORTS)
        if port not in taken and _is_free(port):
            return port
    raise BrokerError(f"No free port between {_PORTS.start} and {_PORTS.stop - 1} on {HOST}.")
