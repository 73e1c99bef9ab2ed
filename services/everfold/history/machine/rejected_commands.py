"""A user's record from `commands` that is refused is told on `commands-rejected`; an RPC's caller has the reply."""

from __future__ import annotations

from typing import Any, Final

from everfold.history.machine.context import StepContext
from everfold.kernel.errors import StatusError
from everfold.schemas.topics import COMMANDS_REJECTED

COMMAND_SHA256: Final = "command.sha256"
"""Fact of a record that came from `commands`: SHA-256 of the value that a user wrote, in hex."""

COMMAND_BYTES: Final = "command.bytes"
"""The size of that value."""


def reject_command(ctx: StepContext, body: dict[str, Any], error: StatusError) -> None:
    """Tells of a record that the machine refuses, if it came from `commands`."""
    origin = body["origin"]
    if origin is None or origin["source"] != "COMMANDS":
        return
    emit_rejected(
        ctx,
        body["workflow_id"].encode(),
        {
            "topic": "commands",
            "partition": origin["partition"],
            "offset": origin["offset"],
            "epoch": origin["epoch"],
            "reason": error.message[:4096],
            "code": int(error.code),
            "sha256": bytes.fromhex(body["facts"].get(COMMAND_SHA256, "")),
            "size_bytes": int(body["facts"].get(COMMAND_BYTES, -1)),
            "sample": b"",
        },
    )


def emit_rejected(ctx: StepContext, key: bytes, rejected: dict[str, Any]) -> None:
    """Makes the output. `rejected`: a RejectedCommand without its time."""
    ctx.step.rejected = rejected["code"]
    ctx.emit(COMMANDS_REJECTED, 0, key, "RejectedCommand", rejected | {"rejected_at_ns": ctx.now_ns})
