"""What only a guest can show: the security module's device, and an enclave that freezes, dies, or is another one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from lab.backends import backend_class
from lab.image.build import build as build_image
from lab.image.cpio import File
from lab.image.eif import measure
from lab.image.enclave import from_image
from lab.ladder import PROBE, Ladder
from lab.qemu.backends import GuestBackend
from lab.qemu.machine import VsockDevice
from lab.topology import Node
from lab.virtio.nsm import DEVICE_ID
from wgvsock.addresses import PROVISIONING_PORT, Cid

pytestmark = pytest.mark.lab

BACKEND = os.environ.get("LAB", "netns")

if not issubclass(backend_class(BACKEND), GuestBackend):
    pytest.skip(f"the enclave of {BACKEND} is a namespace, not a guest", allow_module_level=True)

LOCAL_CID = """
import fcntl, struct
with open("/dev/vsock", "rb") as device:
    print(*struct.unpack("I", fcntl.ioctl(device, 0x7B9, bytes(4))))  # IOCTL_VM_SOCKETS_GET_LOCAL_CID
"""


def guest(lab: Ladder) -> GuestBackend:
    return cast("GuestBackend", lab.backend)


def in_enclave(lab: Ladder, *argv: str) -> str:
    return lab.backend.run(Node.ENCLAVE, argv).check().stdout.decode().strip()


def local_cid(lab: Ladder) -> int:
    return int(in_enclave(lab, sys.executable, "-I", "-S", "-c", LOCAL_CID))


def with_a_guest_of_its_own(lab: Ladder) -> Ladder:
    if Node.ENCLAVE in guest(lab).moved:
        pytest.skip(f"the enclave of {BACKEND} shares its guest with the other nodes")
    return lab


def test_dev_nsm_is_a_character_device_of_its_driver_that_the_enclave_holds_open(tunnel: Ladder) -> None:
    listing = in_enclave(tunnel, "ls", "-l", "/dev/nsm")
    assert listing.startswith("c")
    major, minor = (int(number, 16) for number in in_enclave(tunnel, "stat", "-c", "%t %T", "/dev/nsm").split())
    driver = in_enclave(tunnel, "readlink", f"/sys/dev/char/{major}:{minor}")
    majors = [line.strip() for line in in_enclave(tunnel, "cat", "/proc/devices").splitlines()]
    if guest(tunnel).security_module.name == "cuse":
        assert driver.endswith("/cuse/nsm")
        assert f"{major} nsm" in majors
    else:  # the kernel's own driver
        assert driver.endswith("/misc/nsm")
        assert f"{major} misc" in majors
        devices = in_enclave(tunnel, "sh", "-c", "cat /sys/bus/virtio/drivers/nsm/virtio*/device")
        assert int(devices, 16) == DEVICE_ID
    assert tunnel.enclave is not None
    assert "/dev/nsm" in in_enclave(tunnel, "ls", "-l", f"/proc/{tunnel.enclave.pid}/fd")


def test_the_relay_verified_the_document_with_the_laboratorys_root_alone(tunnel: Ladder) -> None:
    pinned = tunnel.backend.relay_config()["attestation"]["root_sha256"]
    described = tunnel.backend.nsm.describe()
    assert pinned == [tunnel.backend.root_sha256] == [described.root_sha256.hex()]
    attestation = tunnel.relay_status()["attestation"]
    assert attestation["module_id"] == described.module_id
    assert {name: attestation["pcrs"][name] for name in ("PCR0", "PCR1", "PCR2")} == {
        f"PCR{number}": value.hex() for number, value in described.measurements.items() if number <= 2
    }


def test_connections_outlive_a_frozen_guest(tunnel: Ladder) -> None:
    with_a_guest_of_its_own(tunnel)
    port = str(tunnel.topology.application.echo_port)
    argv = [*PROBE, "--scale", f"{tunnel.backend.scale:g}", "stream", tunnel.topology.pod4, port, "--timeout", "30"]
    patience = tunnel.patience()
    client = tunnel.backend.spawn(Node.EXTERNAL, argv, name="stream-frozen", stdin=True)
    try:
        client.wait_for_line("alive", tunnel.backend.deadline(20))
        guest(tunnel).enclave_guest.pause()
        try:
            assert tunnel.has_no_answer(Node.POD, "ping", tunnel.topology.enclave4, patience=patience)
        finally:
            guest(tunnel).enclave_guest.resume()
        lines = client.output().count("alive")
        tunnel.backend.deadline(20).poll(lambda: client.output().count("alive") > lines + 3, "the stream to go on")
        client.stdin.close()
        assert client.wait(tunnel.backend.deadline(30)) == 0, client.output()
    finally:
        client.kill()


def test_the_vsock_device_outlives_who_dials_a_busy_guest_and_leaves(tunnel: Ladder) -> None:
    backend = guest(tunnel)
    if not isinstance(backend.enclave_vsock, VsockDevice):
        pytest.skip("a kernel serves the enclave's vsock")
    address = backend.enclave_vsock.address(PROVISIONING_PORT)
    argv = [sys.executable, "-m", "lab.programs.flooder", "connect", "--rate", "20", str(address)]
    backend.enclave_guest.pause()
    try:
        flooder = backend.spawn_here(argv, name="flooder")
        descriptors = Path(f"/proc/{flooder.pid}/fd")
        backend.deadline(20).poll(lambda: len(list(descriptors.iterdir())) > 15, "connections without an answer")
        flooder.signal(signal.SIGTERM)
    finally:
        backend.enclave_guest.resume()
    assert flooder.wait(backend.deadline(60)) == 0, flooder.output()
    in_enclave(tunnel, "true")  # by then its kernel has answered
    backend.enclave_vsock.check()
    backend.dial_enclave(PROVISIONING_PORT).close()


@pytest.fixture
def rebooted(network: Ladder) -> Iterator[Ladder]:
    """A tunnel whose enclave the test may reboot."""
    with_a_guest_of_its_own(network).raise_tunnel()
    yield network
    network.clear()


def wait_until_the_relay_knows(lab: Ladder) -> None:
    lab.backend.deadline(30).poll(lambda: not lab.relay_status()["ready"], "the Relay to notice")


def start_and_attest(lab: Ladder) -> None:
    """Start the Enclave, and make the Relay check it without waiting for its back-off, which has become long."""
    lab.start_enclave()
    lab.backend.deadline(20).poll(lambda: lab.backend.status(Node.ENCLAVE), "the Enclave to answer")
    lab.attest_again()


def is_served(lab: Ladder) -> None:
    start_and_attest(lab)
    lab.wait_ready()
    lab.wait_application()
    lab.probe(Node.ENCLAVE, "tcp", lab.topology.external4, "7", "--bytes", "100000")


def test_an_enclave_without_its_vsock_device_is_replaced_by_one_with_another_cid(rebooted: Ladder) -> None:
    backend = guest(rebooted)
    before = local_cid(rebooted)
    assert before == backend.enclave_cid
    if isinstance(backend.enclave_vsock, VsockDevice):
        backend.enclave_vsock.stop()
        wait_until_the_relay_knows(rebooted)
    backend.reboot_enclave(cid=Cid(before + 1))
    wait_until_the_relay_knows(rebooted)
    is_served(rebooted)
    assert local_cid(rebooted) == before + 1


def test_another_image_is_refused_by_its_pcrs(rebooted: Ladder, tmp_path: Path) -> None:
    backend = guest(rebooted)
    patience = rebooted.patience()
    own = rebooted.backend.enclave_measurements
    other = build_image({"opt/wgvsock/one-more-file": File(b"")}, target=tmp_path)
    measured = {f"PCR{number}": value.hex() for number, value in measure(from_image(other)).items()}
    assert measured["PCR1"] == own["PCR1"]  # the same kernel and userland,
    assert measured["PCR2"] != own["PCR2"]  # but another application
    assert rebooted.relay is not None
    said = len(rebooted.relay.output())
    backend.reboot_enclave(image=other)
    try:
        start_and_attest(rebooted)
        relay = rebooted.relay
        rebooted.backend.deadline(20).poll(lambda: "check pcr.set:" in relay.output()[said:], "the Relay to refuse it")
        assert rebooted.relay_status()["wireguard"]["peers"] == []
        assert "masquerade" not in rebooted.nat_rules()
        assert rebooted.has_no_answer(Node.ENCLAVE, "udp", rebooted.topology.external4, "7", patience=patience)
    finally:
        backend.reboot_enclave()
    is_served(rebooted)
