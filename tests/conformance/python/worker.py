"""A worker for the programs' workflows, until it is told to stop: `python worker.py HOST:PORT TASK_QUEUE`."""

from __future__ import annotations

import asyncio
import signal
import sys

from programs import Approval, Cancellable, Hello, Retried, Timer, flaky, greet, patient
from temporalio.client import Client
from temporalio.worker import Worker


async def main(address: str, task_queue: str) -> None:
    """Serves the queue."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await Client.connect(address)
    workflows = [Hello, Retried, Timer, Approval, Cancellable]
    async with Worker(client, task_queue=task_queue, workflows=workflows, activities=[greet, flaky, patient]):
        print("polling", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
