"""wireguard-go on a compat stream: translates frames on TCP to and from datagrams on UDP, like the paper's program.

Written only from the description of the framing (docs/protocol/framing.md: u16 little-endian length, u32 little-endian
CRC-32, payload) and sharing no code with `wgvsock.framing`: agreement with it is agreement with the wire format.

A datagram of wireguard-go without a stream makes the bridge dial, as the paper's program does. It answers on the stream
that received something last. ``python bridge.py LISTEN_PORT WIREGUARD_PORT BIND_PORT DIAL``.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
import zlib
from collections.abc import Iterator

HEADER = struct.Struct("<HI")
LIMIT = 65_530


def frame(payload: bytes) -> bytes:
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


class Stream:
    """The receiving half of one TCP connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pending = bytearray()

    def payloads(self) -> Iterator[bytes]:
        """Return every complete payload that has arrived.

        Raises:
            ConnectionError: The stream ended, or is no longer a sequence of frames.
        """
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError
        self.pending += data
        while len(self.pending) >= HEADER.size:
            length, crc = HEADER.unpack_from(self.pending)
            if length > LIMIT:
                raise ConnectionError
            if len(self.pending) < HEADER.size + length:
                return
            payload = bytes(self.pending[HEADER.size : HEADER.size + length])
            del self.pending[: HEADER.size + length]
            if zlib.crc32(payload) != crc:
                raise ConnectionError
            yield payload


class Bridge:
    """One wireguard-go, one remote."""

    def __init__(self, listen_port: int, wireguard_port: int, bind_port: int, dial: tuple[str, int] | None) -> None:
        self.selector = selectors.DefaultSelector()
        self.wireguard = ("127.0.0.1", wireguard_port)
        self.dial = dial
        self.last: Stream | None = None
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", bind_port))
        self.selector.register(self.udp, selectors.EVENT_READ)
        self.listener = socket.create_server(("", listen_port))
        self.selector.register(self.listener, selectors.EVENT_READ)

    def run(self) -> None:
        sys.stdout.write("bridge ready\n")
        sys.stdout.flush()
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.udp:
                    self.datagram()
                elif key.fileobj is self.listener:
                    self.add(self.listener.accept()[0])
                else:
                    self.stream(key.data)

    def add(self, sock: socket.socket) -> Stream:
        stream = Stream(sock)
        self.selector.register(sock, selectors.EVENT_READ, stream)
        return stream

    def datagram(self) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            data = self.udp.recv(1 << 16)
            if self.last is None and self.dial is not None:
                with contextlib.suppress(OSError):
                    self.last = self.add(socket.create_connection(self.dial, timeout=2))
                    self.last.sock.settimeout(None)
            if self.last is not None:
                try:
                    self.last.sock.sendall(frame(data))
                except OSError:
                    self.drop(self.last)

    def stream(self, stream: Stream) -> None:
        try:
            for payload in stream.payloads():
                self.last = stream
                with contextlib.suppress(ConnectionRefusedError):
                    self.udp.sendto(payload, self.wireguard)
        except OSError:
            self.drop(stream)

    def drop(self, stream: Stream) -> None:
        self.selector.unregister(stream.sock)
        stream.sock.close()
        if self.last is stream:
            self.last = None


def main() -> None:
    listen_port, wireguard_port, bind_port, dial = sys.argv[1:]
    host, _, port = dial.rpartition(":")
    Bridge(int(listen_port), int(wireguard_port), int(bind_port), (host, int(port)) if port else None).run()


if __name__ == "__main__":
    main()
