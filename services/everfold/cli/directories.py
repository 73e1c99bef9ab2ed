"""The data directory that the settings name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from everfold.cli.version import version
from everfold.runtime.config import Settings
from everfold.runtime.datadir import DataDir, default_data_dir


def open_data_dir(settings: Settings, default: str) -> DataDir:
    """The data directory that the settings name, not yet held."""
    if settings.node.ephemeral:
        return DataDir(None, version=version())
    path = Path(settings.node.data_dir) if settings.node.data_dir else default_data_dir(settings.node.name or default)
    return DataDir(path, version=version())


def in_directory(settings: Settings, data: DataDir) -> Settings:
    """The settings of those who work in a directory that is held for them, a temporary one, too."""
    return dataclasses.replace(
        settings, node=dataclasses.replace(settings.node, data_dir=str(data.path), ephemeral=False)
    )
