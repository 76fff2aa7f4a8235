"""``wgvsock doctor [--role relay|enclave|lab] [--json]``: find what this machine lacks for a role.

It changes nothing. It distinguishes *missing* from *forbidden*. Whatever neither this machine's network nor the
configuration needs is a *note*. Exit status: 0 nothing is lacking, 7 something is.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from wgvsock.cli.output import print_json, put
from wgvsock.errors import WgvsockError
from wgvsock.runtime import private
from wgvsock.system import ipv6
from wgvsock.uplink.errors import EngineMissingError

if TYPE_CHECKING:
    from wgvsock.relay.config import RelayConfig

EXIT_PREREQUISITE: Final = 7

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
"""There is no device node, or its driver is not loaded."""

_LIBSLIRP: Final = "libslirp"
_UPLINK: Final = "uplink"
_OF_THE_KERNEL: Final = ("/dev/net/tun", "NET_ADMIN", "packet filter")
"""What a relay needs to forward packets through the kernel."""

_CAP_NET_ADMIN: Final = 12
_CAP_MKNOD: Final = 27
_RTF_UP: Final = 1
_IPV6_ROUTES: Final = Path("/proc/net/ipv6_route")
_IPV4_ROUTES: Final = Path("/proc/net/route")
_FIX_NET_ADMIN: Final = "run as root, or add the capability NET_ADMIN (Pod: securityContext.capabilities.add)"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. `fix` is empty if there is nothing to do."""

    name: str
    verdict: Literal["ok", "note", "missing", "forbidden", "wrong"]
    found: str
    fix: str = ""


Check = Callable[[], Finding]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the commands of ``wgvsock``."""
    parser = commands.add_parser("doctor", help="find what is missing on this machine", description=__doc__)
    parser.add_argument("--role", choices=tuple(CHECKS), default="relay", help="default: %(default)s")
    parser.add_argument("-c", "--config", metavar="FILE", help="check this configuration too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    findings = [check() for check in CHECKS[args.role]]
    findings += check_uplink(findings)
    if args.config is not None and args.role != "lab":
        findings = check_configuration(args.role, args.config, findings)
    healthy = all(finding.verdict in {"ok", "note"} for finding in findings)
    if args.json:
        print_json({"ok": healthy, "role": args.role, "checks": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            put(f"{finding.verdict:<9} {finding.name}: {finding.found}")
            if finding.fix:
                put(f"{'':<9} fix: {finding.fix}")
    return 0 if healthy else EXIT_PREREQUISITE


def check_tun(
    status: Path = Path("/proc/self/status"), drivers: Path = Path("/proc/misc"), folder: Path = Path("/dev")
) -> Finding:
    """Check that /dev/net/tun can be opened, or created as `wgvsock.devices.tun` does it."""
    finding = check_device(
        "/dev/net/tun",
        "load the module tun (modprobe tun); in a container, mount the device: a hostPath of the type CharDevice",
    )
    if finding.verdict != "missing":
        return finding
    if not any(line.split()[1:] == ["tun"] for line in drivers.read_text(encoding="ascii").splitlines()):
        return replace(finding, found="the kernel has no TUN driver", fix="load the module tun: modprobe tun")
    parent = folder / "net" if (folder / "net").exists() else folder
    if has_capability(_CAP_MKNOD, status) and os.access(parent, os.W_OK):
        return Finding(finding.name, "ok", "the device does not exist, but the service can create it (MKNOD)")
    return finding


def check_nsm() -> Finding:
    """Check that /dev/nsm can be opened."""
    return check_device("/dev/nsm", "run inside a Nitro Enclave whose kernel has the nsm driver")


def check_device(path: str, fix: str) -> Finding:
    """Check that a character device can be opened for reading and writing."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in _ABSENT:
            return Finding(path, "missing", "the device does not exist", fix)
        return Finding(path, "forbidden", error.strerror or str(error), "run as root, or allow the device")
    return Finding(path, "ok", "can be opened")


def check_net_admin(status: Path = Path("/proc/self/status")) -> Finding:
    """Check that the process has CAP_NET_ADMIN (capabilities(7))."""
    if has_capability(_CAP_NET_ADMIN, status):
        return Finding("NET_ADMIN", "ok", "this process has the capability")
    return Finding("NET_ADMIN", "forbidden", "this process lacks the capability", _FIX_NET_ADMIN)


def has_capability(number: int, status: Path) -> bool:
    """Whether a capability is in the effective set (proc_pid_status(5))."""
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> number & 1)


