"""The schema files and the lock file agree, and ids are for ever."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from everfold.schemas import lockfile, registry, topics

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "schemas" / "everfold" / "schemas"


def test_every_topic_carries_a_record_that_has_a_schema() -> None:
    assert {record for topic in topics.TOPICS for record in topic.records} == set(registry.RECORDS)


def test_there_is_one_file_for_each_record() -> None:
    assert {path.stem for path in (SCHEMAS / "avsc").glob("*.avsc")} == set(registry.RECORDS)


def test_the_lock_file_is_up_to_date_with_the_schemas() -> None:
    shas = {name: registry.current(name).sha256 for name in registry.RECORDS}
    assert lockfile.updated(registry.lock(), shas) == registry.lock(), "run python -m everfold.schemas.lockfile"


def test_no_id_stands_for_two_schemas() -> None:
    lock = registry.lock()
    stands_for: dict[int, set[tuple[str, str]]] = {}
    for records in (lock["current"], *lock["released"].values()):
        for name, entry in records.items():
            assert entry["id"] >= registry.ID_FIRST
            stands_for.setdefault(entry["id"], set()).add((name, entry["sha256"]))
    assert all(len(schemas) == 1 for schemas in stands_for.values()), stands_for


def test_released_schemas_are_unchanged() -> None:
    for version, records in registry.lock()["released"].items():
        for name, entry in records.items():
            assert registry.fingerprint(json.loads(registry.avsc_text(name, version))) == entry["sha256"]


def test_every_tagged_version_is_kept_as_released() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "tag", "--list", "v*"], cwd=ROOT, capture_output=True, text=True, check=True)
    for tag in listed.stdout.split():
        assert tag.removeprefix("v") in registry.lock()["released"], (
            f"python -m everfold.schemas.lockfile --release {tag}"
        )


def test_an_id_is_kept_until_it_is_released_and_never_given_again_after() -> None:
    first = lockfile.updated({}, {"A": "a1", "B": "b1"})
    a, b = first["current"]["A"]["id"], first["current"]["B"]["id"]
    assert (a, b) == (registry.ID_FIRST, registry.ID_FIRST + 1)
    assert lockfile.updated(first, {"A": "a2", "B": "b1"})["current"]["A"] == {"id": a, "sha256": "a2"}
    released = lockfile.with_release(first, "1.0")
    second = lockfile.updated(released, {"A": "a2", "B": "b1"})
    assert second["current"]["A"]["id"] == b + 1
    assert second["current"]["B"]["id"] == b
    again = lockfile.updated(second, {"A": "a3", "B": "b1"})
    assert again["current"]["A"] == {"id": b + 1, "sha256": "a3"}, "an unreleased id may still change"
    back = lockfile.updated(second, {"A": "a1", "B": "b1"})
    assert back["current"]["A"]["id"] == a, "a schema that was released has its id already"
    with pytest.raises(ValueError, match="already released"):
        lockfile.with_release(released, "1.0")


def test_a_release_keeps_the_files(tmp_path: Path) -> None:
    shutil.copytree(SCHEMAS / "avsc", tmp_path / "avsc")
    shutil.copy(SCHEMAS / "registry.lock.json", tmp_path)
    assert lockfile.main(["--release", "99.0"], here=tmp_path) == 0
    lock = json.loads((tmp_path / "registry.lock.json").read_text())
    assert lock["released"]["99.0"] == lock["current"] == registry.lock()["current"]
    for name in registry.RECORDS:
        assert (tmp_path / "released" / "99.0" / f"{name}.avsc").read_text() == registry.avsc_text(name)
    assert lockfile.main(["--release", "99.0"], here=tmp_path) == 1


def undocumented(schema: Any, path: str) -> list[str]:
    if isinstance(schema, list):
        return [p for branch in schema for p in undocumented(branch, path)]
    if not isinstance(schema, dict):
        return []
    missing = [path] if schema["type"] in ("record", "enum") and not schema.get("doc") else []
    for field in schema.get("fields", ()):
        inner = f"{path}.{field['name']}"
        missing += [] if field.get("doc") else [inner]
        missing += undocumented(field["type"], inner)
    for part in ("items", "values"):
        missing += undocumented(schema.get(part), path)
    return missing


@pytest.mark.parametrize("name", [*registry.ENGINE_RECORDS, "Command"])
def test_records_and_fields_say_what_they_mean(name: str) -> None:
    assert undocumented(registry.current(name).raw, name) == []


def enums(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for item in schema for found in enums(item)]
    if isinstance(schema, dict):
        own = [schema] if schema.get("type") == "enum" else []
        return own + [found for key, value in schema.items() if key != "default" for found in enums(value)]
    return []


@pytest.mark.parametrize("name", registry.RECORDS)
def test_every_enum_has_a_default_so_that_it_can_grow(name: str) -> None:
    for enum in enums(registry.current(name).raw):
        assert enum["default"] in enum["symbols"], enum["name"]
