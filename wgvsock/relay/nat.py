"""The way between the tunnel and the world: forwarding, MASQUERADE, published ports (paper, section 3)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.config import RelayConfig
from wgvsock.settings import IpAddress
from wgvsock.system import conntrack
from wgvsock.system.errors import NetfilterError
from wgvsock.system.netfilter import Netfilter, PublishedPort, Ruleset
from wgvsock.telemetry.logs import fields

_log = logging.getLogger(__name__)


def make_ruleset(config: RelayConfig, tunnel: TunnelConfig, *, uplink: str, forwards_others: bool) -> Ruleset:
    """What the configuration asks of the packet filter."""
    return Ruleset(
        tunnel=config.interface.name,
        uplink=uplink,
        sources=tuple(dict.fromkeys(address.network for address in tunnel.addresses)),
        masquerade=config.nat.masquerade,
        published=tuple(published_ports(config)),
        open_destinations=config.nat.allow_link_local,
        resolvers=tunnel.nameservers,
        open_relay=config.nat.allow_relay,
        forwards_others=forwards_others,
    )


def published_ports(config: RelayConfig) -> list[PublishedPort]:
    """Each published port, for the enclave's first address of each family."""
    destinations: dict[int, IpAddress] = {}
    for address in config.enclave.addresses:
        destinations.setdefault(address.version, address.ip)
    return [
        PublishedPort(entry.protocol, entry.port, destination, entry.enclave_port or entry.port)
        for entry in config.nat.publish
        for destination in destinations.values()
    ]


@dataclass(slots=True)
class Nat:
    """Opens and closes the way; its rules are taken back with the journal.

    Attributes:
        netfilter: Puts rules in force.
        rules: What was put in force last; None: nothing yet.
    """

    netfilter: Netfilter
    rules: Ruleset | None = None

    @property
    def is_open(self) -> bool:
        """Whether packets may pass."""
        return self.rules is not None and self.rules.is_open

    async def open(self, rules: Ruleset) -> None:
        """Let packets pass.

        Raises:
            NetfilterError: The rules were refused.
        """
        if rules == self.rules:
            return
        if not self.is_open:
            await self.forgive_interruption(rules)
        await self.netfilter.apply(rules)
        self.rules = rules
        _log.info("the way to the world is open", extra=fields(uplink=rules.uplink, published=len(rules.published)))

    async def forgive_interruption(self, rules: Ruleset) -> None:
        """Packets were lost on a broken stream: let connection tracking accept what is sent again (see its module)."""
        try:
            flows = await asyncio.to_thread(conntrack.forgive_interruption, rules.sources)
        except NetfilterError as error:
            _log.warning("%s", error)
        else:
            if flows:
                _log.info("connections are kept over the interruption", extra=fields(flows=flows))

    async def close(self, rules: Ruleset) -> None:
        """Let nothing pass, and keep the flows that are known (see `Ruleset.is_open`).

        Raises:
            NetfilterError: The rules were refused.
        """
        closed = replace(rules, is_open=False)
        if closed != self.rules:
            await self.netfilter.apply(closed)
            self.rules = closed
            _log.info("the way to the world is closed")