def check_vsock() -> Finding:
    """Check that AF_VSOCK sockets can be created. Nothing is connected."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except PermissionError:
        return Finding("AF_VSOCK", "forbidden", "the seccomp profile blocks it", "allow AF_VSOCK in the Pod's profile")
    except OSError as error:
        fix = "load the module vsock; on a Nitro parent it comes with the enclave support of the AMI"
        return Finding("AF_VSOCK", "missing", error.strerror or str(error), fix)
    return Finding("AF_VSOCK", "ok", "sockets can be created")


def check_packet_filter() -> Finding:
    """Check that nft works, or that iptables is installed."""
    if shutil.which("nft"):
        status, complaint = _try(["nft", "list", "tables"])
        if status == 0:
            return Finding("packet filter", "ok", "nft")
        if not shutil.which("iptables-restore"):
            return Finding("packet filter", "forbidden", f"nft: {complaint}", _FIX_NET_ADMIN)
    if shutil.which("iptables-restore") and shutil.which("ip6tables-restore"):
        return Finding("packet filter", "ok", "iptables")
    return Finding("packet filter", "missing", "neither nft nor iptables works", "install nftables")


def check_ipv6_forwarding(
    conf: Path = ipv6.CONF, routes: Path = _IPV6_ROUTES, ipv4_routes: Path = _IPV4_ROUTES
) -> Finding:
    """Check that IPv6 forwarding is on, can be switched on, or is not needed, as the relay does before it starts."""
    name = "IPv6 forwarding"
    if not conf.exists():
        return Finding(name, "ok", "this machine has no IPv6")
    uplinks = ipv6_uplinks(routes)
    if not ipv6.off(uplinks, conf):
        return Finding(name, "ok", "on")
    unset = ipv6.barred(uplinks, conf)
    if not unset:
        return Finding(name, "ok", "off, but the relay can switch it on")
    if not uplinks:
        return Finding(name, "note", "off and cannot be switched on, but not needed without an IPv6 default route")
    fix = (
        f"set it from outside ({' '.join(unset)}), as deploy/kustomize/overlays/ipv6 does for a Pod, or leave IPv6 out"
        " of the enclave's addresses"
    )
    if has_ipv4_default_route(ipv4_routes):
        return Finding(name, "note", "off, and /proc/sys is not writable: the relay forwards IPv4 only", fix)
    return Finding(name, "forbidden", "off, and /proc/sys is not writable", fix)


def has_ipv4_default_route(routes: Path) -> bool:
    """Whether ``/proc/net/route`` (interface, destination, gateway, flags, …, mask) has a default route."""
    rows = [line.split() for line in routes.read_text(encoding="ascii").splitlines()[1:]] if routes.exists() else []
    return any(row[1] == row[7] == "0" * 8 and int(row[3], 16) & _RTF_UP for row in rows)


def ipv6_uplinks(routes: Path) -> list[str]:
    """Interfaces of default routes in ``/proc/net/ipv6_route`` (destination, prefix length, …, flags, name)."""
    if not routes.exists():
        return []
    rows = [line.split() for line in routes.read_text(encoding="ascii").splitlines()]
    found = [row[9] for row in rows if row[:2] == ["0" * 32, "00"] and int(row[8], 16) & _RTF_UP and row[9] != "lo"]
    return list(dict.fromkeys(found))


def check_libslirp() -> Finding:
    """Check for the network stack of the user-space uplink, which a relay with the kernel's does not need."""
    from wgvsock.uplink.libslirp import LIBRARY, load  # needs ctypes, which an enclave's image may lack

    try:
        version = load(LIBRARY).slirp_version_string().decode()
    except EngineMissingError as error:
        return Finding(_LIBSLIRP, "note", f"{error.why}; only a user-space uplink needs it", "")
    return Finding(_LIBSLIRP, "ok", version)


def check_uplink(machine: list[Finding]) -> list[Finding]:
    """Which modes of ``[uplink]`` work on this machine, and why others do not.

    Args:
        machine: The findings of the other checks.
    """
    lacking = [one.name for one in machine if one.name in _OF_THE_KERNEL and one.verdict not in {"ok", "note"}]
    engine = next((one for one in machine if one.name == _LIBSLIRP), None)
    if engine is None:  # not a relay's machine
        return []
    modes = {
        "kernel": "" if not lacking else f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not available",
        "userspace": "" if engine.verdict == "ok" else "libslirp is not available",
    }
    works = [mode for mode, why in modes.items() if not why]
    fails = [f"{mode} does not: {why}" for mode, why in modes.items() if why]
    found = "; ".join([f"{' and '.join(works)} {'works' if len(works) == 1 else 'work'}" if works else "", *fails])
    if works:
        return [Finding(_UPLINK, "ok", found)]
    return [Finding(_UPLINK, "missing", found.lstrip("; "), 'install libslirp0 for mode = "userspace"')]


def check_tool(name: str, package: str) -> Check:
    """Make the check that a program is on PATH."""

    def check() -> Finding:
        path = shutil.which(name)
        if path is None:
            return Finding(name, "missing", "not on PATH", f"apt-get install {package}")
        return Finding(name, "ok", path)

    return check


def check_namespaces() -> Finding:
    """Check that network namespaces can be created, as root or in a user namespace."""
    command = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--net", "true"]
    if shutil.which("unshare") is None:
        return Finding("namespaces", "missing", "unshare is not on PATH", "apt-get install util-linux")
    status, complaint = _try(command)
    if status == 0:
        return Finding("namespaces", "ok", "network namespaces can be created")
    fix = "run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
    return Finding("namespaces", "forbidden", complaint, fix)


