"""The broker's jars: which they are (`jars.lock`), and how they come into the cache.

`mvn` fetches them when it is there, as it knows the user's mirrors and proxies; otherwise `jgo`, which is pure Python.
Neither resolves versions: the lock file names every artifact, and each file's SHA-256 is checked after the fetch and
before the directory gets its final name, so the cache holds verified jars or nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from everfold.runtime.broker.cache import cache_dir, locked
from everfold.runtime.broker.errors import FetchFailed

KAFKA_VERSION: Final = "4.4.0"

_FETCH_SECONDS_MAX: Final = 900
"""Bound on one fetch of 45 MB: slow links exist, a hung one must end."""

_SAID_EVERY_S: Final = 1.0

_DOWNLOADED: Final = re.compile(r"\bDownloaded from \S+ \S*/([^/\s]+\.jar) ")
"""Maven's line about a file that has come. One that is in its repository already is not spoken of."""

_PARALLEL_DOWNLOADS: Final = 4
"""Enough to hide the round trips of 45 small files, few enough to be polite to the repository."""

Progress = Callable[[str], None]


class Jar(NamedTuple):
    """One locked artifact."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinates(self) -> str:
        """`group:artifact:version`."""
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def filename(self) -> str:
        """The file's name in the cache, and in every Maven repository."""
        return f"{self.artifact}-{self.version}.jar"


def locked_jars() -> list[Jar]:
    """The artifacts of the lock file, in its order."""
    jars = []
    for line in _lock_text().splitlines():
        if line and not line.startswith("#"):
            coordinates, sha256 = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, sha256))
    return jars


def _lock_text() -> str:
    return (resources.files("everfold.runtime.broker") / "jars.lock").read_text(encoding="utf-8")


def installation_dir() -> Path:
    """Where this build's broker lives in the cache; another lock file means another directory."""
    fingerprint = hashlib.sha256(_lock_text().encode()).hexdigest()[:12]
    return cache_dir() / f"kafka-{KAFKA_VERSION}-{fingerprint}"


def ensure_jars(progress: Progress) -> Path:
    """Returns the directory with the verified jars, fetching them if need be.

    Raises:
        FetchFailed: no way of fetching worked, or a file is not the one that the lock file names.
    """
    installation = installation_dir()
    lib = installation / "lib"
    if lib.is_dir():
        return lib
    with locked(installation.parent / f"{installation.name}.lock"):
        if not lib.is_dir():
            installation.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=installation, prefix="fetch-") as work:
                staged = Path(work) / "lib"
                staged.mkdir()
                _fetch(locked_jars(), staged, Path(work), progress)
                staged.rename(lib)
    return lib


def _fetch(jars: list[Jar], into: Path, work: Path, progress: Progress) -> None:
    troubles: list[str] = []
    for name, usable, fetch in (("mvn", _mvn_path() is not None, _fetch_with_mvn), ("jgo", True, _fetch_with_jgo)):
        if not usable:
            troubles.append(f"{name}: not on PATH")
            continue
        progress(f"Fetching Apache Kafka {KAFKA_VERSION} ({len(jars)} jars, 45 MB) with {name}")
        try:
            fetch(jars, into, work, Arrivals(len(jars), progress))
            verify(jars, into)
            return
        except (FetchFailed, OSError, subprocess.SubprocessError) as error:
            troubles.append(f"{name}: {error}")
    raise FetchFailed(
        "The Kafka broker's jars could not be fetched from Maven Central ("
        + "; ".join(troubles)
        + "). Check the network (Maven reads mirrors from ~/.m2/settings.xml), "
        "or use a cluster of your own: --kafka HOST:PORT."
    )


def verify(jars: list[Jar], directory: Path) -> None:
    """Checks that each jar is there with the locked SHA-256.

    Raises:
        FetchFailed: names the first file that is missing or different.
    """
    for jar in jars:
        path = directory / jar.filename
        if not path.is_file():
            raise FetchFailed(f"{jar.coordinates} did not arrive")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != jar.sha256:
            raise FetchFailed(
                f"{jar.coordinates}: expected SHA-256 {jar.sha256}, found {found}; "
                "a broken download or a repository that serves another file"
            )


def _mvn_path() -> str | None:
    return shutil.which("mvn")


class Arrivals:
    """Says how many jars have come: at most once a second, and when it is the last."""

    def __init__(self, expected: int, progress: Progress) -> None:
        self._expected = expected
        self._progress = progress
        self._come = 0
        self._said_at = time.monotonic()
        self._lock = threading.Lock()

    def one(self) -> None:
        """A jar has come. May be called on any thread."""
        with self._lock:
            self._come += 1
            now = time.monotonic()
            if self._come == self._expected or now - self._said_at >= _SAID_EVERY_S:
                self._said_at = now
                self._progress(f"  {self._come} of {self._expected} jars")


def _fetch_with_mvn(jars: list[Jar], into: Path, work: Path, arrivals: Arrivals) -> None:
    dependency = (
        "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions></dependency>"
    )
    pom = work / "pom.xml"
    pom.write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>everfold</groupId><artifactId>broker</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{''.join(dependency.format(**jar._asdict()) for jar in jars)}</dependencies></project>",
        encoding="utf-8",
    )
    mvn = _mvn_path()
    assert mvn is not None
    command = [mvn, "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={into}"]
    names = {jar.filename for jar in jars}
    errors: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=work) as process:
        assert process.stdout is not None
        hung = threading.Timer(_FETCH_SECONDS_MAX, process.kill)
        hung.start()
        for line in process.stdout:
            if (came := _DOWNLOADED.search(line)) and came[1] in names:
                arrivals.one()
            elif line.startswith("[ERROR]"):
                errors.append(line)
        hung.cancel()
    if process.returncode != 0:
        raise FetchFailed(f"exit code {process.returncode}: {''.join(errors).strip()[:500]}")


def _fetch_with_jgo(jars: list[Jar], into: Path, work: Path, arrivals: Arrivals) -> None:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise FetchFailed(f"not installed ({error})") from error
    context = MavenContext(resolver=PythonResolver(), repo_cache=work / "repository", timeout=60)

    def fetch_one(jar: Jar) -> None:
        found = context.create_dependency(jar.coordinates).artifact.resolve()
        os.replace(found, into / jar.filename)
        arrivals.one()

    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="jgo") as pool:
        try:
            list(pool.map(fetch_one, jars, timeout=_FETCH_SECONDS_MAX))
        except Exception as error:  # jgo raises RuntimeError, requests' errors and bare ones alike
            pool.shutdown(cancel_futures=True)
            raise FetchFailed(f"{type(error).__name__}: {error}") from error
