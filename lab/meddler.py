"""A man in the middle of the provisioning port: what a hostile parent instance can do to the exchange.

It sits between the Relay's dial and the Enclave's listener, sees whole frames, and may change, replace or drop each.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import cbor2

from lab.dissect import PROVISIONING_NAMES
from lab.tap import Kind
from wgvsock.errors import WgvsockError

Meddle = Callable[[Kind, str, bytes], "list[bytes]"]
"""Given a frame's direction, message name and payload: the raw bytes to send on, frame headers included."""

_LONGEST: Final = 1 << 20
PATIENCE: Final = 15.0
"""Seconds without a byte after which a connection is given up; longer than every deadline of the protocol."""


def frame(payload: bytes) -> bytes:
    """A payload behind its length, as ``wgvsock/prov/1`` has it."""
    return struct.pack(">I", len(payload)) + payload


def untouched(kind: Kind, name: str, payload: bytes) -> list[bytes]:
    """Meddle with nothing."""
    del kind, name
    return [frame(payload)]


class Meddler:
    """Listens at a Unix socket, dials the Enclave, and passes frames through `meddle`, one connection at a time.

    Args:
        listen: Where the Relay's dials are led.
        dial: Connects to the Enclave.
        patience: Seconds without a byte after which a connection is given up.
        meddle: What to do with each frame; may be replaced at any time.
    """

    def __init__(
        self, listen: Path, dial: Callable[[], socket.socket], *, patience: float = PATIENCE, meddle: Meddle = untouched
    ) -> None:
        self.meddle = meddle
        self.seen: list[tuple[Kind, str, bytes]] = []
        self._dial = dial
        self._patience = patience
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(listen))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve, name="meddler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; idempotent."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(2 * self._patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                relay, _ = self._listener.accept()
            except OSError:
                return
            with relay, contextlib.suppress(OSError, WgvsockError), self._dial() as enclave:
                self.join(relay, enclave)

    def join(self, relay: socket.socket, enclave: socket.socket) -> None:
        """Pass frames between two connected sockets until one of the two ends, as the tap does."""
        back = threading.Thread(target=self._pass, args=(enclave, relay, Kind.TO_RELAY), daemon=True)
        back.start()
        self._pass(relay, enclave, Kind.TO_ENCLAVE)
        back.join()

    def _pass(self, source: socket.socket, target: socket.socket, kind: Kind) -> None:
        source.settimeout(self._patience)
        with contextlib.suppress(OSError), source.makefile("rb") as stream:
            while len(header := stream.read(4)) == 4:
                length = struct.unpack(">I", header)[0]
                if length > _LONGEST or len(payload := stream.read(length)) < length:
                    break
                name = _name_of(payload)
                self.seen.append((kind, name, payload))
                for part in self.meddle(kind, name, payload):
                    target.sendall(part)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _name_of(payload: bytes) -> str:
    try:
        return PROVISIONING_NAMES.get(cbor2.loads(payload)[2], "unknown")
    except (ValueError, cbor2.CBORDecodeError, KeyError, TypeError):
        return "unknown"
