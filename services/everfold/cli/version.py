"""Which Everfold this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The installed distribution's version; there is no `everfold/__init__.py` that could hold one."""
    try:
        return metadata.version("everfold")
    except metadata.PackageNotFoundError:
        return "0+unknown"
