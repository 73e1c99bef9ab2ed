"""The namespaces as this process knows them: a fold of the compacted topic `namespaces`, one partition.

Shard 0 decides names and ids (architecture section 4); this registry only reads. It may be behind: whoever misses a
name calls `refresh`, which reads behind the end of the topic as it was after the call, and looks again before saying
NOT_FOUND. A namespace registered a moment ago is thereby usable at once, through any frontend.

All of it runs on the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from everfold.kernel.errors import StatusError
from everfold.schemas import codec

STATE_REGISTERED: Final = 1
STATE_DEPRECATED: Final = 2
STATE_DELETED: Final = 3


@dataclass(frozen=True, slots=True)
class Namespace:
    """One version of one namespace.

    Attributes:
        version: counts the changes, from 1.
        state: temporal.api.enums.v1.NamespaceState.
        search_attributes: custom search attribute name -> type name, such as Keyword.
        config: serialized temporal.api.namespace.v1.NamespaceConfig.
        encoded: the record as it is on the topic, framed; `NamespaceChanged` carries it into a shard's log so.
    """

    namespace_id: str
    name: str
    version: int = 1
    state: int = STATE_REGISTERED
    description: str = ""
    owner_email: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    retention_ns: int = 0
    search_attributes: Mapping[str, str] = field(default_factory=dict)
    created_at_ns: int = 0
    deleted: bool = False
    config: bytes = b""
    encoded: bytes = b""


def encode_namespace(namespace: Namespace) -> bytes:
    """The value of the topic's record, framed. For tests and tools: in a cluster only shard 0's outbox writes it."""
    return codec.encode_namespace(
        {
            "namespace_id": namespace.namespace_id,
            "name": namespace.name,
            "version": namespace.version,
            "state": namespace.state,
            "description": namespace.description,
            "owner_email": namespace.owner_email,
            "data": dict(namespace.data),
            "retention_ns": namespace.retention_ns,
            "search_attributes": dict(namespace.search_attributes),
            "created_at_ns": namespace.created_at_ns,
            "deleted": namespace.deleted,
            "config": namespace.config,
            "origin": None,
            "predecessor": None,
        }
    )


def decode_namespace(value: bytes) -> Namespace:
    """Reads the topic's record.

    Raises:
        codec.Undecodable: it is none.
    """
    record = codec.decode_namespace(value)
    return Namespace(
        namespace_id=record["namespace_id"],
        name=record["name"],
        version=record["version"],
        state=record["state"],
        description=record["description"],
        owner_email=record["owner_email"],
        data=record["data"],
        retention_ns=record["retention_ns"],
        search_attributes=record["search_attributes"],
        created_at_ns=record["created_at_ns"],
        deleted=record["deleted"],
        config=record["config"],
        encoded=value,
    )


CatchUp = Callable[[], Awaitable[None]]
"""Returns once every record that was on the topic when it was called has gone through `apply`. Raises StatusError when
the topic cannot be read."""


class NamespaceRegistry:
    """The fold of the topic, and who waits for it to move on."""

    def __init__(self, catch_up: CatchUp) -> None:
        self._catch_up = catch_up
        #: namespace id -> its last version, deleted ones included
        self._by_id: dict[str, Namespace] = {}
        #: name -> the namespace that has it and is not deleted
        self._by_name: dict[str, Namespace] = {}
        self._asked = 0
        self._answered = 0
        #: why the last read failed; not the exception, which would keep all who raise it
        self._failure: tuple[int, str] | None = None
        self._catching_up = asyncio.Lock()
        self._watchers: set[asyncio.Future[None]] = set()

    def by_name(self, name: str) -> Namespace | None:
        """The namespace of that name, unless it is deleted or not known here (yet)."""
        return self._by_name.get(name)

    def by_id(self, namespace_id: str) -> Namespace | None:
        """The namespace of that id, unless it is deleted or not known here (yet)."""
        namespace = self._by_id.get(namespace_id)
        return None if namespace is None or namespace.deleted else namespace

    def version_and_bytes(self, namespace_id: str) -> tuple[int, bytes] | None:
        """(version, the topic's framed value), deleted namespaces included; None when not known here."""
        namespace = self._by_id.get(namespace_id)
        return None if namespace is None else (namespace.version, namespace.encoded)

    def name_of(self, namespace_id: str) -> str | None:
        """The name that routes the workflows of a namespace, deleted ones included."""
        namespace = self._by_id.get(namespace_id)
        return None if namespace is None else namespace.name

    def id_of(self, name: str) -> str | None:
        """The id of a namespace that is not deleted."""
        namespace = self._by_name.get(name)
        return None if namespace is None else namespace.namespace_id

    def __iter__(self) -> Iterator[Namespace]:
        """Every namespace known here, deleted ones included, by name and then by id."""
        return iter(sorted(self._by_id.values(), key=lambda namespace: (namespace.name, namespace.namespace_id)))

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Folds one record. An older version than the one known is a repeat, and ignored.

        Raises:
            codec.Undecodable: a record of a newer build; the reader decides whether to go on without it.
        """
        if value is None:
            self._forget_name(self._by_id.pop(key.decode(), None))
        else:
            namespace = decode_namespace(value)
            known = self._by_id.get(namespace.namespace_id)
            if known is not None and known.version > namespace.version:
                return
            self._forget_name(known)
            self._by_id[namespace.namespace_id] = namespace
            if not namespace.deleted and namespace.state != STATE_DELETED:
                self._by_name[namespace.name] = namespace
        watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _forget_name(self, namespace: Namespace | None) -> None:
        """Frees a name, unless another namespace has taken it since."""
        if namespace is not None:
            holder = self._by_name.get(namespace.name)
            if holder is not None and holder.namespace_id == namespace.namespace_id:
                del self._by_name[namespace.name]

    async def refresh(self) -> None:
        """Reads behind the end of the topic as it is now. Callers share a read that began after they came."""
        self._asked += 1
        ticket = self._asked
        async with self._catching_up:
            if self._answered >= ticket:
                if self._failure is not None:
                    raise StatusError(*self._failure)
                return
            covers = self._asked
            try:
                await self._catch_up()
                self._failure = None
            except StatusError as failure:
                # Those who came in time for this read fail with it; else each would wait for a try of its own, one
                # after the other.
                self._failure = failure.code, failure.message
                self._answered = covers
                raise
            self._answered = covers

    async def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Waits until the condition holds over what is known here; False when it does not within `timeout` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not condition():
            left = deadline - loop.time()
            if left <= 0:
                return False
            watcher: asyncio.Future[None] = loop.create_future()
            self._watchers.add(watcher)
            await asyncio.wait((watcher,), timeout=left)
            self._watchers.discard(watcher)
        return True


class InMemoryNamespaces(NamespaceRegistry):
    """A registry without a topic, for tests and for tools: what is `put` is known at once, or at the next refresh.

    Attributes:
        refreshes: how many times the end of the topic was read.
    """

    def __init__(self, *namespaces: Namespace) -> None:
        super().__init__(self._deliver)
        self.refreshes = 0
        self._pending: list[tuple[bytes, bytes | None]] = []
        for namespace in namespaces:
            self.put(namespace)

    def put(self, namespace: Namespace, *, later: bool = False) -> None:
        """Adds a version; with `later` it is on the topic but not read yet."""
        record = (namespace.namespace_id.encode(), encode_namespace(namespace))
        if later:
            self._pending.append(record)
        else:
            self.apply(*record)

    async def _deliver(self) -> None:
        self.refreshes += 1
        pending, self._pending = self._pending, []
        for key, value in pending:
            self.apply(key, value)
