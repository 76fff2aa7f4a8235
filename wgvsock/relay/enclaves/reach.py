"""Tests the network beyond the tunnel once, for ``wgvsock netcheck``: the name servers and one destination.

The relay connects from its own machine, as it does for the enclave. Nothing here depends on the enclave, so a failure
shows that the fault is on the relay's side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.egress.trial import Destination, Outcome
from wgvsock.machine.base import RelayMachine
from wgvsock.relay.enclaves.names import upstreams
from wgvsock.relay.spec import EnclaveSpec

PATIENCE: Final = 1.5
"""Seconds for all name servers, which are asked at once; resolvers ask the next one after 1 to 5 s. With one second for
a connection, the total stays below the time limit of a request."""

_ROOT: Final = "."
"""The name to ask for if there is no other. A working name server answers it, even if only with a refusal."""

_HTTPS: Final = 443


@dataclass(frozen=True, slots=True)
class Server:
    """The result for one name server.

    Attributes:
        address: Its address.
        seconds: Time until it answered, in seconds; None if it failed.
        why: Why it failed, or ``""``.
    """

    address: IpAddress
    seconds: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """The result of a connection to one destination.

    Attributes:
        destination: The destination.
        seconds: Time until it was accepted, in seconds; None if it was not.
        why: Why it was not accepted, or ``""``.
        denied: Why the enclave's policy denies this destination; ``""`` if it does not.
    """

    destination: Destination
    seconds: float | None
    why: str = ""
    denied: str = ""


@dataclass(frozen=True, slots=True)
class Reach:
    """The results of all tests. `world` is None if there was no destination."""

    servers: tuple[Server, ...]
    world: World | None


def default_destination(spec: EnclaveSpec) -> Destination | None:
    """The first exact name in the enclave's policy that is allowed over TCP, or None."""
    for rule in spec.egress.policy().allow:
        name = "*" if rule.name is None else str(rule.name)
        if "*" not in name and "tcp" in rule.protocols:
            return Destination(name, "tcp", rule.ports[0] if rule.ports else _HTTPS)
    return None


async def look(
    machine: RelayMachine,
    spec: EnclaveSpec,
    destination: Destination | None,
    judge: Callable[[Destination], tuple[Outcome, ...]],
) -> Reach:
    """Query the name servers, and connect to the destination.

    Args:
        machine: The machine that the relay runs on.
        spec: The enclave, whose name servers and policy are used.
        destination: Where to connect over TCP; None for `default_destination`.
        judge: Predicts the verdict of the policy.
    """
    destination = destination or default_destination(spec)
    host = destination.host if destination is not None else _ROOT
    asked = host if isinstance(host, str) else _ROOT
    servers = upstreams(spec, machine.resolver())
    found = await asyncio.gather(*(_ask(machine, server, asked) for server in servers))
    told = tuple(server for server, _ in found)
    if destination is None:
        return Reach(told, None)
    addresses = [ip_address(host)] if not isinstance(host, str) else next((each for _, each in found if each), [])
    denied = next((outcome.why for outcome in judge(destination) if not outcome.allowed), "")
    if not addresses:
        return Reach(told, World(destination, None, "the name has no address", denied))
    began = machine.monotonic()
    accepted = await machine.accepts(addresses[0], destination.port)
    took = machine.monotonic() - began
    why = "" if accepted else f"no connection to {addresses[0]} within a second"
    return Reach(told, World(destination, took if accepted else None, why, denied))


async def _ask(machine: RelayMachine, server: IpAddress, name: str) -> tuple[Server, list[IpAddress]]:
    """Ask a name server for the IPv4 addresses of a name."""
    import dns.message  # takes a tenth of a second to import

    from wgvsock.dns.messages import UNANSWERED, MalformedError, addresses_of, rcode_of, read_answer, read_query
    from wgvsock.dns.upstream import NoAnswerError, Upstreams

    query = read_query(dns.message.make_query(name, "NS" if name == _ROOT else "A").to_wire())
    asking = Upstreams(machine.dns_sockets(), machine.random)
    asking.servers = (server,)
    began = machine.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            wire = await asking.ask(query, over_tcp=False)
    except TimeoutError:
        return Server(server, None, f"no answer within {PATIENCE:g} s"), []
    except NoAnswerError:
        return Server(server, None, "it is unreachable, or its port is closed"), []
    took = machine.monotonic() - began
    if name != _ROOT and rcode_of(wire) in UNANSWERED:
        return Server(server, None, f"it answers with error code {rcode_of(wire)}"), []
    try:
        return Server(server, took), [address for address, _ in addresses_of(query, read_answer(wire))]
    except MalformedError:
        return Server(server, None, "its answer cannot be read"), []
