"""One check beyond the tunnel: each name server separately, and a connection to the outside."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest

from tests.unit.relay.test_review import parse
from wgvsock.egress.trial import Destination, Outcome
from wgvsock.relay.enclaves.reach import Reach, default_destination, look
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.testing import without_waiting
from wgvsock.testing.dns import MemoryDnsSockets, ScriptedNameServer
from wgvsock.testing.machine import MemoryMachine

ONE = '[enclave]\naddress = "vsock:16:51820"\n'
NAMED = (
    '[egress]\ndefault = "deny"\n[[egress.allow]]\nname = "*.example.com"\n[[egress.allow]]\nname = "www.lab.test"\n'
)


def spec_of(text: str) -> EnclaveSpec:
    (spec,) = parse(ONE + text).specs()
    return spec


def answer(wire: bytes, _tcp: bool) -> Iterable[bytes]:
    query = dns.message.from_wire(wire)
    reply = dns.message.make_response(query)
    if query.question[0].rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "203.0.113.10"))
    return [reply.to_wire()]


def refuse(wire: bytes, _tcp: bool) -> Iterable[bytes]:
    reply = dns.message.make_response(dns.message.from_wire(wire))
    reply.set_rcode(dns.rcode.REFUSED)
    return [reply.to_wire()]


def garbage(wire: bytes, _tcp: bool) -> Iterable[bytes]:
    return [answer(wire, False)[0][:-2]]  # type: ignore[index]


def silence(_wire: bytes, _tcp: bool) -> Iterable[bytes]:
    return []


async def reach(scripts: dict[str, Any], text: str = "", *, world: Destination | None = None,
                listening: bool = True, verdict: Outcome | None = None) -> Reach:  # fmt: skip
    machine, sockets = MemoryMachine(), MemoryDnsSockets()
    machine.dns_sockets = lambda: sockets  # type: ignore[method-assign]
    machine.listening = listening
    servers = [ScriptedNameServer(sockets, address, script) for address, script in scripts.items() if script]
    for server in servers:
        server.open()
    listed = ", ".join(f'"{address}"' for address in scripts)
    spec = spec_of(f"[dns]\nservers = [{listed}]\n{text}")
    try:
        return await look(machine, spec, world, lambda _: (verdict,) if verdict else ())
    finally:
        for server in servers:
            server.close()


@without_waiting
async def test_each_name_server_is_asked_by_itself() -> None:
    found = await reach({"10.0.0.1": answer, "10.0.0.2": silence, "10.0.0.3": None})
    well, silent, unreachable = found.servers
    assert well.seconds is not None
    assert (silent.seconds, silent.why) == (None, "no answer within 1.5 s")
    assert (unreachable.seconds, unreachable.why) == (None, "it is unreachable, or its port is closed")
    assert found.world is None


@pytest.mark.parametrize(("script", "why"), [(refuse, "it answers with error code 5"), (garbage, "its answer")])
@without_waiting
async def test_a_name_server_that_does_not_serve_the_name(script: Any, why: str) -> None:
    found = await reach({"10.0.0.1": script}, world=Destination("www.lab.test", "tcp", 443))
    assert found.servers[0].why.startswith(why)
    assert found.world is not None
    assert found.world.why == "the name has no address"


@without_waiting
async def test_one_that_refuses_the_root_alone_works() -> None:
    assert (await reach({"10.0.0.1": refuse})).servers[0].seconds is not None


@without_waiting
async def test_the_world_is_where_the_policy_leads_first() -> None:
    found = await reach({"10.0.0.1": answer}, NAMED)
    assert found.world is not None
    assert (str(found.world.destination), found.world.why) == ("www.lab.test:443", "")
    assert found.world.seconds is not None


@without_waiting
async def test_a_world_that_does_not_answer_and_a_policy_that_denies() -> None:
    world = Destination(ip_address("203.0.113.9"), "tcp", 80)
    found = await reach({}, world=world, listening=False, verdict=Outcome(False, "denied by default"))
    assert found.servers == ()
    assert found.world is not None
    assert (found.world.seconds, found.world.denied) == (None, "denied by default")
    assert found.world.why == "no connection to 203.0.113.9 within a second"


def test_where_the_policy_leads() -> None:
    assert default_destination(spec_of("")) is None
    assert str(default_destination(spec_of(NAMED))) == "www.lab.test:443"
    ports = NAMED + "ports = [8443, 80]\n"
    assert str(default_destination(spec_of(ports))) == "www.lab.test:8443"
    assert default_destination(spec_of(NAMED + 'protocol = "udp"\n')) is None
