"""What the processors take from the settings: as a worker alone, and as a child of start-dev."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from everfold.cli import processors
from everfold.cli.processors import child_environment
from everfold.runtime.config import OPTIONS, Settings, load
from everfold.runtime.lifecycle import Fatal
from everfold.topology.app import options_of
from everfold.topology.application import TopologyApp, TopologyOptions


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


@pytest.fixture
def options_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TopologyOptions]:
    """What the processors are run with instead of being run; the user's data directory is a temporary one."""
    taken: list[TopologyOptions] = []

    def take(app: TopologyApp) -> int:
        assert (app.options.data_dir.parent / "everfold.lock").read_text() == f"{os.getpid()}\n"
        taken.append(app.options)
        return 0

    monkeypatch.setattr("everfold.topology.worker.run", take)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return taken


def test_a_worker_alone_keeps_its_state_and_its_index_where_it_holds_the_lock(
    options_run: list[TopologyOptions], tmp_path: Path
) -> None:
    here = tmp_path / "everfold"
    for name, directory in (("", here / "worker"), ("w7", here / "w7")):
        processors.run(load({"kafka.bootstrap": "127.0.0.1:1", "node.name": name}, {}).settings)
        options = options_run.pop()
        assert options.data_dir == directory / "topology"
        assert options.visibility_url == f"sqlite:///{directory / 'visibility.db'}"
        assert not (here / "dev").exists()


def test_an_ephemeral_worker_leaves_nothing_behind(options_run: list[TopologyOptions], tmp_path: Path) -> None:
    processors.run(load({"kafka.bootstrap": "127.0.0.1:1", "node.ephemeral": True}, {}).settings)
    options = options_run.pop()
    assert options.visibility_url == f"sqlite:///{options.data_dir.parent / 'visibility.db'}"
    assert not options.data_dir.parent.exists()
    assert not (tmp_path / "everfold").exists()


def test_a_worker_that_faust_starts_has_the_same_directory_and_is_never_ephemeral(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert options_of(load({}, {}).settings).data_dir == tmp_path / "everfold" / "worker" / "topology"
    with pytest.raises(Fatal, match=r"node\.ephemeral"):
        options_of(load({"node.ephemeral": True}, {}).settings)