def _try(command: list[str]) -> tuple[int, str]:
    """The exit status of a tool, and the first line of its error message."""
    try:
        tried = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace", check=False)
    except OSError as error:  # on PATH, but this machine cannot execute it
        return 126, error.strerror or str(error)
    return tried.returncode, next(iter(tried.stderr.strip().splitlines()), "it failed")


def check_configuration(role: str, path: str, machine: list[Finding]) -> list[Finding]:
    """Check a configuration, what it needs, and that other users cannot access the files that it names.

    Args:
        role: The role of the service.
        path: The file.
        machine: The findings without it. Those that it does not need become notes.
    """
    from wgvsock.enclave import config as enclave
    from wgvsock.relay import config as relay

    try:
        if role == "relay":
            config = relay.load(path)
            directory, keys = config.runtime_directory, {spec.provisioning.signing_key_file for spec in config.specs()}
            judged = [excused(finding, config) for finding in required_engine(config, machine)]
            machine = [*judged, *check_launch(config), overlay(config, judged)]
        else:
            directory, keys = enclave.load(path).runtime_directory, set()
    except WgvsockError as error:
        return [*machine, Finding(path, "wrong", str(error), error.fix)]
    found = _check_private(directory, private.check_directory)
    findings = [] if found.verdict == "missing" else [found]  # the service creates it when it starts
    findings += [_check_private(key, private.read_secret) for key in sorted(filter(None, keys))]
    return [*machine, Finding(path, "ok", f"a valid configuration of the {role}"), *findings]


def excused(finding: Finding, config: RelayConfig) -> Finding:
    """The finding, or a note instead if this relay does not need what is missing."""
    specs = config.specs()
    engine_will_do = all(_goes_through_user_space(spec.uplink.mode) for spec in specs)
    unneeded = {
        **dict.fromkeys(_OF_THE_KERNEL, engine_will_do),
        "IPv6 forwarding": engine_will_do
        or not any(address.version == 6 for spec in specs for address in spec.enclave.addresses),
        "AF_VSOCK": all(spec.launch is None and spec.cid is None for spec in specs),
    }
    if finding.verdict == "ok" or not unneeded.get(finding.name, False):
        return finding
    return replace(finding, verdict="note", found=f"{finding.found}; not needed by the configuration", fix="")


def _goes_through_user_space(mode: str) -> bool:
    """Whether a relay in this mode uses, or can use, the user-space uplink."""
    return mode == "userspace" or (mode == "auto" and check_libslirp().verdict == "ok")


def required_engine(config: RelayConfig, machine: list[Finding]) -> list[Finding]:
    """The findings, with libslirp as missing if the configuration requires it."""
    if all(spec.uplink.mode != "userspace" for spec in config.specs()):
        return machine
    fix = "install it (Debian: libslirp0, 4.7 or later), or use our images, which contain it"
    return [
        replace(one, verdict="missing", fix=fix) if one.name == _LIBSLIRP and one.verdict == "note" else one
        for one in machine
    ]


def check_launch(config: RelayConfig) -> list[Finding]:
    """Check for what a relay needs to launch its enclaves."""
    launches = [spec.launch for spec in config.specs() if spec.launch is not None]
    if not launches:
        return []
    fix = "in a Pod, use deploy/kustomize/overlays/launch, which requests it; on an instance, enable Nitro Enclaves"
    tools = sorted({launch.nitro_cli for launch in launches})
    return [
        check_device("/dev/nitro_enclaves", fix),
        *(
            check_tool(tool, "aws-nitro-enclaves-cli   (Amazon Linux; a Pod's image has to contain it)")()
            for tool in tools
        ),
    ]


def overlay(config: RelayConfig, judged: list[Finding]) -> Finding:
    """Which overlay of deploy/kustomize a Pod with this configuration needs."""
    specs = config.specs()
    needed = {
        "several": len(specs) > 1,
        "launch": len(specs) == 1 and specs[0].launch is not None,
        "userspace": all(spec.uplink.mode == "userspace" for spec in specs),
        "ipv6": any(found.name == "IPv6 forwarding" and found.fix for found in judged),
        "debug": any(spec.attestation.allow_debug for spec in specs),
    }
    names = ", ".join(name for name, is_needed in needed.items() if is_needed)
    return Finding("overlay", "note", f"a Pod needs deploy/kustomize/{'overlays/' + names if names else 'base'}")


def _check_private(path: str, check: Callable[[Path], object]) -> Finding:
    try:
        check(Path(path))
    except OSError as error:
        verdict: Literal["missing", "wrong"] = "missing" if error.errno in _ABSENT else "wrong"
        return Finding(path, verdict, private.why(error), private.fix(error, "check the path and its mode"))
    return Finding(path, "ok", "no other user can access it")


CHECKS: Final[dict[str, tuple[Check, ...]]] = {
    "relay": (check_tun, check_net_admin, check_vsock, check_packet_filter, check_ipv6_forwarding, check_libslirp),
    "enclave": (check_nsm, check_tun, check_net_admin, check_vsock),
    "lab": (check_namespaces, check_tun, check_tool("ip", "iproute2"), check_tool("nft", "nftables")),
}
