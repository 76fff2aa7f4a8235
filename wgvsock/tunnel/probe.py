"""The path probe's decisions, without I/O: when to send a request, what a reply proves, when the path counts as dead.

A session may work while no packet passes: the agent handles handshakes and keepalives, and they say nothing about the
kernel behind it. The relay therefore sends an ICMP echo request through the session, and the enclave's kernel replies.
That proves the stream, the session, the enclave's interface, its address and its route back.

A reply is likely but not certain. The agent brings the interface up, and Linux answers echo requests by default. But an
image may set ``net.ipv4.icmp_echo_ignore_all`` or have a firewall that drops ICMP. The path then works although nothing
replies. Therefore:

* Every packet from the enclave proves the path, not only the reply. No request is then sent for a while.
* `alive` is unknown (None) until there is a proof.
* The path is dead (False) when `FAILURES` requests in a row got neither a reply nor a packet, and this enclave has
  replied before. If it never has, the path is unknown again. That an enclave replies is remembered across attestations
  and lost streams as long as it is the same enclave. Otherwise each attestation would turn a dead path into an unknown
  one.

Three requests in a row, one second each: a pause of the enclave or a full queue does not end readiness, and a dead path
is noticed within 8 s (`INTERVAL`, and `FAILURES` times `TIMEOUT`). A dead path is probed every second, so that its
recovery is noticed at once.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.tunnel.echo import TOKEN_SIZE, Echo

INTERVAL: Final = 5.0
"""Seconds without a proof after which a request is sent. A request costs an idle relay 0.8 ms of processor time
(measured), 0.016 % of a core."""

MEASURE_EVERY: Final = 30.0
"""Seconds after which a request is sent even on a busy path, so that the round-trip time stays current. Not more often,
because every packet is inspected while a request is outstanding."""

TIMEOUT: Final = 1.0
"""Seconds for a reply: a thousand times what it takes, and longer than a tunnel's full queues last at 10 Mbit/s."""

FAILURES: Final = 3
"""Requests in a row without any proof after which a path is dead."""

WINDOW: Final = 60
"""Round-trip times to keep: five minutes of an idle tunnel."""

MAX_OUTSTANDING: Final = 128
"""Outstanding requests. The control socket has 64 connections with one each. Beyond the limit the oldest is dropped."""


@dataclass(frozen=True, slots=True)
class PathSnapshot:
    """The state of a path. Times are in seconds.

    Attributes:
        alive: Whether packets come from the enclave, or None if unknown: see the module.
        last: The last round-trip time, or None if there is none yet.
        minimum: The shortest of the last `WINDOW` round-trip times.
        median: Their median.
        sent: Requests since the start of the process.
        lost: Requests that were not answered in time.
    """

    alive: bool | None = None
    last: float | None = None
    minimum: float | None = None
    median: float | None = None
    sent: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    sent_at: float
    token: bytes
    regular: bool


