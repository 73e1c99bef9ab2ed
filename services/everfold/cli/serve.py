"""`everfold frontend|history|matching`: one service in a process of its own."""

from __future__ import annotations

import structlog

from everfold.cli import nodes, topics
from everfold.cli.directories import open_data_dir
from everfold.cli.tls import read_tls
from everfold.runtime.config import Settings
from everfold.runtime.lifecycle import Supervisor

log = structlog.get_logger("everfold")


class OneService:
    """One role in a process of its own."""

    def __init__(self, settings: Settings, role: str) -> None:
        self._settings = settings
        self._role = role
        self._tls = read_tls(settings.frontend) if role == "frontend" else None
        self._data = open_data_dir(settings, default=role)

    async def start(self, supervisor: Supervisor) -> None:
        """Start the service against the cluster that the settings name."""
        settings = self._settings
        self._data.acquire()
        kafka = topics.kafka_settings(settings)
        cluster = await nodes.look_at(kafka, settings, self._data)
        node = nodes.Node(settings, kafka, cluster, self._data, roles=(self._role,), tls=self._tls)
        await node.start(supervisor)
        tls = {} if self._tls is None else {"tls": True}
        log.info("serves", role=self._role, **node.addresses(), **tls)
        if self._role == "frontend" and all(namespace.deleted for namespace in node.registry):
            log.warning("there is no namespace yet", make_one="temporal operator namespace create default")

    def close(self) -> None:
        """Give the data directory up."""
        self._data.release()
