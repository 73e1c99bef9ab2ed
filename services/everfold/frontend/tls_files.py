"""What a frontend serves TLS with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Server certificate and key, PEM. With client CAs, clients must show a certificate that one of them signed."""

    certificate_chain: bytes
    private_key: bytes
    client_ca: bytes | None = None
