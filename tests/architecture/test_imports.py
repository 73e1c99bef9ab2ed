"""Which package may import which: the direction of dependencies is a test, not a habit.

kernel                      standard library only
schemas                     kernel, and the Avro library
*.machine, the query parser kernel, schemas, protobuf messages; no clock, no chance, no I/O, no logs
runtime                     kernel, schemas
history, matching, …        own machine, kernel, schemas, runtime; never another service's internals
topology                    schemas, kernel, runtime, visibility, the history machine
cli                         everything, and the only one that imports topology
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = [ROOT / name for name in ("services", "schemas", "topology")]
STDLIB = frozenset(sys.stdlib_module_names)

#: package -> the everfold packages that it may import, besides itself
MAY_IMPORT = {
    "kernel": set[str](),
    "schemas": {"kernel"},
    "runtime": {"kernel", "schemas"},
    "history": {"kernel", "schemas", "runtime"},
    "matching": {"kernel", "schemas", "runtime", "history.machine.step"},
    "visibility": {"kernel", "schemas", "runtime"},
    "frontend": {"kernel", "schemas", "runtime", "visibility"},
    "worker": {"kernel", "schemas", "runtime", "visibility"},
    "topology": {"kernel", "schemas", "runtime", "visibility", "worker", "history.machine"},
    "cli": {
        "kernel", "schemas", "runtime", "history", "matching", "visibility", "frontend", "worker", "topology",
    },
}  # fmt: skip

#: pure parts -> the everfold packages that they may import, besides themselves
PURE = {
    "history.machine": {"kernel", "schemas"},
    "matching.machine": {"kernel", "schemas", "history.machine.step"},
    "visibility.query": {"kernel", "visibility.tree", "visibility.values"},
    "visibility.tree": {"kernel"},
}
#: third-party packages that the pure parts may use: messages, row encoding, the query grammar
PURE_LIBRARIES = {"google", "temporalio", "lark", "msgpack"}
IMPURE = {
    "asyncio", "concurrent", "confluent_kafka", "grpc", "io", "logging", "multiprocessing", "os", "pathlib", "platform",
    "queue", "random", "rocksdict", "secrets", "select", "selectors", "signal", "socket", "sqlite3", "ssl", "structlog",
    "subprocess", "tempfile", "threading", "time", "uuid", "zoneinfo",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for root in SOURCE_ROOTS:
        for path in sorted((root / "everfold").rglob("*.py")):
            parts = path.relative_to(root / "everfold").with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


MODULES = dict(modules())


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, also those inside functions; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_a_package_imports_only_what_lies_below_it(name: str) -> None:
    package = name.split(".")[0]
    assert package in MAY_IMPORT, f"{package} is a new package: give it a line in MAY_IMPORT"
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}"
        for line, target in imports(MODULES[name])
        if target.startswith("everfold.") and not within(target.removeprefix("everfold."), allowed)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, {"kernel"})])
def test_the_kernel_needs_only_the_standard_library(name: str) -> None:
    outside = {target for _, target in imports(MODULES[name]) if target.split(".")[0] not in STDLIB | {"everfold"}}
    assert not outside


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, set(PURE))])
def test_a_pure_module_sees_no_world(name: str) -> None:
    package = next(package for package in PURE if within(name, {package}))
    wrong = []
    for line, target in imports(MODULES[name]):
        top = target.split(".")[0]
        if top == "everfold":
            if not within(target.removeprefix("everfold."), PURE[package] | {package}):
                wrong.append(f"{line}: {target} is not pure")
        elif top in IMPURE or top not in STDLIB | PURE_LIBRARIES:
            wrong.append(f"{line}: {target} reaches the world")
        elif target.startswith("temporalio.") and not target.startswith("temporalio.api."):
            wrong.append(f"{line}: {target} is the SDK, not the API's messages")
        elif top == "temporalio" and "_grpc" in target:
            wrong.append(f"{line}: {target} is a gRPC stub")
    assert not wrong, "\n".join(f"{MODULES[name].relative_to(ROOT)}:{text}" for text in wrong)


def test_services_use_the_messages_of_the_api_and_never_the_sdk() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in MODULES.values()
        for line, target in imports(path)
        if target.startswith("temporalio.") and not target.startswith("temporalio.api.")
    ]
    assert not wrong, "\n".join(wrong)
