"""Priorities that are made of two: a workflow's own, and what one of its activities or children was given."""

from __future__ import annotations

from temporalio.api.common.v1 import message_pb2 as common_pb2

from everfold.history.machine.events import serialize


def merge(base: bytes | None, override: bytes | None) -> bytes | None:
    """Field by field, what the override sets, else what the base does; serialized Priority messages, None for none.

    Source: common/priorities/priority_util.go, Merge.
    """
    if base is None or override is None:
        return base if override is None else override
    merged = common_pb2.Priority.FromString(base)
    merged.MergeFromString(override)
    return serialize(merged)
