from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from lab.backend import Completed
from lab.errors import LabError
from lab.qemu.backends import GuestBackend
from lab.qemu.nested import NestedBackend
from lab.qemu.security_module import CuseModule, VirtioModule, asked_for, kind


class Process:
    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 77
        self.done: list[Any] = []

    def kill(self) -> None:
        self.done.append("killed")

    def signal(self, signum: int) -> None:
        self.done.append(signum)

    def wait_for_line(self, wanted: str, _deadline: Any) -> None:
        self.done.append(wanted)


class Guest:
    """Runs nothing. /dev/nsm exists as often as `device` says."""

    def __init__(self, *device: bool) -> None:
        self.device = list(device)
        self.ran: list[list[str]] = []

    def run(self, argv: list[str]) -> Completed:
        self.ran.append(argv)
        code = 0 if argv[0] != "test" or self.device.pop(0) else 1
        return Completed(tuple(argv), code, b"", b"")


class Lab(GuestBackend):
    def __init__(self, directory: Path, guest: Guest, *running: Process) -> None:
        super().__init__("x", directory=directory)
        self.guest = guest
        self.running = list(running)
        self.spawned: list[list[str]] = []

    @property
    def enclave_guest(self) -> Any:
        return self.guest

    def process(self, name: str) -> Any:
        return next((process for process in self.running if process.name == name), None)

    def spawn_in(self, machine: Any, argv: Any, *, name: str, stdin: bool = False) -> Any:
        assert machine is self.guest
        assert not stdin
        self.spawned.append([name, *argv])

    def spawn_here(self, argv: Any, *, name: str, stdin: bool = False) -> Any:
        assert not stdin
        self.spawned.append([name, *argv])
        self.running.append(process := Process(name))
        return process


def test_cuse_unless_asked_otherwise() -> None:
    assert asked_for({}) == asked_for({"LAB_NSM": ""}) == "cuse"
    assert kind("cuse") is CuseModule
    assert kind(asked_for({"LAB_NSM": "virtio"})) is VirtioModule


def test_another_name_is_an_error_that_says_which_there_are() -> None:
    with pytest.raises(LabError, match="'tpm'") as error:
        kind("tpm")
    assert error.value.why == "LAB_NSM is cuse or virtio"


def test_cuse_boots_by_a_new_daemon_that_begins_when_the_old_one_is_gone(tmp_path: Path) -> None:
    old, guest = Process("cuse"), Guest(True, False, False, True)
    lab = Lab(tmp_path, guest, old)
    CuseModule(lab).boot()
    assert old.done == ["killed"]
    assert [argv[:4] for argv in lab.spawned] == [["cuse", "/usr/bin/python3", "-m", "lab.guest.cuse.nsm"]]
    assert guest.device == []
    assert CuseModule(lab).processes() == {77}
    assert CuseModule(lab).options() == ()


def test_virtio_serves_before_qemu_starts_and_tells_it_where(tmp_path: Path) -> None:
    lab = Lab(tmp_path, Guest())
    module = VirtioModule(lab)
    module.raise_up()
    (argv,) = lab.spawned
    assert argv[-4:] == ["--socket", f"{tmp_path}/nsm/virtio.sock", "--signer", f"{tmp_path}/nsm/enclave.sock"]
    assert lab.running[0].done == ["ready"]
    options = module.options()
    assert f"socket,id=nsm,path={tmp_path}/nsm/virtio.sock" in options
    assert "vhost-user-test-device-pci,virtio-id=33,num_vqs=1,chardev=nsm" in options
    assert module.processes() == set()


def test_virtio_boots_by_a_signal_to_the_device_once_the_driver_is_there(tmp_path: Path) -> None:
    process, guest = Process("virtio-nsm"), Guest(False, True)
    VirtioModule(Lab(tmp_path, guest, process)).boot()
    assert guest.ran[0] == ["modprobe", "nsm"]
    assert process.done == [signal.SIGHUP]


def test_virtio_without_its_process_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError) as error:
        VirtioModule(Lab(tmp_path, Guest())).boot()
    assert error.value.why == "virtio-nsm is not running"


def test_nested_has_cuse_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert NestedBackend("x", directory=tmp_path).security_module.name == "cuse"
    monkeypatch.setenv("LAB_NSM", "virtio")
    with pytest.raises(LabError) as error:
        NestedBackend("x", directory=tmp_path)
    assert error.value.fix == "without LAB_NSM"


def test_a_laboratory_has_the_module_that_is_asked_for_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuse = GuestBackend("x", directory=tmp_path)
    assert cuse.nsm_device == "/dev/nsm by a daemon in the guest (CUSE)"
    assert cuse.own_processes == ("signer", "tap")
    monkeypatch.setenv("LAB_NSM", "virtio")
    virtio = GuestBackend("x", directory=tmp_path)
    assert virtio.nsm_device == "/dev/nsm by the kernel's nsm driver (virtio)"
    assert virtio.own_processes == ("signer", "tap", "virtio-nsm")
