"""Selects the kind of uplink for an enclave."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wgvsock.devices.base import TunDevice
from wgvsock.dns.sockets import LoopbackDnsSockets
from wgvsock.errors import SystemSetupError
from wgvsock.machine.base import RelayMachine
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.kernel import KernelUplink
from wgvsock.relay.uplink.mouth import Mouth
from wgvsock.relay.uplink.reach import KernelReach, Reach, UserspaceReach
from wgvsock.relay.uplink.userspace import UserspaceUplink
from wgvsock.runtime.journal import Scope
from wgvsock.system.netlink import Netlink
from wgvsock.telemetry.logs import error_fields

PROFILE: Final = "plain"
"""In user space. The tunnel's MTU makes packets large anyway, and the checksums that ``gso`` leaves open would be the
engine's to make, which takes three fifths of its time for a packet."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Way:
    """An uplink and its parts.

    Attributes:
        uplink: The uplink.
        tun: The relay's end of the tunnel.
        reach: How the relay itself reaches the enclave.
        dns_sockets: The sockets on which DNS queries arrive; None for those of the tunnel's interface.
        has_ipv6: Whether the enclave can have IPv6 addresses on this machine.
        profile: The profile that comes first of those that are configured; None for the configured order.
        is_open: Returns whether packets may pass. It may be called once the uplink is prepared.
        joined: To be called once there is a tunnel, with a function that sends a packet into it.
    """

    uplink: KernelUplink | UserspaceUplink
    tun: TunDevice
    reach: Reach
    dns_sockets: LoopbackDnsSockets | None
    has_ipv6: bool
    profile: str | None
    is_open: Callable[[], bool]
    joined: Callable[[Callable[[bytes], object]], None]


def choose(spec: EnclaveSpec, machine: RelayMachine, netlink: Netlink, journal: Scope, headroom: int) -> Way:
    """Create the uplink that the configuration asks for, still closed.

    Args:
        spec: The enclave's specification.
        machine: The machine that the relay runs on.
        netlink: Used for interfaces, addresses and routes.
        journal: Records changes to the machine.
        headroom: Bytes in front of each packet.

    Raises:
        SystemSetupError: The tunnel's interface cannot be created, but the configuration requires the kernel.
    """
    if spec.uplink.mode == "userspace":
        return _userspace(spec, machine, netlink, headroom)
    try:
        tun = machine.open_tun(spec.interface.name, packet_headroom=headroom)
    except SystemSetupError as error:
        if spec.uplink.mode == "kernel":
            raise
        _log.info("packets leave through user space", extra=error_fields(error, enclave=spec.name))
        return _userspace(spec, machine, netlink, headroom)
    kernel = KernelUplink(netlink, journal, machine, tun)
    has_ipv6 = netlink.has_ipv6(spec.interface.name)
    return Way(kernel, tun, KernelReach(machine), None, has_ipv6, None, lambda: kernel.nat.is_open, lambda _: None)


def _userspace(spec: EnclaveSpec, machine: RelayMachine, netlink: Netlink, headroom: int) -> Way:
    mouth = Mouth(headroom, machine.monotonic)
    names = LoopbackDnsSockets()
    path = str(Path(spec.runtime_directory) / f"{spec.owner.replace('/', '-')}.agent.sock")
    uplink = UserspaceUplink(netlink, machine, mouth, names, path)

    def joined(send: Callable[[bytes], object]) -> None:
        uplink.tell = send

    return Way(
        uplink,
        mouth,
        UserspaceReach(path, uplink.connections),
        names,
        netlink.has_ipv6("lo"),
        PROFILE,
        lambda: uplink.is_open,
        joined,
    )
