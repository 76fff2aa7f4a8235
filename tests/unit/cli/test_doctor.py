"""What a machine lacks for a role: missing, forbidden or wrong, and what to do about it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
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
    check_namespaces,
    check_net_admin,
    check_nsm,
    check_packet_filter,
    check_tool,
    check_tun,
    check_vsock,
)

Tools = Callable[[str, str], None]


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Let every open of a device fail; the paths that were tried."""
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


def test_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refuse(monkeypatch, errno.ENOENT)
    assert "modprobe tun" in check_tun().fix
    assert "Nitro" in check_nsm().fix
    assert tried == ["/dev/net/tun", "/dev/nsm"]


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


def test_ipv6_forwarding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "forwarding"
    assert check_ipv6_forwarding(switch).found == "there is no IPv6 here"
    switch.write_text("1\n")
    assert check_ipv6_forwarding(switch) == Finding("IPv6 forwarding", "ok", "on")
    switch.write_text("0\n")
    assert check_ipv6_forwarding(switch).found == "off, and can be switched on"
    monkeypatch.setattr("wgvsock.cli.doctor.os.access", lambda path, mode: not (path == switch and mode == os.W_OK))
    finding = check_ipv6_forwarding(switch)
    assert finding.verdict == "forbidden"
    assert "net.ipv6.conf.all.forwarding=1" in finding.fix


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
    assert check_namespaces().found == "refused"


# The command.


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the outcome of all checks of the role relay."""

    def set_checks(*findings: Finding) -> None:
        made: list[Check] = [lambda finding=finding: finding for finding in findings]  # type: ignore[misc]
        monkeypatch.setitem(CHECKS, "relay", tuple(made))

    return set_checks


OK = Finding("NET_ADMIN", "ok", "the capability is there")
MISSING = Finding("/dev/net/tun", "missing", "there is no such device", "modprobe tun")


def test_a_healthy_machine(checks: Callable[..., None], prints: Callable[..., str]) -> None:
    checks(OK)
    assert prints("doctor") == "ok        NET_ADMIN: the capability is there\n"


def test_a_machine_that_lacks_something(checks: Callable[..., None], prints: Callable[..., str]) -> None:
    checks(OK, MISSING)
    assert prints("doctor", status=7) == (
        "ok        NET_ADMIN: the capability is there\n"
        "missing   /dev/net/tun: there is no such device\n"
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
            {"name": "NET_ADMIN", "verdict": "ok", "found": "the capability is there", "fix": ""},
            {"name": "/dev/net/tun", "verdict": "missing", "found": "there is no such device", "fix": "modprobe tun"},
        ],
    }


@pytest.mark.parametrize("role", CHECKS)
def test_this_machine(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--role", role])
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert len(verdicts) == len(CHECKS[role])
    assert status == (0 if set(verdicts) == {"ok"} else 7)


@pytest.mark.parametrize("role", ["relay", "enclave"])
def test_a_configuration(role: str, tmp_path: Path, prints: Callable[..., str]) -> None:
    path = tmp_path / f"{role}.toml"
    path.write_text(prints("config", "init", role))
    assert check_configuration(role, str(path)) == Finding(str(path), "ok", f"a configuration of the {role}")
    path.write_text("nmae = 3\n")
    finding = check_configuration(role, str(path))
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
