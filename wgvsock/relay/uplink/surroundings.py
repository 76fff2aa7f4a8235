"""What both kinds of uplink regularly read from this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from wgvsock.egress.policy import Site
from wgvsock.errors import WgvsockError
from wgvsock.machine.base import RelayMachine
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.enclaves.interface import Uplink, tunnel_prefixes
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.runtime import memory
from wgvsock.system.netlink import Netlink
from wgvsock.system.resolver import ResolverSettings

SETTLE: Final = 0.2
"""Seconds after a notification: another program that changes one thing mostly changes several, and on a busy node some
program always does. A look costs about ten milliseconds of processor time."""


async def look_around(netlink: Netlink, spec: EnclaveSpec, tunnel: TunnelConfig) -> Site:
    """Find the addresses that a policy refers to: the relay's, the enclave's name servers and the tunnel's prefixes.

    Raises:
        NetlinkSetupError: The kernel does not list its addresses.
    """
    here = await netlink.networks(besides=())
    return Site(
        relay=frozenset(address.ip for _, address in here) | {own.ip for own in spec.interface.addresses},
        resolvers=frozenset(tunnel.nameservers),
        tunnels=tunnel_prefixes(tunnel),
    )


class Lookout:
    """Detects what the enclave has to be told: another uplink, or another resolv.conf.

    Args:
        machine: Whose resolv.conf it is.
    """

    def __init__(self, machine: RelayMachine) -> None:
        self._machine = machine
        self._resolver: ResolverSettings | None = None

    def begin(self) -> None:
        """Remember resolv.conf before the caller reads it, so that no change is missed."""
        self._resolver = own_resolver(self._machine)

    async def look(
        self, keep: Callable[[], Awaitable[None]], way: Callable[[], Uplink], changed: Callable[[], None]
    ) -> None:
        """One look.

        Args:
            keep: Looks at the way, and mends it.
            way: Where it leads.
            changed: Called if that, or resolv.conf, is another than before.
        """
        before = way(), self._resolver
        await keep()
        self._resolver = own_resolver(self._machine)
        if (way(), self._resolver) != before:
            changed()
        memory.sweep()


def own_resolver(machine: RelayMachine) -> ResolverSettings | None:
    """The settings in this machine's resolv.conf, or None if it cannot be read, which others report."""
    with contextlib.suppress(WgvsockError):
        return machine.resolver()
    return None
