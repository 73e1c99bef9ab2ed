"""The door for failures that are too large: cut by bytes, as a real server cuts them (measured), and said to be so.

A failure is a temporal.api.failure.v1.Failure; nothing here knows more of it than its fields.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeVar

EXCEEDS: Final = "Failure exceeds size limit."

_CAUSES_MAX: Final = 20
_FIELD_BYTES: Final = 4
"""What a field costs besides its text."""


class Failure(Protocol):
    """The fields of a failure that survive a cut, and those of its cause."""

    message: str
    source: str
    stack_trace: str

    @property
    def application_failure_info(self) -> Any:
        """Type, and whether it may be retried."""

    @property
    def server_failure_info(self) -> Any:
        """Whether it may be retried."""

    @property
    def cause(self) -> Any:
        """Another failure."""

    def HasField(self, field_name: Any) -> bool:
        """Whether a message field is set."""
        ...


_F = TypeVar("_F", bound=Failure)


def exceeding(failure: _F, bytes_max: int, *, non_retryable: bool) -> _F:
    """What stands for a failure that is too large: one of the server's, with what fits of the failure as its cause."""
    found = type(failure)()
    found.message = EXCEEDS
    found.server_failure_info.SetInParent()
    if non_retryable:
        found.server_failure_info.non_retryable = True
    _fill(found.cause, failure, bytes_max, _CAUSES_MAX)
    return found


def _fill(short: Any, failure: Failure, left: int, causes: int) -> None:
    """Texts in the order in which they get the bytes that are left. Payloads and what other kinds say is dropped."""
    short.SetInParent()
    if failure.HasField("application_failure_info"):
        info, kept = failure.application_failure_info, short.application_failure_info
        kept.type, left = _cut(info.type, left)
        kept.non_retryable = info.non_retryable
        left -= 2 * _FIELD_BYTES
    elif failure.HasField("server_failure_info"):
        short.server_failure_info.non_retryable = failure.server_failure_info.non_retryable
        left -= _FIELD_BYTES
    for name in ("source", "message", "stack_trace"):
        text, left = _cut(getattr(failure, name), left)
        setattr(short, name, text)
    left -= _FIELD_BYTES
    if failure.HasField("cause") and causes and left > 0:
        _fill(short.cause, failure.cause, left, causes - 1)


def _cut(text: str, left: int) -> tuple[str, int]:
    """The text, cut to the bytes that are left, between characters; and what is left then."""
    if not text:
        return text, left
    kept = text.encode()[: max(left, 0)]
    return kept.decode(errors="ignore"), left - len(kept) - _FIELD_BYTES
