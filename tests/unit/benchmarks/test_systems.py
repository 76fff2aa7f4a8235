"""Which part of a measurement belongs to a contestant."""

from __future__ import annotations

from benchmarks.systems import System

VALUES = {"tcp_up_1_gbps": 6.0, "tcp_up_1_ping_ms": 0.02}


def test_a_tunnel_is_measured_whole() -> None:
    assert System("tunnel", lambda _: []).own(VALUES) == VALUES


def test_a_proxy_of_streams_has_no_round_trip_as_the_ping_never_leaves_the_enclave() -> None:
    assert System("proxy", lambda _: [], tcp_only=True).own(VALUES) == {"tcp_up_1_gbps": 6.0}
