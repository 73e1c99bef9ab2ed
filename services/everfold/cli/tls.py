"""The frontend's certificate and key, read and tried before anything is started."""

from __future__ import annotations

import ssl
from pathlib import Path

from everfold.frontend.tls_files import TlsFiles
from everfold.runtime.config import FrontendSettings
from everfold.runtime.lifecycle import Fatal


def read_tls(settings: FrontendSettings) -> TlsFiles | None:
    """What the settings name; None when the frontend is to serve plaintext.

    Raises:
        Fatal: a file cannot be read or is not PEM, or the key is not the certificate's. gRPC itself would say no more
            than that it cannot bind the port.
    """
    if not settings.tls_cert_path:
        return None
    certificate = _read("tls_cert_path", settings.tls_cert_path)
    key = _read("tls_key_path", settings.tls_key_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert_path, settings.tls_key_path, password=_no_password)
    except ssl.SSLError as error:
        raise Fatal(
            f"frontend.tls_cert_path {settings.tls_cert_path} and frontend.tls_key_path {settings.tls_key_path} are no "
            f"certificate chain and its private key in PEM ({error.reason or error})."
        ) from None
    client_ca = None
    if settings.tls_client_ca_path:
        client_ca = _read("tls_client_ca_path", settings.tls_client_ca_path)
        try:
            context.load_verify_locations(settings.tls_client_ca_path)
        except ssl.SSLError as error:
            raise Fatal(
                f"frontend.tls_client_ca_path {settings.tls_client_ca_path} holds no certificates in PEM "
                f"({error.reason or error})."
            ) from None
    return TlsFiles(certificate, key, client_ca)


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Fatal(
            f"frontend.{name} is {path}, which cannot be read: {error.strerror}. Name a PEM file that may be read."
        ) from None


def _no_password() -> str:
    raise Fatal("frontend.tls_key_path is an encrypted key: there is no setting for its password. Give it decrypted.")
