"""An unprivileged process on the Relay's machine, with the Enclave's public key: ``python -m tests.e2e.flooder …``.

It floods the WireGuard port, either with initiations on one stream, each with the cookie that it received, or with
connections, each of which sends such an initiation. Every initiation has a valid mac1 and belongs to no peer. At the
end of its standard input, or of its time, it writes its counts as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
import time
from collections import deque

from lab.dial import dial
from wgvsock.addresses import StreamAddress, parse_stream_address
from wgvsock.errors import TransportError, WgvsockError
from wgvsock.wireguard.cookie import CookieMaker
from wgvsock.wireguard.messages import CookieReply, HandshakeInitiation, parse_message
from wgvsock.wireguard.noise import Handshake, Identity, create_initiation
from wgvsock.wireguard.primitives import generate_private_key
from wgvsock.wireguard.timers import STANDARD_TIMINGS

FRAME = 4 + 64
"""Bytes of a cookie reply with the header in front of it."""

HELD = 512
"""Connections kept open, to use up the victim's slots."""


class Flooder:
    """Sends at a steady rate, as far as the victim allows."""

    def __init__(self, address: StreamAddress, public_key: bytes) -> None:
        self.address = address
        self.public_key = public_key
        self.initiation = self.make_initiation()
        self.began = time.monotonic()
        self.attempts = self.connected = self.initiations = self.cookies = 0

    def make_initiation(self) -> HandshakeInitiation:
        identity = Identity(generate_private_key(os.urandom))
        handshake = Handshake(self.public_key)
        return create_initiation(
            identity, handshake, 1, random=os.urandom, unix_time=time.time_ns(), now=time.monotonic()
        )

    async def at_rate(self, rate: float) -> None:
        """Wait until the next attempt is due."""
        self.attempts += 1
        await asyncio.sleep(max(0.0, self.began + self.attempts / rate - time.monotonic()))

    async def connect(self) -> socket.socket:
        sock = await dial(self.address)
        self.connected += 1
        return sock

    def send_initiation(self, sock: socket.socket, maker: CookieMaker) -> None:
        message = maker.add_macs(self.initiation.pack(), time.monotonic())
        sock.send(len(message).to_bytes(4, "big") + message)
        self.initiations += 1

    async def flood_with_connections(self, rate: float) -> None:
        held: deque[socket.socket] = deque()
        maker = CookieMaker(self.public_key, STANDARD_TIMINGS)
        while True:
            await self.at_rate(rate)
            with contextlib.suppress(TransportError, OSError):
                held.append(await self.connect())
                self.send_initiation(held[-1], maker)
            with contextlib.suppress(OSError):
                self.take_cookie(held[-1], maker)
            while len(held) > HELD:
                held.popleft().close()

    def take_cookie(self, sock: socket.socket, maker: CookieMaker) -> bool:
        """Keep a received cookie. False: the stream has ended."""
        try:
            data = sock.recv(4096)
        except BlockingIOError:
            return True
        for start in range(0, len(data), FRAME):  # to a stranger nothing else is ever sent
            message = parse_message(data[start + 4 : start + FRAME])
            if isinstance(message, CookieReply):
                self.cookies += maker.consume_reply(message, time.monotonic())
        return bool(data)

    async def flood_with_initiations(self, rate: float) -> None:
        while True:
            with contextlib.suppress(WgvsockError, OSError):
                await self.flood_one_stream(rate)

    async def flood_one_stream(self, rate: float) -> None:
        maker = CookieMaker(self.public_key, STANDARD_TIMINGS)
        with await self.connect() as sock:
            while self.take_cookie(sock, maker):
                self.send_initiation(sock, maker)
                await self.at_rate(rate)

    def report(self) -> dict[str, float]:
        seconds = time.monotonic() - self.began
        return {
            "seconds": round(seconds, 1),
            "attempts_per_second": round(self.attempts / seconds),
            "connections_per_second": round(self.connected / seconds),
            "initiations_per_second": round(self.initiations / seconds),
            "cookies": self.cookies,
        }


async def run(arguments: argparse.Namespace) -> None:
    flooder = Flooder(parse_stream_address(arguments.address), bytes.fromhex(arguments.public_key))
    flood = {"connections": flooder.flood_with_connections, "initiations": flooder.flood_with_initiations}
    task = asyncio.ensure_future(flood[arguments.kind](arguments.rate))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(arguments.seconds):
            await ended.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    sys.stdout.write(json.dumps(flooder.report()) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["connections", "initiations"])
    parser.add_argument("address")
    parser.add_argument("public_key")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    asyncio.run(run(parser.parse_args()))
