"""The enclave's network: loopback, wg0 with what the relay assigned, and DNS. Nothing else is in an enclave."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from wgvsock.provisioning import TunnelConfig
from wgvsock.settings import IpInterface
from wgvsock.system import resolver
from wgvsock.system.journal import Journal
from wgvsock.system.netlink import Netlink, Route
from wgvsock.system.resolver import ResolverSettings
from wgvsock.telemetry.logs import fields

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EnclaveNetwork:
    """Puts assigned settings in force.

    Attributes:
        netlink: The kernel.
        journal: Takes DNS settings back; addresses and routes go with the interface.
        interface: The TUN's name.
        queue_length: Packets that wait in it.
        resolv_conf: Where DNS settings go; "" leaves DNS alone.
    """

    netlink: Netlink
    journal: Journal
    interface: str
    queue_length: int
    resolv_conf: str

    async def bring_up_loopback(self) -> None:
        """Lo is down when an enclave has booted.

        Raises:
            NetlinkSetupError: The kernel refused.
        """
        await self.netlink.bring_up("lo")

    async def apply(self, config: TunnelConfig) -> None:
        """Exactly these settings from now on.

        Raises:
            SystemSetupError: The kernel refused, or resolv.conf cannot be written.
        """
        await self.netlink.bring_up(self.interface, mtu=config.mtu, queue_length=self.queue_length)
        await self.netlink.set_addresses(self.interface, config.addresses)
        await self.netlink.set_routes(self.interface, make_routes(config))
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

    async def add_addresses(self, *configs: TunnelConfig) -> None:
        """The addresses of all of these, so that a successor can prove itself while its predecessor still works.

        Raises:
            NetlinkSetupError: The kernel refused.
        """
        addresses: dict[IpInterface, None] = {}
        for config in configs:
            addresses |= dict.fromkeys(config.addresses)
        await self.netlink.set_addresses(self.interface, tuple(addresses))

    async def clear(self) -> None:
        """No addresses, no routes, the resolver as it was.

        Raises:
            NetlinkSetupError: The kernel refused.
        """
        await self.netlink.set_routes(self.interface, ())
        await self.netlink.set_addresses(self.interface, ())
        for error in await self.journal.undo("resolv_conf"):
            _log.error("%s", error)
        _log.info("the network is taken back", extra=fields(interface=self.interface))


def make_routes(config: TunnelConfig) -> list[Route]:
    """The allowed networks by way of the gateway of their family; without one, straight into the tunnel."""
    gateways = {gateway.version: gateway for gateway in config.gateways}
    on_link = {address.network for address in config.addresses}
    return [Route(network, gateways.get(network.version)) for network in config.allowed_ips if network not in on_link]
