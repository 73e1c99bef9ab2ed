"""The compose files: valid, and each service's command and environment mean something to the real program.

No Docker is needed, and none was used: what is checked is the Compose specification's own schema, and that every
service's command line and environment go through Everfold's real parser and settings. That the same set of processes
works together is tests/compose/test_processes.py's business.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from everfold.cli.commands import everfold
from everfold.runtime.config import OPTIONS, load

COMPOSE = Path(__file__).resolve().parents[2] / "compose"
FILES = sorted(COMPOSE.glob("*.yaml"))


def services(file: str) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load((COMPOSE / file).read_text())
    return content["services"]


OURS = {
    name: service for name, service in services("cluster.yaml").items() if service.get("image") == "everfold:latest"
}


def resolve(command: list[str]) -> tuple[click.Command, dict[str, Any]]:
    """The click command that the words name, and its parameters, parsed as in a real call."""
    found: click.Command = everfold
    words = list(command)
    context = click.Context(everfold, info_name="everfold")
    while isinstance(found, click.Group):
        name = words.pop(0)
        sub = found.get_command(context, name)
        assert sub is not None, f"no command {name!r}"
        found = sub
    return found, found.make_context("everfold", words, parent=context).params


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_the_file_follows_the_compose_specification(file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_check_refuses_what_is_not_a_compose_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("services:\n  a:\n    imagine: x\n")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(bad)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 1


@pytest.mark.parametrize("name", OURS)
def test_the_command_line_and_the_environment_go_through_the_real_parser(name: str) -> None:
    service = OURS[name]
    _, params = resolve(service["command"])
    flags = {
        path: value
        for key, value in params.items()
        if (path := key.replace("__", ".", 1)) in OPTIONS and value not in (None, ())
    }
    loaded = load(flags, service["environment"])
    assert loaded.warnings == ()
    assert loaded.settings.kafka.bootstrap == "kafka:9094"
    known = {option.env for option in OPTIONS.values()}
    assert set(service["environment"]) <= known


def test_there_are_two_of_each_service() -> None:
    roles = [service["command"][0] for service in OURS.values()]
    assert {role: roles.count(role) for role in set(roles)} == {
        "frontend": 2, "history": 2, "matching": 2, "worker": 2, "topics": 1,
    }  # fmt: skip


def test_no_two_processes_share_a_data_directory_or_a_published_port() -> None:
    volumes = [v for s in OURS.values() for v in s.get("volumes", ()) if not v.startswith("visibility:")]
    assert len(volumes) == len(set(volumes))
    ports = [p.rsplit(":", 1)[0] for f in FILES for s in services(f.name).values() for p in s.get("ports", ())]
    assert len(ports) == len(set(ports))


def test_each_process_is_advertised_under_its_own_name() -> None:
    for name, service in OURS.items():
        if service["command"][0] != "topics":
            _, params = resolve(service["command"])
            assert params["node__advertise"] == f"{name}:{service['environment']['EVERFOLD_NODE_RPC_PORT']}"


def test_ports_are_published_on_loopback_only() -> None:
    for file in FILES:
        for name, service in services(file.name).items():
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_the_image_installs_what_the_wheel_is_made_of() -> None:
    text = (COMPOSE / "Dockerfile").read_text()
    for name in ("pyproject.toml", "constraints.txt", "services", "schemas", "topology", "README.md", "LICENSE"):
        assert name in text
