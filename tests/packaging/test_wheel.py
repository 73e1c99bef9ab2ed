"""The wheel: a good citizen of site-packages, complete, and enough to run from an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

from support.servers import answers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built by the build backend itself: nothing is fetched."""
    out = tmp_path_factory.mktemp("wheel")
    code = (
        f"import os; os.chdir({str(ROOT)!r}); from hatchling.build import build_wheel; print(build_wheel({str(out)!r}))"
    )
    name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    return out / name.split()[-1]


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory with a virtual environment into which pip has installed the wheel, over this environment's
    dependencies: they are linked in by a path file rather than fetched again. The checkout itself is not on the path.
    """
    home = tmp_path_factory.mktemp("empty")
    venv.create(home / "venv", with_pip=False)
    python = home / "venv" / "bin" / "python"
    # The pip of the interpreter that runs the tests acts on the other one: nothing has to be fetched for that either.
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index",
         "--no-cache-dir", "--disable-pip-version-check", str(wheel)],
        cwd=home, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    site = home / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # addsitedir would run the checkout's own editable-install path file; a plain entry does not.
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    (home / "work").mkdir()
    return home


def environment() -> dict[str, str]:
    """This one without what would lead to the checkout, or to somebody's own settings."""
    ours = ("PYTHON", "EVERFOLD", "VIRTUAL", "PIP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(installed: Path, *words: str) -> str:
    done = subprocess.run(
        [str(installed / "venv" / "bin" / words[0]), *words[1:]],
        cwd=installed / "work", env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_one_top_level_package_and_nothing_generic(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"everfold", next(name for name in top if name.endswith(".dist-info"))}
    assert "everfold/__init__.py" not in names


def test_the_wheel_holds_every_file_of_the_source_roots(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "services", "schemas", "topology"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    expected = {
        name.split("/", 1)[1] for name in tracked if name.split("/")[1] == "everfold" and (ROOT / name).is_file()
    }
    assert expected <= packed


def test_the_wheel_runs_from_an_empty_directory_without_the_checkout(installed: Path) -> None:
    assert run(installed, "everfold", "--version").startswith("everfold, version")
    code = "import everfold.history, everfold.schemas.codec, everfold.cli.commands as c; print(c.__file__)"
    where = run(installed, "python", "-c", code)
    assert str(installed) in where


def test_pip_knows_the_package_and_made_its_command(installed: Path) -> None:
    script = (installed / "venv" / "bin" / "everfold").read_text()
    assert script.startswith(f"#!{installed}/venv/bin/python")
    code = "from importlib.metadata import distribution as d; print([p.value for p in d('everfold').entry_points])"
    assert "everfold.cli:main" in run(installed, "python", "-c", code)
    metadata = "from importlib.metadata import distribution as d; print(d('everfold').read_text('INSTALLER'))"
    assert run(installed, "python", "-c", metadata).strip() == "pip"


def test_schemas_are_read_from_the_wheel(installed: Path) -> None:
    code = "from everfold.schemas import codec; print(sorted(n for n in dir(codec) if n.startswith('encode'))[0])"
    assert run(installed, "python", "-c", code).startswith("encode")


@pytest.mark.broker
@pytest.mark.timeout(180)
def test_start_dev_runs_from_the_wheel_in_an_empty_directory(installed: Path) -> None:
    script = str(installed / "venv" / "bin" / "everfold")
    command = [script, "server", "start-dev", "--ephemeral", "--port", "0"]
    with (installed / "server.log").open("w+") as log:
        server = subprocess.Popen(command, cwd=installed / "work", env=environment(), stdout=log, stderr=log)
        try:
            address = wait_for_address(server, Path(log.name))
            assert answers(address)
        finally:
            server.terminate()
            assert server.wait(30) == 0
    assert not list((installed / "work").iterdir())


def wait_for_address(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 120
    while True:
        if found := re.search(r"gRPC:\s+(\S+)", log.read_text()):
            return found[1]
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
