"""The demo: one workflow on a server of its own; its result, its history, and its Avro events read back from Kafka.

    make demo          (or: python examples/demo.py)

Everything but the last step is an ordinary program on Temporal's Python SDK.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from temporalio import activity, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from everfold.schemas import codec

QUEUE = "demo"
READY_S = 150
EVENTS_S = 30


@activity.defn
async def greet(name: str) -> str:
    return f"Hello, {name}!"


@workflow.defn
class Greeting:
    @workflow.run
    async def run(self, name: str) -> str:
        greeting = await workflow.execute_activity(greet, name, start_to_close_timeout=timedelta(seconds=10))
        await workflow.sleep(0.5)
        return greeting


async def main() -> None:
    server, addresses = start_server()
    try:
        client = await Client.connect(addresses["gRPC"])
        worker = Worker(
            client,
            task_queue=QUEUE,
            workflows=[Greeting],
            activities=[greet],
            workflow_runner=UnsandboxedWorkflowRunner(),
        )
        async with worker:
            handle = await client.start_workflow(Greeting.run, "Everfold", id="demo-1", task_queue=QUEUE)
            result = await handle.result()
        print(f"\nResult   {result!r}")
        history = await handle.fetch_history()
        print_history(history)
        run_id = handle.first_execution_run_id or handle.result_run_id or ""
        await asyncio.to_thread(print_events, addresses["Kafka"].split()[0], run_id, len(history.events))
    finally:
        stop_server(server)


def start_server() -> tuple[subprocess.Popen[str], dict[str, str]]:
    """`everfold server start-dev` on free ports with nothing kept, and the addresses from its banner."""
    command = [
        *(str(Path(sys.executable).with_name("everfold")), "server", "start-dev", "--ephemeral", "--port", "0"),
        *("--log-level", "warning"),
    ]
    print("$ everfold", *command[1:], flush=True)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    addresses: dict[str, str] = {}
    assert server.stdout is not None
    deadline = time.monotonic() + READY_S
    for line in server.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"\s*(\w+):\s+(.*)", line):
            addresses[found[1]] = found[2]
        if "Durability" in addresses:
            return server, addresses
        if time.monotonic() > deadline:
            break
    stop_server(server)
    raise SystemExit("the server did not start; what it said is above")


def stop_server(server: subprocess.Popen[str]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def print_history(history: WorkflowHistory) -> None:
    print("\nHistory, over gRPC")
    for event in history.events:
        print(f"  {event.event_id:>3}  {EventType.Name(event.event_type).removeprefix('EVENT_TYPE_')}")


def print_events(bootstrap: str, run_id: str, expected: int) -> None:
    """The run's records on the topic `everfold.events`, as any Kafka consumer can have them."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "demo", "enable.auto.commit": False})
    topic = "everfold.events"
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    print(f"\nAvro events, from Kafka ({topic})")
    seen = 0
    deadline = time.monotonic() + EVENTS_S
    while seen < expected and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is None or message.error() or message.value() is None:
            continue
        name, event = codec.decode(message.value() or b"")
        if event["run_id"] == run_id:
            seen += 1
            attributes = event["attributes"]
            kind = attributes[0] if isinstance(attributes, tuple) else event["event_type"]
            print(f"  {event['event_id']:>3}  {name} {kind}  [{message.partition()}:{message.offset()}]")
    consumer.close()
    if seen < expected:
        raise SystemExit(f"expected {expected} events on {topic} within {EVENTS_S} s, found {seen}")


if __name__ == "__main__":
    asyncio.run(main())
