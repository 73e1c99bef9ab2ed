"""What the shard's log tells of a record of `commands`, so that whoever reads of its rejection knows it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from everfold.history.ports import Headers

HEADERS_BYTES_MAX: Final = 16 * 1024
"""Names and values of the headers that are kept. Traces and business keys are far smaller; the record itself is there
to be read."""

KEY_BYTES_MAX: Final = 64 * 1024
"""How much of a record's key is kept."""

_NEVER_KEPT: Final = frozenset(("authorization",))


class CommandIds(NamedTuple):
    """What a command's producer called it and its workflow; all empty where it could not be read."""

    command_id: str = ""
    request_id: str = ""
    namespace: str = ""
    workflow_id: str = ""

    @classmethod
    def of(cls, command: Mapping[str, Any]) -> CommandIds:
        """The ids in a decoded Command."""
        return cls(*(command[name] for name in cls._fields))


NO_IDS: Final = CommandIds()


def source_of(topic: str, key: bytes | None, value: bytes | None, headers: Headers, ids: CommandIds) -> dict[str, Any]:
    """A CommandSource as in ShardRecord.avsc.

    Args:
        topic: its full name.
        key: the record's.
        value: the record's.
        headers: the record's; the first ones are kept, up to HEADERS_BYTES_MAX, and no credentials.
        ids: what its producer called it.
    """
    kept, left = [], HEADERS_BYTES_MAX
    for name, content in headers:
        left -= len(name.encode()) + len(content or b"")
        if left < 0:
            break
        if name.lower() not in _NEVER_KEPT:
            kept.append({"name": name, "value": content or b""})
    return {
        "topic": topic,
        "key": (key or b"")[:KEY_BYTES_MAX],
        **ids._asdict(),
        "headers": kept,
        "sha256": hashlib.sha256(value or b"").digest(),
        "size_bytes": len(value or b""),
    }
