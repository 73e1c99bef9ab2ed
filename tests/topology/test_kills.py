"""The topology over a real broker: killed at any moment, it loses nothing and does nothing twice."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from everfold.schemas.codec import decode
from everfold.schemas.topics import EVENTS, HISTORY, VISIBILITY
from everfold.topology import application
from everfold.topology.application import TopicsMissing, TopologyApp, TopologyOptions
from everfold.topology.index import VisibilityIndex
from everfold.topology.state import ProcessorState
from everfold.visibility.store import open_visibility
from topology.source import EVENTS_PER_WORKFLOW, Source
from topology.worker import WorkerProcess, await_that, group_lag, read_all, taken
from visibility.records import NAMESPACE_ID, TYPES

# A worker imports for a second of CPU at each start; on a busy machine with many lives that adds up.
pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]
STARTED_S = 120


class Traffic:
    """A source that sends for as long as it is told to."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.workflows = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.source.workflows(8, f"t{self.workflows}", seed=self.workflows, resend_every=25)
            self.workflows += 8
            self.source.flush()
            self._stop.wait(0.25)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()


def straight_fold(source: Source) -> dict[str, tuple[int, int, int]]:
    """What the index must hold: the last record of each run."""
    return {
        fields["workflow_id"]: (fields["status"], fields["start_time_ns"], fields["close_time_ns"] or 0)
        for topic, _shard, fields in source.sent
        if topic == VISIBILITY.name
    }


def check(source: Source, worker: WorkerProcess) -> int:
    """Compares what was made with what was sent. Returns the repeats on `events`."""
    expected = [
        [
            (origin["epoch"], origin["offset"], origin["index"], event["event_id"])
            for topic, shard, fields in source.sent
            if topic == HISTORY.name and shard == number
            for origin in (fields["origin"],)
            for event in fields["events"]
        ]
        for number in range(len(source.shards))
    ]
    repeats = 0
    for number, records in enumerate(read_all(source.bootstrap, source.prefix + EVENTS.name, len(source.shards))):
        places, values, repeated = taken(records)
        assert places == expected[number]
        repeats += repeated
        assert [decode(value)[1]["event_id"] for value in values[:EVENTS_PER_WORKFLOW]] == list(
            range(1, EVENTS_PER_WORKFLOW + 1)
        )
    assert worker.listed() == straight_fold(source)
    customers = sum(1 for workflow_id in straight_fold(source) if workflow_id.endswith("7"))
    assert worker.count("Customer IS NOT NULL", TYPES) == customers
    return repeats


def more_than(worker: WorkerProcess, runs: int) -> bool:
    return len(worker.listed()) > runs


def drained(source: Source, worker: WorkerProcess) -> bool:
    topics = [source.prefix + topic.name for topic in (HISTORY, VISIBILITY)]
    return group_lag(source.bootstrap, source.prefix + "topology", topics, len(source.shards)) == 0


def test_killed_again_and_again_every_event_comes_once_and_the_index_is_right(
    source: Source, workers: list[WorkerProcess]
) -> None:
    worker = workers[0]
    choice = random.Random(20)
    with Traffic(source) as traffic:
        for life in range(5):
            worker.start()
            before = len(worker.listed())
            began = time.monotonic()
            await_that(partial(more_than, worker, before), STARTED_S, f"life {life} reads\n{worker.log()[-2000:]}")
            print(f"life {life}: reading after {time.monotonic() - began:.1f} s, {before} runs in the index")
            time.sleep(choice.random())
            worker.kill()
            if life == 2:  # its whole state is lost, too
                shutil.rmtree(worker.directory)
                shutil.rmtree(worker.index.parent)
    source.flush()
    worker.start()
    await_that(lambda: drained(source, worker), STARTED_S, "the lag goes to nothing")
    status, seconds = worker.stop()
    assert status == 0, worker.log()[-3000:]
    assert seconds < 5, "1.8 s on a machine with time to spare"
    repeats = check(source, worker)
    print(f"{traffic.workflows} workflows, {repeats} repeats on events, stopped in {seconds:.2f} s")


def test_plain_faust_runs_the_same_application(source: Source, workers: list[WorkerProcess]) -> None:
    worker = workers[0]
    worker.command = [
        sys.executable,
        "-m",
        "faust",
        "-A",
        "everfold.topology.app",
        "worker",
        "-l",
        "warn",
        "--without-web",
    ]
    source.workflows(8)
    source.flush()
    worker.start()
    await_that(partial(more_than, worker, 7), STARTED_S, f"the workflows are listed\n{worker.log()[-2000:]}")
    await_that(lambda: drained(source, worker), STARTED_S, "the lag goes to nothing")
    assert worker.stop()[0] == 0
    assert check(source, worker) == 0


def test_the_processor_in_the_guide_counts_right(source: Source, workers: list[WorkerProcess], tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "topology.md").read_text()
    module = tmp_path / "guide" / "guided_processor.py"
    module.parent.mkdir()
    module.write_text(guide.split("```python\n")[1].split("```")[0])
    worker = workers[0]
    worker.add_path(module.parent)
    worker.command = [sys.executable, "-m", "faust", "-A", "guided_processor", "worker", "-l", "warn", "--without-web"]
    source.workflows(40, resend_every=10)
    source.flush()
    group = source.prefix + "closed-per-type"
    visibility = [source.prefix + VISIBILITY.name]
    for _life in range(2):
        worker.start()
        await_that(lambda: group_lag(source.bootstrap, group, visibility, 4) == 0, STARTED_S, worker.log()[-2000:])
        worker.kill()
    state = ProcessorState(worker.directory / "topology" / "closed-per-type")
    assert sum(int(state.get(partition, b"Order") or 0) for partition in range(4)) == 40
    state.close()


