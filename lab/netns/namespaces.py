"""Named network namespaces: the only module of the laboratory that enters them and that uses pyroute2.

A namespace belongs to a thread (setns(2)). Everything that has to happen inside one therefore happens in a separate
thread that enters it, does the work and ends, so the caller never leaves its namespace. Sockets stay where they were
opened.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from lab.errors import LabError
from lab.netns import root
from lab.topology import Link, Nic, Route

T = TypeVar("T")

NAMESPACES: Final = Path("/run/netns")
"""Where ip-netns(8) and pyroute2 keep them, so that `ip netns exec` works on the laboratory's."""

CLONE_NEWNET: Final = 0x40000000
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_STXCSUM: Final = 0x17
_IFNAMSIZ: Final = 16
_FIRST_INDEX: Final = 100

_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> None:
    """Create a namespace. Its only interface is a loopback that is down.

    Raises:
        LabError: The kernel refused, or the name is taken.
    """
    from pyroute2 import netns

    try:
        netns.create(name)
    except OSError as error:
        raise LabError(f"cannot create the network namespace {name}", why=str(error)) from None
    if not exists(name):
        raise LabError(
            f"cannot create the network namespace {name}", why="CAP_SYS_ADMIN is missing, or /run is read-only"
        )
    # Duplicate address detection (RFC 4862) would keep every IPv6 address tentative for its first second.
    set_sysctl(name, "net.ipv6.conf.default.accept_dad", "0")


def remove(name: str) -> None:
    """Remove a namespace's name, and with it the namespace once no process or socket is in it. Idempotent."""
    from pyroute2 import netns

    if exists(name):
        netns.remove(name)


def exists(name: str) -> bool:
    """Return whether the name is taken."""
    return (NAMESPACES / name).exists()


def processes_in(name: str) -> list[int]:
    """Return the process IDs that have this network namespace."""
    try:
        wanted = (NAMESPACES / name).stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                there = (entry / "ns/net").stat()
            except OSError:
                continue  # it has ended, or may not be inspected
            if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(entry.name))
    return found


def inside(name: str, work: Callable[[], T]) -> T:
    """Do some work in a namespace, and return its result or raise its exception."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            descriptor = os.open(NAMESPACES / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(descriptor, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"cannot enter the namespace {name}")
            finally:
                os.close(descriptor)
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 (handed to the caller's thread, which raises it)
            failure.append(error)

    thread = threading.Thread(target=enter_and_work, name=f"netns {name}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def enter(name: str) -> list[str]:
    """Return the prefix that makes a command run in a namespace, with its own mounts."""
    return [*own_root(), "ip", "netns", "exec", name]


def own_root(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Return the prefix of a command that changes how ``/`` is mounted: empty outside a chroot.

    Args:
        mountinfo: The mounts that this process can see, as in proc_pid_mountinfo(5). Without it, no decision is
            possible.
    """
    try:
        mount_points = {line.split()[4] for line in mountinfo.read_text().splitlines()}
    except OSError:
        return []
    return [] if "/" in mount_points else root.command()


def set_sysctl(namespace: str, key: str, value: str) -> None:
    """Write one ``net.…`` sysctl of a namespace (``/proc/sys/net`` shows the writer's own)."""
    path = Path("/proc/sys") / key.replace(".", "/")
    inside(namespace, lambda: path.write_text(value))


def connect(link: Link, names: Callable[[Nic], str]) -> None:
    """Create a cable: a veth pair with its addresses, both ends up.

    Args:
        link: The two ends.
        names: Returns the namespace of an end.
    """
    left, right = names(link.left), names(link.right)

    def lay() -> None:
        with open(NAMESPACES / right, "rb") as other, _netlink() as ip:  # noqa: PTH123 (a descriptor is needed)
            peer = {"ifname": link.right.name, "net_ns_fd": other.fileno(), "address": link.right.mac}
            # If both ends have the same index, the kernel takes up to a second to notice the carrier
            # (linkwatch_urgent_event). A peer's index counts up from 2, so these never collide.
            index = _FIRST_INDEX + len(ip.get_links())
            ip.link("add", ifname=link.left.name, index=index, kind="veth", address=link.left.mac, peer=peer)

    inside(left, lay)
    for nic, namespace in ((link.left, left), (link.right, right)):
        inside(namespace, lambda nic=nic: _configure(nic))  # type: ignore[misc]


