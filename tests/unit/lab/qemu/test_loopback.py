from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.guest.packets import LINKTYPE_USER0, write_pcap_header, write_pcap_record
from lab.image.build import Image
from lab.netns import namespaces
from lab.qemu.kvm import Acceleration
from lab.qemu.loopback import GuestTapControl, LoopbackBackend
from lab.qemu.machine import Tools, VsockDevice
from lab.topology import TOPOLOGY
from lab.watch.tap import PSEUDO_HEADER, Chunk, Kind
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT, HybridVsockAddress, Port


@pytest.fixture
def placed(tmp_path: Path) -> LoopbackBackend:
    """A laboratory whose guest is not started."""
    backend = LoopbackBackend("x", directory=tmp_path)
    backend._tools = Tools(Path("/tools"))
    backend._image = Image(Path("/cache/vmlinux"), ())
    backend._acceleration = Acceleration("tcg", "")
    for node, cid in backend._guests().items():
        backend._place(node, cid)
    backend._connect_controls()
    return backend


def test_one_guest_holds_every_node(placed: LoopbackBackend) -> None:
    machines = {placed.machine_of(node) for node in TOPOLOGY.nodes}
    assert len(machines) == 1
    assert None not in machines


def test_every_node_is_a_namespace_of_it(placed: LoopbackBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "own_root", lambda: ["own", "root"])  # this machine's matter, not the guest's
    for node in TOPOLOGY.nodes:
        assert f"wgv-x-{node}" in placed.enter(node)
        assert "own" not in placed.enter(node)


def test_the_relay_meets_the_tap_first_at_the_same_cid(placed: LoopbackBackend) -> None:
    assert str(placed.relay_address(WIREGUARD_PORT)) == "vsock:1:61820"
    assert str(placed.relay_address(PROVISIONING_PORT)) == "vsock:1:61821"
    assert str(placed._enclave_side(WIREGUARD_PORT)) == "vsock:1:51820"


def test_the_enclave_s_parent_is_the_guest_itself(placed: LoopbackBackend) -> None:
    config = placed.enclave_config()
    assert config["parent_cid"] == 1
    assert config["listen"] == "vsock:4294967295:51820"


def test_the_enclave_does_not_boot_by_itself(placed: LoopbackBackend) -> None:
    with pytest.raises(LabError, match="cannot boot again alone"):
        placed.reboot_enclave()


def test_a_diverted_dial_comes_to_a_socket_here_over_vsock(
    placed: LoopbackBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rerouted: list[tuple[int, str]] = []
    monkeypatch.setattr(GuestTapControl, "reroute", lambda _self, port, to: rerouted.append((port, str(to))))
    placed._device._directory.mkdir()
    placed.divert(WIREGUARD_PORT, tmp_path / "listener")
    placed.divert(WIREGUARD_PORT, None)
    assert rerouted == [(51820, "vsock:2:71820"), (51820, "vsock:1:51820")]
    assert Path(f"{placed._device.hybrid}_71820").readlink() == tmp_path / "listener"


def test_the_tap_s_recording_is_fetched_piece_by_piece(tmp_path: Path) -> None:
    there = tmp_path / "there.pcap"
    with there.open("wb") as stream:
        write_pcap_header(stream, LINKTYPE_USER0)
        write_pcap_record(stream, 10.0, PSEUDO_HEADER.pack(1, 51820, Kind.TO_ENCLAVE) + b"first")
    asked: list[int] = []

    def fetch(offset: int) -> bytes:
        asked.append(offset)
        return there.read_bytes()[offset:]

    control = GuestTapControl(HybridVsockAddress("/u", Port(9100)), tmp_path / "here.pcap", fetch)
    try:
        assert control.chunks() == [Chunk(10.0, 1, 51820, Kind.TO_ENCLAVE, b"first")]
        size = there.stat().st_size
        with there.open("ab") as stream:
            write_pcap_record(stream, 20.0, PSEUDO_HEADER.pack(1, 51820, Kind.TO_RELAY) + b"second")
        control.clock_offset = 0.5  # found out meanwhile
        assert control.chunks()[1:] == [Chunk(20.5, 1, 51820, Kind.TO_RELAY, b"second")]
        assert asked == [0, size]
    finally:
        control.close()


def test_its_device_is_the_one_that_reaches_the_guest(placed: LoopbackBackend) -> None:
    assert isinstance(placed._device, VsockDevice)
    assert str(placed._device.address(Port(9100))) == f"hybrid:{placed.directory}/vm-node/u:9100"
