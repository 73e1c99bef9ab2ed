"""A user's record from `commands` that is refused is told on `commands-rejected`; an RPC's caller has the reply."""

from __future__ import annotations

from typing import Any, Final

from everfold.history.machine.context import StepContext
from everfold.kernel.errors import StatusError
from everfold.schemas.topics import COMMANDS, COMMANDS_REJECTED

_REASON_CHARS_MAX: Final = 4096

_UNTOLD: Final = {"topic": COMMANDS.name}
"""Of a record whose log does not tell more, as before `ShardRecord.command`: its place alone."""


def reject_command(ctx: StepContext, record: dict[str, Any], error: StatusError) -> None:
    """Tells of a ShardRecord that the machine refuses, if it came from `commands`."""
    origin = record["origin"]
    if origin is not None and origin["source"] == "COMMANDS":
        emit_rejected(ctx, record, error.message[:_REASON_CHARS_MAX], int(error.code), b"")


def emit_rejected(ctx: StepContext, record: dict[str, Any], reason: str, code: int, sample: bytes) -> None:
    """Makes the output: what the log tells of the user's record, its place, and why it is refused."""
    ctx.step.rejected = code
    source, origin = dict(record["command"] or _UNTOLD), record["origin"]
    key = source.pop("key", b"")
    place = {name: origin[name] for name in ("partition", "offset", "epoch")}
    why = {"reason": reason, "code": code, "sample": sample, "rejected_at_ns": ctx.now_ns}
    ctx.emit(COMMANDS_REJECTED, 0, key, "RejectedCommand", source | place | why)
