"""A user's record from `commands` that is refused is told on `commands-rejected`; an RPC's caller has the reply."""

from __future__ import annotations

from typing import Any, Final

from everfold.history.machine.context import StepContext
from everfold.kernel.errors import StatusError
from everfold.schemas.topics import COMMANDS_REJECTED

_REASON_CHARS_MAX: Final = 4096


def reject_command(ctx: StepContext, record: dict[str, Any], error: StatusError) -> None:
    """Tells of a ShardRecord that the machine refuses, if it came from `commands`."""
    if record["command"] is not None:
        emit_rejected(ctx, record, error.message[:_REASON_CHARS_MAX], int(error.code), b"")


def emit_rejected(ctx: StepContext, record: dict[str, Any], reason: str, code: int, sample: bytes) -> None:
    """Makes the output: what the log tells of the user's record, its place, and why it is refused."""
    ctx.step.rejected = code
    source, origin = dict(record["command"]), record["origin"]
    key = source.pop("key")
    place = {name: origin[name] for name in ("partition", "offset", "epoch")}
    why = {"reason": reason, "code": code, "sample": sample, "rejected_at_ns": ctx.now_ns}
    ctx.emit(COMMANDS_REJECTED, 0, key, "RejectedCommand", source | place | why)
