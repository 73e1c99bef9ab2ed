"""Foreign toolchains for the conformance programs and the load generator: found, or a reason why a test is left out.

What they build goes into `.cache/` at the top of the checkout (git ignores it), in a folder named by the sources' hash:
a second run builds nothing, and an edited source never runs stale.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
CACHE: Final = Path(os.environ.get("EVERFOLD_TEST_CACHE", REPOSITORY / ".cache"))
BUILD_SECONDS: Final = 600


class Unavailable(Exception):
    """A toolchain is absent, or its packages cannot be had here; the text is the reason to print."""


def sources(folder: Path) -> list[Path]:
    """The files that a build depends on, in order."""
    skip = {"node_modules", "lib", "__pycache__"}
    return sorted(p for p in folder.rglob("*") if p.is_file() and not skip & set(p.relative_to(folder).parts))


def fingerprint(folder: Path) -> str:
    """A short hash of a source folder's names and contents."""
    digest = hashlib.sha256()
    for path in sources(folder):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One builder per target, also among pytest-xdist's processes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], cwd: Path, what: str) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode == 0:
        return
    output = done.stdout + done.stderr
    # A build that fails for want of its packages is a machine without a network; any other failure is ours.
    signs = (
        "dial tcp",
        "no such host",
        "ENOTFOUND",
        "EAI_AGAIN",
        "ECONNREFUSED",
        "ETIMEDOUT",
        "module lookup disabled",
    )
    if any(sign in output for sign in signs):
        raise Unavailable(f"{what}: its packages cannot be fetched here")
    raise AssertionError(f"{what} failed:\n{output}")


def go_binary(folder: Path) -> Path:
    """Builds the Go command in a folder of this repository."""
    go = shutil.which("go")
    if go is None:
        raise Unavailable("no Go toolchain: `go` is not on PATH")
    target = CACHE / "go" / f"{folder.name}-{fingerprint(folder)}"
    with _locked(target):
        if not target.exists():
            fresh = target.with_name(target.name + ".new")
            _run([go, "build", "-mod=readonly", "-o", str(fresh), "."], folder, f"go build of {folder.name}")
            fresh.rename(target)
    return target


def typescript_program(folder: Path) -> list[str]:
    """Installs the locked npm packages and compiles a TypeScript program; returns the command that runs it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Unavailable("no Node.js toolchain: `node` and `npm` are not both on PATH")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < 20:
        raise Unavailable(f"Node.js {version} is too old for the TypeScript SDK (20 or newer)")
    target = CACHE / "typescript" / f"{folder.name}-{fingerprint(folder)}"
    with _locked(target):
        if not (target / "lib" / "main.js").exists():
            shutil.rmtree(target, ignore_errors=True)
            for path in sources(folder):
                copy = target / path.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            # The SDK's packages bring their native library along; none of them needs its install script. Not `npm ci`:
            # it insists on an entry for every optional package of other platforms, which the lock file leaves out.
            _run([npm, "install", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund"], target, "npm install")
            _run([node, "node_modules/typescript/bin/tsc"], target, "tsc")
    return [node, str(target / "lib" / "main.js")]
