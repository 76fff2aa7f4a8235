"""What a machine lacks for a role: missing, forbidden or wrong, and how to fix it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wgvsock.cli import main
from wgvsock.cli.doctor import (
    CHECKS,
    Check,
    Finding,
    check_configuration,
    check_device,
    check_ipv6_forwarding,
    check_libslirp,
    check_namespaces,
    check_net_admin,
    check_nsm,
    check_packet_filter,
    check_tool,
    check_tun,
    check_uplink,
    check_vsock,
)
from wgvsock.uplink.errors import EngineMissingError

Tools = Callable[[str, str], None]


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Let every open of a device fail. Returns the paths that were tried."""
    tried: list[str] = []

    def open_device(path: str, flags: int) -> int:
        assert flags & os.O_RDWR
        tried.append(path)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("wgvsock.cli.doctor.os.open", open_device)
    return tried


def test_a_device_that_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "device").touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert check_device(str(tmp_path / "device"), "fix").verdict == "ok"
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize(
    ("number", "verdict", "fix"),
    [
        (errno.ENOENT, "missing", "load it"),
        (errno.ENODEV, "missing", "load it"),
        (errno.ENXIO, "missing", "load it"),
        (errno.EACCES, "forbidden", "run as root, or allow the device"),
        (errno.EPERM, "forbidden", "run as root, or allow the device"),
    ],
)
def test_missing_is_told_from_forbidden(monkeypatch: pytest.MonkeyPatch, number: int, verdict: str, fix: str) -> None:
    refuse(monkeypatch, number)
    finding = check_device("/dev/x", "load it")
    assert (finding.name, finding.verdict, finding.fix) == ("/dev/x", verdict, fix)


def test_the_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = refuse(monkeypatch, errno.ENOENT)
    (tmp_path / "status").write_text("CapEff:\t0000000000001000\n")
    assert "modprobe tun" in check_tun(tmp_path / "status").fix
    assert "Nitro" in check_nsm().fix
    assert tried == ["/dev/net/tun", "/dev/nsm"]


@pytest.mark.parametrize(
    ("machine", "verdict", "found"),
    [
        (
            (errno.ENOENT, 1 << 27, "200 tun\n", True),
            "ok",
            "the device does not exist, but the service can create it (MKNOD)",
        ),
        ((errno.ENOENT, 1 << 12, "200 tun\n", True), "missing", "the device does not exist"),
        ((errno.ENOENT, 1 << 27, "200 tun\n", False), "missing", "the device does not exist"),
        ((errno.ENOENT, 1 << 27, "237 loop-control\n", True), "missing", "the kernel has no TUN driver"),
        ((errno.EPERM, 1 << 27, "200 tun\n", True), "forbidden", os.strerror(errno.EPERM)),
    ],
)
def test_a_tun_device_that_the_relay_makes_itself_is_not_missing(
    machine: tuple[int, int, str, bool], verdict: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, capabilities, drivers, writable = machine
    refuse(monkeypatch, number)
    monkeypatch.setattr("wgvsock.cli.doctor.os.access", lambda path, _mode: writable and path == tmp_path / "net")
    (tmp_path / "net").mkdir()
    (tmp_path / "status").write_text(f"CapEff:\t{capabilities:016x}\n")
    (tmp_path / "misc").write_text(drivers)
    finding = check_tun(tmp_path / "status", tmp_path / "misc", tmp_path)
    assert (finding.verdict, finding.found) == (verdict, found)
    assert bool(finding.fix) == (verdict != "ok")


@pytest.mark.parametrize(
    ("effective", "verdict"),
    [
        ("000001ffffffffff", "ok"),
        ("0000000000001000", "ok"),
        ("0000000000000000", "forbidden"),
        ("000001ffffffefff", "forbidden"),  # all but CAP_NET_ADMIN
        ("0000000000002800", "forbidden"),  # its neighbours
    ],
)
def test_net_admin(tmp_path: Path, effective: str, verdict: str) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\nCapBnd:\t000001ffffffffff\n")
    finding = check_net_admin(status)
    assert finding.verdict == verdict
    assert ("NET_ADMIN" in finding.fix) == (verdict != "ok")


def test_vsock_sockets_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = list(socket.socketpair())

    def make(family: int, kind: int) -> socket.socket:
        assert (family, kind) == (socket.AF_VSOCK, socket.SOCK_STREAM)
        return ends[0]

    monkeypatch.setattr("wgvsock.cli.doctor.socket.socket", make)
    assert check_vsock().verdict == "ok"
    assert ends[0].fileno() == -1  # closed again
    ends[1].close()


@pytest.mark.parametrize(
    ("number", "verdict"), [(errno.EPERM, "forbidden"), (errno.EACCES, "forbidden"), (errno.EAFNOSUPPORT, "missing")]
)
def test_no_vsock_sockets(monkeypatch: pytest.MonkeyPatch, number: int, verdict: str) -> None:
    def make(_family: int, _kind: int) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("wgvsock.cli.doctor.socket.socket", make)
    finding = check_vsock()
    assert finding.verdict == verdict
    assert ("seccomp" in finding.found) == (verdict == "forbidden")
    assert finding.fix


NFT_WORKS = '[ "$*" = "list tables" ]'
NFT_FAILS = 'echo "Operation not permitted (you must be root)" >&2; exit 1'


@pytest.mark.parametrize(
    ("installed", "verdict", "found"),
    [
        ({"nft": NFT_WORKS}, "ok", "nft"),
        ({"nft": NFT_FAILS}, "forbidden", "nft: Operation not permitted (you must be root)"),
        ({"nft": "exit 1"}, "forbidden", "nft: it failed"),
        ({"nft": NFT_FAILS, "iptables-restore": "", "ip6tables-restore": ""}, "ok", "iptables"),
        ({"iptables-restore": "", "ip6tables-restore": ""}, "ok", "iptables"),
        ({"iptables-restore": ""}, "missing", "neither nft nor iptables works"),
        ({}, "missing", "neither nft nor iptables works"),
    ],
)
def test_packet_filters(tools: Tools, installed: dict[str, str], verdict: str, found: str) -> None:
    for name, script in installed.items():
        tools(name, script)
    finding = check_packet_filter()
    assert (finding.verdict, finding.found) == (verdict, found)
    assert bool(finding.fix) == (verdict != "ok")


DEFAULT_ROUTE = f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 00000001 00000000 00000003 eth0\n"
UNREACHABLE = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200201 lo\n"
NEIGHBOUR = f"fe80{'0' * 28} 40 {'0' * 32} 00 {'0' * 32} 00000100 00000001 00000000 00000001 eth0\n"

IPV4_ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
)


