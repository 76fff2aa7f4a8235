"""Transfers many bytes over many connections, hashed at both ends. Standard library only, to run on any machine.

    python3 bulk.py serve PORT SENDER                serve one transfer, as its sender or its receiver
    python3 bulk.py dial HOST PORT SENDER            the other end of it
    ... --bytes N --streams K --timeout S            N bytes in all over K connections at once, S seconds per step

SENDER is `server` or `client`. Each end prints one JSON object: bytes, and the SHA-256 of all streams' SHA-256, in the
streams' order. The bytes are pseudo-random, so that no party on the path could invent them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import socket
import sys
import threading

CHUNK = 1 << 18


def say(line: str) -> None:
    """Print a line and flush it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def send(sock: socket.socket, size: int, seed: int) -> bytes:
    """Send `size` bytes and the end of the stream, and return their digest."""
    # One random block, renumbered in each round: generating bytes must not be slower than carrying them.
    block = bytearray(random.Random(seed).randbytes(CHUNK))
    digest = hashlib.sha256()
    sent = 0
    while sent < size:
        block[:8] = sent.to_bytes(8, "big")
        piece = memoryview(block)[: min(CHUNK, size - sent)]
        sock.sendall(piece)
        digest.update(piece)
        sent += len(piece)
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)  # until the receiver has read everything and closes
    return digest.digest()


def receive(sock: socket.socket) -> tuple[bytes, int]:
    """Read to the end of the stream, and return digest and size."""
    buffer = bytearray(CHUNK)
    digest = hashlib.sha256()
    size = 0
    while length := sock.recv_into(buffer):
        digest.update(memoryview(buffer)[:length])
        size += length
    return digest.digest(), size


def carry(arguments: argparse.Namespace, sockets: list[socket.socket]) -> dict[str, object]:
    """Run all streams at once, and return the report."""
    share = arguments.bytes // arguments.streams
    sends = (arguments.verb == "serve") == (arguments.sender == "server")
    digests: dict[int, bytes] = {}
    sizes: dict[int, int] = {}

    def one(number: int, sock: socket.socket) -> None:
        with sock:
            if sends:
                digests[number], sizes[number] = send(sock, share, number), share
            else:
                digests[number], sizes[number] = receive(sock)

    threads = [threading.Thread(target=one, args=item) for item in enumerate(sockets)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ordered = b"".join(digests[number] for number in sorted(digests))
    return {
        "streams": len(digests),
        "bytes": sum(sizes.values()),
        "sha256": hashlib.sha256(ordered).hexdigest(),
    }


def accept_all(arguments: argparse.Namespace) -> list[socket.socket]:
    """Return the connections, in the order of the number with which each begins."""
    by_number: dict[int, socket.socket] = {}
    address = ("::", arguments.port)
    with socket.create_server(
        address, family=socket.AF_INET6, dualstack_ipv6=True, backlog=arguments.streams
    ) as listener:
        listener.settimeout(arguments.timeout)
        say("ready")
        while len(by_number) < arguments.streams:
            sock, _ = listener.accept()
            sock.settimeout(arguments.timeout)
            by_number[int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")] = sock
    return [by_number[number] for number in sorted(by_number)]


def dial_all(arguments: argparse.Namespace) -> list[socket.socket]:
    """Return connections that have sent their number."""
    sockets = []
    for number in range(arguments.streams):
        sock = socket.create_connection((arguments.host, arguments.port), timeout=arguments.timeout)
        sock.sendall(number.to_bytes(4, "big"))
        sockets.append(sock)
    return sockets


def main(argv: list[str]) -> None:
    """Run one end."""
    parser = argparse.ArgumentParser(prog="bulk.py")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("serve", "dial"):
        verb = verbs.add_parser(name)
        if name == "dial":
            verb.add_argument("host")
        verb.add_argument("port", type=int)
        verb.add_argument("sender", choices=["server", "client"])
        verb.add_argument("--bytes", type=int, required=True)
        verb.add_argument("--streams", type=int, default=1)
        verb.add_argument("--timeout", type=float, default=60.0)
    arguments = parser.parse_args(argv)
    sockets = accept_all(arguments) if arguments.verb == "serve" else dial_all(arguments)
    say(json.dumps(carry(arguments, sockets)))


if __name__ == "__main__":
    main(sys.argv[1:])
