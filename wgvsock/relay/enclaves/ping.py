"""Tests each layer of a tunnel once, for ``wgvsock ping``: the stream, the WireGuard session, and IP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wgvsock.tunnel.path import Path
from wgvsock.wireguard import Peer


class StreamFacts(Protocol):
    """The facts that are reported about the link to the enclave."""

    @property
    def connected(self) -> bool:
        """Whether there is a stream now."""
        ...

    @property
    def authenticated(self) -> bool:
        """Whether an authenticated message has arrived over it."""
        ...

    @property
    def connected_at(self) -> float | None:
        """When it was connected, in seconds on the event loop's clock, or None if it is not."""
        ...

    @property
    def connect_seconds(self) -> float:
        """How long connecting took, in seconds."""
        ...


class SessionFacts(Protocol):
    """The facts that are reported about the WireGuard session with the enclave."""

    @property
    def peer(self) -> Peer | None:
        """The attested enclave as a peer, or None if there is none."""
        ...

    @property
    def is_established(self) -> bool:
        """Whether the peer has proved its keys."""
        ...

    @property
    def handshake_age(self) -> float:
        """Seconds since the last handshake."""
        ...

    @property
    def handshake_seconds(self) -> float:
        """How long the last handshake took, in seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Ping:
    """The result of testing each layer. Times are in seconds, and None if there is nothing to measure.

    Attributes:
        stream: Whether a stream is connected and an authenticated message has arrived over it.
        stream_age: Time since the stream was connected.
        connect: Time that connecting took.
        handshake: Whether there are keys that both sides have proved and that have not expired.
        handshake_age: Time since the last handshake.
        handshake_took: Duration of the last handshake, from initiation to response.
        destination: The enclave's address that was pinged.
        echo: Round-trip time to the enclave's kernel; None if there was no reply.
        alive: Whether packets get through, according to the path probe; None if unknown.
    """

    stream: bool
    stream_age: float | None
    connect: float | None
    handshake: bool
    handshake_age: float | None
    handshake_took: float | None
    destination: str | None
    echo: float | None
    alive: bool | None


async def ping(session: SessionFacts, stream: StreamFacts | None, path: Path, clock: Callable[[], float]) -> Ping:
    """Ping the enclave's kernel and report on the layers below. It returns with the reply or at its time limit.

    Args:
        session: The WireGuard session.
        stream: The link that carries it; None if there is none.
        path: The path to the enclave's kernel.
        clock: Returns monotonic seconds on the event loop's clock.
    """
    echo = await path.ask()
    now = clock()
    connected = stream is not None and stream.connected
    since = stream.connected_at if stream is not None and connected else None
    has_keys = session.is_established and session.peer is not None and session.peer.has_session(now)
    return Ping(
        stream=stream is not None and connected and stream.authenticated,
        stream_age=None if since is None else now - since,
        connect=stream.connect_seconds if stream is not None and connected else None,
        handshake=has_keys,
        handshake_age=session.handshake_age if has_keys else None,
        handshake_took=session.handshake_seconds if has_keys else None,
        destination=None if path.destination is None else str(path.destination),
        echo=echo,
        alive=path.snapshot().alive,
    )
