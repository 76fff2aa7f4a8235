from __future__ import annotations

from pathlib import Path

import pytest

from lab.image.build import COMMAND_LINE, Image
from lab.qemu.errors import GuestError, GuestOopsError
from lab.qemu.machine import (
    Machine,
    MachineSpec,
    Tools,
    VhostUserVsock,
    VhostVsock,
    VsockDevice,
    find_oops,
    qemu_arguments,
)
from wgvsock.addresses import Cid, Port

IMAGE = Image(Path("/cache/vmlinux"), (Path("/cache/base.cpio"), Path("/run/application.cpio")))
DIRECTORY = Path("/run/lab")


def values(arguments: list[str], option: str) -> list[str]:
    return [arguments[at + 1] for at, word in enumerate(arguments) if word == option]


def test_the_command_line_that_was_measured() -> None:
    arguments = qemu_arguments(MachineSpec("e", IMAGE, memory_mib=320), DIRECTORY)
    assert values(arguments, "-accel") == ["tcg,thread=multi"]
    assert values(arguments, "-cpu") == ["max"]
    assert values(arguments, "-M") == ["q35,memory-backend=mem0"]
    assert values(arguments, "-object") == ["memory-backend-memfd,id=mem0,size=320M,share=on"]
    assert values(arguments, "-m") == ["320M"]
    assert {"-nodefaults", "-no-reboot"} <= set(arguments)
    assert values(arguments, "-kernel") == ["/cache/vmlinux"]
    assert values(arguments, "-append") == [COMMAND_LINE]
    assert "panic=-1" in COMMAND_LINE.split()


def test_console_and_verdict_are_two_serial_ports_in_this_order() -> None:
    arguments = qemu_arguments(MachineSpec("e", IMAGE), DIRECTORY)
    assert values(arguments, "-serial") == ["file:/run/lab/console.log", "file:/run/lab/verdict"]


def test_no_vsock_unless_asked_for() -> None:
    assert not any("vsock-pci" in word for word in qemu_arguments(MachineSpec("e", IMAGE), DIRECTORY))


def test_vsock_through_vhost_user() -> None:
    arguments = qemu_arguments(MachineSpec("e", IMAGE, vsock=VhostUserVsock(Path("/run/v.sock"))), DIRECTORY)
    assert "socket,id=vsock,path=/run/v.sock" in values(arguments, "-chardev")
    assert "vhost-user-vsock-pci,chardev=vsock" in values(arguments, "-device")


def test_vsock_through_the_kernel() -> None:
    arguments = qemu_arguments(MachineSpec("e", IMAGE, vsock=VhostVsock(Cid(16))), DIRECTORY)
    assert "vhost-vsock-pci,guest-cid=16" in values(arguments, "-device")


def test_kvm_where_asked_for() -> None:
    arguments = qemu_arguments(MachineSpec("e", IMAGE, accelerator="kvm"), DIRECTORY)
    assert values(arguments, "-accel") == ["kvm"]
    assert values(arguments, "-cpu") == ["host"]


def test_tools_run_on_their_own_c_library(tmp_path: Path) -> None:
    tools = Tools(tmp_path)
    for command in (tools.qemu(), tools.vhost_device_vsock(16, hybrid=Path("/u"), vhost=Path("/v"))):
        assert command[0] == f"{tmp_path}/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


def test_the_vsock_device_reaches_unix_sockets_only_and_takes_large_packets(tmp_path: Path) -> None:
    command = Tools(tmp_path).vhost_device_vsock(16, hybrid=Path("/u"), vhost=Path("/v"))
    assert command[-2:] == ["--vm", "guest-cid=16,uds-path=/u,socket=/v,tx-buffer-size=32768"]


@pytest.mark.parametrize(
    "line",
    [
        "[    1.234567] Oops: 0000 [#1] PREEMPT SMP PTI",
        "[   12.000001] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[    0.500000] Kernel panic - not syncing: VFS: Unable to mount root fs",
        "[    3.141592] general protection fault, probably for non-canonical address",
        "[   99.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!",
    ],
)
def test_an_oops_is_found_in_the_console(line: str) -> None:
    assert find_oops(f"first line\n{line}\n[ 9.9] Call Trace:\n") == line


@pytest.mark.parametrize(
    "console",
    [
        "",
        "Oops, said the application",
        "[    9.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
        "[    1.000000] tun: Universal TUN/TAP device driver, 1.6",
    ],
)
def test_what_is_no_oops(console: str) -> None:
    assert find_oops(console) is None


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(MachineSpec("enclave", IMAGE), Tools(tmp_path / "nowhere"), tmp_path)


def test_a_machine_that_is_not_up_says_so(machine: Machine) -> None:
    assert machine.exit_code() == -1
    with pytest.raises(GuestError, match="not up"):
        machine.channel()
    machine.kill()


def test_an_oops_is_a_failure_of_its_own_kind_with_the_versions(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Machine, "version", lambda self: "10.0.2")
    machine.check()
    (tmp_path / "console.log").write_text("[    1.000000] Oops: 0002 [#1]\n")
    with pytest.raises(GuestOopsError) as caught:
        machine.check()
    assert "Oops: 0002" in caught.value.why
    assert "QEMU 10.0.2" in caught.value.why
    assert "vmlinux" in caught.value.why


def test_the_host_s_side_of_a_guest_behind_vhost_user(tmp_path: Path) -> None:
    device = VsockDevice(Tools(Path("/tools")), 16, tmp_path)
    assert device.specification == VhostUserVsock(tmp_path / "vhost.sock")
    assert str(device.address(Port(5000))) == f"hybrid:{tmp_path}/u:5000"


def test_what_the_guest_dials_is_led_to_the_socket_that_was_named_last(tmp_path: Path) -> None:
    device = VsockDevice(Tools(Path("/tools")), 16, tmp_path)
    for name in ("one", "other"):
        device.serve(Port(9001), tmp_path / name)
    assert (tmp_path / "u_9001").readlink() == tmp_path / "other"


def test_no_two_commands_of_a_guest_share_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that two processes of one user start: the second would mistake the first one's "ready" for its own."""
    logs: list[str] = []

    class Agent:
        def spawn(self, argv: list[str], *, stderr: str, **_: object) -> int:
            logs.append(stderr)
            return 7

    monkeypatch.setattr(Machine, "channel", lambda _: Agent())
    for _ in range(2):
        machine = Machine(MachineSpec("e", IMAGE, memory_mib=320), Tools(Path("/tools")), tmp_path)
        machine.spawn(["true"], name="capture at pod.eth0", log=tmp_path / "log")
    assert len(set(logs)) == 2
