"""The snapshot of a real pair of devices, and the metrics made from one."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock import __version__
from wgvsock.addresses import Cid, Port, VsockAddress
from wgvsock.telemetry.status import counters, key_text, metrics, wireguard_status
from wgvsock.testing import DevicePair, SeededRandom
from wgvsock.testing.pair import ALICE
from wgvsock.tunnel.tunnel import TunnelDrop, TunnelStatistics
from wgvsock.virtio_net import HeaderFault
from wgvsock.wireguard import Device, DropReason, generate_private_key

PRESHARED_KEY = bytes(range(32))


class Link:
    """An endpoint that has an address, like those of the transports' links."""

    address = VsockAddress(Cid(16), Port(51820))


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> DevicePair:
    made = DevicePair(preshared_key=PRESHARED_KEY)
    monkeypatch.setattr("wgvsock.telemetry.status.time.time_ns", made.clock.wall_clock)
    return made


def peer_of(pair: DevicePair) -> dict[str, Any]:
    (peer,) = wireguard_status(pair.alice, "wg0", pair.now)["peers"]
    assert isinstance(peer, dict)
    return peer


def test_keys_are_written_as_wg_does() -> None:
    assert key_text(bytes(32)) == "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    assert key_text(None) is None


def test_a_device_without_key_and_peers() -> None:
    device = Device(random=SeededRandom("x"), wall_clock=lambda: 0)
    assert wireguard_status(device, "wg9", 0.0) == {"interface": "wg9", "public_key": None, "peers": []}


def test_a_peer_that_was_never_there(pair: DevicePair) -> None:
    bob = pair.bob.public_key
    assert bob is not None
    assert peer_of(pair) == {
        "public_key": base64.b64encode(bob).decode(),
        "endpoint": "bob",
        "allowed_ips": ["10.0.0.2/32", "fd00::2/128"],
        "profile": "plain",
        "handshake_age_seconds": None,
        "silent_seconds": None,
        "handshakes_completed": 0,
        "rx_bytes": 0,
        "tx_bytes": 0,
        "rx_packets": 0,
        "tx_packets": 0,
    }


def test_a_peer_after_traffic(pair: DevicePair) -> None:
    pair.handshake()
    pair.bob_sends()
    pair.bob_sends()
    pair.clock.advance(2.5)
    peer = peer_of(pair)
    assert (peer["handshake_age_seconds"], peer["silent_seconds"], peer["handshakes_completed"]) == (2.5, 2.5, 1)
    known = pair.alices_peer
    assert (peer["rx_bytes"], peer["tx_bytes"]) == (known.rx_bytes, known.tx_bytes)
    assert (peer["rx_packets"], peer["tx_packets"]) == (known.rx_packets, known.tx_packets)
    assert len({peer["rx_bytes"], peer["tx_bytes"], peer["rx_packets"], peer["tx_packets"], 0}) == 5


def test_a_wall_clock_that_was_set_back_makes_no_age_negative(pair: DevicePair) -> None:
    pair.handshake()
    pair.clock.step_wall_clock(-60)
    assert peer_of(pair)["handshake_age_seconds"] == 0


def test_a_link_is_shown_by_its_address(pair: DevicePair) -> None:
    pair.alices_peer.endpoint = Link()
    assert peer_of(pair)["endpoint"] == "vsock:16:51820"


def test_no_secret_is_in_it(pair: DevicePair) -> None:
    pair.handshake()
    private_key = generate_private_key(SeededRandom(ALICE))
    written = json.dumps(wireguard_status(pair.alice, "wg0", pair.now))
    for public in (pair.alice.public_key, pair.bob.public_key):
        assert public is not None
        assert base64.b64encode(public).decode() in written
    for secret in (private_key, PRESHARED_KEY):
        assert secret.hex() not in written
        assert base64.b64encode(secret).decode() not in written


def tunnel_statistics(device: Device, drops: Mapping[TunnelDrop, int] | None = None) -> TunnelStatistics:
    return TunnelStatistics(device=device.statistics(), own_drops=drops or {}, offloads=True)


def test_counters_without_drops(pair: DevicePair) -> None:
    assert counters(replace(tunnel_statistics(pair.alice), acknowledgements_superseded=5)) == {
        "dropped": {},
        "acknowledgements_superseded": 5,
        "offloads": True,
    }


def test_refused_super_packets_are_told(pair: DevicePair) -> None:
    statistics = replace(tunnel_statistics(pair.alice), super_packets_refused=3, offloads=False)
    assert counters(statistics) == {
        "dropped": {},
        "acknowledgements_superseded": 0,
        "offloads": False,
        "super_packets_refused": 3,
    }


def test_what_was_dropped_by_reason(pair: DevicePair) -> None:
    pair.alice.receive_datagram(b"garbage", "somebody", pair.now)
    pair.alice.receive_datagram(b"more of it", "somebody", pair.now)
    pair.alice.drop_bad_header(HeaderFault.TRUNCATED, "bob", pair.alices_peer)
    own = {TunnelDrop.UNREACHABLE: 3, TunnelDrop.BACKLOG: 4, TunnelDrop.OFFLOADED: 0, TunnelDrop.KERNEL: 6}
    statistics = tunnel_statistics(pair.alice, own)
    assert statistics.device.drops[DropReason.BAD_VIRTIO_HEADER] == 1
    assert counters(statistics)["dropped"] == {
        "malformed_message": 2,
        "virtio_truncated": 1,  # and not once more as bad_virtio_header
        "unreachable": 3,
        "backlog": 4,
        "kernel": 6,
    }


