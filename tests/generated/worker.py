"""A worker process for programs, which outlives its server: `python worker.py ADDRESS TASK_QUEUE [--spoiled]`.

A spoiled one runs programs a little differently, to show that the comparison notices.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from generated.interpreter import ALL_ACTIVITIES, Interpreter, elsewhere


@activity.defn(name="succeed")
async def spoiled(step: dict[str, Any]) -> str:
    """What `succeed` must not return."""
    return "something else"


async def work(address: str, task_queue: str, *, spoil: bool) -> None:
    """Runs until the process is killed; when the worker gives up, begins again."""
    activities = [spoiled, *ALL_ACTIVITIES[1:]] if spoil else ALL_ACTIVITIES
    while True:
        try:
            client = await Client.connect(address)
            other = Worker(client, task_queue=elsewhere(task_queue), activities=activities)
            worker = Worker(
                client,
                task_queue=task_queue,
                workflows=[Interpreter],
                activities=activities,
                # The programs are deterministic by construction, and the sandbox costs more than the rest.
                workflow_runner=UnsandboxedWorkflowRunner(),
                # More than are in flight: what a run is sent while the SDK evicts it may be lost in there for good.
                max_cached_workflows=2000,
                max_concurrent_activities=300,
                sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
                default_heartbeat_throttle_interval=timedelta(milliseconds=300),
                max_heartbeat_throttle_interval=timedelta(milliseconds=300),
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(worker.run())
                group.create_task(other.run())
        except Exception as error:
            print(f"{time.strftime('%X')} begins again: {error!r}", flush=True)
            await asyncio.sleep(0.5)


def worker_command(address: str, task_queue: str, *, spoil: bool = False) -> list[str]:
    """The command of one worker process."""
    return [sys.executable, str(Path(__file__)), address, task_queue, *(["--spoiled"] if spoil else [])]


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], spoil="--spoiled" in sys.argv[3:]))
