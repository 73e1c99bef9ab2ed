"""`everfold topics`: what the cluster must hold, and whether it does."""

from __future__ import annotations

import json
import sys
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from everfold.runtime.config import SHARDS_DEFAULT, TASK_PARTITIONS_DEFAULT, Settings
from everfold.runtime.kafka import KafkaSettings, KafkaTrouble
from everfold.runtime.lifecycle import Fatal
from everfold.runtime.topics_admin import REPLICATION_MIN, ClusterShape, apply_topics, check_topics
from everfold.schemas.topics import TOPICS, full_name


def show(settings: Settings, *, as_json: bool) -> None:
    """Print the declared topics."""
    shape = cluster_shape(settings)
    if as_json:
        content = [
            {
                "name": full_name(settings.kafka.prefix, topic),
                "partitions": topic.partition_count(shape.shards, shape.task_partitions),
                "record": ", ".join(topic.records),
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
        table.add_row(
            name, str(topic.partition_count(shape.shards, shape.task_partitions)), ", ".join(topic.records), topic.help
        )
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def apply(settings: Settings, *, dry_run: bool, as_json: bool) -> None:
    """Create the topics, set what is unsafe about them; with `dry_run` only say what would be done.

    Raises:
        Fatal: that is not possible.
    """
    try:
        if dry_run:
            differences = check_topics(kafka_settings(settings), cluster_shape(settings))
        else:
            differences = apply_topics(kafka_settings(settings), cluster_shape(settings))
    except KafkaTrouble as error:
        raise Fatal(str(error)) from None
    if as_json:
        rows = [
            {"topic": d.topic, "what": d.what, "expected": d.expected, "found": d.found, "mendable": d.mendable}
            | {"at_least": d.at_least, "deed": d.deed}
            for d in differences
        ]
        click.echo(json.dumps({"applied": not dry_run, "differences": rows}, indent=2))
        return
    for difference in differences:
        click.echo(f"{_WOULD[difference.deed] if dry_run else _DONE[difference.deed]}  {difference}")
    if not differences:
        click.echo("All topics are safe as they are; nothing to do.")


_DONE: Final = {"create": "created", "raise": "raised", "set": "set"}
_WOULD: Final = {deed: f"would {deed}" for deed in _DONE}


def kafka_settings(settings: Settings) -> KafkaSettings:
    """How to reach Kafka. Raises Fatal when no cluster is named."""
    if not settings.kafka.bootstrap:
        raise Fatal("No Kafka cluster is named. Give --kafka HOST:PORT (or EVERFOLD_KAFKA_BOOTSTRAP).")
    return KafkaSettings(settings.kafka.bootstrap, settings.kafka.prefix, settings.kafka.properties)


def cluster_shape(settings: Settings) -> ClusterShape:
    """What the topics must look like."""
    single = settings.kafka.single_broker
    return ClusterShape(
        shards=settings.history.shards or SHARDS_DEFAULT,
        task_partitions=settings.matching.partitions or TASK_PARTITIONS_DEFAULT,
        replication=settings.kafka.replication or (1 if single else REPLICATION_MIN),
        single_broker=single,
    )
