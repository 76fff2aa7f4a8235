"""Errors of setting up the machine, each with its own code."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError


class NetlinkSetupError(SystemSetupError):
    """The kernel refused a change to interfaces, addresses, routes or forwarding."""

    code = "WGV-E051"


class NetfilterError(SystemSetupError):
    """Neither nft nor iptables accepted our rules."""

    code = "WGV-E052"


class ResolverError(SystemSetupError):
    """resolv.conf could not be read or written."""

    code = "WGV-E053"


class ClockError(SystemSetupError):
    """The wall clock cannot be set, or the hardware clock cannot be read."""

    code = "WGV-E061"
