"""Reading a log on which there is junk, too."""

from __future__ import annotations

from typing import Any

from everfold.schemas import codec


def read_or_empty(value: bytes) -> dict[str, Any]:
    """The shard record, or nothing where it is none."""
    try:
        return codec.decode_shard_record(value)
    except codec.Undecodable:
        return {}
