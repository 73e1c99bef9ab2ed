"""Exceptions that have been answered, and what they keep.

A future keeps its exception, the exception its traceback, the traceback the frames that awaited the future, and a frame
its locals: the future, and the request's bytes. Such a ring stays until the collector of cycles comes, which is rare on
purpose (`cli/program.py`). So whoever ends a call with an exception cuts it.
"""

from __future__ import annotations


def let_go(error: BaseException) -> None:
    """Takes the tracebacks off an exception that nobody will raise again, and off those that led to it."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