PLAIN_AGENT = """
import dataclasses
import pathlib

from everfold.schemas.codec import decode
from everfold.schemas.topics import EVENTS
from everfold.topology.app import app as everfold
from everfold.topology.application import TopologyApp

base = everfold.options.data_dir / "not" / "there"
app = TopologyApp(dataclasses.replace(everfold.options, group="plain", instance="", data_dir=base / "yet"))


@app.agent(app.topic(everfold.options.prefix + EVENTS.name, value_serializer="raw"))
async def count(values):
    async for value in values:
        with (base.parent.parent / "counted").open("a") as counted:
            counted.write(decode(value)[1]["workflow_id"] + "\\n")
"""


def test_a_plain_faust_agent_reads_the_events(source: Source, workers: list[WorkerProcess], tmp_path: Path) -> None:
    """As docs/topology.md says: `events` is written with lz4, and nobody has made the directories before."""
    source.workflows(40)
    source.flush()
    workers[0].start()
    await_that(lambda: drained(source, workers[0]), STARTED_S, "the events are written")
    module = tmp_path / "agent" / "plain_agent.py"
    module.parent.mkdir()
    module.write_text(PLAIN_AGENT)
    worker = workers[1]
    worker.add_path(module.parent)
    worker.command = [sys.executable, "-m", "faust", "-A", "plain_agent", "worker", "-l", "warn", "--without-web"]
    worker.start()
    counted = worker.directory / "topology" / "counted"
    expected = sum(len(partition) for partition in read_all(source.bootstrap, source.prefix + EVENTS.name, 4))
    await_that(
        lambda: counted.exists() and len(counted.read_text().split()) == expected,
        STARTED_S,
        f"the agent counts the {expected} events\n{worker.log()[-2000:]}",
    )
    worker.kill()


def test_without_its_topics_a_worker_says_what_to_do(
    kafka_bootstrap: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(application, "TOPICS_WITHIN_S", 0.0)
    options = TopologyOptions(kafka_bootstrap, tmp_path, "unused", topic_prefix)
    app = TopologyApp(options)
    app.attach(VisibilityIndex, lambda: pytest.fail("nothing is opened"))
    with pytest.raises(TopicsMissing, match=r"there is no topic .*visibility.* on .* `everfold topics apply`"):
        asyncio.run(app.on_first_start())


def test_two_workers_share_the_partitions_and_one_takes_all_when_the_other_is_killed(
    source: Source, workers: list[WorkerProcess]
) -> None:
    with Traffic(source) as traffic:
        for worker in workers:
            worker.start()
        await_that(partial(more_than, workers[0], 60), STARTED_S, "both read")
        workers[1].kill()
        reached = len(workers[0].listed())
        await_that(partial(more_than, workers[0], reached + 200), STARTED_S, "the other one has all the partitions")
    source.flush()
    await_that(lambda: drained(source, workers[0]), STARTED_S, "the lag goes to nothing")
    assert workers[0].stop()[0] == 0
    repeats = check(source, workers[0])
    print(f"{traffic.workflows} workflows, {repeats} repeats on events")


def test_a_closed_workflow_is_listed_as_closed_within_a_second(source: Source, workers: list[WorkerProcess]) -> None:
    worker = workers[0]
    worker.start()
    source.workflows(4, "first")
    source.flush()
    await_that(partial(more_than, worker, 3), STARTED_S, "the worker reads")
    store = open_visibility(f"sqlite:///{worker.index}")
    taken_s = []
    for number in range(20):
        shard = source.shards[number % 4]
        for topic, fields in shard.workflow(f"timed-{number}"):
            source.send(shard.number, topic, fields)
        source.flush()
        began = time.monotonic()
        query = f"WorkflowId = 'timed-{number}' AND ExecutionStatus = 'Completed'"
        await_that(lambda query=query: store.count(NAMESPACE_ID, query, {}).count == 1, 10, query)  # type: ignore[misc]
        taken_s.append(time.monotonic() - began)
    store.close()
    print(f"listed as closed after {sorted(taken_s)[10] * 1000:.0f} ms (median), {max(taken_s) * 1000:.0f} ms (most)")
    assert sorted(taken_s)[17] < 1
    lag = json.loads(worker.get("/lag"))
    assert set(lag) == {"events", "index"}
    assert lag["index"] == {"0": 0, "1": 0, "2": 0, "3": 0}
    metrics = worker.get("/metrics")
    assert 'everfold_projected_records_total{processor="index"} 48.0' in metrics
    assert 'everfold_projection_lag_records{partition="0",processor="index"} 0.0' in metrics
    assert worker.resident_mb() < 150
    assert worker.get("/else") == "/metrics and /lag\n"


def test_a_record_that_cannot_be_read_is_put_aside_and_the_rest_goes_on(
    source: Source, workers: list[WorkerProcess]
) -> None:
    source.send_raw(0, VISIBILITY.name, b"not avro at all")
    source.workflows(8)
    source.flush()
    workers[0].start()
    await_that(lambda: len(workers[0].listed()) == 8, STARTED_S, "the workflows are listed")
    assert workers[0].stop()[0] == 0
    assert "dead letter" in workers[0].log()
