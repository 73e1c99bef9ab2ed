"""What the server says about itself, search attributes, lists and counts, health."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Mapping

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from temporalio.api.operatorservice.v1 import request_response_pb2 as op
from temporalio.api.workflow.v1 import message_pb2 as workflow
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.calls import HEALTH_SERVICE, WORKFLOW_SERVICE, CallContext, known_methods, method_path
from everfold.kernel.errors import Code, StatusError
from frontend.fakes import DEFAULT, Frontend, run


def test_system_info_names_a_version_and_no_capability_that_is_not_built() -> None:
    async def scenario(frontend: Frontend) -> None:
        info = await frontend.call("GetSystemInfo", ws.GetSystemInfoRequest(), ws.GetSystemInfoResponse)
        assert info.server_version == "1.32.0"
        assert {field.name for field, value in info.capabilities.ListFields() if value} == {
            "signal_and_query_header",
            "internal_error_differentiation",
            "activity_failure_include_heartbeat",
            "encoded_failure_attributes",
            "upsert_memo",
            "eager_workflow_start",
            "build_id_based_versioning",
            "sdk_metadata",
            "count_group_by_execution_status",
        }

    run(scenario)


def test_cluster_info_has_what_the_web_ui_loads_with() -> None:
    async def scenario(frontend: Frontend) -> None:
        info = await frontend.call("GetClusterInfo", ws.GetClusterInfoRequest(), ws.GetClusterInfoResponse)
        assert info.cluster_id == "cluster-1"
        assert info.history_shard_count == 4
        assert info.server_version == "1.32.0"
        assert info.supported_clients["temporal-ui"] == "<3.0.0"
        assert "elasticsearch" not in info.visibility_store
        clusters = await frontend.call("ListClusters", op.ListClustersRequest(), op.ListClustersResponse)
        (row,) = clusters.clusters
        assert (row.cluster_name, row.address, row.is_connection_enabled) == ("active", "127.0.0.1:7233", True)

    run(scenario)


def test_health_is_serving_for_the_services_there_are() -> None:
    async def scenario(frontend: Frontend) -> None:
        path = method_path(HEALTH_SERVICE, "Check")
        context = CallContext(path, (), "", None)
        for service in ("", WORKFLOW_SERVICE):
            request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
            response = health_pb2.HealthCheckResponse.FromString(await frontend.server.handlers[path](context, request))
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(StatusError) as caught:
            await frontend.server.handlers[path](context, b"\x0a\x01x")
        assert caught.value.code == Code.NOT_FOUND

    run(scenario)


def test_whoever_watches_the_health_hears_that_the_server_stops() -> None:
    """grpc/doc/health-checking.md: Watch says the status at once, SERVICE_UNKNOWN of a service that is not there, and
    each change.
    """

    async def scenario(frontend: Frontend) -> None:
        status = health_pb2.HealthCheckResponse
        await frontend.server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.server.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            ours = stub.Watch(health_pb2.HealthCheckRequest(service=WORKFLOW_SERVICE))
            stranger = stub.Watch(health_pb2.HealthCheckRequest(service="x"))
            assert (await asyncio.wait_for(ours.read(), 10)).status == status.SERVING
            assert (await asyncio.wait_for(stranger.read(), 10)).status == status.SERVICE_UNKNOWN
            stopping = asyncio.create_task(frontend.server.stop(0.1))
            assert (await asyncio.wait_for(ours.read(), 10)).status == status.NOT_SERVING
            await stopping
            for watch in (ours, stranger):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await asyncio.wait_for(watch.read(), 10)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    run(scenario)


def test_every_method_has_a_handler_or_a_refusal() -> None:
    async def scenario(frontend: Frontend) -> None:
        assert list(frontend.server.handlers) == known_methods()
        assert len(frontend.server.handlers) == 123 + 12 + 1 + 2

    run(scenario)


def test_search_attributes_are_listed_with_the_systems_own() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = op.ListSearchAttributesRequest(namespace="default")
        found = await frontend.call("ListSearchAttributes", request, op.ListSearchAttributesResponse)
        assert dict(found.custom_attributes) == {"CustomKeyword": 2, "CustomInt": 3, "CustomTime": 6}
        assert found.system_attributes["WorkflowId"] == 2
        assert found.system_attributes["ExecutionDuration"] == 3
        assert found.system_attributes["TemporalChangeVersion"] == 7
        legacy = await frontend.call(
            "GetSearchAttributes", ws.GetSearchAttributesRequest(), ws.GetSearchAttributesResponse
        )
        assert legacy.keys["CustomKeyword"] == 2
        assert legacy.keys["RunId"] == 2

    run(scenario)


def test_adding_search_attributes_sends_the_new_ones_and_waits_for_them() -> None:
    async def scenario(frontend: Frontend) -> None:
        def decide(*args: object) -> bytes:
            types = {**DEFAULT.search_attributes, "Colour": "Keyword"}
            changed = dataclasses.replace(DEFAULT, version=2, search_attributes=types)
            asyncio.get_running_loop().call_later(0.02, frontend.namespaces.put, changed)
            return b""

        frontend.router.answers["history", "execute"] = decide
        wanted: Mapping[str, int] = {"Colour": 2, "CustomInt": 3}
        request = op.AddSearchAttributesRequest(namespace="default", search_attributes=wanted)
        await frontend.call("AddSearchAttributes", request, op.AddSearchAttributesResponse)
        call = frontend.router.only()
        assert (call.partition, call.args[0], call.args[1]) == (0, "ADD_SEARCH_ATTRIBUTES", DEFAULT.namespace_id)
        assert dict(op.AddSearchAttributesRequest.FromString(call.args[4]).search_attributes) == {"Colour": 2}
        # Again: nothing is new.
        await frontend.call("AddSearchAttributes", request, op.AddSearchAttributesResponse)
        assert len(frontend.router.calls) == 1

    run(scenario)


def test_removing_a_search_attribute_that_does_not_exist_is_no_error() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = op.RemoveSearchAttributesRequest(namespace="default", search_attributes=["Nothing"])
        await frontend.call("RemoveSearchAttributes", request, op.RemoveSearchAttributesResponse)
        assert frontend.router.calls == []

    run(scenario)


class FakeIndex:
    """An index that notes what it was asked, and on which thread."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.threads: set[str] = set()

    def list(
        self, namespace_id: str, query: str, page_size: int, token: bytes, search_attributes: Mapping[str, str]
    ) -> tuple[list[workflow.WorkflowExecutionInfo], bytes]:
        self.asked.append((namespace_id, query, page_size, token, dict(search_attributes)))
        self.threads.add(threading.current_thread().name)
        if query == "nonsense":
            raise StatusError(Code.INVALID_ARGUMENT, "invalid query: nonsense")
        return [workflow.WorkflowExecutionInfo(execution={"workflow_id": "w"})], b"next"

    def count(
        self, namespace_id: str, query: str, search_attributes: Mapping[str, str]
    ) -> ws.CountWorkflowExecutionsResponse:
        self.asked.append((namespace_id, query))
        return ws.CountWorkflowExecutionsResponse(count=7)