class Switches:
    """A /proc/sys/net/ipv6/conf and a routing table."""

    def __init__(self, folder: Path) -> None:
        self.conf = folder / "net/ipv6/conf"
        self.routes = folder / "ipv6_route"
        self.routes.write_text(UNREACHABLE + NEIGHBOUR)
        self.ipv4_routes = folder / "route"

    def set(self, name: str, value: str) -> None:
        (self.conf / name).parent.mkdir(parents=True, exist_ok=True)
        (self.conf / name).write_text(f"{value}\n")

    def look(self) -> Finding:
        return check_ipv6_forwarding(self.conf, self.routes, self.ipv4_routes)


@pytest.fixture
def switches(tmp_path: Path) -> Switches:
    return Switches(tmp_path)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgvsock.system.ipv6.os.access", lambda _path, mode: mode != os.W_OK)


def test_ipv6_forwarding(switches: Switches, monkeypatch: pytest.MonkeyPatch) -> None:
    assert switches.look().found == "this machine has no IPv6"
    switches.set("all/forwarding", "1")
    assert switches.look() == Finding("IPv6 forwarding", "ok", "on")
    switches.set("all/forwarding", "0")
    assert switches.look().found == "off, but the relay can switch it on"
    read_only(monkeypatch)
    switches.routes.write_text(DEFAULT_ROUTE)
    switches.set("eth0/accept_ra", "2")
    finding = switches.look()
    assert finding.verdict == "forbidden"
    assert "(net.ipv6.conf.all.forwarding)" in finding.fix
    assert "overlays/ipv6" in finding.fix


