"""Ports that somebody else has: named before anything that takes seconds is started."""

from __future__ import annotations

import socket

from everfold.runtime.config import ANY_PORT, Settings
from everfold.runtime.lifecycle import Fatal


def refuse_taken_ports(settings: Settings) -> None:
    """Tries the ports that start-dev and its children are to listen on.

    Raises:
        Fatal: one cannot be listened on.
    """
    wanted = [
        (settings.frontend.ip, settings.frontend.port, "--port"),
        (settings.node.rpc_ip, settings.node.rpc_port, "--rpc-port"),
        (settings.metrics.ip, settings.metrics.port, "--metrics-port"),
        (settings.metrics.ip, settings.topology.metrics_port, "--topology-metrics-port"),
    ]
    if not settings.kafka.bootstrap:
        wanted.append(("127.0.0.1", settings.broker.port, "--broker-port"))
    for ip, port, flag in wanted:
        if port == ANY_PORT:
            continue
        try:
            socket.create_server((ip, port), family=socket.AF_INET6 if ":" in ip else socket.AF_INET).close()
        except OSError as error:
            raise cannot_listen(ip, port, error, flag) from None


def cannot_listen(ip: str, port: int, error: OSError, flag: str) -> Fatal:
    """What to tell the user of an address that cannot be listened on."""
    return Fatal(
        f"The address {ip}:{port} cannot be listened on: {error.strerror or error}. Another server may have it: stop "
        f"that one, or give {flag}."
    )
