"""librdkafka's security properties, for the clients that are not librdkafka."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Security:
    """How to connect.

    Attributes:
        protocol: plaintext, ssl, sasl_plaintext or sasl_ssl.
        context: for TLS.
        mechanism: of SASL; "" for none.
        username, password: for SASL.
    """

    protocol: str = "plaintext"
    context: ssl.SSLContext | None = None
    mechanism: str = ""
    username: str = ""
    password: str = ""


def security_of(properties: Mapping[str, str]) -> Security:
    """What the properties ask for.

    Raises:
        ValueError: a property that has no counterpart here.
    """
    protocol = properties.get("security.protocol", "plaintext").lower()
    if protocol not in ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl"):
        raise ValueError(f"kafka.properties: unknown security.protocol {protocol!r}")
    context: ssl.SSLContext | None = None
    if protocol.endswith("ssl"):
        context = ssl.create_default_context(cafile=properties.get("ssl.ca.location") or None)
        if certificate := properties.get("ssl.certificate.location"):
            context.load_cert_chain(certificate, properties.get("ssl.key.location"), properties.get("ssl.key.password"))
    if not protocol.startswith("sasl"):
        return Security(protocol, context)
    mechanism = (properties.get("sasl.mechanism") or properties.get("sasl.mechanisms") or "").upper()
    if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise ValueError(
            f"kafka.properties: sasl.mechanism {mechanism!r} is not known here; take PLAIN or SCRAM-SHA-256/512"
        )
    return Security(
        protocol, context, mechanism, properties.get("sasl.username", ""), properties.get("sasl.password", "")
    )
