"""`everfold topics`: what the cluster must hold, and whether it does."""

from __future__ import annotations

import json
import sys

import click
from rich.console import Console
from rich.table import Table

from everfold.runtime.config import Settings
from everfold.schemas.topics import TOPICS, full_name


def show(settings: Settings, *, as_json: bool) -> None:
    """Print the declared topics."""
    shards, partitions = settings.history.shards, settings.matching.partitions
    if as_json:
        content = [
            {
                "name": full_name(settings.kafka.prefix, topic),
                "partitions": topic.partition_count(shards, partitions),
                "record": topic.value,
                "config": topic.full_config(),
                "help": topic.help,
            }
            for topic in TOPICS
        ]
        click.echo(json.dumps(content, indent=2))
        return
    table = Table("topic", "partitions", "record", "who", box=None, pad_edge=False)
    for topic in TOPICS:
        name = full_name(settings.kafka.prefix, topic)
        table.add_row(name, str(topic.partition_count(shards, partitions)), topic.value, topic.help)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
