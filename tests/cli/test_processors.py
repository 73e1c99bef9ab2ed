"""What the processors take from the settings: as a worker alone, and as a child of start-dev."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everfold.cli.processors import child_environment
from everfold.runtime.config import OPTIONS, Settings, load
from everfold.topology.app import options_of


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS.values():
        monkeypatch.delenv(option.env, raising=False)
    monkeypatch.delenv("EVERFOLD_CONFIG", raising=False)


def settings(directory: Path, **flags: Any) -> Settings:
    given = {path.replace("__", "."): value for path, value in flags.items()}
    return load({"node.data_dir": str(directory), **given}, {}).settings


def test_a_worker_alone_shows_its_metrics_on_the_metrics_port(tmp_path: Path) -> None:
    assert options_of(settings(tmp_path)).metrics_port == 0
    assert options_of(settings(tmp_path, metrics__port=9100)).metrics_port == 9100
    both = settings(tmp_path, metrics__port=9100, topology__metrics_port=9101)
    assert options_of(both).metrics_port == 9101


def test_a_child_does_not_take_the_metrics_port_of_its_parent(tmp_path: Path) -> None:
    for flags, port in (
        ({"metrics__port": 9100}, 0),
        ({"metrics__port": 9100, "topology__metrics_port": 9101}, 9101),
    ):
        child = load({}, child_environment(settings(tmp_path, **flags))).settings
        assert options_of(child).metrics_port == port
