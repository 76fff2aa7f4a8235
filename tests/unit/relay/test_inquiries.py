"""Requests about an enclave over the control socket. test_service.py tests the others."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.unit.relay.test_service import ask
from tests.unit.service_pair import ServicePair
from wgvsock.addresses import UnixAddress
from wgvsock.relay.sections import HealthSettings
from wgvsock.testing import without_waiting


@without_waiting
async def test_a_look_beyond_the_tunnel(pair: ServicePair) -> None:
    await pair.up()
    control = pair.folder / "relay/relay.sock"
    status, answer = await ask(control, "POST /netcheck?world=203.0.113.1:443&enclave=enclave")
    assert (status, answer["enclave"]) == (200, "enclave")
    assert answer["names"] == [
        {"server": "10.96.0.10", "ok": False, "ms": None, "why": "it is unreachable, or its port is closed"}
    ]
    assert (answer["world"]["destination"], answer["world"]["ok"]) == ("203.0.113.1:443", True)
    status, answer = await ask(control, "POST /netcheck?world=x")
    assert (status, answer["error"]["code"]) == (400, "WGV-E001")
    status, answer = await ask(control, "POST /netcheck?enclave=x")
    assert (status, answer["enclaves"]) == (404, ["enclave"])
    await pair.down()


@without_waiting
async def test_what_the_machine_reaches_is_for_the_control_socket_alone(pair: ServicePair) -> None:
    health = UnixAddress(str(pair.folder / "health.sock"))
    pair.config = replace(pair.config, health=HealthSettings(listen=health, expose=("status", "control")))
    await pair.up()
    for request in ("POST /netcheck", "GET /capture"):
        reader, writer = await asyncio.open_unix_connection(health.path)
        writer.write(f"{request} HTTP/1.1\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 404")
        writer.close()
    await pair.down()
