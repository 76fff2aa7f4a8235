"""A man in the middle of the provisioning port: what a hostile parent instance can do to the exchange.

`Meddler` sits between the Relay's connection and the Enclave's listener, sees whole frames, and may change, replace or
drop each. From REQUEST on they are sealed. `Interceptor` can read them nevertheless, because it agrees on keys with
each side in the other's place.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import cbor2

from lab.watch.dissect import PROVISIONING_NAMES, provisioning_name
from lab.watch.tap import Kind
from wgvsock.errors import WgvsockError
from wgvsock.provisioning.messages import Hello, Response, decode_hello, decode_request
from wgvsock.provisioning.pin import sign_request
from wgvsock.provisioning.transcript import Ephemeral, user_data
from wgvsock.testing.provisioning import EnclaveHalf, RelayHalf

Meddle = Callable[[Kind, str, bytes], "list[bytes]"]
"""Takes a frame's direction, message name and payload. Returns the raw bytes to send on, including frame headers."""

Change = Callable[[str, bytes], bytes]
"""Takes a message's name and its map. Returns the map to send on."""

_LONGEST: Final = 1 << 20
PATIENCE: Final = 15.0
"""Seconds without a byte after which a connection is given up. Longer than every deadline of the protocol."""


def frame(payload: bytes) -> bytes:
    """Return a payload preceded by its length, as in ``wgvsock/prov/1``."""
    return struct.pack(">I", len(payload)) + payload


def untouched(kind: Kind, name: str, payload: bytes) -> list[bytes]:
    """Change nothing."""
    del kind, name
    return [frame(payload)]


def _as_it_is(name: str, message: bytes) -> bytes:
    del name
    return message


class Interceptor:
    """A `Meddle` that opens what passes, applies `change`, and seals it again.

    Args:
        change: Takes a message's name and its map, and returns the map to send on.
        signing_seed: The Ed25519 seed with which requests are signed again. With None the Relay's signature stays, and
            does not match the Enclave's HELLO.
    """

    def __init__(self, change: Change = _as_it_is, signing_seed: bytes | None = None) -> None:
        self.seen: list[tuple[str, bytes]] = []
        """Every message with its map as it was sent."""
        self._change = change
        self._signing_seed = signing_seed
        self._towards_relay, self._towards_enclave = os.urandom(32), os.urandom(32)  # with one ephemeral each
        self._hellos = b"", b""  # as the Enclave sent it, and as the Relay received it
        self._relay: EnclaveHalf
        self._enclave: RelayHalf

    def __call__(self, kind: Kind, name: str, payload: bytes) -> list[bytes]:
        """Return the replacement of a frame."""
        del kind
        match name:
            case "HELLO":
                self._note(name, payload)
                hello = decode_hello(payload)
                if not isinstance(hello, Hello):
                    return [frame(payload)]
                ours = replace(hello, ephemeral=Ephemeral(self._towards_relay).public).encode()
                self._hellos = payload, self._change(name, ours)
                return [frame(self._hellos[1])]
            case "REQUEST":
                genuine, given = self._hellos
                self._relay = EnclaveHalf(given, payload, self._towards_relay)
                self._enclave = RelayHalf(genuine, self._towards_enclave)
                self._note(name, self._relay.request)
                return [frame(self._enclave.request(self._signed(self._change(name, self._relay.request))))]
            case "RESPONSE":
                opened = self._enclave.open(payload)
                name = PROVISIONING_NAMES[cbor2.loads(opened)[2]]  # ERROR may replace it
                self._note(name, opened)
                return [frame(self._relay.response(self._change(name, opened)))]
            case "RESULT":
                opened = self._relay.open(payload)
                self._note(name, opened)
                return [frame(self._enclave.result(self._change(name, opened)))]
        return [frame(payload)]

    @property
    def transcript(self) -> bytes:
        """T as the Relay sees it."""
        return self._relay.transcript

    def message(self, name: str) -> dict[int, Any]:
        """Return the newest message of a name.

        Raises:
            StopIteration: None has passed.
        """
        found: dict[int, Any] = cbor2.loads(next(message for seen, message in reversed(self.seen) if seen == name))
        return found

    def _note(self, name: str, message: bytes) -> None:
        self.seen.append((name, message))

    def _signed(self, request: bytes) -> bytes:
        if self._signing_seed is None:
            return request
        unsigned = replace(decode_request(request), signature=None, signer=None)
        return sign_request(self._signing_seed, self._enclave.binding, unsigned).encode()


class SwappedResponse(Interceptor):
    """Replaces any answer of the Enclave by a genuine document of the attacker's own enclave.

    The document carries the Relay's nonce and the binding of this exchange. That is all that an attacker with a second
    enclave can know.

    Args:
        attest: The request method of that enclave's security module.
        public_key: The X25519 SubjectPublicKeyInfo that it presents.
        signing_seed: See `Interceptor`.
    """

    def __init__(self, attest: Callable[[bytes], bytes], public_key: bytes, signing_seed: bytes | None = None) -> None:
        super().__init__(self._swap, signing_seed)
        self._attest = attest
        self._public_key = public_key

    def _swap(self, name: str, message: bytes) -> bytes:
        if name not in {"RESPONSE", "ERROR"}:
            return message
        nonce = self.message("REQUEST")[3]
        fields = {"nonce": nonce, "public_key": self._public_key, "user_data": user_data(self.transcript)}
        answer = cbor2.loads(self._attest(cbor2.dumps({"Attestation": fields})))
        return Response(answer["Attestation"]["document"]).encode()


class Meddler:
    """Listens on a Unix socket, dials the Enclave, and passes frames through `meddle`, one connection at a time.

    Args:
        listen: Socket to which the Relay's connections are redirected.
        dial: Connects to the Enclave.
        patience: Seconds without a byte after which a connection is given up.
        meddle: Handles each frame. It may be replaced at any time for later connections. One in progress keeps its own,
            which knows how it began.
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
        """Stop. Idempotent."""
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
        """Pass frames between two connected sockets until one of them ends, as the tap does."""
        meddle = self.meddle
        back = threading.Thread(target=self._pass, args=(enclave, relay, Kind.TO_RELAY, meddle), daemon=True)
        back.start()
        self._pass(relay, enclave, Kind.TO_ENCLAVE, meddle)
        back.join()

    def _pass(self, source: socket.socket, target: socket.socket, kind: Kind, meddle: Meddle) -> None:
        source.settimeout(self._patience)
        number = 0
        with contextlib.suppress(OSError), source.makefile("rb") as stream:
            while len(header := stream.read(4)) == 4:
                length = struct.unpack(">I", header)[0]
                if length > _LONGEST or len(payload := stream.read(length)) < length:
                    break
                name = provisioning_name(kind, number, payload)
                number += 1
                self.seen.append((kind, name, payload))
                for part in meddle(kind, name, payload):
                    target.sendall(part)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
