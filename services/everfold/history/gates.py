"""Before a record that needs a namespace comes the record that tells the shard of it (architecture, law 2)."""

from __future__ import annotations

from collections.abc import Callable

from everfold.history.ports import Namespaces
from everfold.kernel.errors import StatusError

Then = Callable[[StatusError | None], None]


class NamespaceGate:
    """Holds back proposals until the shard knows their namespace at the version that this process knows.

    `NamespaceChanged` is folded before anything that needs it is appended: were both on their way, the first could fail
    and the second be folded without it.

    Args:
        namespaces: what the process knows.
        version_in_shard: what the shard knows: a version, or -1.
        append: proposes a NamespaceChanged: (namespace id, version, row, what to call with its outcome).
    """

    def __init__(
        self,
        namespaces: Namespaces,
        version_in_shard: Callable[[str], int],
        append: Callable[[str, int, bytes, Then], None],
    ) -> None:
        self._namespaces = namespaces
        self._version_in_shard = version_in_shard
        self._append = append
        #: namespace id -> those who wait, with the size of what they propose; bounded as proposals are
        self._waiting: dict[str, list[tuple[Then, int]]] = {}

    def open_for(self, namespace_id: str) -> bool:
        """Whether nothing has to be told. True for what nobody knows: the fold refuses that itself."""
        known = self._namespaces.get(namespace_id)
        return known is None or self._version_in_shard(namespace_id) >= known[0]

    def pass_through(self, namespace_id: str, then: Then, request_bytes: int = 0) -> None:
        """Call `then(None)` when the shard knows the namespace, or with a status when it could not be told."""
        waiting = self._waiting.get(namespace_id)
        if waiting is not None:
            waiting.append((then, request_bytes))
            return
        known = self._namespaces.get(namespace_id)
        if known is None or self._version_in_shard(namespace_id) >= known[0]:
            then(None)
            return
        self._waiting[namespace_id] = [(then, request_bytes)]

        def told(error: StatusError | None) -> None:
            for waiter, _ in self._waiting.pop(namespace_id, []):
                waiter(error)

        try:
            self._append(namespace_id, *known, told)
        except Exception:  # the caller hears of it, and the next one tries again
            self._waiting.pop(namespace_id, None)
            raise

    @property
    def held_back(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def held_back_bytes(self) -> int:
        """The size of their requests."""
        return sum(size for waiters in self._waiting.values() for _, size in waiters)

    def close(self, reason: StatusError) -> None:
        """The shard is gone."""
        waiting, self._waiting = self._waiting, {}
        for waiters in waiting.values():
            for waiter, _ in waiters:
                waiter(reason)
