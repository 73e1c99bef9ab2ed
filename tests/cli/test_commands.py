"""The command line, as scripts see it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from everfold.cli.commands import everfold
from everfold.cli.reference import PAGES, SECTIONS
from everfold.runtime.config import OPTIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for option in OPTIONS.values():
        monkeypatch.delenv(option.env, raising=False)
    monkeypatch.delenv("EVERFOLD_CONFIG", raising=False)
    return CliRunner()


def test_config_show_prints_values_and_where_they_came_from(cli: CliRunner) -> None:
    result = cli.invoke(everfold, ["config", "show", "--json", "--port", "7000"], env={"EVERFOLD_LOG_LEVEL": "debug"})
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)["settings"]
    assert shown["frontend.port"] == {"value": 7000, "source": "--port"}
    assert shown["log.level"] == {"value": "debug", "source": "EVERFOLD_LOG_LEVEL"}
    assert shown["history.shards"] == {"value": 0, "source": "default"}
    assert set(shown) == set(OPTIONS)


def test_config_show_can_be_read_by_people(cli: CliRunner) -> None:
    result = cli.invoke(everfold, ["config", "show", "--changed", "--namespace", "a", "--namespace", "b"])
    assert result.exit_code == 0
    assert "setup.namespace" in result.stdout
    assert "a, b" in result.stdout
    assert "history.shards" not in result.stdout


@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_config_show_hides_what_is_secret(cli: CliRunner, json_: list[str]) -> None:
    secrets = {
        "sasl.password": "s3cret-1",
        "ssl.key.password": "s3cret-2",
        "ssl.key.pem": "s3cret-3",
        "sasl.oauthbearer.client.secret": "s3cret-4",
    }
    given = [f"--kafka-property={name}={value}" for name, value in {"sasl.username": "alice", **secrets}.items()]
    result = cli.invoke(everfold, ["config", "show", *json_, *given])
    assert result.exit_code == 0, result.output
    assert "s3cret" not in result.output
    assert "alice" in result.output
    assert result.output.count("(hidden)") == len(secrets)


def test_a_property_that_cannot_be_read_is_not_repeated(cli: CliRunner) -> None:
    result = cli.invoke(everfold, ["config", "show"], env={"EVERFOLD_KAFKA_PROPERTIES": "sasl.username=a,s3cret"})
    assert result.exit_code == 2
    assert "kafka.properties" in result.output
    assert "expected name=value" in result.output
    assert "s3cret" not in result.output


def test_a_contradiction_is_a_usage_error(cli: CliRunner) -> None:
    result = cli.invoke(everfold, ["config", "show", "--ephemeral", "--data-dir", "/x"])
    assert result.exit_code == 2
    assert "Drop one" in result.output


def test_topics_show_needs_no_broker(cli: CliRunner) -> None:
    result = cli.invoke(everfold, ["topics", "show", "--json", "--shards", "64", "--kafka-prefix", "p."])
    topics = {topic["name"]: topic for topic in json.loads(result.stdout)}
    assert topics["p.shard-log"]["partitions"] == 64
    assert topics["p.shard-log"]["config"]["message.timestamp.type"] == "LogAppendTime"


def test_the_version_is_that_of_the_distribution(cli: CliRunner) -> None:
    assert cli.invoke(everfold, ["--version"]).stdout.startswith("everfold, version 0.")


@pytest.mark.parametrize(
    "command",
    ["server start-dev", "frontend", "history", "matching", "worker", "topology worker", "topics apply", "config show"],
)
def test_every_command_explains_itself(cli: CliRunner, command: str) -> None:
    result = cli.invoke(everfold, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "--kafka" in result.stdout


def test_the_generated_pages_are_fresh(cli: CliRunner, tmp_path: Path) -> None:
    for name in SECTIONS:
        shutil.copy(ROOT / "docs" / f"{name}.md", tmp_path)
    assert cli.invoke(everfold, ["docs", str(tmp_path)]).exit_code == 0
    made = list(tmp_path.iterdir())
    assert len(made) == len(PAGES) + len(SECTIONS)
    for page in made:
        kept = (ROOT / "docs" / page.name).read_text()
        assert kept == page.read_text(), f"docs/{page.name} is out of date: run `make docs`"
