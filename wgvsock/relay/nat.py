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
from wgvsock.system.journal import Journal
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
    """Opens and closes the way; what is in force stands in the journal.

    Attributes:
        netfilter: Puts rules in force.
        journal: Takes them back.
        rules: What was put in force last; None: nothing.
    """

    netfilter: Netfilter
    journal: Journal
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

    async def forgive_interruption(self, rules: Ruleset | None = None) -> None:
        """Packets were lost on a broken stream: let connection tracking accept what is sent again (see its module)."""
        rules = rules or self.rules
        if rules is None:
            return
        try:
            flows = await asyncio.to_thread(conntrack.forgive_interruption, rules.sources)
        except NetfilterError as error:
            _log.warning("%s", error)
        else:
            if flows:
                _log.info("connections are kept over the interruption", extra=fields(flows=flows))

    async def suspend(self, rules: Ruleset | None = None) -> None:
        """Let nothing pass, and keep the flows that are known (see `Ruleset.is_open`).

        Args:
            rules: What an earlier process is known to have left in force; by default our own last rules.

        Raises:
            NetfilterError: The rules were refused.
        """
        rules = rules or self.rules
        if rules is not None and (self.rules is None or self.rules.is_open):
            self.rules = replace(rules, is_open=False)
            await self.netfilter.apply(self.rules)
            _log.info("the way to the world is closed for now")

    async def remove(self) -> None:
        """Take every rule back."""
        for error in await self.journal.undo("netfilter"):
            _log.error("%s", error)
        if self.rules is not None:
            self.rules = None
            _log.info("the packet filter's rules are taken back")
