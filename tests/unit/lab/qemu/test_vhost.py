from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.deadline import Deadline
from lab.errors import LabError, Unavailable
from lab.netns import privilege
from lab.process import LocalProcess
from lab.qemu import backends, vhost
from lab.qemu.backends import GuestBackend
from lab.qemu.machine import VhostVsock
from lab.qemu.vhost import KernelVsockDevice, VhostBackend, claim_cid, device_unavailable, free_cid
from lab.topology import Node
from lab.watch.tap import TapControl
from wgvsock.addresses import WIREGUARD_PORT, Cid, Port, VsockAddress


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vhost-vsock"
    path.touch()
    monkeypatch.setattr(vhost, "DEVICE", path)
    return path


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vsock_loopback"
    monkeypatch.setattr(vhost, "LOOPBACK_MODULE", path)
    return path


def fail_to_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)


def test_a_machine_without_the_device_misses_it(tmp_path: Path) -> None:
    reason = device_unavailable(tmp_path / "none")
    assert str(reason) == f"missing: {tmp_path}/none (load the module: modprobe vhost_vsock)"


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENODEV, "missing"), (errno.ENXIO, "missing"), (errno.EACCES, "forbidden"), (errno.EPERM, "forbidden")],
)
def test_missing_is_told_from_forbidden(device: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    fail_to_open(monkeypatch, number)
    reason = device_unavailable(device)
    assert reason is not None
    assert reason.kind == kind


def test_with_the_device_it_needs_what_every_guest_needs(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "unavailable", lambda: None)
    monkeypatch.setattr(privilege, "unavailable", lambda: None)
    assert VhostBackend.unavailable() is None
    monkeypatch.setattr(privilege, "unavailable", lambda: Unavailable("forbidden", "namespaces", "be root"))
    assert str(VhostBackend.unavailable()) == "forbidden: namespaces (be root)"
    device.unlink()
    assert str(VhostBackend.unavailable()).startswith(f"missing: {device}")


@pytest.fixture
def kernel(device: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[tuple[int, bytes]]]:
    """Let the kernel answer every ioctl with an error, 0 for none. Returns the requests."""

    def answer(number: int) -> list[tuple[int, bytes]]:
        asked: list[tuple[int, bytes]] = []

        def ioctl(_descriptor: int, request: int, argument: bytes) -> None:
            asked.append((request, argument))
            if number:
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        return asked

    return answer


def test_the_kernel_is_asked_for_a_cid(kernel: Callable[[int], list[tuple[int, bytes]]]) -> None:
    asked = kernel(0)
    assert claim_cid(Cid(70_000))
    assert asked == [(0x4008AF60, struct.pack("=Q", 70_000))]


def test_another_guest_has_the_cid(kernel: Callable[[int], list[tuple[int, bytes]]]) -> None:
    kernel(errno.EADDRINUSE)
    assert not claim_cid(Cid(70_000))


def test_the_kernel_refuses_for_another_reason(kernel: Callable[[int], list[tuple[int, bytes]]]) -> None:
    kernel(errno.ENOTTY)
    with pytest.raises(LabError, match="cannot use the CID 70000"):
        claim_cid(Cid(70_000))


def test_a_free_cid_is_looked_for() -> None:
    tried: list[Cid] = []

    def claim(cid: Cid) -> bool:
        tried.append(cid)
        return len(tried) == 3

    assert free_cid(claim) == tried[2]
    assert all(1 << 16 <= cid < 1 << 31 for cid in tried)


def test_the_search_for_a_cid_ends() -> None:
    with pytest.raises(LabError, match="no free CID"):
        free_cid(lambda _cid: False)


def test_the_relay_dials_a_unix_socket_without_the_loopback_module(tmp_path: Path, loopback: Path) -> None:
    backend = VhostBackend("x", directory=tmp_path)
    assert str(backend.relay_address(WIREGUARD_PORT)) == f"unix:{tmp_path}/relay-51820"


def test_it_dials_af_vsock_with_it_at_ports_of_the_laboratory_s_own(tmp_path: Path, loopback: Path) -> None:
    loopback.touch()
    one, other = (VhostBackend(name, directory=tmp_path) for name in "xy")
    address = one.relay_address(WIREGUARD_PORT)
    assert isinstance(address, VsockAddress)
    assert address.cid == 1
    assert address != other.relay_address(WIREGUARD_PORT)
    assert one.signer_port not in {address.port, other.signer_port}


def test_the_host_s_side_of_the_guest(tmp_path: Path) -> None:
    side = KernelVsockDevice(Cid(70_000), tmp_path / "vm")
    side.start(Deadline(1))
    assert (tmp_path / "vm").is_dir()
    assert side.specification == VhostVsock(Cid(70_000))
    assert str(side.address(Port(5000))) == "vsock:70000:5000"
    assert side.describe() is None
    side.adopt(None)
    side.stop()


def test_dials_to_the_host_are_forwarded_for_this_guest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    ended: list[int] = []

    def start(cls: type[LocalProcess], name: str, argv: list[str], *, log: Path) -> LocalProcess:
        started.append(argv)
        log.write_text("ready\n")
        return cls(name, log, pid=42, started="1")

    monkeypatch.setattr(LocalProcess, "start", classmethod(start))
    monkeypatch.setattr(LocalProcess, "poll", lambda self: None)
    monkeypatch.setattr(LocalProcess, "kill", lambda self: ended.append(self.pid))
    side = KernelVsockDevice(Cid(70_000), tmp_path)
    side.serve(Port(80_000), tmp_path / "signer.sock")
    ends = ["vsock:4294967295:80000", f"unix:{tmp_path}/signer.sock"]
    assert started[0][1:] == ["-m", "lab.qemu.forward", "--peer", "70000", *ends]
    other = KernelVsockDevice(Cid(70_000), tmp_path)
    other.adopt(side.describe())
    other.stop()
    assert ended == [42]


def test_the_tap_follows_an_enclave_with_a_new_cid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = VhostBackend("x", directory=tmp_path)
    rerouted: list[tuple[int, str]] = []

    def reboot(self: GuestBackend, *, cid: Cid, image: None) -> None:
        self._devices[Node.ENCLAVE] = KernelVsockDevice(cid, tmp_path)

    monkeypatch.setattr(GuestBackend, "reboot_enclave", reboot)
    monkeypatch.setattr(TapControl, "reroute", lambda _self, port, to: rerouted.append((port, str(to))))
    backend._connect_controls()
    backend.reboot_enclave(cid=Cid(70_000))
    assert rerouted == [(51820, "vsock:70000:51820"), (51821, "vsock:70000:51821")]


def test_an_attached_laboratory_has_its_ports(tmp_path: Path, loopback: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.touch()
    one, other = (VhostBackend(name, directory=tmp_path) for name in "xy")
    monkeypatch.setattr(GuestBackend, "state", lambda _self: {})
    monkeypatch.setattr(GuestBackend, "adopt", lambda _self, _state: None)
    other.adopt(one.state())
    assert other.signer_port == one.signer_port
    assert other.relay_address(WIREGUARD_PORT) == one.relay_address(WIREGUARD_PORT)


def test_it_takes_a_cid_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Cid] = []
    monkeypatch.setattr(vhost, "free_cid", lambda: Cid(70_000))
    monkeypatch.setattr(GuestBackend, "up", lambda self: taken.append(self.enclave_cid))
    VhostBackend("x", directory=tmp_path).up()
    assert taken == [70_000]
