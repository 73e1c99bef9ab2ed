"""What `everfold` can do. Each command parses its flags here and leaves the work to a module of its own.

Heavy imports happen inside the commands: `everfold --version` and shell completion should not load Kafka and RocksDB.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from everfold.cli.options import SectionedCommand, settings_flags
from everfold.cli.version import version
from everfold.runtime import log
from everfold.runtime.config import OPTIONS, SECTIONS, Loaded
from everfold.runtime.lifecycle import Fatal
from everfold.runtime.settings import Option, is_secret

COMMON = ("kafka", "node", "metrics", "log", "dynamic")
"""What every process that serves needs to know."""

_FILE = click.Path(exists=True, dir_okay=False)

_HIDDEN = "(hidden)"

_PIPED_WIDTH = 10_000

_OWNER_ALONE = 0o077
"""Workflows' payloads lie in what a process writes, its children's files included: nobody else may read them."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(version(), prog_name="everfold")
def everfold() -> None:
    """Durable execution on Kafka, for Temporal's SDKs."""


@everfold.group()
def server() -> None:
    """Everything in one: for development and small installations."""


@server.command("start-dev", cls=SectionedCommand)
@settings_flags(*SECTIONS)
def start_dev(loaded: Loaded) -> None:
    """Start all four services and a Kafka broker on this machine."""
    from everfold.cli import dev, program

    _run(loaded, lambda: program.run(dev.DevServer(loaded.settings)))


@everfold.command("frontend", cls=SectionedCommand)
@settings_flags(*COMMON, "frontend", "visibility", "history", "matching")
def frontend(loaded: Loaded) -> None:
    """Run a frontend alone: the gRPC API."""
    _serve_one(loaded, "frontend")


@everfold.command("history", cls=SectionedCommand)
@settings_flags(*COMMON, "history", "matching")
def history(loaded: Loaded) -> None:
    """Run a history process alone: workflow state and timers of its share of the shards."""
    _serve_one(loaded, "history")


@everfold.command("matching", cls=SectionedCommand)
@settings_flags(*COMMON, "matching", "history")
def matching(loaded: Loaded) -> None:
    """Run a matching process alone: its share of the task queues."""
    _serve_one(loaded, "matching")


@everfold.command("worker", cls=SectionedCommand)
@settings_flags(*COMMON, "visibility", "topology", "history", "matching")
def worker(loaded: Loaded) -> None:
    """Run the worker service alone: the engine's background work and the stream processors."""
    _topology(loaded)


@everfold.group()
def topology() -> None:
    """The stream topology."""


@topology.command("worker", cls=SectionedCommand)
@settings_flags(*COMMON, "visibility", "topology", "history", "matching")
def topology_worker(loaded: Loaded) -> None:
    """Run the stream processors: typed events, the visibility index."""
    _topology(loaded)


@everfold.group()
def topics() -> None:
    """The topics on the cluster."""


