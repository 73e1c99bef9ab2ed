"""What a failed call ends with fits in the headers that clients take, whatever value of theirs it shows."""

from __future__ import annotations

import pytest

from everfold.frontend.status import DETAILS_BYTES_MAX, TEXT_ALONE_BYTES_MAX, TEXT_BYTES_MAX, details_bytes, status_of
from everfold.kernel.errors import Code, StatusError

NAME = "temporal.api.errordetails.v1.NamespaceNotFoundFailure"


@pytest.mark.parametrize("letter", ["y", "\u00e9", "\U0001f600"])
def test_a_long_text_is_cut_between_characters(letter: str) -> None:
    found = status_of(StatusError(Code.NOT_FOUND, f"no {letter * 70_000}"), "m")
    assert found.code == Code.NOT_FOUND
    assert TEXT_ALONE_BYTES_MAX - 6 <= len(found.message.encode()) <= TEXT_ALONE_BYTES_MAX
    assert found.message.startswith(f"no {letter * 100}")
    assert found.message.endswith("\u2026")


def test_details_that_are_too_large_are_left_out() -> None:
    assert not status_of(StatusError(Code.NOT_FOUND, "no", ((NAME, b"y" * (DETAILS_BYTES_MAX + 1)),)), "m").details
    large = status_of(StatusError(Code.NOT_FOUND, "y" * 70_000, ((NAME, b"y" * DETAILS_BYTES_MAX),)), "m")
    assert len(details_bytes(large) or b"") <= TEXT_BYTES_MAX + DETAILS_BYTES_MAX + 200


def test_what_fits_is_itself() -> None:
    error = StatusError(Code.NOT_FOUND, "no", ((NAME, b"y" * 100),))
    assert status_of(error, "m") is error
