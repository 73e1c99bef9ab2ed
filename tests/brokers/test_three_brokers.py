"""Three brokers, and one process of each service: brokers die, hang and come back, and nothing is lost or given up.

What counts is the time from the moment at which Kafka could take records again, which is Kafka's business, to the
moment at which every shard and task queue has served a workflow, which is ours.

The short form lets one broker die, one hang and two die; `make brokers` does it to each in turn, with Kafka's own
session of 9 s, lets one hang for less than that, and leaves two dead for longer than any of our own waits.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash.load import Load, worker_command
from crash.probe import require_served
from support.brokers import BROKERS, SESSION_MS, ThreeBrokers
from support.raw import RawClient, RpcError
from support.servers import Process, logs_kept
from support.services import Services

pytestmark = [pytest.mark.integration, pytest.mark.broker, pytest.mark.slow]

FULL = "EVERFOLD_BROKERS_FULL" in os.environ
SERVING_SECONDS_MAX = 15.0
"""From Kafka's new leaders on."""

INDEX_SECONDS_MAX = 60.0
TASK_QUEUE = "brokers"


class Stand:
    """Brokers, services, an SDK worker, and a load whose every acknowledgement is written down."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.say = say
        self.brokers = ThreeBrokers(directory, session_ms=SESSION_MS if FULL else SESSION_MS // 3)
        self.services = Services(directory, ["--kafka", self.brokers.bootstrap], each=1)
        self.took: dict[str, float] = {}
        self._directory = directory
        addresses = self.services.addresses
        command = worker_command(addresses[0], TASK_QUEUE)
        self._worker = Process("sdk-worker", command, directory / "sdk-worker.log")
        #: the ledger
        self.load = Load(addresses, TASK_QUEUE, in_flight=40 if FULL else 12, signals=8 if FULL else 5, pause=2.0)

    def start(self) -> None:
        self.brokers.start()
        self.services.start()
        self._worker.start()
        self.load.start()
        self.load.wait_for_progress()
        self._pids = {name: service.pid for name, service in self.services.services.items()}
        self._stores = self._stores_found()
        assert self._stores

    def stop(self) -> None:
        if self._worker.running:
            self._worker.kill()
        self.services.stop()
        self.brokers.stop()

    def serves_after(self, what: str, without: tuple[int, ...] = ()) -> None:
        """Waits for Kafka, then measures how long the services take, then looks at everything else."""
        began = time.monotonic()
        self.brokers.await_writable(without)
        led_at = time.monotonic()
        require_served(self.services.addresses, what, poll_s=30)
        self.took[what] = time.monotonic() - led_at
        self.say(
            f"{what}: Kafka takes records after {led_at - began:.1f} s, everything serves {self.took[what]:.1f} s later"
        )
        self._index_moves(what)
        ended = {name: service.tail() for name, service in self.services.services.items() if not service.running}
        assert ended == {}, f"after {what}"
        assert {name: service.pid for name, service in self.services.services.items()} == self._pids
        assert self._stores.items() <= self._stores_found().items(), f"a store was wiped or set aside after {what}"

    def _stores_found(self) -> dict[Path, int]:
        """Each store, known again by the inode of its marker file."""
        return {path: path.stat().st_ino for path in self._directory.glob("history-*/**/everfold.json")}

    def _index_moves(self, after: str) -> None:
        """A workflow that starts now is listed: the processors are at work."""
        client = RawClient(self.services.addresses[0])
        workflow_id = f"listed-{uuid.uuid4().hex}"
        deadline = time.monotonic() + INDEX_SECONDS_MAX
        client.call(
            "StartWorkflowExecution",
            namespace="default",
            workflow_id=workflow_id,
            workflow_type={"name": "probe"},
            task_queue={"name": "nobody"},
            request_id=workflow_id,
        )
        found = 0
        while not found:
            assert time.monotonic() < deadline, f"the index stands still after {after}"
            try:
                query = f"WorkflowId='{workflow_id}'"
                found = len(client.call("ListWorkflowExecutions", namespace="default", query=query).executions)
            except RpcError:
                time.sleep(0.2)
            time.sleep(0.1)
        client.close()


@pytest.fixture
def stand(tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[Stand]:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end="", flush=True)

    stand = Stand(tmp_path, say)
    with logs_kept(tmp_path, request):
        try:
            stand.start()
            yield stand
        finally:
            stand.stop()


@pytest.mark.timeout(1500)
def test_brokers_die_hang_and_return_and_every_acknowledged_operation_is_there_once(stand: Stand) -> None:
    leader = stand.brokers.leader("everfold.shard-log")
    for victim in BROKERS if FULL else (leader,):
        for fault in (_dies, _hangs_shortly, _hangs) if FULL else (_dies, _hangs):
            fault(stand, victim)
        _two_die(stand, victim, dark_s=45 if FULL else 3)
    report = stand.load.finish(240)
    stand.say(f"checked {report.workflows} workflows with {report.signals} signals")
    assert report.faults == []
    assert {what: seconds for what, seconds in stand.took.items() if seconds > SERVING_SECONDS_MAX} == {}


def _dies(stand: Stand, victim: int) -> None:
    stand.brokers.kill(victim)
    stand.serves_after(f"broker {victim} dead", (victim,))
    stand.brokers.start_again(victim)
    stand.brokers.await_writable()


def _hangs_shortly(stand: Stand, victim: int) -> None:
    stand.brokers.pause(victim)
    time.sleep(SESSION_MS / 3000)
    stand.brokers.go_on(victim)
    stand.serves_after(f"broker {victim} back after {SESSION_MS / 3000:.0f} s")


def _hangs(stand: Stand, victim: int) -> None:
    """It is left as it is until all serve without it, and then comes back as one who does not know what happened."""
    stand.brokers.pause(victim)
    stand.serves_after(f"broker {victim} hung", (victim,))
    stand.brokers.go_on(victim)
    stand.serves_after(f"broker {victim} back")


def _two_die(stand: Stand, victim: int, dark_s: float) -> None:
    victims = (victim, victim % len(BROKERS) + 1)
    stand.brokers.kill(*victims)
    time.sleep(dark_s)
    stand.brokers.start_again(*victims)
    stand.serves_after(f"brokers {victims[0]} and {victims[1]} dead for {dark_s:.0f} s")
