"""``wgvsock doctor [--role relay|enclave|lab] [--json]``: what this machine lacks for a role.

Nothing is changed. *missing* is told apart from *forbidden*. Exit status: 0 all is there, 7 something is not.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from wgvsock.cli.output import print_json, put
from wgvsock.errors import WgvsockError

EXIT_PREREQUISITE: Final = 7

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
"""No device node, or one whose driver is not there."""

_CAP_NET_ADMIN: Final = 12
_FIX_NET_ADMIN: Final = "run as root, or add the capability NET_ADMIN (Pod: securityContext.capabilities.add)"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; `fix` is empty when all is well."""

    name: str
    verdict: Literal["ok", "missing", "forbidden", "wrong"]
    found: str
    fix: str = ""


Check = Callable[[], Finding]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the commands of ``wgvsock``."""
    parser = commands.add_parser("doctor", help="look for what is missing on this machine", description=__doc__)
    parser.add_argument("--role", choices=tuple(CHECKS), default="relay", help="default: %(default)s")
    parser.add_argument("-c", "--config", metavar="FILE", help="check this configuration too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    findings = [check() for check in CHECKS[args.role]]
    if args.config is not None and args.role != "lab":
        findings.append(check_configuration(args.role, args.config))
    healthy = all(finding.verdict == "ok" for finding in findings)
    if args.json:
        print_json({"ok": healthy, "role": args.role, "checks": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            put(f"{finding.verdict:<9} {finding.name}: {finding.found}")
            if finding.fix:
                put(f"{'':<9} fix: {finding.fix}")
    return 0 if healthy else EXIT_PREREQUISITE


def check_tun() -> Finding:
    """/dev/net/tun can be opened."""
    return check_device("/dev/net/tun", "load the module tun (modprobe tun); in a container, mount or mknod the device")


def check_nsm() -> Finding:
    """/dev/nsm can be opened."""
    return check_device("/dev/nsm", "run inside a Nitro enclave whose kernel has the nsm driver")


def check_device(path: str, fix: str) -> Finding:
    """A character device can be opened for reading and writing."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in _ABSENT:
            return Finding(path, "missing", "there is no such device", fix)
        return Finding(path, "forbidden", error.strerror or str(error), "run as root, or allow the device")
    return Finding(path, "ok", "can be opened")


def check_net_admin(status: Path = Path("/proc/self/status")) -> Finding:
    """The process has CAP_NET_ADMIN (capabilities(7))."""
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("CapEff:"))
    if int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1:
        return Finding("NET_ADMIN", "ok", "the capability is there")
    return Finding("NET_ADMIN", "forbidden", "the capability is not there", _FIX_NET_ADMIN)


def check_vsock() -> Finding:
    """Sockets of AF_VSOCK can be made; nothing is connected."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except PermissionError:
        return Finding("AF_VSOCK", "forbidden", "the seccomp profile blocks it", "allow AF_VSOCK in the Pod's profile")
    except OSError as error:
        fix = "load the module vsock; on a Nitro parent it comes with the enclave support of the AMI"
        return Finding("AF_VSOCK", "missing", error.strerror or str(error), fix)
    return Finding("AF_VSOCK", "ok", "sockets can be made")


def check_packet_filter() -> Finding:
    """Nft works, or iptables is there."""
    if shutil.which("nft"):
        listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            return Finding("packet filter", "ok", "nft")
        complaint = (listed.stderr.strip().splitlines() or ["it failed"])[0]
        if not shutil.which("iptables-restore"):
            return Finding("packet filter", "forbidden", f"nft: {complaint}", _FIX_NET_ADMIN)
    if shutil.which("iptables-restore") and shutil.which("ip6tables-restore"):
        return Finding("packet filter", "ok", "iptables")
    return Finding("packet filter", "missing", "neither nft nor iptables works", "install nftables")


def check_ipv6_forwarding(switch: Path = Path("/proc/sys/net/ipv6/conf/all/forwarding")) -> Finding:
    """IPv6 forwarding is on, or can be switched on."""
    if not switch.exists():
        return Finding("IPv6 forwarding", "ok", "there is no IPv6 here")
    if switch.read_text(encoding="ascii").strip() == "1":
        return Finding("IPv6 forwarding", "ok", "on")
    if os.access(switch, os.W_OK):
        return Finding("IPv6 forwarding", "ok", "off, and can be switched on")
    fix = (
        "set net.ipv6.conf.all.forwarding=1 from outside, or leave IPv6 addresses out; without IPv6 uplink ignore this"
    )
    return Finding("IPv6 forwarding", "forbidden", "off, and /proc/sys cannot be written", fix)


def check_tool(name: str, package: str) -> Check:
    """A program is on PATH."""

    def check() -> Finding:
        path = shutil.which(name)
        if path is None:
            return Finding(name, "missing", "not on PATH", f"apt-get install {package}")
        return Finding(name, "ok", path)

    return check


def check_namespaces() -> Finding:
    """Network namespaces can be made: as root, or in a user namespace."""
    command = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--net", "true"]
    if shutil.which("unshare") is None:
        return Finding("namespaces", "missing", "there is no unshare", "apt-get install util-linux")
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return Finding("namespaces", "ok", "network namespaces can be made")
    fix = "run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
    return Finding("namespaces", "forbidden", tried.stderr.strip() or "refused", fix)


def check_configuration(role: str, path: str) -> Finding:
    """A configuration holds."""
    from wgvsock.enclave import config as enclave
    from wgvsock.relay import config as relay

    try:
        if role == "relay":
            relay.load(path)
        else:
            enclave.load(path)
    except WgvsockError as error:
        return Finding(path, "wrong", str(error), error.fix)
    return Finding(path, "ok", f"a configuration of the {role}")


CHECKS: Final[dict[str, tuple[Check, ...]]] = {
    "relay": (check_tun, check_net_admin, check_vsock, check_packet_filter, check_ipv6_forwarding),
    "enclave": (check_nsm, check_tun, check_net_admin, check_vsock),
    "lab": (check_namespaces, check_tun, check_tool("ip", "iproute2"), check_tool("nft", "nftables")),
}
