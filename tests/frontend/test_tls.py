"""TLS at the front door, with real clients: as the settings ask for it, and nothing in plaintext beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
import uvloop
from click.testing import CliRunner
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws
from temporalio.client import Client
from temporalio.service import TLSConfig

from everfold.cli.commands import everfold
from everfold.cli.dev import DevServer
from everfold.cli.serve import OneService
from everfold.cli.tls import read_tls
from everfold.frontend.calls import WORKFLOW_SERVICE, method_path
from everfold.frontend.cluster import ClusterFacts
from everfold.frontend.server import FrontendServer
from everfold.runtime.config import FrontendSettings, load
from everfold.runtime.lifecycle import Fatal
from everfold.runtime.namespaces import InMemoryNamespaces
from frontend.fakes import DEFAULT, SHARDS, TASK_PARTITIONS, FakeRouter
from support.certificates import Authority, Signed, encrypted

RUN_ID = "6f3c2a9e-0000-8000-8000-00000000000a"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def signed(authority: Authority) -> Signed:
    return authority.sign("frontend")


def settings(signed: Signed, client_ca: Path | None = None) -> FrontendSettings:
    flags = {"frontend.tls_cert_path": str(signed.certificate), "frontend.tls_key_path": str(signed.key)}
    if client_ca is not None:
        flags["frontend.tls_client_ca_path"] = str(client_ca)
    return load(flags, {}).settings.frontend


def serve(wanted: FrontendSettings, scenario: Callable[[str], Awaitable[None]]) -> None:
    async def body() -> None:
        router = FakeRouter()
        answer = ws.StartWorkflowExecutionResponse(run_id=RUN_ID, started=True)
        router.answers["history", "execute"] = answer.SerializeToString()
        server = FrontendServer(
            host="127.0.0.1",
            port=0,
            namespaces=InMemoryNamespaces(DEFAULT),
            router=router,
            shard_count=SHARDS,
            task_partitions=TASK_PARTITIONS,
            cluster=ClusterFacts("cluster-1", SHARDS),
            gateway=wanted.gateway,
            tls=read_tls(wanted),
        )
        await server.start()
        try:
            await asyncio.wait_for(scenario(f"127.0.0.1:{server.port}"), 30)
        finally:
            await server.stop(0.5)

    uvloop.run(body())


async def start_workflow(address: str, tls: TLSConfig) -> None:
    client = await Client.connect(address, tls=tls)
    handle = await client.start_workflow("Greet", "you", id="w", task_queue="q")
    assert handle.result_run_id == RUN_ID


async def refused(channel: grpc.aio.Channel) -> None:
    """A call that gets no answer."""
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary(method_path(WORKFLOW_SERVICE, "GetSystemInfo"))(b"", timeout=10)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


async def release(address: str, *options: str | Path) -> tuple[int, str]:
    arguments = ["workflow", "release", "-w", "w", "-r", RUN_ID, "--address", address, *map(str, options)]
    done = await asyncio.to_thread(CliRunner().invoke, everfold, arguments)
    return done.exit_code, done.output


def test_a_client_that_trusts_the_authority_is_served_and_plaintext_is_refused(
    authority: Authority, signed: Signed, tmp_path: Path
) -> None:
    async def scenario(address: str) -> None:
        await start_workflow(address, TLSConfig(server_root_ca_cert=authority.certificate.read_bytes()))
        await refused(grpc.aio.insecure_channel(address))
        stranger = Authority(tmp_path, "stranger").certificate.read_bytes()
        await refused(grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(stranger)))
        assert await release(address, "--tls-ca-path", authority.certificate) == (0, "Workflow w goes on.\n")
        status, said = await release(address)
        assert (status, "UNAVAILABLE" in said) == (1, True)

    serve(settings(signed), scenario)


def test_with_a_client_authority_only_clients_with_its_certificates_are_served(
    authority: Authority, signed: Signed, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    known, stranger = clients.sign("known"), authority.sign("stranger")

    async def scenario(address: str) -> None:
        trusted = authority.certificate.read_bytes()
        shown = TLSConfig(
            server_root_ca_cert=trusted,
            client_cert=known.certificate.read_bytes(),
            client_private_key=known.key.read_bytes(),
        )
        await start_workflow(address, shown)
        await refused(grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(trusted)))
        other = grpc.ssl_channel_credentials(trusted, stranger.key.read_bytes(), stranger.certificate.read_bytes())
        await refused(grpc.aio.secure_channel(address, other))
        trust = ("--tls-ca-path", authority.certificate)
        show = ("--tls-cert-path", known.certificate, "--tls-key-path", known.key)
        assert await release(address, *trust, *show) == (0, "Workflow w goes on.\n")
        assert (await release(address, *trust))[0] == 1

    serve(settings(signed, clients.certificate), scenario)


def test_a_certificate_to_show_needs_its_key(signed: Signed) -> None:
    status, said = uvloop.run(release("127.0.0.1:1", "--tls-cert-path", signed.certificate))
    assert status == 2
    assert "give both, or neither" in said


def test_files_that_cannot_serve_are_refused_before_anything_is_started(
    authority: Authority, signed: Signed, tmp_path: Path
) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no certificate\n")
    missing = tmp_path / "missing.pem"
    other = authority.sign("other")
    for wrong, complaint in (
        (settings(Signed(missing, signed.key)), f"tls_cert_path is {missing}, which cannot be read: No such file"),
        (settings(Signed(signed.certificate, missing)), f"tls_key_path is {missing}, which cannot be read"),
        (settings(Signed(text, signed.key)), "no certificate chain and its private key"),
        (settings(Signed(signed.certificate, other.key)), "KEY_VALUES_MISMATCH"),
        (settings(Signed(signed.certificate, encrypted(signed.key))), "is an encrypted key"),
        (settings(signed, missing), f"tls_client_ca_path is {missing}, which cannot be read"),
        (settings(signed, text), "holds no certificates"),
    ):
        with pytest.raises(Fatal) as told:
            read_tls(wrong)
        assert complaint in str(told.value)


def test_both_ways_to_serve_refuse_such_a_file_before_they_take_their_directory(signed: Signed, tmp_path: Path) -> None:
    flags = {"frontend.tls_cert_path": str(signed.certificate), "frontend.tls_key_path": str(tmp_path / "missing.key")}
    wrong = load({**flags, "node.data_dir": str(tmp_path / "data")}, {}).settings
    for program in (lambda: DevServer(wrong), lambda: OneService(wrong, "frontend")):
        with pytest.raises(Fatal, match=r"frontend\.tls_key_path"):
            program()
    assert not (tmp_path / "data").exists()
    OneService(wrong, "history")  # which serves no clients
