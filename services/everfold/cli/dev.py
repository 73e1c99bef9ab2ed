"""`everfold server start-dev`: broker, services and processors on one machine, with nothing to configure.

The broker takes seconds to start, and so does loading what comes after it (`dev_services`): both at once. So this
module imports little.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import sys
import time
from importlib import import_module

from everfold.cli.directories import in_directory, open_data_dir
from everfold.cli.ports import refuse_taken_ports
from everfold.cli.tls import read_tls
from everfold.runtime.broker import EmbeddedBroker
from everfold.runtime.broker.write_through import WriteThrough, decide
from everfold.runtime.config import MIB, Settings
from everfold.runtime.lifecycle import Supervisor
from everfold.runtime.metrics import BROKER_RESTARTS


class DevServer:
    """All of Everfold in one process, with two children: the broker and the stream processors."""

    def __init__(self, settings: Settings) -> None:
        """Nothing runs before `start`."""
        self._settings = settings
        self._tls = read_tls(settings.frontend)
        self._data = open_data_dir(settings, default="dev")
        self._embedded = not settings.kafka.bootstrap
        #: of the embedded broker; None for a cluster that is there already
        self._write_through: WriteThrough | None = None
        self._broker_s = 0.0

    async def start(self, supervisor: Supervisor) -> None:
        """Start everything, create what is missing, and say where it is."""
        began = time.monotonic()
        self._data.acquire()
        refuse_taken_ports(self._settings)
        loading = asyncio.ensure_future(asyncio.to_thread(import_module, "everfold.cli.dev_services"))
        settings = await self._with_kafka(supervisor)
        services = (await loading).DevServices(
            settings, self._data, self._tls, embedded=self._embedded, write_through=self._write_through
        )
        gc.freeze()  # what was loaded meanwhile, too
        await services.start(supervisor, began=began, broker_s=self._broker_s)

    def close(self) -> None:
        """Give the data directory up, and remove an ephemeral one."""
        self._data.release()

    async def _with_kafka(self, supervisor: Supervisor) -> Settings:
        """The settings with a cluster to talk to, with the directory that everything is kept in."""
        settings = self._settings
        bootstrap = settings.kafka.bootstrap
        if not bootstrap:
            # Before the broker starts, which keeps the disk busy.
            self._write_through = await asyncio.to_thread(decide, self._data.broker, wanted=settings.broker.fsync)
            broker = EmbeddedBroker(
                self._data.broker,
                port=settings.broker.port,
                heap_mb=settings.broker.heap_bytes // MIB,
                progress=lambda text: print(text, file=sys.stderr, flush=True),
                on_down=lambda _code: BROKER_RESTARTS.inc(),
            )
            began = time.monotonic()
            await supervisor.start("broker", broker)
            self._broker_s = time.monotonic() - began
            bootstrap = broker.bootstrap
        return dataclasses.replace(
            in_directory(settings, self._data),  # what the child needs to find the same files
            kafka=dataclasses.replace(
                settings.kafka,
                bootstrap=bootstrap,
                single_broker=settings.kafka.single_broker or self._embedded,
            ),
        )