def snapshot(**changes: Any) -> dict[str, Any]:
    peer = {"public_key": "AAA=", "rx_bytes": 1, "tx_bytes": 2, "rx_packets": 3, "tx_packets": 4}
    return {
        "role": "relay",
        "state": "ready",
        "ready": True,
        "provisioning": {"attempts": {"ok": 2, "failed": 1}},
        "wireguard": {"peers": [{**peer, "handshake_age_seconds": 12.345}]},
        "counters": {"dropped": {"no_route": 7}},
        **changes,
    }


def test_metrics() -> None:
    assert metrics(snapshot()) == (
        "# HELP wgvsock_build_info Always 1, with the build as labels.\n"
        "# TYPE wgvsock_build_info gauge\n"
        f'wgvsock_build_info{{version="{__version__}",commit="",build=""}} 1\n'
        "# HELP wgvsock_up 1 while the service runs.\n"
        "# TYPE wgvsock_up gauge\n"
        'wgvsock_up{role="relay",state="ready"} 1\n'
        "# HELP wgvsock_ready 1 while packets may pass.\n"
        "# TYPE wgvsock_ready gauge\n"
        'wgvsock_ready{role="relay"} 1\n'
        "# HELP wgvsock_provisioning_total Provisioning exchanges by outcome.\n"
        "# TYPE wgvsock_provisioning_total counter\n"
        'wgvsock_provisioning_total{outcome="ok"} 2\n'
        'wgvsock_provisioning_total{outcome="failed"} 1\n'
        "# HELP wgvsock_peer_rx_bytes_total WireGuard bytes, rx.\n"
        "# TYPE wgvsock_peer_rx_bytes_total counter\n"
        'wgvsock_peer_rx_bytes_total{peer="AAA="} 1\n'
        "# HELP wgvsock_peer_rx_packets_total WireGuard packets, rx.\n"
        "# TYPE wgvsock_peer_rx_packets_total counter\n"
        'wgvsock_peer_rx_packets_total{peer="AAA="} 3\n'
        "# HELP wgvsock_peer_tx_bytes_total WireGuard bytes, tx.\n"
        "# TYPE wgvsock_peer_tx_bytes_total counter\n"
        'wgvsock_peer_tx_bytes_total{peer="AAA="} 2\n'
        "# HELP wgvsock_peer_tx_packets_total WireGuard packets, tx.\n"
        "# TYPE wgvsock_peer_tx_packets_total counter\n"
        'wgvsock_peer_tx_packets_total{peer="AAA="} 4\n'
        "# HELP wgvsock_peer_handshake_age_seconds Time since the last completed handshake.\n"
        "# TYPE wgvsock_peer_handshake_age_seconds gauge\n"
        'wgvsock_peer_handshake_age_seconds{peer="AAA="} 12.345\n'
        "# HELP wgvsock_dropped_total Packets and messages dropped, by reason.\n"
        "# TYPE wgvsock_dropped_total counter\n"
        'wgvsock_dropped_total{reason="no_route"} 7\n'
    )


def test_when_an_enclave_was_attested_and_until_when_that_counts() -> None:
    def enclave(name: str, attestation: dict[str, Any] | None) -> dict[str, Any]:
        provisioning = {"attempts": {}, "trusted_for_seconds": 61.5}
        nothing = {"wireguard": None, "counters": None, "nat": None, "path": None}
        return {
            "name": name,
            "state": "x",
            "ready": False,
            "attestation": attestation,
            "provisioning": provisioning,
            **nothing,
        }

    attested = enclave("a", {"timestamp": "2026-01-01T00:00:00+00:00"})
    text = metrics(snapshot(enclaves=[attested, enclave("b", None)]))
    assert 'wgvsock_attestation_timestamp_seconds{enclave="a"} 1767225600\n' in text
    assert 'wgvsock_attestation_timestamp_seconds{enclave="b"}' not in text
    assert 'wgvsock_trusted_seconds{enclave="b"} 61.5\n' in text


def test_metrics_while_nothing_is_up(pair: DevicePair) -> None:
    idle = snapshot(ready=False, state="starting", wireguard=wireguard_status(pair.alice, "wg0", pair.now))
    samples = [line for line in metrics(idle).splitlines() if not line.startswith("#")]
    assert 'wgvsock_ready{role="relay"} 0' in samples
    assert 'wgvsock_up{role="relay",state="starting"} 1' in samples
    assert not any("handshake_age" in sample for sample in samples)  # never is no number


def test_large_counts_keep_their_digits() -> None:
    (peer,) = snapshot()["wireguard"]["peers"]
    peer |= {"rx_bytes": 123_456_789_012_345}
    assert 'rx_bytes_total{peer="AAA="} 123456789012345\n' in metrics(snapshot(wireguard={"peers": [peer]}))


LABEL = re.compile(r'wgvsock_dropped_total\{reason="((?:[^"\\\n]|\\["\\n])*)"\} 1')
"""Prometheus' exposition formats: backslash, double quote and line feed are escaped in label values."""


@given(st.text())
def test_a_label_can_be_read_back(reason: str) -> None:
    sample = metrics(snapshot(counters={"dropped": {reason: 1}})).removesuffix("\n").split("\n")[-1]
    label = LABEL.fullmatch(sample)
    assert label is not None
    escapes = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
    assert re.sub(r"\\.", lambda found: escapes[found[0]], label[1]) == reason
