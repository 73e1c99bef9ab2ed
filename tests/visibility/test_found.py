"""A frontend's index is a worker's, or it says what it found instead."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from everfold.kernel.errors import Code, StatusError
from everfold.visibility.found import FoundIndex
from everfold.visibility.rows import BEFORE_ALL
from everfold.visibility.store import IndexUnusable, Position, open_visibility
from visibility.records import NAMESPACE_ID, record


def refusal(index: FoundIndex) -> str:
    """What both calls are refused with."""
    texts = []
    for call in (lambda: index.list(NAMESPACE_ID, "", 10, b"", {}), lambda: index.count(NAMESPACE_ID, "", {})):
        with pytest.raises(StatusError) as refused:
            call()
        assert refused.value.code == Code.FAILED_PRECONDITION
        texts.append(refused.value.message)
    assert texts[0] == texts[1]
    return texts[0]


def unmark(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA application_id = 0")


def test_without_a_file_the_refusal_names_path_and_setting_and_no_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "frontend" / "visibility.db"
    text = refusal(FoundIndex(f"sqlite:///{path}"))
    assert f"expected the index that a worker keeps at {path}, found no file" in text
    assert "visibility.url" in text
    assert "--visibility-url" in text
    assert not path.parent.exists()


def test_an_index_that_a_worker_makes_later_is_taken_when_it_is_there_even_empty(tmp_path: Path) -> None:
    path = tmp_path / "visibility.db"
    index = FoundIndex(str(path))
    refusal(index)
    with closing(open_visibility(str(path))) as store:
        assert index.list(NAMESPACE_ID, "", 10, b"", {}) == ([], b"")
        store.upsert([record("one")])
        assert index.count(NAMESPACE_ID, "", {}).count == 1
    index.close()


def test_an_index_of_an_earlier_frontend_that_nobody_wrote_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "visibility.db"
    open_visibility(str(path)).close()
    unmark(path)
    assert "found an index that no worker has written to" in refusal(FoundIndex(str(path)))


def test_an_index_of_an_earlier_worker_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "visibility.db"
    with closing(open_visibility(str(path))) as store:
        store.fold("visibility", 0, None, Position(1, BEFORE_ALL), [record("one")])
    unmark(path)
    with closing(FoundIndex(str(path))) as index:
        assert index.count(NAMESPACE_ID, "", {}).count == 1


@pytest.mark.parametrize(
    ("content", "found"), [(b"", "a file that holds no index"), (b"no database at all" * 90, "file is not a database")]
)
def test_another_file_is_no_index(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "visibility.db"
    path.write_bytes(content)
    assert found in refusal(FoundIndex(str(path)))
    assert path.read_bytes() == content


def test_an_index_of_a_newer_version_is_refused_at_once_and_when_it_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "visibility.db"
    late = FoundIndex(str(path))
    refusal(late)
    open_visibility(str(path)).close()
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(IndexUnusable, match="version 99"):
        FoundIndex(str(path)).look()
    assert "version 99" in refusal(late)


def test_a_database_that_is_not_supported_is_refused_by_name() -> None:
    with pytest.raises(IndexUnusable, match="postgresql is not built yet"):
        FoundIndex("postgresql://host/index")
