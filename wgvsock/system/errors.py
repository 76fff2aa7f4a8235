"""What can go wrong while the machine is set up, each with its own code."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError


class NetlinkSetupError(SystemSetupError):
    """The kernel refused a change of interfaces, addresses, routes or forwarding."""

    code = "WGV-E051"


class NetfilterError(SystemSetupError):
    """Neither nft nor iptables took our rules."""

    code = "WGV-E052"


class ResolverError(SystemSetupError):
    """resolv.conf could not be read or written."""

    code = "WGV-E053"


class JournalError(SystemSetupError):
    """The record of our changes to this machine cannot be kept."""

    code = "WGV-E054"


class AlreadyRunningError(SystemSetupError):
    """Another process of the same name holds the lock."""

    code = "WGV-E055"
    exit_code = 1
