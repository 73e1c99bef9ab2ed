"""The gateway's HTTP/2 by the rules of RFC 9113 and RFC 7541, as the tool h2spec asks for them."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import uvloop

from everfold.frontend.calls import complete_table
from everfold.frontend.gateway import open_gateway
from support.toolchains import Unavailable, go_binary

_NO_BODY = "its GET is answered with HTTP's status 405 alone, and the call is over by then"
_PRIORITY = "priorities are passed over, as RFC 9113 (5.3.2) has it; h2spec is older"

DEVIATIONS = {
    ("generic/2", "Sends a WINDOW_UPDATE frame on half-closed (remote) stream"): _NO_BODY,
    ("generic/2", "Sends a PRIORITY frame on half-closed (remote) stream"): _NO_BODY,
    ("http2/6.9", "Sends a WINDOW_UPDATE frame with a flow control window increment of 0 on a stream"): _NO_BODY,
    (
        "http2/6.9.1",
        "Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
    ): _NO_BODY,
    (
        "http2/5.1.2",
        "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
    ): _NO_BODY,
    ("http2/5.3.1", "Sends HEADERS frame that depend on itself"): _PRIORITY,
    ("http2/5.3.1", "Sends PRIORITY frame that depend on itself"): _PRIORITY,
    (
        "http2/8.1.2.6",
        'Sends a HEADERS frame with the "content-length" header field which does not equal the DATA frame payload'
        " length",
    ): _NO_BODY,
    (
        "http2/8.1.2.6",
        'Sends a HEADERS frame with the "content-length" header field which does not equal the sum of the multiple DATA'
        " frames payload length",
    ): _NO_BODY,
}
"""What h2spec calls a failure, and why it is none; the rules behind `_NO_BODY` are in test_bounds.py, but for
`content-length`, which gRPC's clients do not send and whose bytes its own prefix counts."""


def test_h2spec_finds_only_what_is_meant(tmp_path: Path) -> None:
    try:
        program = go_binary(Path(__file__).parent / "h2spec")
    except Unavailable as reason:
        pytest.skip(str(reason))
    report = tmp_path / "report.xml"

    async def body() -> None:
        gateway = open_gateway("http2", "127.0.0.1", 0, complete_table({}))
        await gateway.start()
        try:
            process = await asyncio.create_subprocess_exec(
                program, str(gateway.port), report, stdout=asyncio.subprocess.DEVNULL
            )
            assert await asyncio.wait_for(process.wait(), 120) == 0
        finally:
            await gateway.stop(0.1)

    uvloop.run(body())
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert len(cases) > 100
    failed = {
        (case.get("package"), case.get("classname"))
        for case in cases
        if any(child.tag in ("failure", "error") for child in case)
    }
    assert failed == set(DEVIATIONS)
