"""`wgvsock device` starts, goes into the background and ends like wireguard-go."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.deadline import patiently
from lab.netns import namespaces
from tests.e2e.wg.machines import DEVICE, WIREGUARD_GO, Implementation, Machine, machines, require, wgvsock
from wgvsock.devices.tun import open_tun

INTERFACE = "wga"
FOREGROUND = (wgvsock("udp"), WIREGUARD_GO)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    require("wg", "wireguard-go")
    with machines(tmp_path, "one") as (one,):
        yield one


def interfaces(machine: Machine) -> set[str]:
    return set(namespaces.interfaces(machine.namespace)) - {"lo", "eth0"}


def in_background(machine: Machine) -> bool:
    return bool(namespaces.processes_in(machine.namespace))


@pytest.mark.parametrize("implementation", FOREGROUND, ids=lambda implementation: implementation.name)
@pytest.mark.parametrize(
    "end",
    [
        lambda machine, process: process.signal(signal.SIGTERM),
        lambda machine, process: process.signal(signal.SIGINT),
        lambda machine, process: machine.run("ip", "link", "del", INTERFACE),
        lambda machine, process: machine.socket(INTERFACE).unlink(),
    ],
    ids=["SIGTERM", "SIGINT", "interface removed", "socket removed"],
)
def test_each_way_to_end_leaves_nothing(
    machine: Machine, implementation: Implementation, end: Callable[[Machine, object], None]
) -> None:
    process = implementation.start(machine, INTERFACE)
    assert interfaces(machine) == {INTERFACE}
    end(machine, process)
    assert process.wait(patiently(10)) == 0
    assert interfaces(machine) == set()
    assert not machine.socket(INTERFACE).exists()


@pytest.mark.parametrize("command", [DEVICE, "wireguard-go"], ids=["ours", "theirs"])
def test_the_parent_returns_when_interface_and_socket_are_ready(machine: Machine, command: str | Path) -> None:
    machine.run(command, INTERFACE, environment={"WGVSOCK_NETWORK": "udp"})
    assert interfaces(machine) == {INTERFACE}
    assert machine.wg("show", INTERFACE).startswith(f"interface: {INTERFACE}")
    assert "mtu 1420" in machine.run("ip", "link", "show", INTERFACE)
    machine.run("ip", "link", "del", INTERFACE)
    patiently(10).poll(lambda: not in_background(machine), "the device to end")


def test_the_background_is_a_session_of_its_own(machine: Machine) -> None:
    machine.run(DEVICE, INTERFACE, environment={"WGVSOCK_NETWORK": "udp"})
    (pid,) = namespaces.processes_in(machine.namespace)
    assert os.getsid(pid) == os.getpgid(pid) != os.getsid(0)  # a hang-up of the terminal does not reach it
    assert Path(f"/proc/{pid}/cwd").readlink() == Path(f"/proc/{pid}/root").readlink()


def test_the_socket_is_root_s_alone(machine: Machine) -> None:
    wgvsock("udp").start(machine, INTERFACE)
    assert stat.S_IMODE(machine.socket(INTERFACE).stat().st_mode) == 0o600


def test_the_background_says_nothing_unless_asked(machine: Machine) -> None:
    quiet = machine.run("sh", "-c", f"{DEVICE} -n udp quiet 2>&1")
    assert quiet == ""
    # Read until the device has ended: it keeps the terminal that it was started from.
    loud = machine.start("sh", "-c", f"LOG_LEVEL=debug {DEVICE} -n udp loud", name="loud")
    assert loud.wait(patiently(10)) == 0
    patiently(10).poll(lambda: "the device is up" in loud.output(), "its first word, after the parent has ended")
    machine.run("ip", "link", "del", "loud")
    patiently(10).poll(lambda: "the device is down" in loud.output(), "its last word")


def test_an_interface_in_use_is_an_error_that_says_so(machine: Machine) -> None:
    wgvsock("udp").start(machine, INTERFACE)
    said = machine.run("sh", "-c", f"{DEVICE} -n udp {INTERFACE} 2>&1; echo exit $?")
    assert "error[WGV-E071]: cannot create the interface wga" in said
    assert "exit 7" in said
    assert machine.wg("show", INTERFACE) != ""


def test_a_served_control_socket_is_an_error_that_says_so(machine: Machine) -> None:
    path = machine.socket(INTERFACE)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        said = machine.run("sh", "-c", f"{DEVICE} -n udp {INTERFACE} 2>&1; echo exit $?")
    assert "error[WGV-E068]: cannot open the control socket" in said
    assert "exit 7" in said
    assert interfaces(machine) == set()


@pytest.mark.parametrize("arguments", [[], ["-n", "carrier-pigeon", "wga"], ["wga", "wgb"]])
def test_wrong_arguments_are_a_usage_error(machine: Machine, arguments: list[str]) -> None:
    assert "exit 2" in machine.run("sh", "-c", '"$@" 2>&1; echo exit $?', "sh", DEVICE, *arguments)


@pytest.mark.parametrize("name", ["seventeen-letters", "a/b"])
def test_a_name_that_no_interface_can_have(machine: Machine, name: str) -> None:
    said = machine.run("sh", "-c", f"{DEVICE} -n udp {name} 2>&1; echo exit $?")
    assert "error[WGV-E001]: no interface can be named" in said
    assert "exit 2" in said


def test_descriptors_are_inherited(machine: Machine) -> None:
    """WG_TUN_FD and WG_UAPI_FD, as a supervisor passes them."""
    path = machine.socket("given")
    tun = namespaces.inside(machine.namespace, lambda: open_tun("given"))
    with contextlib.closing(tun), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen(
            machine.argv([DEVICE, "-f", "-n", "udp", "ignored"]),
            pass_fds=(tun.fileno(), listener.fileno()),
            env={**os.environ, "WG_TUN_FD": str(tun.fileno()), "WG_UAPI_FD": str(listener.fileno())},
        )
    with process:
        patiently(10).poll(lambda: machine.wg("show", "given", check=False), "wg to be answered")
        assert interfaces(machine) == {"given"}
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("variable", ["WG_TUN_FD", "WG_UAPI_FD"])
@pytest.mark.parametrize("value", ["77", "x"])
def test_a_descriptor_that_is_none_is_an_error(machine: Machine, variable: str, value: str) -> None:
    said = machine.run("sh", "-c", f"{variable}={value} {DEVICE} -f -n udp {INTERFACE} 2>&1; echo exit $?")
    assert "error[WGV-E0" in said
    assert "exit 7" in said or "exit 2" in said
    assert interfaces(machine) == set()


def test_running_out_of_descriptors_does_not_end_it(machine: Machine) -> None:
    """Nor does it spin: the sockets' backlog waits until descriptors are available again."""
    process = machine.start("sh", "-c", f"ulimit -n 24; exec {DEVICE} -f -n udp {INTERFACE}", name="poor")
    path = machine.socket(INTERFACE)
    patiently(10).poll(path.exists, "the control socket")
    clients = [socket.socket(socket.AF_UNIX) for _ in range(30)]
    for client in clients:
        client.connect(str(path))
    process.wait_for_line(os.strerror(errno.EMFILE), patiently(10))
    for client in clients:
        client.close()
    patiently(10).poll(lambda: machine.wg("show", INTERFACE, check=False), "wg to be answered")
    assert process.output().count(os.strerror(errno.EMFILE)) <= 3


def test_wg_may_ask_at_any_moment_of_the_start(machine: Machine) -> None:
    """Stock ``wg`` removes a control socket that refuses it, so a socket must never be visible before it listens."""
    asking = machine.start("sh", "-c", f"while :; do wg show {INTERFACE} >/dev/null 2>&1; done", name="asking")
    for _ in range(10):
        machine.run(DEVICE, "-n", "udp", INTERFACE)
        assert machine.wg("show", INTERFACE).startswith(f"interface: {INTERFACE}")
        machine.run("ip", "link", "del", INTERFACE)
        patiently(10).poll(lambda: not machine.socket(INTERFACE).exists(), "the device to end")
    assert asking.poll() is None
