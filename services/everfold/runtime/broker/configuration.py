"""The broker's configuration and command line: one small node, broker and controller in one process, on loopback only.

The sizes are for one machine that also runs everything else: a broker of some 170 MB that starts in three seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NamedTuple

from everfold.runtime.broker.java import Java
from everfold.schemas.topics import RECORD_BYTES_MAX

NODE_ID: Final = 1
HOST: Final = "127.0.0.1"
"""The broker has neither encryption nor passwords, so it must be reachable from this machine only."""


class Ports(NamedTuple):
    """Where the broker listens: for clients, and for its own controller."""

    client: int
    controller: int


class Runtime(NamedTuple):
    """What is needed to start Kafka's programs.

    Attributes:
        java: the Java runtime.
        lib: the directory with the jars.
        archive: Java's archive of loaded classes (CDS or AOT cache), which halves the start; None without.
    """

    java: Java
    lib: Path
    archive: Path | None


def server_properties(log_dir: Path, ports: Ports) -> str:
    """The text of `server.properties`."""
    properties = {
        "process.roles": "broker,controller",
        "node.id": NODE_ID,
        "listeners": f"PLAINTEXT://{HOST}:{ports.client},CONTROLLER://{HOST}:{ports.controller}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{ports.client}",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"{NODE_ID}@{HOST}:{ports.controller}",
        "log.dirs": log_dir,
        # Threads: Kafka's defaults (3 network, 8 I/O, 10 background) are for machines of their own.
        "num.network.threads": 1,
        "num.io.threads": 2,
        "background.threads": 2,
        "num.replica.fetchers": 1,
        "num.recovery.threads.per.data.dir": 2,
        # Record limit, the same for clients (everfold.runtime.kafka) and in the topics' own configuration.
        "message.max.bytes": RECORD_BYTES_MAX,
        "replica.fetch.max.bytes": RECORD_BYTES_MAX,
        # One node: nothing to replicate, and each partition costs start-up time (13 ms when first written).
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # A topic made by a typing error would have the wrong partitions and the wrong timestamps.
        "auto.create.topics.enable": "false",
        # Members join one by one here; waiting 3 s for more only delays the first.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 6000,
        # The cleaner's index of keys: 128 MB by default, 8 MB hold 350,000 keys per pass.
        "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
        "log.cleaner.threads": 1,
        # The controller appends a no-op this often to show that it lives; with no other broker to tell, rarely.
        "metadata.max.idle.interval.ms": 10_000,
        # After a kill -9 the controller refuses the broker until the session of its former life is over: with the
        # default of 9 s a restart takes 12 s. Too short would fence a broker that merely waits for the processor.
        "broker.session.timeout.ms": 2000,
        "broker.heartbeat.interval.ms": 500,
    }
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def java_command(runtime: Runtime, main: str, arguments: list[str], *, heap_mb: int, options: list[str]) -> list[str]:
    """The command line of one of Kafka's programs."""
    # An explicit list in a fixed order: Java takes a class archive only for the very class path it was made with.
    class_path = ":".join(str(jar) for jar in sorted(runtime.lib.glob("*.jar")))
    command = [
        str(runtime.java.path),
        "-Xms48m",
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        # Quick code only: the optimizing compiler's threads are half of a young broker's work, and what they gain is
        # even after some ten thousand workflows (docs/decisions/0015-latency-and-requests.md).
        "-XX:TieredStopAtLevel=1",
        "-XX:MaxDirectMemorySize=64m",
        "-XX:ReservedCodeCacheSize=48m",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        # Whether an archive fits is Java's business, and it starts without it when not: no warnings about that.
        "-Xlog:disable",
        "-Xlog:all=error:stderr",
        "-Djava.awt.headless=true",
        "-Dlog4j2.disableJmx=true",
        f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties')}",
    ]
    if sys.platform == "linux":  # unknown elsewhere, and then fatal; docs/decisions/0022-huge-pages.md
        command.append("-XX:+UseTransparentHugePages")
    if runtime.java.major >= 23:
        # Kafka's and lz4's use of Unsafe works, and nobody here can change it.
        command.append("--sun-misc-unsafe-memory-access=allow")
    if runtime.java.major >= 22:
        command.append("--enable-native-access=ALL-UNNAMED")
    if runtime.archive is not None:
        flag = "-XX:AOTCache" if runtime.java.major >= 25 else "-XX:SharedArchiveFile"
        command.append(f"{flag}={runtime.archive}")
    return [*command, *options, "-cp", class_path, main, *arguments]


_TRAMPOLINE: Final = """\
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied_to(parent_pid: int, command: list[str]) -> list[str]:
    """The same command, killed by the kernel when the thread that started it ends, however that ends.

    PR_SET_PDEATHSIG survives exec, so a small program sets it and becomes the command. SIGKILL and not SIGTERM: nothing
    may outlive the server, and Kafka recovers from a kill. The look at the parent closes the gap in which it could
    have died before the call. (A `preexec_fn` would run Python between fork and exec of a process full of threads.)
    Outside Linux nothing ties the two; a leftover broker is found and ended at the next start.
    """
    return [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(parent_pid), *command]
