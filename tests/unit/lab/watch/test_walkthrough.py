from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from lab.topology import Point
from lab.watch.observation import Sighting
from lab.watch.walkthrough import Passage

ENCLAVE, POD, WORLD = "10.73.0.2", "10.20.0.10", "198.51.100.10"
TOKEN = b"wgvsock-token"
Flow = dict[Point, Sighting]


def packet(source: str, destination: str, ttl: int, sport: int, dport: int) -> bytes:
    return bytes(IP(src=source, dst=destination, ttl=ttl) / UDP(sport=sport, dport=dport) / Raw(TOKEN))


def flow(*hops: tuple[Point, bool | None, bytes]) -> Flow:
    return {
        point: Sighting(point, float(number), outgoing, checksum_pending=False, data=data)
        for number, (point, outgoing, data) in enumerate(hops)
    }


def outward(sport: int, dport: int) -> Flow:
    inside = packet(ENCLAVE, WORLD, 64, sport, dport)
    return flow(
        (Point.ENCLAVE_WG0, True, inside),
        (Point.VSOCK, None, inside),
        (Point.RELAY_WG0, False, inside),
        (Point.RELAY_ETH0, True, packet(POD, WORLD, 63, sport, dport)),
        (Point.EXTERNAL_ETH0, False, packet(POD, WORLD, 62, sport, dport)),
    )


def inward(sport: int, dport: int) -> Flow:
    inside = packet(WORLD, ENCLAVE, 62, sport, dport)
    return flow(
        (Point.EXTERNAL_ETH0, True, packet(WORLD, POD, 64, sport, dport)),
        (Point.RELAY_ETH0, False, packet(WORLD, POD, 63, sport, dport)),
        (Point.RELAY_WG0, True, inside),
        (Point.VSOCK, None, inside),
        (Point.ENCLAVE_WG0, False, inside),
    )


def passage(direction: str, **changes: Any) -> Passage:
    egress = direction == "egress"
    return replace(
        Passage(
            direction,
            7,
            ENCLAVE,
            POD,
            WORLD,
            outward(4000, 7) if egress else inward(4000, 7),
            inward(7, 4000) if egress else outward(7, 4000),
            vsock_bytes=200,
            vsock_frames=2,
            readable=False,
            rtt_ms=1.25,
            padded=48,
        ),
        **changes,
    )


@pytest.mark.parametrize(("direction", "count"), [("egress", 8), ("ingress", 9)])
def test_a_good_passage_has_every_step_right(direction: str, count: int) -> None:
    good = passage(direction)
    assert [step.number for step in good.steps if step.ok] == list(range(1, count + 1))
    assert good.ok


def test_the_report_shows_the_addresses_before_and_after_translation() -> None:
    assert passage("egress").report()["nat"] == {
        "before": {"source": ENCLAVE, "destination": WORLD},
        "after": {"source": POD, "destination": WORLD},
    }
    assert passage("ingress").report()["nat"] == {
        "before": {"source": WORLD, "destination": POD},
        "after": {"source": WORLD, "destination": ENCLAVE},
    }


def failing(direction: str, **changes: Any) -> list[int]:
    return [step.number for step in passage(direction, **changes).steps if not step.ok]


def test_plaintext_at_the_vsock_point_fails_its_step() -> None:
    assert failing("egress", readable=True) == [3]
    assert failing("ingress", readable=True) == [6]
    assert "PLAINTEXT FOUND" in passage("egress", readable=True).steps[2].seen


def moved(requests: Flow, point: Point, data: bytes) -> Flow:
    return {**requests, point: replace(requests[point], data=data)}


def test_a_missing_masquerade_fails_its_step() -> None:
    untranslated = moved(outward(4000, 7), Point.RELAY_ETH0, packet(ENCLAVE, WORLD, 63, 4000, 7))
    assert failing("egress", requests=untranslated) == [7]


def test_a_packet_changed_inside_the_tunnel_fails_its_step() -> None:
    changed = moved(outward(4000, 7), Point.VSOCK, packet(ENCLAVE, WORLD, 64, 4000, 8))
    assert failing("egress", requests=changed) == [2, 4]


def test_a_wrong_checksum_fails_its_step() -> None:
    data = packet(POD, WORLD, 62, 4000, 7)
    damaged = moved(outward(4000, 7), Point.EXTERNAL_ETH0, data[:10] + b"\0\0" + data[12:])
    assert failing("egress", requests=damaged) == [8]


def test_a_missing_destination_translation_fails_its_steps() -> None:
    untranslated = moved(inward(4000, 7), Point.RELAY_WG0, packet(WORLD, POD, 62, 4000, 7))
    assert 2 in failing("ingress", requests=untranslated)


def test_a_client_hidden_behind_the_pod_fails_the_translation_step() -> None:
    hidden = moved(inward(4000, 7), Point.RELAY_WG0, packet(POD, ENCLAVE, 62, 4000, 7))
    assert 2 in failing("ingress", requests=hidden)


def test_an_answer_from_the_inner_address_fails_the_last_step() -> None:
    leaked = moved(outward(7, 4000), Point.EXTERNAL_ETH0, packet(ENCLAVE, WORLD, 62, 7, 4000))
    assert failing("ingress", replies=leaked) == [9]