@topics.command("apply", cls=SectionedCommand)
@settings_flags("kafka", "history", "matching", "log")
@click.option("--dry-run", is_flag=True, help="Only say what is missing or different.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def topics_apply(loaded: Loaded, dry_run: bool, as_json: bool) -> None:
    """Create the topics, or check that those that exist are as they must be."""
    from everfold.cli import topics as commands

    _run(loaded, lambda: commands.apply(loaded.settings, dry_run=dry_run, as_json=as_json))


@topics.command("show")
@settings_flags("kafka", "history", "matching")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def topics_show(loaded: Loaded, as_json: bool) -> None:
    """List the topics as declared: partitions, records, configuration. Needs no broker."""
    from everfold.cli import topics as commands

    commands.show(loaded.settings, as_json=as_json)


@everfold.group()
def config() -> None:
    """Settings."""


@config.command("show", cls=SectionedCommand)
@settings_flags(*SECTIONS)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--changed", is_flag=True, help="Only those that are not at their defaults.")
def config_show(loaded: Loaded, as_json: bool, changed: bool) -> None:
    """Print every setting's value and where it came from."""
    rows = []
    for path, option in OPTIONS.items():
        value = getattr(getattr(loaded.settings, option.section), option.name)
        if not (changed and loaded.sources[path] == "default"):
            rows.append((path, _shown(option, value), loaded.sources[path], option.unit))
    if as_json:
        content = {path: {"value": value, "source": source} for path, value, source, _ in rows}
        click.echo(json.dumps({"settings": content, "warnings": list(loaded.warnings)}, indent=2))
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for path, value, source, unit in rows:
        table.add_row(path, f"{_plain(value)}{f' {unit}' if unit and isinstance(value, (int, float)) else ''}", source)
    # What is piped to a file or to grep is not cut off at a terminal's width.
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    _warn(loaded)


@everfold.command("docs", hidden=True)
@click.argument("directory", type=click.Path(file_okay=False, exists=True, path_type=Path))
def docs(directory: Path) -> None:
    """Write the generated pages of the documentation."""
    from everfold.cli.reference import PAGES, SECTIONS, with_section

    for name, made in PAGES.items():
        (directory / f"{name}.md").write_text(made())
    for name, made in SECTIONS.items():
        page = directory / f"{name}.md"
        page.write_text(with_section(page.read_text(), made()))


@everfold.group()
def workflow() -> None:
    """What Temporal's own command has no word for."""


@workflow.command("release")
@click.option("--workflow-id", "-w", required=True, help="Workflow id.")
@click.option("--run-id", "-r", default="", help="Run id; the current run without.")
@click.option("--namespace", "-n", default="default", show_default=True, help="Namespace.")
@click.option("--address", default="127.0.0.1:7233", show_default=True, help="A frontend, HOST:PORT.")
@click.option("--tls-ca-path", type=_FILE, help="Use TLS, with this authority.")
@click.option("--tls-cert-path", type=_FILE, help="Use TLS, and show this certificate.")
@click.option("--tls-key-path", type=_FILE, help="Private key of that certificate.")
def workflow_release(
    tls_ca_path: str | None, tls_cert_path: str | None, tls_key_path: str | None, **options: Any
) -> None:
    """Let a quarantined workflow go on.

    A workflow is quarantined when the engine meets a state that it takes for impossible: a defect of Everfold's. The
    log says so, and the metric everfold_runs_quarantined_total counts. What arrives for it waits. Release it with a
    version that mends the defect; with the same version it will most likely be quarantined again. Or end it with
    `temporal workflow terminate` or `delete`, which needs no mended version.
    """
    from everfold.cli.release import ClientTls, release

    if (tls_cert_path is None) != (tls_key_path is None):
        raise click.UsageError("--tls-cert-path and --tls-key-path go together: give both, or neither.")
    tls = ClientTls(tls_ca_path, tls_cert_path, tls_key_path) if tls_ca_path or tls_cert_path else None
    try:
        release(**options, tls=tls)
    except Fatal as error:
        _fail(str(error))
    click.echo(f"Workflow {options['workflow_id']} goes on.")


@everfold.group()
def shard() -> None:
    """Shards, and what only an operator can decide about them."""


@shard.command("repair", cls=SectionedCommand)
@click.argument("number", type=click.IntRange(min=0))
@settings_flags("kafka", "log")
@click.option("--keep-log", is_flag=True, help="Let go what the log has lost; stores that have it are set aside.")
@click.option("--keep-store", is_flag=True, help="Not possible yet.")
def shard_repair(loaded: Loaded, number: int, keep_log: bool, keep_store: bool) -> None:
    """Decide about a shard whose log lacks records that were acknowledged.

    Such a shard is stopped: its store may be the only copy of what is missing. Without an option this only says what
    the log lacks.
    """
    from everfold.cli import repair, topics

    if keep_store:
        _fail(repair.NO_KEEP_STORE)
    _run(loaded, lambda: repair.repair(topics.kafka_settings(loaded.settings), number, keep_log=keep_log))


@shard.command("skip", cls=SectionedCommand)
@click.argument("number", type=click.IntRange(min=0))
@click.option("--offset", required=True, type=click.IntRange(min=0), help="Offset at which the shard stands still.")
@click.option("--reason", required=True, help="Why, for those who read it later.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@settings_flags("kafka")
def shard_skip(loaded: Loaded, number: int, offset: int, reason: str, yes: bool) -> None:
    """Pass over what nobody can read in the log of shard NUMBER.

    A batch whose checksum is broken, or offsets that are gone, hold a shard up: its log line says where. Look for a
    replica or a backup that is whole first. What is skipped is lost to every fold of the shard, for good.
    """
    from everfold.cli.skip import skip

    _run(loaded, lambda: skip(loaded.settings, number, offset, reason, lambda text: yes or click.confirm(text)))


@everfold.group()
def setup() -> None:
    """Fetch what is needed once."""


@setup.command("broker")
def setup_broker() -> None:
    """Fetch Kafka's jars and make the embedded broker's start-up caches."""
    from everfold.runtime.broker import BrokerError, prepare

    try:
        prepared = prepare(lambda text: click.echo(text, err=True))
    except BrokerError as error:
        _fail(str(error))
    click.echo(f"Kafka {prepared.kafka_version} is ready.")


def _serve_one(loaded: Loaded, role: str) -> None:
    from everfold.cli import program, serve

    _run(loaded, lambda: program.run(serve.OneService(loaded.settings, role)))


def _topology(loaded: Loaded) -> None:
    from everfold.cli import processors

    _run(loaded, lambda: processors.run(loaded.settings))


def _run(loaded: Loaded, work: Any) -> None:
    os.umask(_OWNER_ALONE)
    settings = loaded.settings
    log.configure(settings.log.level, settings.log.format)
    _warn(loaded)
    try:
        work()
    except Fatal as error:
        _fail(str(error))


def _warn(loaded: Loaded) -> None:
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)


def _fail(text: str) -> NoReturn:
    click.echo(f"everfold: {text}", err=True)
    sys.exit(1)


def _shown(option: Option, value: Any) -> Any:
    """The value without what is secret in it."""
    if option.secret and value:
        return _HIDDEN
    if isinstance(value, dict):
        return {key: _HIDDEN if is_secret(key) else item for key, item in value.items()}
    return value


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value)
