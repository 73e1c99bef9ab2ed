"""The error of an ExecuteMultiOperation: a status for each of its operations, from which SDKs take the culprit's.

Temporal: go.temporal.io/api/serviceerror (MultiOperationExecution), service/frontend/workflow_handler.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.failure.v1 import message_pb2 as failure_pb2

from everfold.kernel.errors import Code, StatusError

TEXT: Final = "Update-with-Start could not be executed."

_ABORTED_DETAIL: Final = failure_pb2.MultiOperationExecutionAborted.DESCRIPTOR.full_name

ABORTED: Final = StatusError(Code.ABORTED, "Operation was aborted.", ((_ABORTED_DETAIL, b""),))
"""What an operation gets that was given up for the sake of another one."""


def multi_operation_failed(errors: Sequence[StatusError | None]) -> StatusError:
    """The error of the whole, its code that of the first operation which itself failed.

    Args:
        errors: one for each operation; None for an operation that succeeded.
    """
    detail = errordetails.MultiOperationExecutionFailure()
    code = Code.ABORTED
    for error in reversed(errors):
        if error is not None and error is not ABORTED:
            code = error.code
    for error in errors:
        entry = detail.statuses.add()
        if error is not None:
            entry.code, entry.message = int(error.code), error.message
            for name, data in error.details:
                entry.details.add(type_url=f"type.googleapis.com/{name}", value=data)
    data = detail.SerializeToString(deterministic=True)
    return StatusError(code, TEXT, ((detail.DESCRIPTOR.full_name, data),))
