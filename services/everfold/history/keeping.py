"""One shard's store as its owner keeps it: opened, flushed, closed, and set aside when it is spoilt."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from everfold.history.giving_up import Aftermath, StoreCorrupt, aftermath, decisive
from everfold.history.ports import Metrics
from everfold.history.store import RocksStore, StoreMemory, open_store, set_aside, set_aside_bytes

log = structlog.get_logger("history.owner")


class StoreKeeper:
    """See the module. Everything that may take long runs on another thread.

    Args:
        data_dir: where the stores are.
        on_corrupt: called on the loop when RocksDB names damage, be it in the fold, in somebody's read, or in a flush.
    """

    def __init__(
        self, shard: int, data_dir: Path, cluster_id: str, metrics: Metrics, on_corrupt: Callable[[StoreCorrupt], None]
    ) -> None:
        self._shard = shard
        self._data_dir = data_dir
        self._cluster_id = cluster_id
        self._metrics = metrics
        self._on_corrupt = on_corrupt
        self._loop = asyncio.get_running_loop()
        self._store: RocksStore | None = None
        #: why the store is to be set aside before it is opened again
        self._spoilt: BaseException | None = None

    async def open(self, memory: StoreMemory, topic_id: str) -> RocksStore:
        """The store, after the former one was set aside if need be. Raises what `open_store` and `set_aside` raise."""
        await self._set_aside()
        self._store = await asyncio.to_thread(
            open_store, self._data_dir, self._shard, self._cluster_id, memory, self._found_corrupt, topic_id
        )
        return self._store

    def judge(self, reason: BaseException) -> None:
        """The shard was given up: the store is set aside if that is what follows."""
        if self._spoilt is None and aftermath(reason) is Aftermath.SET_ASIDE:
            self._spoilt = decisive(reason)

    async def flush(self) -> Exception | None:
        """Write the memtables to disk. Returns what went wrong, if the store is still the one in use."""
        store = self._store
        if store is None:
            return None
        try:
            await asyncio.to_thread(store.flush)
        except Exception as error:
            # Nothing is lost, but a full disk must not be found out at the next crash only.
            log.exception("store not flushed", shard=self._shard)
            return error if self._store is store else None
        return None

    async def close(self) -> None:
        """Close the store, and set it aside if it is spoilt; what fails is tried again before the next opening."""
        if self._store is not None:
            store, self._store = self._store, None
            try:
                await asyncio.to_thread(store.close)
            except Exception:
                log.exception("store not closed cleanly; the log refolds what is missing", shard=self._shard)
        with suppress(OSError):
            await self._set_aside()

    def _found_corrupt(self, corrupt: StoreCorrupt) -> None:
        self._loop.call_soon_threadsafe(self._tell_corrupt, corrupt)

    def _tell_corrupt(self, corrupt: StoreCorrupt) -> None:
        self.judge(corrupt)
        self._on_corrupt(corrupt)

    async def _set_aside(self) -> None:
        reason = self._spoilt
        if reason is None:
            return
        try:
            kept = await asyncio.to_thread(set_aside, self._data_dir, self._shard, _word(reason))
        except OSError as error:
            log.error("the store cannot be set aside, and the shard waits for it", shard=self._shard, error=str(error))
            raise
        self._spoilt = None
        log.error(
            "store set aside; the log is folded anew",
            shard=self._shard,
            kept=str(kept.path),
            bytes=kept.size_bytes,
            reason=str(reason),
            note="nothing deletes it; remove it when nobody wants to look at it any more",
        )
        await measure_set_aside(self._data_dir, self._metrics)


async def measure_set_aside(data_dir: Path, metrics: Metrics) -> None:
    """Show what the stores that were set aside take on the disk."""
    metrics.gauge("stores_set_aside_bytes", await asyncio.to_thread(set_aside_bytes, data_dir))


def _word(reason: BaseException) -> str:
    """For a directory's name: StoreCorrupt is "store-corrupt"."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", type(reason).__name__).lower()
