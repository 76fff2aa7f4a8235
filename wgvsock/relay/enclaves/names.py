"""Decides whether the enclave asks name servers directly or through the relay's forwarder (`wgvsock.dns`).

Directly, it asks the name servers that the relay uses. The forwarder is used if the operator configured it. By default,
it is used where it is necessary: a policy with names needs to see queries and answers, and a stub resolver on loopback,
such as systemd-resolved's 127.0.0.53 or Docker's 127.0.0.11, answers only this machine.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from wgvsock.addresses import IpAddress
from wgvsock.dns.judge import NameJudge
from wgvsock.dns.snapshot import ForwarderSnapshot
from wgvsock.dns.sockets import LOOPBACK, LoopbackDnsSockets
from wgvsock.machine.base import RelayMachine
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.system.resolver import ResolverSettings
from wgvsock.telemetry.logs import fields

if TYPE_CHECKING:
    from wgvsock.dns.forwarder import Forwarder

_Place = tuple[tuple[IpAddress, ...], str, tuple[IpAddress, ...]]  # gateways, interface, and the enclave's addresses

_log = logging.getLogger(__name__)


def forwards(spec: EnclaveSpec, own: ResolverSettings) -> bool:
    """Whether the relay forwards the enclave's DNS queries.

    Args:
        spec: The enclave's specification.
        own: The settings in the relay's own resolv.conf.
    """
    if spec.dns.forward is not None:
        return spec.dns.forward
    if spec.egress.policy().has_names:
        return True
    servers = upstreams(spec, own)
    return bool(servers) and all(server.is_loopback for server in servers)


def upstreams(spec: EnclaveSpec, own: ResolverSettings) -> tuple[IpAddress, ...]:
    """The name servers that finally get the queries, from the enclave or from the forwarder."""
    return own.servers if spec.dns.servers is None else spec.dns.servers


class NameService:
    """The forwarder of one enclave, while it has one.

    Args:
        machine: Provides the relay's name servers and the sockets.
        judge: Decides about names; None allows every name.
        sockets: The sockets on which queries arrive; by default those of the tunnel's interface.
    """

    def __init__(
        self, machine: RelayMachine, judge: NameJudge | None = None, sockets: LoopbackDnsSockets | None = None
    ) -> None:
        self._machine = machine
        self._sockets = sockets
        self.judge = judge
        self._forwarder: Forwarder | None = None
        self._place: _Place | None = None

    def follow(self, spec: EnclaveSpec, gateways: tuple[IpAddress, ...]) -> None:
        """Start, update or stop the forwarder, according to the configuration and the relay's own resolv.conf.

        Args:
            spec: The enclave's specification.
            gateways: The relay's tunnel addresses, which the enclave asks.

        Raises:
            ResolverError: The relay's resolv.conf cannot be read.
            ListenError: Port 53 of a gateway cannot be bound.
        """
        own = self._machine.resolver()
        clients = tuple(address.ip for address in spec.enclave.addresses) if self._sockets is None else LOOPBACK
        place = (gateways, spec.interface.name, clients) if forwards(spec, own) else None
        if place != self._place:
            self.close()
        if place is None:
            return
        if self._forwarder is None:
            self._forwarder = self._open(place)
            self._place = place
        servers = upstreams(spec, own)
        if servers != self._forwarder.servers:
            self._forwarder.servers = servers
            _log.info("the relay forwards the enclave's DNS queries", extra=fields(enclave=spec.name, servers=servers))

    def close(self) -> None:
        """Stop the forwarder. Idempotent."""
        self._place = None
        if self._forwarder is not None:
            self._forwarder.close()
            self._forwarder = None

    def snapshot(self) -> ForwarderSnapshot | None:
        """The forwarder's state, or None if there is no forwarder."""
        return None if self._forwarder is None else self._forwarder.snapshot()

    def _open(self, place: _Place) -> Forwarder:
        from wgvsock.dns.forwarder import Forwarder  # dnspython takes a tenth of a second to import

        forwarder = Forwarder(self._sockets or self._machine.dns_sockets(), self._machine.random, self.judge)
        forwarder.open(*place)
        return forwarder
