"""Everfold's topology as a Faust application: `faust -A everfold.topology.app worker`.

`app` is made when it is first asked for, from the settings in the environment (EVERFOLD_KAFKA_BOOTSTRAP and so on, see
docs/configuration.md). To extend the topology, import `app` and attach processors or declare agents of your own.
"""

from __future__ import annotations

import uuid
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from everfold.runtime import config
from everfold.runtime.datadir import OWNER_ALONE, WORKER, default_data_dir
from everfold.runtime.lifecycle import Fatal
from everfold.topology.application import TopologyApp, TopologyOptions
from everfold.topology.events import TypedEvents
from everfold.topology.index import VisibilityIndex
from everfold.topology.publisher import Publisher
from everfold.topology.state import ProcessorState
from everfold.visibility.store import open_visibility

if TYPE_CHECKING:
    app: TopologyApp


def create_app(options: TopologyOptions) -> TopologyApp:
    """The application with Everfold's own processors. Opens nothing and connects to nothing until it is started."""
    application = TopologyApp(options)

    def typed_events() -> TypedEvents:
        state = ProcessorState(options.data_dir / "events")
        return TypedEvents(state, Publisher(options.kafka, "topology"), options.kafka)

    application.attach(TypedEvents, typed_events)
    application.attach(VisibilityIndex, lambda: VisibilityIndex(open_visibility(options.visibility_url)))
    return application


def options_of(settings: config.Settings) -> TopologyOptions:
    """The topology's options in Everfold's settings.

    Raises:
        Fatal: an ephemeral worker of which nobody holds, and later removes, the directory.
    """
    if settings.node.ephemeral:
        raise Fatal(
            "node.ephemeral: a worker that Faust starts keeps its directory. Drop the setting, or run "
            "`everfold topology worker --ephemeral`."
        )
    node = settings.node
    base = Path(node.data_dir) if node.data_dir else default_data_dir(node.name or WORKER)
    data_dir = base.absolute() / "topology"
    return TopologyOptions(
        bootstrap=settings.kafka.bootstrap or "127.0.0.1:9092",
        data_dir=data_dir,
        visibility_url=settings.visibility.url or f"sqlite:///{base.absolute() / 'visibility.db'}",
        prefix=settings.kafka.prefix,
        properties=settings.kafka.properties,
        instance=instance_of(data_dir),
        metrics_ip=settings.metrics.ip,
        metrics_port=settings.topology.metrics_port or settings.metrics.port,
    )


def instance_of(data_dir: Path) -> str:
    """The name of the worker whose state this directory holds; made on first use, kept with the state."""
    path = data_dir / "instance"
    if not path.exists():
        data_dir.mkdir(OWNER_ALONE, parents=True, exist_ok=True)
        staged = path.with_suffix(".new")
        staged.write_text(f"everfold-topology-{uuid.uuid4()}\n")
        staged.replace(path)
    return path.read_text().strip()


@cache
def _default_app() -> TopologyApp:
    return create_app(options_of(config.load({}).settings))


def __getattr__(name: str) -> TopologyApp:
    if name == "app":
        return _default_app()
    raise AttributeError(name)
