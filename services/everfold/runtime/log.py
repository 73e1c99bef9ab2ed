"""Logs: structured, on standard error, readable on a terminal and JSON elsewhere.

`structlog.get_logger("history").info("shard taken", shard=3)` anywhere; the process calls `configure` once. Payloads
never get into a log: bytes are written as their length and protobuf messages as their name, whatever a caller passes.
Libraries that use the standard `logging` (Faust, aiokafka, grpc) come out in the same form, from WARNING up.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog
from google.protobuf.message import Message

TEXT_MAX: Final = 2_000
"""Longest text of one field: a stack of a failure may be megabytes of a user's data."""

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "never": logging.CRITICAL + 1,
}


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Set the process's logs up; may be called again (tests do). `format` is auto, text, pretty (the same) or json."""
    stream = stream or sys.stderr
    number = _LEVELS[level]
    terminal = stream.isatty()
    as_json = format == "json" or (format == "auto" and not terminal)
    shared: list[structlog.types.Processor] = [
        *([_drop] if level == "never" else []),
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S.%f", utc=as_json, key="time"),
        hide_payloads,
    ]
    renderer: list[structlog.types.Processor]
    if as_json:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderer = [
            structlog.dev.ConsoleRenderer(
                colors=terminal,
                timestamp_key="time",
                pad_event_to=36,
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    structlog.configure(
        processors=[*shared, *renderer],
        # structlog knows the standard levels only; `never` is above all of them.
        wrapper_class=structlog.make_filtering_bound_logger(min(number, logging.CRITICAL)),
        logger_factory=_NamedLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _drop(_logger: Any, _method: str, _event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    raise structlog.DropEvent


class _NamedLoggerFactory:
    """Loggers that write lines; the name given to `get_logger` is not repeated on each line but is in the event."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = structlog.WriteLoggerFactory(file=stream)

    def __call__(self, *_name: Any) -> Any:
        return self._lines()


def hide_payloads(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Keep users' data out of the logs: bytes become their length, messages their name, long texts are cut."""
    for key, value in event.items():
        if isinstance(value, (bytes, bytearray, memoryview)):
            event[key] = f"<{len(value)} bytes>"
        elif isinstance(value, Message):
            event[key] = f"<{value.DESCRIPTOR.full_name}>"
        elif isinstance(value, str) and len(value) > TEXT_MAX and key != "exception":
            event[key] = f"{value[:TEXT_MAX]}… ({len(value)} characters)"
    return event