def test_lists_and_counts_ask_the_index_off_the_loop() -> None:
    index = FakeIndex()

    async def scenario(frontend: Frontend) -> None:
        for method in ("ListWorkflowExecutions", "ScanWorkflowExecutions"):
            request = ws.ListWorkflowExecutionsRequest(
                namespace="default", query="WorkflowId = 'w'", page_size=100_000, next_page_token=b"t"
            )
            found = await frontend.call(method, request, ws.ListWorkflowExecutionsResponse)
            assert [run.execution.workflow_id for run in found.executions] == ["w"]
            assert found.next_page_token == b"next"
        assert index.asked[0] == (
            DEFAULT.namespace_id,
            "WorkflowId = 'w'",
            1000,
            b"t",
            dict(DEFAULT.search_attributes),
        )
        assert all(name.startswith("visibility") for name in index.threads)
        count = ws.CountWorkflowExecutionsRequest(namespace="default", query="")
        assert (await frontend.call("CountWorkflowExecutions", count, ws.CountWorkflowExecutionsResponse)).count == 7
        bad = ws.ListWorkflowExecutionsRequest(namespace="default", query="nonsense")
        assert (await frontend.error("ListWorkflowExecutions", bad)).message == "invalid query: nonsense"

    run(scenario, visibility=index)


def test_without_an_index_lists_are_unavailable() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.ListWorkflowExecutionsRequest(namespace="default")
        assert (await frontend.error("ListWorkflowExecutions", request)).code == Code.UNAVAILABLE

    run(scenario)
