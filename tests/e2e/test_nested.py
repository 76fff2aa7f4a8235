"""The kernel's own vhost-vsock, which `nested` has on any machine, and how long each step takes there."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from lab.ladder import Ladder
from lab.qemu.nested import NestedBackend
from lab.topology import Node, Point
from lab.watch.tap import Kind
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT

pytestmark = pytest.mark.lab

if os.environ.get("LAB") != "nested":
    pytest.skip("only nested has a guest in a guest", allow_module_level=True)

PYTHON = (sys.executable, "-I", "-S", "-c")
ECHO_PORT = 5000

LOCAL_CID = """
import fcntl, struct
with open("/dev/vsock", "rb") as device:
    print(*struct.unpack("I", fcntl.ioctl(device, 0x7B9, bytes(4))))  # IOCTL_VM_SOCKETS_GET_LOCAL_CID
"""

ECHO_SERVER = f"""
import socket
with socket.socket(socket.AF_VSOCK) as listener:
    listener.bind((socket.VMADDR_CID_ANY, {ECHO_PORT}))
    listener.listen()
    print("ready", flush=True)
    stream, _ = listener.accept()
    while data := stream.recv(65536):
        stream.sendall(data)
"""

ECHO_CLIENT = f"""
import json, socket, sys, time
def answered(stream, data):
    start = time.perf_counter()
    stream.sendall(data)
    received = b""
    while len(received) < len(data):
        received += stream.recv(65536)
    assert received == data
    return time.perf_counter() - start
with socket.socket(socket.AF_VSOCK) as stream:
    stream.settimeout(60)
    stream.connect((int(sys.argv[1]), {ECHO_PORT}))
    small = sorted(answered(stream, bytes(64)) for _ in range(50))
    large = [answered(stream, bytes(range(256)) * 100) for _ in range(40)]
    rate = 40 * 25600 / sum(large) / 1e6
    print(json.dumps({{"peer": stream.getpeername()[0], "median_ms": small[25] * 1e3, "mb_s_each_way": rate}}))
