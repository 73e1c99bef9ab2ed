"""What a caller hears of a defect of ours, and what the log does.

An exception's own text may hold a client's payload. So the caller gets an id and no word of it, and the log has the id,
the exception's type and where it came from.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from typing import Final

from everfold.kernel.errors import Code, InvariantViolation, StatusError

_log = logging.getLogger(__name__)

_FRAMES_MAX: Final = 8


def defect_in(method: str, error: Exception) -> StatusError:
    """INTERNAL for an exception that nobody expected, logged.

    Args:
        method: the RPC, with or without its service before it: `service/Method`.
        error: the exception.
    """
    error_id = secrets.token_hex(4)
    kind = "invariant violated" if isinstance(error, InvariantViolation) else "exception escaped"
    where = "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES_MAX))
    _log.error("%s in %s (error id %s): %s\n%s", kind, method, error_id, type(error).__name__, where)
    return StatusError(Code.INTERNAL, f"internal error in {method.rpartition('/')[2]} (error id {error_id})")
