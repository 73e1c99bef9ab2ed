"""No payload gets into a log; every metric is declared and documented."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from temporalio.api.common.v1.message_pb2 import Payload

from everfold.runtime import log, metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_payloads_never_reach_a_log() -> None:
    out = io.StringIO()
    log.configure("info", "json", out)
    structlog.get_logger("x").info("got", body=b"secret", payload=Payload(data=b"secret"), text="s" * 10_000)
    line = json.loads(out.getvalue())
    assert "secret" not in out.getvalue()
    assert (line["body"], line["payload"]) == ("<6 bytes>", "<temporal.api.common.v1.Payload>")
    assert len(line["text"]) < 2_100


def test_levels_filter_and_libraries_come_out_in_the_same_form() -> None:
    out = io.StringIO()
    log.configure("warning", "json", out)
    structlog.get_logger("x").info("quiet")
    logging.getLogger("faust").warning("rebalanced %d", 3)
    (line,) = out.getvalue().splitlines()
    assert (json.loads(line)["event"], json.loads(line)["level"]) == ("rebalanced 3", "warning")


def test_never_means_never() -> None:
    out = io.StringIO()
    log.configure("never", "text", out)
    structlog.get_logger("x").error("loud")
    logging.getLogger("y").critical("louder")
    assert out.getvalue() == ""


def test_metrics_are_served_over_http() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def run() -> str:
        server = metrics.MetricsServer("127.0.0.1", port)
        await server.start()
        metrics.NamedMetrics().count("records_folded", 2, shard="7")
        url = f"http://127.0.0.1:{port}/metrics"
        text: str = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
        await server.stop()
        return text

    assert 'everfold_records_folded_total{shard="7"} 2.0' in asyncio.run(run())


def test_an_undeclared_metric_costs_nothing_but_a_warning() -> None:
    metrics.NamedMetrics().count("no_such_thing", shard="1")


def named_in_services() -> Iterator[tuple[str, str]]:
    """(where, name) of each literal first argument of .count / .gauge / .observe on something called metrics."""
    for path in sorted((ROOT / "services").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"count", "gauge", "observe"}
                and "metrics" in ast.unparse(node.func.value)
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.args[0].value


def test_every_metric_that_a_service_names_is_declared() -> None:
    declared = {name.removeprefix("everfold_").removesuffix("_total") for name, *_ in metrics.reference()}
    assert not [(where, name) for where, name in named_in_services() if name not in declared]
