"""The process's namespace registry as history's shards see it: callbacks, and rows as the log carries them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from everfold.kernel.errors import StatusError
from everfold.runtime.namespaces import NamespaceRegistry

log = structlog.get_logger("history.namespaces")


class RegistryNamespaces:
    """A `Namespaces` over the registry that all services of a process share."""

    def __init__(self, registry: NamespaceRegistry) -> None:
        self._registry = registry
        #: refreshes under way; asyncio keeps only weak references to tasks
        self._refreshing: set[asyncio.Task[None]] = set()

    def get(self, namespace_id: str) -> tuple[int, bytes] | None:
        """See `Namespaces`."""
        return self._registry.version_and_bytes(namespace_id)

    def name_of(self, namespace_id: str) -> str | None:
        """See `Namespaces`."""
        return self._registry.name_of(namespace_id)

    def id_of(self, name: str) -> str | None:
        """See `Namespaces`."""
        return self._registry.id_of(name)

    def refresh(self, done: Callable[[bool], None]) -> None:
        """See `Namespaces`."""

        async def read() -> None:
            try:
                await self._registry.refresh()
            except StatusError:
                known = False
            except Exception:  # whoever asked must hear that there is no answer
                log.exception("namespaces not read")
                known = False
            else:
                known = True
            done(known)

        task = asyncio.get_running_loop().create_task(read())
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)
