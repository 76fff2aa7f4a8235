"""The enclave's network: loopback, wg0 with what the relay assigned, and DNS. An enclave has nothing else."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from wgvsock.addresses import IpInterface
from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import Site
from wgvsock.enclave.egress import site_of
from wgvsock.provisioning import TunnelConfig
from wgvsock.runtime import memory
from wgvsock.runtime.journal import Journal
from wgvsock.system import resolver
from wgvsock.system.netlink import Netlink, Route
from wgvsock.system.resolver import ResolverSettings
from wgvsock.telemetry.logs import fields

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EnclaveNetwork:
    """Applies assigned settings.

    Attributes:
        netlink: The kernel.
        journal: Undoes DNS settings. Addresses and routes go with the interface.
        interface: Name of the TUN interface.
        queue_length: Length of its transmit queue, in packets.
        resolv_conf: File to write the DNS settings to. "" leaves DNS alone.
        gate: Filters packets on their way into the tunnel. It has to know the addresses of the relay and of the name
            servers. None lets every packet pass.
    """

    netlink: Netlink
    journal: Journal
    interface: str
    queue_length: int
    resolv_conf: str
    gate: Gate | None = None

    async def bring_up_loopback(self) -> None:
        """Bring up ``lo``, which is down after an enclave boots.

        Raises:
            NetlinkSetupError: The kernel refused.
        """
        await self.netlink.bring_up("lo")

    async def apply(self, config: TunnelConfig) -> None:
        """Apply exactly these settings.

        Raises:
            SystemSetupError: The kernel refused, or resolv.conf cannot be written.
        """
        await self.netlink.bring_up(self.interface, mtu=config.mtu, queue_length=self.queue_length)
        await self.netlink.set_addresses(self.interface, config.addresses)
        await self.netlink.set_routes(self.interface, make_routes(config))
        if self.gate is not None:
            self.gate.place(site_of(config))
        if self.resolv_conf:
            settings = ResolverSettings(config.nameservers, config.search, config.resolver_options)
            resolver.install(self.resolv_conf, settings, self.journal.record)
        _log.info(
            "the network is set up",
            extra=fields(
                interface=self.interface,
                addresses=",".join(map(str, config.addresses)),
                routes=",".join(map(str, config.allowed_ips)),
                mtu=config.mtu,
                dns=",".join(map(str, config.nameservers)),
            ),
        )
        memory.sweep()

    async def add_addresses(self, *configs: TunnelConfig) -> None:
        """Set the addresses of all of these, so that a successor can prove itself while its predecessor still works.

        Raises:
            NetlinkSetupError: The kernel refused.
        """
        addresses: dict[IpInterface, None] = {}
        for config in configs:
            addresses |= dict.fromkeys(config.addresses)
        await self.netlink.set_addresses(self.interface, tuple(addresses))

    async def clear(self) -> None:
        """Remove all addresses and routes, and restore the resolver.

        Raises:
            NetlinkSetupError: The kernel refused.
        """
        await self.netlink.set_routes(self.interface, ())
        await self.netlink.set_addresses(self.interface, ())
        if self.gate is not None:
            self.gate.place(Site())
        for error in await self.journal.undo("resolv_conf"):
            _log.error("%s", error)
        _log.info("the network settings are removed", extra=fields(interface=self.interface))


def make_routes(config: TunnelConfig) -> list[Route]:
    """Routes for the allowed networks, via the gateway of their family, or on-link if that family has none."""
    gateways = {gateway.version: gateway for gateway in config.gateways}
    on_link = {address.network for address in config.addresses}
    return [Route(network, gateways.get(network.version)) for network in config.allowed_ips if network not in on_link]
