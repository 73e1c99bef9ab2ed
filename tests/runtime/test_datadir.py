"""The data directory: in use, newer, another cluster's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everfold.runtime.datadir import FORMAT, DataDir
from everfold.runtime.lifecycle import Fatal


def test_a_directory_in_use_is_refused_with_the_process_that_holds_it(tmp_path: Path) -> None:
    first, second = DataDir(tmp_path, version="1"), DataDir(tmp_path, version="1")
    first.acquire()
    with pytest.raises(Fatal, match=r"in use by process \d+.*--data-dir"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_directory_of_a_newer_version_is_refused_and_not_held(tmp_path: Path) -> None:
    (tmp_path / "everfold.json").write_text(json.dumps({"format": FORMAT + 1, "version": "9.9"}))
    for _ in range(2):
        with pytest.raises(Fatal, match=r"written by Everfold 9\.9"):
            DataDir(tmp_path, version="1").acquire()


def test_a_directory_of_another_cluster_is_refused(tmp_path: Path) -> None:
    directory = DataDir(tmp_path, version="1")
    directory.acquire()
    directory.bind("cluster-a")
    directory.bind("cluster-a")
    with pytest.raises(Fatal, match=r"belongs to the Kafka cluster cluster-a.*cluster-b"):
        directory.bind("cluster-b")
    directory.release()


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_note_is_refused_and_said_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "everfold.json").write_text(content)
    with pytest.raises(Fatal, match=r"everfold\.json"):
        DataDir(tmp_path, version="1").acquire()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fatal, match="cannot be used"):
        DataDir(tmp_path / "file" / "below", version="1").acquire()


def test_a_temporary_directory_goes_away() -> None:
    directory = DataDir(None, version="1")
    directory.acquire()
    directory.bind("c")
    assert directory.path.is_dir()
    directory.release()
    assert not directory.path.exists()
