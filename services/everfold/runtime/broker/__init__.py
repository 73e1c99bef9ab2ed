"""A real Apache Kafka broker as a child process, for `start-dev`, the demo and the tests.

    prepare            jars, Java, class archive: everything that is fetched or built once
    EmbeddedBroker     one broker over one data directory, supervised

Modules: `jars` and `java` (what it runs), `classdata` (the archive that halves its start), `storage` (the data
directory), `configuration` (its settings and command line), `embedded` (its life), `process` and `wire` (helpers).
"""

from everfold.runtime.broker.embedded import EmbeddedBroker
from everfold.runtime.broker.errors import (
    BrokerError,
    DataDirectoryInUse,
    DataDirectoryNewer,
    FetchFailed,
    NoJava,
    StartFailed,
)
from everfold.runtime.broker.prepare import Prepared, prepare

__all__ = [
    "BrokerError",
    "DataDirectoryInUse",
    "DataDirectoryNewer",
    "EmbeddedBroker",
    "FetchFailed",
    "NoJava",
    "Prepared",
    "StartFailed",
    "prepare",
]
