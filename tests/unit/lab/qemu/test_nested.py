from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.image import nested as nested_image
from lab.image.build import Image
from lab.qemu.channel import GuestProcess
from lab.qemu.kvm import Acceleration
from lab.qemu.machine import Tools, VhostVsock
from lab.qemu.nested import InnerMachine, InnerVsockDevice, NestedBackend, inner_command, outer_ports
from lab.topology import Node
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT

INNER = Image(Path("/cache/vmlinux"), (Path("/cache/base.cpio"), Path("/lab/application.cpio")), "quiet")


@pytest.fixture
def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NestedBackend:
    """A laboratory whose guests are not started."""
    outer = replace(INNER, ramdisks=(*INNER.ramdisks, Path("/cache/nested.cpio")))
    monkeypatch.setattr(nested_image, "outer", lambda _inner, _target: outer)
    backend = NestedBackend("x", directory=tmp_path)
    backend._tools = Tools(Path("/tools"))
    backend._image = INNER
    backend._acceleration = Acceleration("tcg", "")
    for node, cid in backend._guests().items():
        backend._place(node, cid)
    return backend


def test_the_outer_guest_comes_first(placed: NestedBackend) -> None:
    assert list(placed._guests()) == [Node.NODE, Node.ENCLAVE]
    assert list(placed._machines) == [Node.NODE, Node.ENCLAVE]


def test_the_enclave_is_a_guest_in_the_guest_of_all_others(placed: NestedBackend) -> None:
    enclave = placed.machine_of(Node.ENCLAVE)
    assert isinstance(enclave, InnerMachine)
    assert enclave._outer is placed.machine_of(Node.POD) is placed.machine_of(Node.EXTERNAL)


def test_the_relay_dials_the_inner_guest_itself(placed: NestedBackend) -> None:
    assert str(placed.relay_address(WIREGUARD_PORT)) == "vsock:16:51820"
    assert str(placed.relay_address(PROVISIONING_PORT)) == "vsock:16:51821"


def test_only_the_outer_guest_holds_more_than_is_measured(placed: NestedBackend) -> None:
    outer, inner = placed._machines[Node.NODE].spec, placed._machines[Node.ENCLAVE].spec
    assert inner.image == INNER
    assert outer.image.ramdisks[:2] == INNER.ramdisks
    assert outer.memory_mib > 2 * inner.memory_mib
    assert inner.vsock == VhostVsock(placed.enclave_cid)
    assert isinstance(placed._devices[Node.ENCLAVE], InnerVsockDevice)


def test_every_channel_of_the_inner_guest_leads_to_its_folder(tmp_path: Path) -> None:
    options = " ".join(outer_ports(tmp_path))
    for name, file in {"console": "console.log", "verdict": "verdict"}.items():
        assert f"file,id=inner.{name},path={tmp_path}/{file},append=on" in options
    for name in ("agent", "shell"):
        assert f"socket,id=inner.{name},path={tmp_path}/{name}.sock,server=on,wait=off" in options
    assert options.count("virtserialport") == 4


def test_the_inner_qemu_is_the_outer_guests(placed: NestedBackend) -> None:
    placed.inner_accelerator = "kvm"
    command = inner_command(placed._specification(Node.ENCLAVE))
    assert command[0].startswith("/opt/qemu/")
    assert command[command.index("-kernel") + 1] == "/nested/vmlinux"
    assert command[command.index("-initrd") + 1] == "/nested/initrd"
    assert command[command.index("-append") + 1] == "quiet"
    assert command[command.index("-accel") + 1] == "kvm"
    assert "vhost-vsock-pci,guest-cid=16" in command
    assert any("hugetlb=on" in option for option in command)
    assert "socket,id=verdict,path=/nested/verdict.sock" in command


def test_it_boots_one_image_only(placed: NestedBackend) -> None:
    with pytest.raises(LabError, match="another image"):
        placed.reboot_enclave(image=INNER)


def test_another_process_takes_both_guests_over(placed: NestedBackend, tmp_path: Path) -> None:
    outer, inner = placed._machines[Node.NODE], placed._machines[Node.ENCLAVE]
    inner._qemu = GuestProcess("QEMU enclave", tmp_path / "qemu.log", outer.channel, pid=41, remote_log="/run/log/3")
    forwarder = GuestProcess("forwarder", tmp_path / "f.log", outer.channel, pid=42, remote_log="/run/log/2", offset=7)
    placed._devices[Node.ENCLAVE]._forwarder = forwarder  # type: ignore[attr-defined]
    placed.inner_accelerator, inner.scale = "kvm", 8.0
    attached = NestedBackend.attach(json.loads(json.dumps(placed.state())))
    there = attached._machines[Node.ENCLAVE]
    assert isinstance(there, InnerMachine)
    assert there._qemu is not None
    assert there._qemu.describe() == inner._qemu.describe()
    assert attached._devices[Node.ENCLAVE].describe() == forwarder.describe()
    assert attached.inner_accelerator == "kvm"
    assert attached.scale == 8.0
