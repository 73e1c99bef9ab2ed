"""Certificates for a test, made with the `openssl` command: an authority, and what it has signed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Signed:
    """A certificate and its key, PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of a test's own."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        """Makes it. Skips the test where there is no `openssl`."""
        if shutil.which("openssl") is None:
            pytest.skip("the openssl command, which makes the certificates, is not on PATH")
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._name = name
        self.certificate = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        self._request(name, self._key, self.certificate, "-x509", "-days", "1")

    def sign(self, name: str) -> Signed:
        """A certificate for 127.0.0.1 and localhost, good for a server and for a client."""
        made = Signed(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        request, extensions = self._directory / f"{name}.csr", self._directory / f"{name}.ext"
        extensions.write_text("basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self._request(name, made.key, request)
        authority = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *authority, "-days", "1", "-extfile", extensions,
                 "-out", made.certificate)  # fmt: skip
        return made

    @staticmethod
    def _request(name: str, key: Path, out: Path, *options: str) -> None:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        _openssl("req", "-new", *curve, "-subj", f"/CN={name}", "-keyout", key, "-out", out, *options)


def encrypted(key: Path) -> Path:
    """The same key, encrypted with a password."""
    out = key.with_suffix(".encrypted")
    _openssl("pkcs8", "-topk8", "-in", key, "-out", out, "-passout", "pass:secret")
    return out


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
