"""What the relay finds in each layer of a tunnel."""

from __future__ import annotations

import asyncio
import dataclasses
from ipaddress import IPv4Address
from typing import Any

import pytest

from wgvsock.relay.enclaves.ping import Ping, ping
from wgvsock.tunnel.probe import PathSnapshot

NOW = 1000.0


class Stream:
    connected = True
    authenticated = True
    connected_at: float | None = NOW - 60
    connect_seconds = 0.0004


class Peer:
    has_keys = True

    def has_session(self, now: float) -> bool:
        assert now == NOW
        return self.has_keys


class Session:
    is_established = True
    handshake_age = 41.0
    handshake_seconds = 0.002

    def __init__(self) -> None:
        self.peer: Any = Peer()


class Path:
    destination: IPv4Address | None = IPv4Address("10.73.0.2")
    alive: bool | None = True

    def __init__(self, echo: float | None = 0.0005) -> None:
        self.echo = echo

    async def ask(self) -> float | None:
        return self.echo

    def snapshot(self) -> PathSnapshot:
        return PathSnapshot(alive=self.alive)


def found(session: Any, stream: Any, path: Any) -> Ping:
    return asyncio.run(ping(session, stream, path, lambda: NOW))


def test_all_layers_with_their_times() -> None:
    assert found(Session(), Stream(), Path()) == Ping(
        stream=True,
        stream_age=60.0,
        connect=0.0004,
        handshake=True,
        handshake_age=41.0,
        handshake_took=0.002,
        destination="10.73.0.2",
        echo=0.0005,
        alive=True,
    )


def test_no_layer() -> None:
    session, path = Session(), Path(None)
    session.peer, session.is_established = None, False
    session.handshake_age = float("inf")
    path.destination = path.alive = None
    layers = dataclasses.asdict(found(session, None, path))
    assert not layers.pop("stream")
    assert not layers.pop("handshake")
    assert set(layers.values()) == {None}


@pytest.mark.parametrize(("connected", "authenticated"), [(False, False), (False, True), (True, False)])
def test_a_stream_counts_when_the_enclave_has_proved_itself_over_it(connected: bool, authenticated: bool) -> None:
    stream = Stream()
    stream.connected, stream.authenticated = connected, authenticated
    seen = found(Session(), stream, Path())
    assert not seen.stream
    assert (seen.connect is not None) == (seen.stream_age is not None) == connected


@pytest.mark.parametrize(("established", "keys"), [(False, True), (True, False)])
def test_a_handshake_counts_while_its_keys_do(established: bool, keys: bool) -> None:
    session = Session()
    session.is_established, session.peer.has_keys = established, keys
    seen = found(session, Stream(), Path())
    assert (seen.handshake, seen.handshake_age, seen.handshake_took) == (False, None, None)
