"""A routing policy rule (ip-rule(8)): a tunnel's packets are not routed without the packet filter's mark.

The packet filter decides which of an enclave's packets pass, and with which address. Another program may flush it at
any time while forwarding stays on. Until the relay has restored its rules, the enclave's packets would leave with their
own addresses. The filter therefore marks the packets that it lets in, before the routing decision, and this rule drops
packets without the mark. The filter clears the mark right after that decision, so nobody else sees it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from wgvsock.runtime.journal import Performer, Record, Undo
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.filter.rules import ROUTED_MARK
from wgvsock.system.netlink import ROUTE_PROTOCOL
from wgvsock.system.rawnetlink import NLM_F_CREATE, NLM_F_EXCL, RawNetlink, attribute

ROUTING_RULE: Final = "routing_rule"
"""Kind of the undo. Its target is the tunnel's interface."""

PRIORITY: Final = 1
"""Right after the table of local addresses, which has 0, and before all routes."""

_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33
_HEADER: Final = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr: family, ..., action, flags (linux/fib_rules.h)
_FR_ACT_BLACKHOLE: Final = 6
_FRA_IIFNAME: Final = 3
_FRA_PRIORITY: Final = 6
_FRA_FWMARK: Final = 10
_FRA_FWMASK: Final = 16
_FRA_PROTOCOL: Final = 21
_NUMBER: Final = struct.Struct("=I")

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def require_mark(tunnel: str, versions: Iterable[int], record: Record) -> bool:
    """Make the kernel drop packets from a tunnel's interface that the packet filter has not marked.

    Args:
        tunnel: The interface. It need not exist yet.
        versions: IP versions.
        record: Takes the undo before the change.

    Returns:
        Whether anything changed.

    Raises:
        NetlinkSetupError: The kernel refused, or has no policy routing.
    """
    record(Undo(ROUTING_RULE, tunnel, ""))
    added = [_change(_RTM_NEWRULE, tunnel, version, NLM_F_CREATE | NLM_F_EXCL, errno.EEXIST) for version in versions]
    return any(added)


def performers() -> dict[str, Performer]:
    """The function that undoes this module's changes, for a `Journal`."""

    async def remove(tunnel: str, _: object) -> None:
        for version in _FAMILIES:
            while _change(_RTM_DELRULE, tunnel, version, 0, errno.ENOENT, errno.EAFNOSUPPORT):
                pass

    return {ROUTING_RULE: remove}


def _change(kind: int, tunnel: str, version: int, flags: int, *as_wanted: int) -> bool:
    """Send one change. False if one of the given errors says that nothing had to change."""
    body = _HEADER.pack(_FAMILIES[version], 0, 0, 0, 0, 0, 0, _FR_ACT_BLACKHOLE, 0)
    body += attribute(_FRA_IIFNAME, tunnel.encode() + b"\0") + attribute(_FRA_PRIORITY, _NUMBER.pack(PRIORITY))
    body += attribute(_FRA_FWMARK, _NUMBER.pack(0)) + attribute(_FRA_FWMASK, _NUMBER.pack(ROUTED_MARK))
    body += attribute(_FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))
    try:
        with RawNetlink(socket.NETLINK_ROUTE) as netlink:
            netlink.change(kind, body, flags)
    except OSError as error:
        if error.errno in as_wanted:
            return False
        raise NetlinkSetupError(
            f"cannot change the routing policy of {tunnel}",
            why=error.strerror or str(error),
            fix="use a kernel with policy routing (CONFIG_IP_MULTIPLE_TABLES), and the capability NET_ADMIN",
        ) from error
    return True