class PathProbe:
    """Probes the path to one enclave after another. All times are monotonic seconds.

    Args:
        random: Entropy for identifier and tokens.
        headroom: Bytes in front of each packet.

    Attributes:
        on_reply: Called with sequence number and round-trip time, which is None for a lost request.
    """

    def __init__(self, random: Callable[[int], bytes], headroom: int = 0) -> None:
        self._random = random
        self._headroom = headroom
        self._identifier = int.from_bytes(random(2), "big")
        self._echo: Echo | None = None
        self._enclave = ""
        self._sequence = 0
        self._outstanding: dict[int, _Request] = {}  # the oldest first
        self._answers = False  # whether this enclave has ever replied
        self._alive: bool | None = None
        self._failures = 0
        self._proved_at = -math.inf
        self._asked_at = -math.inf
        self._next_at = math.inf
        self._times: deque[float] = deque(maxlen=WINDOW)
        self._sent = self._lost = 0
        self.on_reply: Callable[[int, float | None], None] = _ignore

    @property
    def destination(self) -> IpAddress | None:
        """The address to probe, or None."""
        return None if self._echo is None else self._echo.destination

    @property
    def waits(self) -> bool:
        """Whether a request is outstanding."""
        return bool(self._outstanding)

    def begin(self, source: IpAddress, destination: IpAddress, enclave: str, now: float) -> None:
        """Start probing an enclave with which there is a session. A session with new keys continues the same path.

        Args:
            source: The relay's own address in the tunnel.
            destination: The enclave's address in the tunnel.
            enclave: Identifies the enclave, so that the state of another one is dropped.
            now: The time.
        """
        echo = self._echo
        if enclave != self._enclave:
            self.end()
            self._enclave, self._answers = enclave, False
            self._times.clear()
        elif echo is not None and (echo.source, echo.destination) == (source, destination):
            return
        self._echo = Echo(source, destination, self._identifier, self._headroom)
        self._give_up_all()
        self._proved_at = self._next_at = now

    def end(self) -> None:
        """Stop probing, because the session is gone. The state of the path is unknown from then on."""
        self._give_up_all()
        self._echo = None
        self._alive, self._failures = None, 0
        self._next_at = math.inf

    def next_at(self) -> float:
        """When `handle_time` has something to do, or infinity before `begin`."""
        oldest = next(iter(self._outstanding.values()), None)
        return self._next_at if oldest is None else min(self._next_at, oldest.sent_at + TIMEOUT)

    def handle_time(self, now: float, packet_at: float) -> bytes | None:
        """Give up requests that were not answered in time, and make the next regular one if it is due.

        Args:
            now: The time.
            packet_at: When the last packet of any kind came from the enclave.

        Returns:
            The request's packet, or None if none is due.
        """
        self.observe(now, packet_at)
        if now < self._next_at:
            return None
        if self._alive and packet_at + INTERVAL > now and self._asked_at + MEASURE_EVERY > now:
            self._next_at = min(packet_at + INTERVAL, self._asked_at + MEASURE_EVERY)
            return None
        self._asked_at, self._next_at = now, now + INTERVAL
        return self._request(now, regular=True)[1]

    def observe(self, now: float, packet_at: float) -> None:
        """Account for packets that came and for requests that timed out. Arguments as for `handle_time`."""
        if self._echo is not None and packet_at > self._proved_at:
            self._prove(packet_at)
        for sequence, request in list(self._outstanding.items()):
            if now < request.sent_at + TIMEOUT:
                break
            self._lose(sequence)
            if request.regular and self._proved_at <= request.sent_at:
                self._fail(now)

    def ask(self, now: float) -> tuple[int, bytes] | None:
        """Make a request on demand.

        A reply is a proof like any other. A missing reply counts for nothing, because such requests may be frequent.

        Returns:
            Sequence number and packet, or None if there is no session.
        """
        return None if self._echo is None else self._request(now, regular=False)

    def take(self, packet: memoryview, now: float) -> bool:
        """Handle a packet if it is the reply to one of our requests.

        Args:
            packet: One packet with its headroom.
            now: The time.

        Returns:
            Whether it was such a reply, which must not go any further.
        """
        reply = None if self._echo is None else self._echo.reply_in(packet)
        if reply is None:
            return False
        sequence, token = reply
        request = self._outstanding.get(sequence)
        if request is None or request.token != token:
            return False
        del self._outstanding[sequence]
        self._answers = True
        self._prove(now)
        self._times.append(now - request.sent_at)
        self.on_reply(sequence, now - request.sent_at)
        return True

    def snapshot(self) -> PathSnapshot:
        """The current state of the path."""
        times = self._times
        return PathSnapshot(
            alive=self._alive,
            last=times[-1] if times else None,
            minimum=min(times, default=None),
            median=statistics.median(times) if times else None,
            sent=self._sent,
            lost=self._lost,
        )

    def _request(self, now: float, *, regular: bool) -> tuple[int, bytes]:
        assert self._echo is not None  # noqa: S101 - `_next_at` is infinite then, and `ask` checks
        if len(self._outstanding) >= MAX_OUTSTANDING:
            self._lose(next(iter(self._outstanding)))
        self._sequence = sequence = (self._sequence + 1) & 0xFFFF
        token = self._random(TOKEN_SIZE)
        self._outstanding[sequence] = _Request(now, token, regular)
        self._sent += 1
        return sequence, self._echo.request(sequence, token)

    def _prove(self, at: float) -> None:
        self._proved_at = at
        self._alive, self._failures = True, 0

    def _fail(self, now: float) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            self._alive = False if self._answers else None
        if self._answers or self._failures < FAILURES:
            self._next_at = now  # soon, to tell a dead path from a lost packet

    def _lose(self, sequence: int) -> None:
        del self._outstanding[sequence]
        self._lost += 1
        self.on_reply(sequence, None)

    def _give_up_all(self) -> None:
        for sequence in list(self._outstanding):
            self._lose(sequence)


def _ignore(_sequence: int, _seconds: float | None) -> None:
    """Do nothing."""