"""

Say = Callable[[str], None]
Step = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints a line even when pytest captures a test's output."""

    def say(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{line}")
            sys.stdout.flush()

    return say


@pytest.fixture
def step(say: Say) -> Step:
    """Prints how long something took."""

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        say(f"{time.monotonic() - start:9.1f} s  {what}")

    return timed


def output(lab: Ladder, node: Node, *argv: str) -> str:
    return lab.backend.run(node, argv).check().stdout.decode().strip()


def test_a_guest_boots_in_a_guest(request: pytest.FixtureRequest, step: Step, say: Say) -> None:
    with step("both guests, one in the other, with the network and its servers"):
        lab: Ladder = request.getfixturevalue("network")
    assert isinstance(lab.backend, NestedBackend)
    for guest, seconds in lab.backend.boot_seconds.items():
        say(f"{seconds:9.1f} s    of which the guest {guest}, from QEMU's start until it was ready")
    say(f"{lab.backend.scale:8.1f} times natively is every deadline; inner guest: {lab.backend.inner_accelerator}")
    assert output(lab, Node.POD, *PYTHON, LOCAL_CID) == "3"
    assert output(lab, Node.ENCLAVE, *PYTHON, LOCAL_CID) == "16"


def test_the_inner_guests_device_is_the_outer_kernels_vhost_vsock(network: Ladder) -> None:
    held = output(network, Node.POD, "sh", "-c", "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c /dev/vhost-vsock")
    assert int(held) == 1
    assert output(network, Node.POD, "cat", "/sys/module/vhost_vsock/refcnt") == "1"


def test_an_echo_over_it(network: Ladder, step: Step, say: Say) -> None:
    server = network.backend.spawn(Node.ENCLAVE, [*PYTHON, ECHO_SERVER], name="vsock-echo")
    server.wait_for_line("ready", network.backend.deadline(20))
    with step("vsock echo, 50 times 64 bytes and 40 times 25,600"):
        report = json.loads(output(network, Node.POD, *PYTHON, ECHO_CLIENT, "16"))
    say(f"{report['median_ms']:8.1f} ms  there and back; {report['mb_s_each_way']:.1f} MB/s each way")
    assert report["peer"] == 16
    assert server.wait(network.backend.deadline(10)) == 0


def test_provisioning_over_it(network: Ladder, step: Step) -> None:
    backend = network.backend
    with step("wgvsock relay run in the outer guest, until it answers"):
        network.start_relay()
        backend.deadline(20).poll(lambda: backend.status(Node.POD), "the Relay to answer")
    with step("/dev/nsm and wgvsock enclave run in the inner guest"):
        network.start_enclave()
    with step("attested, provisioned, a session and rules"):
        status = network.wait_ready()
    with step("the application answers through the pod's address"):
        network.wait_application()
    assert backend.relay_config()["enclave"]["address"] == f"vsock:16:{WIREGUARD_PORT}"
    assert backend.relay_config()["enclave"]["provisioning_address"] == f"vsock:16:{PROVISIONING_PORT}"
    assert backend.relay_config()["attestation"]["root_sha256"] == [backend.nsm.describe().root_sha256.hex()]
    assert status["attestation"]["pcrs"]["PCR2"] == backend.enclave_measurements["PCR2"]
    assert output(network, Node.ENCLAVE, "ls", "-l", "/dev/nsm").startswith("c")


def test_the_kernels_monitor_saw_all_of_it(tunnel: Ladder) -> None:
    frames = tunnel.history.update().frames
    exchange = [(frame.kind, frame.name) for frame in frames if frame.port == PROVISIONING_PORT]
    assert exchange[:4] == [
        (Kind.TO_RELAY, "HELLO"),
        (Kind.TO_ENCLAVE, "REQUEST"),
        (Kind.TO_RELAY, "RESPONSE"),
        (Kind.TO_ENCLAVE, "RESULT"),
    ]
    handshake = {(frame.kind, frame.name) for frame in frames if frame.port == WIREGUARD_PORT}
    assert (Kind.TO_RELAY, "transport data") in handshake


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_an_egress_flow(tunnel: Ladder, step: Step, family: int) -> None:
    external, pod = (getattr(tunnel.topology, f"{node}{family}") for node in ("external", "pod"))
    with step("the observation of an egress exchange"), tunnel.observe() as observation:
        with step("one UDP exchange of the enclave with the external machine"):
            tunnel.probe(Node.ENCLAVE, "udp", external, "7", "--text", observation.token)
        outside = observation.wait_for(Point.EXTERNAL_ETH0, tunnel.backend.deadline(5), to_port=7)
        assert (outside.source, outside.destination) == (pod, external)
        assert observation.request_was_carried(7)
        assert not observation.readable_at_vsock()
    with step("100 kB of TCP there and back"):
        tunnel.probe(Node.ENCLAVE, "tcp", external, "7", "--bytes", "100000")


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_an_ingress_flow(tunnel: Ladder, step: Step, family: int) -> None:
    external, pod, enclave = (getattr(tunnel.topology, f"{node}{family}") for node in ("external", "pod", "enclave"))
    port = tunnel.topology.application.echo_port
    with step("the observation of an ingress exchange"), tunnel.observe() as observation:
        with step("one UDP exchange of a client with the application in the enclave"):
            tunnel.probe(Node.EXTERNAL, "udp", pod, str(port), "--text", observation.token)
        inside = observation.wait_for(Point.ENCLAVE_WG0, tunnel.backend.deadline(5), to_port=port)
        assert (inside.source, inside.destination) == (external, enclave)
        assert observation.request_was_carried(port)
        assert not observation.readable_at_vsock()
    with step("100 kB of TCP there and back"):
        tunnel.probe(Node.EXTERNAL, "tcp", pod, str(port), "--bytes", "100000")