def test_without_ipv6_forwarding_the_relay_is_ipv4_only(switches: Switches, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only(monkeypatch)
    switches.routes.write_text(DEFAULT_ROUTE)
    switches.set("all/forwarding", "0")
    switches.set("eth0/accept_ra", "1")
    switches.ipv4_routes.write_text(IPV4_ROUTES.replace("00000000\t0101", "00000A0A\t0101"))
    assert switches.look().verdict == "forbidden"  # nothing leads on
    switches.ipv4_routes.write_text(IPV4_ROUTES)
    finding = switches.look()
    assert (finding.verdict, finding.found) == (
        "note",
        "off, and /proc/sys is not writable: the relay forwards IPv4 only",
    )
    assert "(net.ipv6.conf.eth0.accept_ra net.ipv6.conf.all.forwarding)" in finding.fix


def test_what_leads_nowhere_is_a_note(switches: Switches, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only(monkeypatch)
    switches.set("all/forwarding", "0")
    finding = switches.look()
    assert (finding.verdict, finding.fix) == ("note", "")
    assert "without an IPv6 default route" in finding.found
    switches.routes.unlink()
    assert switches.look().verdict == "note"


@pytest.mark.parametrize(("accept_ra", "verdict"), [("0", "ok"), ("1", "forbidden"), ("2", "ok")])
def test_a_router_that_would_lose_its_default_route(
    accept_ra: str, verdict: str, switches: Switches, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_only(monkeypatch)
    switches.routes.write_text(DEFAULT_ROUTE + DEFAULT_ROUTE)
    switches.set("all/forwarding", "1")
    switches.set("eth0/accept_ra", accept_ra)
    finding = switches.look()
    assert finding.verdict == verdict
    assert ("eth0.accept_ra" in finding.fix) == (verdict != "ok")


def test_tools(tools: Tools, tmp_path: Path) -> None:
    check = check_tool("ip", "iproute2")
    assert check() == Finding("ip", "missing", "not on PATH", "apt-get install iproute2")
    tools("ip", "")
    assert check() == Finding("ip", "ok", str(tmp_path / "bin" / "ip"))


@pytest.mark.parametrize(("user", "arguments"), [(0, "--net true"), (1000, "--user --map-root-user --net true")])
def test_namespaces(tools: Tools, monkeypatch: pytest.MonkeyPatch, user: int, arguments: str) -> None:
    monkeypatch.setattr("wgvsock.cli.doctor.os.geteuid", lambda: user)
    assert check_namespaces().verdict == "missing"
    tools("unshare", f'[ "$*" = "{arguments}" ]')
    assert check_namespaces().verdict == "ok"
    tools("unshare", 'echo "unshare: Operation not permitted" >&2; exit 1')
    finding = check_namespaces()
    assert (finding.verdict, finding.found) == ("forbidden", "unshare: Operation not permitted")
    tools("unshare", "exit 1")
    assert check_namespaces().found == "it failed"


# The command.


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the outcome of all checks of the role relay."""

    def set_checks(*findings: Finding) -> None:
        made: list[Check] = [lambda finding=finding: finding for finding in findings]  # type: ignore[misc]
        monkeypatch.setitem(CHECKS, "relay", tuple(made))

    return set_checks


OK = Finding("NET_ADMIN", "ok", "this process has the capability")
MISSING = Finding("/dev/net/tun", "missing", "the device does not exist", "modprobe tun")


def test_a_healthy_machine(checks: Callable[..., None], prints: Callable[..., str]) -> None:
    checks(OK)
    assert prints("doctor") == "ok        NET_ADMIN: this process has the capability\n"


def test_a_machine_that_lacks_something(checks: Callable[..., None], prints: Callable[..., str]) -> None:
    checks(OK, MISSING)
    assert prints("doctor", status=7) == (
        "ok        NET_ADMIN: this process has the capability\n"
        "missing   /dev/net/tun: the device does not exist\n"
        "          fix: modprobe tun\n"
    )


def test_findings_as_json(checks: Callable[..., None], prints_json: Callable[..., dict[str, Any]]) -> None:
    checks(OK, MISSING)
    answer = prints_json("doctor", status=7)
    assert answer == {
        "schema": "wgvsock/v1",
        "ok": False,
        "role": "relay",
        "checks": [
            {"name": "NET_ADMIN", "verdict": "ok", "found": "this process has the capability", "fix": ""},
            {"name": "/dev/net/tun", "verdict": "missing", "found": "the device does not exist", "fix": "modprobe tun"},
        ],
    }


@pytest.mark.parametrize("role", CHECKS)
def test_this_machine(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--role", role])
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert len(verdicts) == len(CHECKS[role]) + (role == "relay")  # which uplinks work follows from the rest
    assert status == (0 if set(verdicts) <= {"ok", "note"} else 7)


@pytest.mark.parametrize("role", ["relay", "enclave"])
def test_a_configuration(role: str, tmp_path: Path, prints: Callable[..., str]) -> None:
    path = tmp_path / f"{role}.toml"
    path.write_text(f'runtime_directory = "{tmp_path}/run"\n{prints("config", "init", role)}')
    *_, last = check_configuration(role, str(path), [])
    assert last == Finding(str(path), "ok", f"a valid configuration of the {role}")
    path.write_text("nmae = 3\n")
    (finding,) = check_configuration(role, str(path), [])
    assert finding.verdict == "wrong"
    assert f'{path}, line 1: unknown key "nmae"' in finding.found
    assert finding.fix == 'the nearest valid key is "name"'


def test_a_wrong_configuration_is_a_finding(
    checks: Callable[..., None], tmp_path: Path, prints_json: Callable[..., dict[str, Any]]
) -> None:
    checks(OK)
    path = str(tmp_path / "missing.toml")
    answer = prints_json("doctor", "-c", path, status=7)
    assert [(check["name"], check["verdict"]) for check in answer["checks"]] == [("NET_ADMIN", "ok"), (path, "wrong")]


def test_files_that_are_not_ours_alone_are_findings(tmp_path: Path, prints: Callable[..., str]) -> None:
    path, run, key = tmp_path / "relay.toml", tmp_path / "run", tmp_path / "signing.key"
    text = prints("config", "init", "relay").replace("[provisioning]", f'[provisioning]\nsigning_key_file = "{key}"')
    path.write_text(f'runtime_directory = "{run}"\n{text}')

    def verdicts() -> list[tuple[str, str]]:
        return [(finding.name, finding.verdict) for finding in check_configuration("relay", str(path), [])[2:]]

    assert verdicts() == [(str(key), "missing")]
    run.mkdir()
    run.chmod(0o755)
    key.touch()
    key.chmod(0o644)
    assert verdicts() == [(str(run), "wrong"), (str(key), "wrong")]
    *_, directory, seed = check_configuration("relay", str(path), [])
    assert directory.fix.startswith(f"chmod 700 {run}")
    assert seed.fix.startswith(f"chmod 600 {key}")
    run.chmod(0o700)
    key.chmod(0o600)
    assert verdicts() == [(str(run), "ok"), (str(key), "ok")]


NO_LIBSLIRP = Finding("libslirp", "note", "it is not there; only a user-space uplink needs it")
LIBSLIRP = Finding("libslirp", "ok", "4.7.0")
NO_NET_ADMIN = Finding("NET_ADMIN", "forbidden", "this process lacks the capability", "add it")
NET_ADMIN = Finding("NET_ADMIN", "ok", "this process has the capability")


@pytest.mark.parametrize(
    ("machine", "verdict", "found"),
    [
        ([NET_ADMIN, LIBSLIRP], "ok", "kernel and userspace work"),
        ([NO_NET_ADMIN, LIBSLIRP], "ok", "userspace works; kernel does not: NET_ADMIN is not available"),
        ([NET_ADMIN, NO_LIBSLIRP], "ok", "kernel works; userspace does not: libslirp is not available"),
        (
            [NO_NET_ADMIN, NO_LIBSLIRP],
            "missing",
            "kernel does not: NET_ADMIN is not available; userspace does not: libslirp is not available",
        ),
    ],
)
def test_which_uplinks_work_here(machine: list[Finding], verdict: str, found: str) -> None:
    (uplink,) = check_uplink(machine)
    assert (uplink.name, uplink.verdict, uplink.found) == ("uplink", verdict, found)
    assert check_uplink(machine[:1]) == []


@pytest.mark.parametrize("there", [True, False])
def test_the_stack_of_the_user_space_uplink(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def slirp_version_string() -> bytes:
            return b"4.7.0"

    def load(_name: str) -> type[Library]:
        if not there:
            raise EngineMissingError("cannot use libslirp", why="no such file")
        return Library

    monkeypatch.setattr("wgvsock.uplink.libslirp.load", load)
    assert check_libslirp().verdict == ("ok" if there else "note")


def test_a_tool_that_is_no_program(tools: Tools) -> None:
    tools("nft", "")
    (Path(os.environ["PATH"]) / "nft").write_bytes(b"\x7fELF, of another machine")
    assert check_packet_filter().verdict == "forbidden"


# What a configuration needs, and what it does not.

NO_IPV6 = Finding("IPv6 forwarding", "forbidden", "off", "set it")
NO_VSOCK = Finding("AF_VSOCK", "missing", "no such family", "load it")
PCRS = "".join(f'pcr{number} = "{number + 1:096x}"\n' for number in range(3))
ATTACHED = f'[enclave]\naddress = "vsock:16:51820"\n[[attestation.pcr_sets]]\n{PCRS}'
LAUNCHED = f'[launch]\nimage = "/x.eif"\n[[attestation.pcr_sets]]\n{PCRS}'
IPV4_ONLY = ATTACHED.replace('51820"', '51820"\naddresses = ["10.73.0.2/24"]') + (
    '[interface]\naddresses = ["10.73.0.1/24"]\n'
)
LOCAL = ATTACHED.replace("vsock:16:51820", "tcp:127.0.0.1:51820")
SEVERAL = "".join(
    f'[[enclaves]]\nname = "{name}"\n[enclaves.launch]\nimage = "/x.eif"\n[[enclaves.attestation.pcr_sets]]\n{PCRS}'
    for name in ("a", "b")
)
DEBUG = ATTACHED.replace("[[attestation.pcr_sets]]", "[attestation]\nallow_debug = true\n[[attestation.pcr_sets]]")


USERSPACE = f'{ATTACHED}[uplink]\nmode = "userspace"\n'


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., dict[str, Finding]]:
    """Return the findings about a machine with a configuration, by name."""

    def judge(text: str, *machine: Finding) -> dict[str, Finding]:
        path = tmp_path / "relay.toml"
        path.write_text(f'runtime_directory = "{tmp_path}/run"\n{text}')
        return {finding.name: finding for finding in check_configuration("relay", str(path), list(machine))}

    return judge


@pytest.mark.parametrize(
    ("text", "finding", "verdict"),
    [
        (ATTACHED, NO_IPV6, "forbidden"),
        (IPV4_ONLY, NO_IPV6, "note"),
        (USERSPACE, NO_IPV6, "note"),
        (USERSPACE, NO_NET_ADMIN, "note"),
        (USERSPACE, NO_LIBSLIRP, "missing"),
        (ATTACHED, NO_NET_ADMIN, "forbidden"),
        (ATTACHED, NO_VSOCK, "missing"),
        (LAUNCHED, NO_VSOCK, "missing"),
        (LOCAL, NO_VSOCK, "note"),
        (LOCAL, MISSING, "missing"),
        (LOCAL, OK, "ok"),
    ],
)
def test_what_the_configuration_does_not_need_is_a_note(
    text: str, finding: Finding, verdict: str, judge: Callable[..., dict[str, Finding]]
) -> None:
    found = judge(text, finding)[finding.name]
    assert found.verdict == verdict
    assert bool(found.fix) == (verdict not in {"ok", "note"})
    assert ("not needed by the configuration" in found.found) == (verdict == "note")


@pytest.mark.parametrize(
    ("text", "machine", "named"),
    [
        (ATTACHED, [], "base"),
        (LAUNCHED, [], "overlays/launch"),
        (SEVERAL, [], "overlays/several"),
        (DEBUG, [], "overlays/debug"),
        (USERSPACE, [NO_IPV6], "overlays/userspace"),
        (ATTACHED, [NO_IPV6], "overlays/ipv6"),
        (LAUNCHED, [NO_IPV6], "overlays/launch, ipv6"),
        (ATTACHED, [replace(NO_IPV6, verdict="note")], "overlays/ipv6"),
        (IPV4_ONLY, [NO_IPV6], "base"),
    ],
)
def test_which_overlay_a_pod_needs(
    text: str, machine: list[Finding], named: str, judge: Callable[..., dict[str, Finding]]
) -> None:
    found = judge(text, *machine)["overlay"]
    assert (found.verdict, found.found) == ("note", f"a Pod needs deploy/kustomize/{named}")
    for name in named.removeprefix("overlays/").split(", "):
        folder = Path(__file__).parents[3] / "deploy/kustomize"
        assert (folder / name / "kustomization.yaml").exists() or (folder / "overlays" / name).is_dir()


def test_a_relay_that_launches_needs_the_tool_and_the_device(
    judge: Callable[..., dict[str, Finding]], tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.ENOENT)
    found = judge(LAUNCHED)
    assert (found["/dev/nitro_enclaves"].verdict, found["nitro-cli"].verdict) == ("missing", "missing")
    assert "overlays/launch" in found["/dev/nitro_enclaves"].fix
    tools("nitro-cli", "")
    assert judge(LAUNCHED)["nitro-cli"].verdict == "ok"
    assert not {"/dev/nitro_enclaves", "nitro-cli"} & set(judge(ATTACHED))


def test_notes_leave_the_exit_status_alone(checks: Callable[..., None], prints: Callable[..., str]) -> None:
    checks(OK, Finding("IPv6 forwarding", "note", "off; not needed"))
    assert prints("doctor").splitlines()[1] == "note      IPv6 forwarding: off; not needed"
