"""`everfold workflow release`: a quarantined run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.calls import EVERFOLD_SERVICE, method_path
from everfold.runtime.lifecycle import Fatal

_METHOD: Final = method_path(EVERFOLD_SERVICE, "ReleaseWorkflow")
_SECONDS: Final = 30.0


def release(workflow_id: str, run_id: str, namespace: str, address: str, tls_ca_path: str | None) -> None:
    """Asks a frontend for it.

    Raises:
        Fatal: nobody answers there, there is no such workflow, or it is not quarantined, or is so again.
    """
    request = ws.DescribeWorkflowExecutionRequest(namespace=namespace)
    request.execution.workflow_id = workflow_id
    request.execution.run_id = run_id
    with _channel(address, tls_ca_path) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        try:
            call(request.SerializeToString(), timeout=_SECONDS)
        except grpc.RpcError as error:
            raise Fatal(f"{address}: {error.code().name}: {error.details()}") from None


def _channel(address: str, tls_ca_path: str | None) -> grpc.Channel:
    if tls_ca_path is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(tls_ca_path).read_bytes()))
