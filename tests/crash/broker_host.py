"""A process that keeps Everfold's embedded broker running, for servers started with --kafka.

    python broker_host.py DATA_DIR PORT

The broker is its child and is started again when it dies alone; it dies with this process.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from everfold.runtime.broker import EmbeddedBroker


async def main(data_dir: str, port: int) -> None:
    """Runs until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    broker = EmbeddedBroker(Path(data_dir), port=port, archive_in_background=False)
    await broker.start()
    print(f"serves {broker.bootstrap}", flush=True)
    await stop.wait()
    await broker.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