def raise_loopback(namespace: str) -> None:
    """Bring ``lo`` up, as on every machine except a booting enclave."""

    def bring_up() -> None:
        with _netlink() as ip:
            ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")

    inside(namespace, bring_up)


def add_route(route: Route, namespace: str) -> None:
    """Install a static route."""

    def install() -> None:
        with _netlink() as ip:
            family = socket.AF_INET6 if ":" in route.gateway else socket.AF_INET
            ip.route("add", dst=route.destination, gateway=route.gateway, family=family)

    inside(namespace, install)


def is_up(interface: str, namespace: str) -> bool:
    """Return whether an interface has a carrier that the kernel has noticed, which can take up to a second."""

    def look() -> bool:
        with _netlink() as ip:
            return bool(ip.get_links(ifname=interface)[0].get_attr("IFLA_OPERSTATE") == "UP")

    return inside(namespace, look)


def interfaces(namespace: str) -> dict[str, list[str]]:
    """Return every interface of a namespace with its addresses, for tests and for `leftovers`."""

    def look() -> dict[str, list[str]]:
        with _netlink() as ip:
            names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in ip.get_links()}
            found: dict[str, list[str]] = {name: [] for name in names.values()}
            for message in ip.get_addr():
                found[names[message["index"]]].append(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
        return found

    return inside(namespace, look)


def tracked_connections(namespace: str) -> list[str]:
    """Return a namespace's tracked connections: protocol, both ends as they were opened, TCP's state."""

    def look() -> list[str]:
        from pyroute2 import NFCTSocket

        found = []
        with NFCTSocket() as conntrack:
            for message in conntrack.dump():
                original = message.get_attr("CTA_TUPLE_ORIG")
                ends, ports = original.get_attr("CTA_TUPLE_IP"), original.get_attr("CTA_TUPLE_PROTO")
                addresses = [
                    ends.get_attr(f"CTA_IP_V4_{end}") or ends.get_attr(f"CTA_IP_V6_{end}") for end in ("SRC", "DST")
                ]
                numbers = [ports.get_attr(f"CTA_PROTO_{name}") for name in ("NUM", "SRC_PORT", "DST_PORT")]
                protocol = message.get_attr("CTA_PROTOINFO")
                tcp = protocol.get_attr("CTA_PROTOINFO_TCP") if protocol else None
                state = tcp.get_attr("CTA_PROTOINFO_TCP_STATE") if tcp else "-"
                found.append(
                    f"protocol {numbers[0]} {addresses[0]}:{numbers[1]} > {addresses[1]}:{numbers[2]} state {state}"
                    f" timeout {message.get_attr('CTA_TIMEOUT')} status {message.get_attr('CTA_STATUS'):#x}"
                )
        return found

    return inside(namespace, look)


def forget_connections(namespace: str) -> None:
    """Empty connection tracking of a namespace."""

    def flush() -> None:
        from pyroute2 import NFCTSocket

        with NFCTSocket() as conntrack:
            conntrack.flush()

    inside(namespace, flush)


def _configure(nic: Nic) -> None:
    # Complete checksums on the wire let a capture tell right from wrong ones, as behind a real NIC.
    _complete_checksums(nic.name)
    with _netlink() as ip:
        index = ip.link_lookup(ifname=nic.name)[0]
        for interface in nic.interfaces:
            ip.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)
        ip.link("set", index=index, state="up")


def _complete_checksums(interface: str) -> None:
    value = struct.pack("II", _ETHTOOL_STXCSUM, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        buffer = ctypes.create_string_buffer(value, len(value))
        request = struct.pack(f"{_IFNAMSIZ}sP16x", interface.encode(), ctypes.addressof(buffer))
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _netlink() -> Any:
    from pyroute2 import IPRoute

    return IPRoute()
