"""Crowds the Enclave's provisioning port, until it is terminated.

``python -m lab.programs.flooder KIND --rate N ADDRESS``

``connect`` connects and sends nothing, ``hold`` leaves after 3 seconds, ``forge`` answers each HELLO with a properly
sealed REQUEST whose signature is invalid. Writes ``running`` once the first connection was greeted, and finally one
JSON object with the outcome of its attempts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from lab.dial import dial
from wgvsock.addresses import StreamAddress, parse_stream_address
from wgvsock.errors import WgvsockError
from wgvsock.provisioning.frames import encode_frame
from wgvsock.provisioning.messages import Request
from wgvsock.testing.provisioning import RELAY_PUBLIC_KEY, TUNNEL_CONFIG, RelayHalf

HOLD: Final = 3.0
"""Seconds for which ``hold`` occupies a slot: as long as the Enclave waits for a REQUEST."""

MOST: Final = 600
"""Maximum connections at once, which leaves spare descriptors out of a process's 1,024."""

_PATIENCE: Final = 10.0
_FORGED: Final = Request(
    nonce=b"n" * 32,
    relay_public_key=RELAY_PUBLIC_KEY,
    epoch_ms=1 << 52,
    config=replace(TUNNEL_CONFIG, capabilities=("framing/native", "profile/plain")).to_fields(),
    signature=b"s" * 64,
    signer=b"k" * 32,
)


@dataclass(slots=True)
class Flooder:
    """Makes connections at a rate.

    Attributes:
        address: The destination.
        kind: What to do with each.
        signer: The key that supposedly signed a forged request.
        counts: The outcomes.
    """

    address: StreamAddress
    kind: str
    signer: bytes
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self, rate: float) -> None:
        """Connect until cancelled. It ends once every attempt has (see `lab.dial`)."""
        under_way = set[asyncio.Task[None]]()
        time = asyncio.get_running_loop().time
        due = time()
        try:
            while True:
                due = max(due + 1 / rate, time() - 0.1)  # what could not be done in time is skipped
                if len(under_way) < MOST:
                    task = asyncio.create_task(self._attempt())
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                await asyncio.sleep(max(0.0, due - time()))
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _attempt(self) -> None:
        self.counts["attempts"] += 1
        loop = asyncio.get_running_loop()
        try:
            sock = await dial(self.address)
        except WgvsockError:
            self.counts["refused"] += 1
            return
        self.counts["connected"] += 1
        with sock, contextlib.suppress(OSError):
            async with asyncio.timeout(HOLD if self.kind == "hold" else _PATIENCE):
                hello = await loop.sock_recv(sock, 4096)
                if not hello:
                    return
                if not self.counts["greeted"]:
                    print("running", flush=True)
                self.counts["greeted"] += 1
                if self.kind == "forge":
                    await loop.sock_sendall(sock, self.forgery(hello))
                while await loop.sock_recv(sock, 4096):
                    pass
                self.counts["ended by the Enclave"] += 1

    def forgery(self, hello: bytes) -> bytes:
        """Return a REQUEST's frame in answer to a HELLO."""
        length = int.from_bytes(hello[:4], "big")
        half = RelayHalf(hello[4 : 4 + length], os.urandom(32))
        return encode_frame(half.request(replace(_FORGED, signer=self.signer).encode()))


async def flood(flooder: Flooder, rate: float) -> None:
    """Run until SIGTERM, and print the summary."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(flooder.run(rate))
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    began = loop.time()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    print(json.dumps({"seconds": round(loop.time() - began, 2), **flooder.counts}), flush=True)


def main(argv: Sequence[str]) -> int:
    """Run until terminated."""
    parser = argparse.ArgumentParser(prog="lab.programs.flooder")
    parser.add_argument("kind", choices=("connect", "hold", "forge"))
    parser.add_argument("--rate", type=float, required=True, metavar="N", help="connections a second")
    parser.add_argument("--signer", type=bytes.fromhex, default=b"k" * 32, metavar="HEX")
    parser.add_argument("address", type=parse_stream_address, metavar="ADDRESS")
    arguments = parser.parse_args(argv)
    asyncio.run(flood(Flooder(arguments.address, arguments.kind, arguments.signer), arguments.rate))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
