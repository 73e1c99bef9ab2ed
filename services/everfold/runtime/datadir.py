"""The data directory: who holds it, which version wrote it, which cluster it belongs to.

    everfold.lock    an flock held for the life of the process; it dies with the process, so a crash leaves none behind
    everfold.json    {"format": 1, "version": "0.1.0", "cluster_id": "…"}
    broker/          the embedded broker's own directory (start-dev)
    history/         one RocksDB per shard
    matching/        backlogs beyond what memory holds
    topology/        the processors' state
    visibility.db    the SQLite index

Everything but broker/ can be made again from Kafka; the directory says so of itself in no file, but `everfold.json`
keeps it from being folded against another cluster's log, which would be silent nonsense.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any, Final

import platformdirs

from everfold.runtime.lifecycle import Fatal

FORMAT: Final = 1
"""Raised when an older version could not read what this one writes."""

OWNER_ALONE: Final = 0o700
"""Mode of the directories that are made here: they hold workflows' payloads. One that is there keeps its mode."""

WORKER: Final = "worker"
"""The name of a worker's directory beside those of the other processes, when it has no other."""


def default_data_dir(name: str = "") -> Path:
    """The user's data directory for Everfold; `name` sets processes of a cluster apart."""
    base = Path(platformdirs.user_data_dir("everfold", appauthor=False))
    return base / name if name else base / "dev"


class DataDir:
    """A data directory held by this process between `acquire` and `release`."""

    def __init__(self, path: Path | None, *, version: str, default_name: str = "") -> None:
        """A directory, not yet held.

        Args:
            path: where; None for a temporary one that goes away at `release`.
            version: this build's version, noted for people.
            default_name: kept for messages.
        """
        self.ephemeral = path is None
        self.path = path.absolute() if path is not None else Path(tempfile.mkdtemp(prefix="everfold-"))
        self._version = version
        self._name = default_name
        self._lock: IO[str] | None = None

    @property
    def broker(self) -> Path:
        """The embedded broker's directory."""
        return self.path / "broker"

    @property
    def history(self) -> Path:
        """The shards' stores."""
        return self.path / "history"

    @property
    def matching(self) -> Path:
        """Spilled backlogs."""
        return self.path / "matching"

    @property
    def topology(self) -> Path:
        """The processors' state."""
        return self.path / "topology"

    @property
    def visibility_url(self) -> str:
        """The default index."""
        return f"sqlite:///{self.path / 'visibility.db'}"

    def acquire(self) -> None:
        """Take the directory for this process, creating it. Raises Fatal when it is in use or of a newer version."""
        try:
            self.path.mkdir(OWNER_ALONE, parents=True, exist_ok=True)
            lock = (self.path / "everfold.lock").open("a+")
        except OSError as error:
            raise Fatal(
                f"The data directory {self.path} cannot be used: {error.strerror}. "
                "Give a directory that this user may write: --data-dir DIR."
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise Fatal(
                f"The data directory {self.path} is in use by process {holder}. "
                "Stop that process, or give this one a directory of its own: --data-dir DIR (or --ephemeral)."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        try:
            self._check_format()
        except Fatal:
            self.release()
            raise

    def _check_format(self) -> None:
        found = self._read()
        if int(found.get("format", FORMAT)) > FORMAT:
            raise Fatal(
                f"The data directory {self.path} was written by Everfold {found.get('version', 'of a newer version')} "
                f"(format {found['format']}; this is {self._version}, which reads up to format {FORMAT}). "
                "Install that version or a newer one, or give another directory: --data-dir DIR."
            )

    def bind(self, cluster_id: str) -> None:
        """Note the Kafka cluster that the stores belong to. Raises Fatal when they belong to another one."""
        found = self._read()
        if (known := found.get("cluster_id", "")) and known != cluster_id:
            raise Fatal(
                f"The data directory {self.path} belongs to the Kafka cluster {known}, but the brokers given are the "
                f"cluster {cluster_id}. Its stores are folds of the other cluster's logs. Use those brokers, or give "
                "another directory: --data-dir DIR."
            )
        content = json.dumps({"format": FORMAT, "version": self._version, "cluster_id": cluster_id}, indent=2)
        staged = self.path / "everfold.json.new"
        staged.write_text(content + "\n")
        staged.replace(self.path / "everfold.json")

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads((self.path / "everfold.json").read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise Fatal(
                f"{self.path / 'everfold.json'} cannot be read ({error}). If nothing else in {self.path} matters, "
                "remove the directory; otherwise put the file back from a copy."
            ) from None
        if not isinstance(content, dict):
            raise Fatal(f"{self.path / 'everfold.json'} does not hold a JSON object; it is not Everfold's.")
        return content

    def release(self) -> None:
        """Give the directory up, and remove it when it was a temporary one. Safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            if self.ephemeral:
                shutil.rmtree(self.path, ignore_errors=True)
