"""Namespaces as shard 0 decides them."""

from __future__ import annotations

import pytest
from shard_driver import ShardDriver
from temporalio.api.operatorservice.v1 import request_response_pb2 as operator
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.schemas import codec

DAY_S = 86_400


def register(shard: ShardDriver, name: str = "team") -> str:
    request = ws.RegisterNamespaceRequest(namespace=name)
    request.workflow_execution_retention_period.seconds = DAY_S
    reply = shard.request("REGISTER_NAMESPACE", request)
    namespace_id: str = codec.decode(reply.response)[1]["namespace_id"]
    return namespace_id


def test_a_deleted_namespace_frees_its_name(shard: ShardDriver) -> None:
    first = register(shard)
    with pytest.raises(StatusError) as taken:
        register(shard)
    assert taken.value.code == Code.ALREADY_EXISTS
    reply = shard.request("DELETE_NAMESPACE", operator.DeleteNamespaceRequest(namespace_id=first))
    record = codec.decode(reply.response)[1]
    assert (record["deleted"], record["state"], record["version"]) == (True, 3, 2)
    assert register(shard) != first


@pytest.mark.parametrize("asked", [{"namespace": "nobody"}, {"namespace_id": "nobody"}])
def test_what_does_not_exist_cannot_be_deleted(shard: ShardDriver, asked: dict[str, str]) -> None:
    with pytest.raises(StatusError) as missing:
        shard.request("DELETE_NAMESPACE", operator.DeleteNamespaceRequest(**asked))
    assert missing.value.code == Code.NOT_FOUND


def test_a_namespace_is_deleted_once(shard: ShardDriver) -> None:
    register(shard)
    by_name = operator.DeleteNamespaceRequest(namespace="team")
    shard.request("DELETE_NAMESPACE", by_name)
    with pytest.raises(StatusError):
        shard.request("DELETE_NAMESPACE", by_name)
