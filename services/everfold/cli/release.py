"""`everfold workflow release`: a quarantined run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.calls import EVERFOLD_SERVICE, method_path
from everfold.runtime.lifecycle import Fatal

_METHOD: Final = method_path(EVERFOLD_SERVICE, "ReleaseWorkflow")
_SECONDS: Final = 30.0


@dataclass(frozen=True)
class ClientTls:
    """How to speak TLS to a frontend.

    Attributes:
        ca_path: the authorities to trust; None for those that gRPC knows.
        cert_path: the certificate to show, with `key_path`; None to show none.
        key_path: its private key.
    """

    ca_path: str | None = None
    cert_path: str | None = None
    key_path: str | None = None


def release(workflow_id: str, run_id: str, namespace: str, address: str, tls: ClientTls | None) -> None:
    """Asks a frontend for it; without `tls` in plaintext.

    Raises:
        Fatal: nobody answers there, there is no such workflow, or it is not quarantined, or is so again.
    """
    request = ws.DescribeWorkflowExecutionRequest(namespace=namespace)
    request.execution.workflow_id = workflow_id
    request.execution.run_id = run_id
    with _channel(address, tls) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        try:
            call(request.SerializeToString(), timeout=_SECONDS)
        except grpc.RpcError as error:
            raise Fatal(f"{address}: {error.code().name}: {error.details()}") from None


def _channel(address: str, tls: ClientTls | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(address)
    paths = (tls.ca_path, tls.key_path, tls.cert_path)
    return grpc.secure_channel(
        address, grpc.ssl_channel_credentials(*(Path(path).read_bytes() if path else None for path in paths))
    )
