"""The control socket answers every request, good or bad, with wireguard-go's bytes."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.netns import namespaces
from tests.e2e.wg.machines import WIREGUARD_GO, Machine, machines, require, wgvsock

INTERFACE = "wg0"
KEY = "ab" * 32
PEER = f"public_key={KEY}\n"
PSK = "cd" * 32

SETS = [
    "",
    "private_key=" + "AB" * 32 + "\n",
    "private_key=" + "00" * 32 + "\n",
    "private_key=00\n",
    "listen_port=0\n",
    "listen_port=51820\n",
    "listen_port=007\n",
    "listen_port=70000\n",
    "listen_port=+5\n",
    "listen_port=\n",
    "fwmark=16\n",
    "fwmark=0x10\n",
    "fwmark=4294967295\n",
    "fwmark=4294967296\n",
    "replace_peers=true\n",
    "replace_peers=false\n",
    "nonsense\n",
    "nonsense=1\n",
    "public_key=\n",
    "public_key=00\n",
    "fwmark=8\r\n",
    PEER,
    PEER + "listen_port=1\n",
    PEER + "update_only=true\nallowed_ip=1.1.1.1/32\n",
    PEER + "update_only=false\n",
    PEER + "remove=true\nallowed_ip=1.1.1.1/32\n",
    PEER + "remove=true\nallowed_ip=nonsense\n",
    PEER + "remove=1\n",
    PEER + f"preshared_key={PSK}\n",
    PEER + "preshared_key=\n",
    PEER + "endpoint=192.0.2.9:9\n",
    PEER + "endpoint=[2001:db8::9]:9\n",
    PEER + "endpoint=[fe80::9%lo]:9\n",
    PEER + "endpoint=192.0.2.9\n",
    PEER + "endpoint=192.0.2.9:99999\n",
    PEER + "endpoint=example.com:80\n",
    PEER + "endpoint=\n",
    PEER + "persistent_keepalive_interval=25\n",
    PEER + "persistent_keepalive_interval=65536\n",
    PEER + "persistent_keepalive_interval=off\n",
    PEER + "replace_allowed_ips=true\nallowed_ip=10.0.0.1/24\nallowed_ip=::/0\n",
    PEER + "allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=11.0.0.0/8\n",
    PEER + "replace_allowed_ips=1\n",
    PEER + "allowed_ip=10.0.0.1\n",
    PEER + "allowed_ip=10.0.0.1/33\n",
    PEER + "allowed_ip=10.0.0.1/024\n",
    PEER + "allowed_ip=fe80::1%eth0/64\n",
    PEER + "protocol_version=1\n",
    f"public_key={'00' * 32}\nendpoint=192.0.2.9:9\nallowed_ip=10.0.0.0/8\n" + PEER,
    PEER + "protocol_version=2\n",
    f"private_key={KEY}\n" + PEER + "allowed_ip=10.0.0.0/8\n" + f"public_key={PSK}\nallowed_ip=10.0.0.0/8\n",
]
REQUESTS = ["get=1\n\n", "get=1\nx", "get=1\r\n\r\n", "get=2\n\n", "set=1\r\n\r\n", "\n"]


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    """A machine with wgvsock's device, and one with wireguard-go's."""
    require("wg", "wireguard-go")
    with machines(tmp_path_factory.mktemp("wg-uapi"), "ours", "theirs") as (ours, theirs):
        wgvsock("udp").start(ours, INTERFACE)
        WIREGUARD_GO.start(theirs, INTERFACE)
        yield ours, theirs


def ask(path: Path, request: str) -> str:
    """Return the server's answer to one request on a separate connection, which ends at the end of the request."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(request.encode())
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def state(path: Path) -> list[list[str]]:
    """Return the device and its peers, in a fixed order, without a port that the kernel has chosen."""
    sections: list[list[str]] = [[]]
    lines, end, rest = ask(path, "get=1\n\n").partition("errno=0\n\n")  # behind whichever peer comes last
    assert (end, rest) == ("errno=0\n\n", "")
    for line in lines.splitlines():
        if line.startswith("public_key="):
            sections.append([])
        if not (line.startswith("listen_port=") and int(line.partition("=")[2]) >= 32768):
            sections[-1].append(line)
    return sorted(sorted(section) for section in sections)


@pytest.fixture
def unset(devices: tuple[Machine, Machine]) -> tuple[Path, Path]:
    """Both control sockets, after everything was reset."""
    ours, theirs = (machine.socket(INTERFACE) for machine in devices)
    for path in (ours, theirs):
        answer = ask(path, f"set=1\nprivate_key={'00' * 32}\nlisten_port=51899\nfwmark=0\nreplace_peers=true\n\n")
        assert answer == "errno=0\n\n"
    return ours, theirs


@pytest.mark.parametrize("lines", SETS)
def test_a_set_request_is_answered_alike_and_does_the_same(unset: tuple[Path, Path], lines: str) -> None:
    ours, theirs = unset
    answer = ask(ours, f"set=1\n{lines}\n")
    assert answer == ask(theirs, f"set=1\n{lines}\n")
    if answer == "errno=0\n\n":
        assert state(ours) == state(theirs)


@pytest.mark.parametrize("request_text", REQUESTS)
def test_any_other_request_is_answered_alike(unset: tuple[Path, Path], request_text: str) -> None:
    ours, theirs = unset
    assert ask(ours, request_text) == ask(theirs, request_text)


def test_a_connection_goes_on_after_an_error_alike(unset: tuple[Path, Path]) -> None:
    ours, theirs = unset
    requests = "set=1\nfwmark=x\n\n"
    with_more = requests + "get=1\n\n"
    assert ask(ours, requests) == ask(theirs, requests)
    assert ask(ours, with_more).startswith(ask(theirs, requests))


def test_a_port_in_use_is_refused_alike(devices: tuple[Machine, Machine], unset: tuple[Path, Path]) -> None:
    for machine, path in zip(devices, unset, strict=True):
        with namespaces.inside(machine.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as holder:
            holder.bind(("0.0.0.0", 51898))  # noqa: S104  # in a separate namespace
            assert ask(path, "set=1\nlisten_port=51898\n\n") == f"errno=-{errno.EADDRINUSE}\n\n"


def test_the_differences_are_these(unset: tuple[Path, Path]) -> None:
    ours, theirs = unset
    # A bad line undoes the lines before it.
    broken = "set=1\nfwmark=5\nnonsense=1\n\n"
    assert ask(ours, broken) == ask(theirs, broken) == "errno=-22\n\n"
    assert "fwmark=5" not in ask(ours, "get=1\n\n")
    assert "fwmark=5" in ask(theirs, "get=1\n\n")
    # A request that is cut off takes no effect.
    for path in (ours, theirs):
        ask(path, "set=1\nfwmark=6")
    assert "fwmark=6" not in ask(ours, "get=1\n\n")
    assert "fwmark=6" in ask(theirs, "get=1\n\n")
    # Taking one allowed IP away: later than Debian's wireguard-go.
    minus = f"set=1\n{PEER}allowed_ip=10.0.0.0/8\nallowed_ip=-10.0.0.0/8\n\n"
    assert (ask(ours, minus), ask(theirs, minus)) == ("errno=0\n\n", "errno=-22\n\n")
