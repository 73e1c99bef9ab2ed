"""Writes the lock file: `python -m everfold.schemas.lockfile [--release VERSION]`.

Without an option, ids are brought up to date with the `.avsc` files: a record keeps its id while it is unchanged or
while the id was never released, and gets the next free one otherwise. With `--release`, the current schemas are copied
to `released/VERSION/` and entered as that version; that is done once, when the version is tagged.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from everfold.schemas.registry import ID_FIRST, RECORDS, fingerprint

HERE = Path(__file__).parent


def updated(lock: dict[str, Any], shas: dict[str, str]) -> dict[str, Any]:
    """The lock that goes with schemas of these fingerprints. Released versions and unchanged ids stay as they are."""
    current: dict[str, Any] = lock.get("current", {})
    released: dict[str, Any] = lock.get("released", {})
    versions = [*released.values(), current]
    taken = {entry["id"] for records in versions for entry in records.values()}
    frozen = {entry["id"] for records in released.values() for entry in records.values()}
    fresh: dict[str, Any] = {}
    for name, sha in shas.items():
        before = current.get(name)
        again = [e[name]["id"] for e in released.values() if name in e and e[name]["sha256"] == sha]
        if again:
            schema_id = again[0]
        elif before and before["id"] not in frozen:
            schema_id = before["id"]
        else:
            schema_id = max(taken, default=ID_FIRST - 1) + 1
            taken.add(schema_id)
        fresh[name] = {"id": schema_id, "sha256": sha}
    return {"current": fresh, "released": released}


def with_release(lock: dict[str, Any], version: str) -> dict[str, Any]:
    """The lock with its current schemas entered as a released version.

    Raises:
        ValueError: the version was released before.
    """
    if version in lock["released"]:
        raise ValueError(f"version {version} is already released: its schemas are never changed")
    return {"current": lock["current"], "released": {**lock["released"], version: lock["current"]}}


def main(argv: list[str] | None = None, here: Path = HERE) -> int:
    """Brings the lock file up to date; see the module."""
    parser = argparse.ArgumentParser(
        prog="everfold.schemas.lockfile", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "--release", metavar="VERSION", help="freeze the current schemas as those of a released version"
    )
    arguments = parser.parse_args(argv)
    path = here / "registry.lock.json"
    lock = json.loads(path.read_text()) if path.exists() else {}
    avsc = {
        name: (here / "avsc" / f"{name}.avsc").read_text()
        for name in RECORDS
        if (here / "avsc" / f"{name}.avsc").exists()
    }
    lock = updated(lock, {name: fingerprint(json.loads(text)) for name, text in avsc.items()})
    if arguments.release:
        try:
            lock = with_release(lock, arguments.release)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        folder = here / "released" / arguments.release
        folder.mkdir(parents=True)
        for name, text in avsc.items():
            (folder / f"{name}.avsc").write_text(text)
    path.write_text(json.dumps(lock, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
