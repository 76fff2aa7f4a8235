"""The laboratory's clients: one verb per run, one JSON object on standard output. One file, standard library only.

Runs by path in any machine of the laboratory::

    python3 probe.py tcp 198.51.100.10 7 --bytes 100000   echo over TCP, compared byte by byte
    python3 probe.py udp 198.51.100.10 7 --bytes 1200     echo over UDP
    python3 probe.py http 198.51.100.10 80 /whoami        an HTTP GET
    python3 probe.py ping 198.51.100.10 --size 1000 --df  ICMP or ICMPv6 echo
    python3 probe.py resolve www.lab.test                 the C library's resolver, as an application uses it
    python3 probe.py stream 198.51.100.10 7               one TCP connection, numbered lines until standard input ends
    python3 probe.py inject wg0 < packets.hex             packets exactly as written, one per line in hex

The exit code is 0 if a correct answer came, otherwise 1, and ``"error"`` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Final

Report = dict[str, Any]

_IPV6_DONTFRAG: Final = 62
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2
_STREAM_PERIOD: Final = 0.02  # seconds between two lines of `stream`, which is the precision of a measured gap


def probe_tcp(arguments: argparse.Namespace) -> Report:
    """Send bytes, half-close, and compare what comes back."""
    payload = os.urandom(arguments.bytes) if arguments.text is None else arguments.text.encode()
    begin = time.monotonic()
    with socket.create_connection((arguments.host, arguments.port), timeout=arguments.timeout) as sock:
        connected = time.monotonic()
        report = {"local": sock.getsockname()[:2], "remote": sock.getpeername()[:2], "connect_ms": ms(begin, connected)}
        sock.setblocking(False)
        received, sent, end = bytearray(), 0, begin + arguments.timeout
        while len(received) < len(payload):
            readable, writable, _ = select.select([sock], [sock] if sent < len(payload) else [], [], left(end))
            if writable:
                sent += sock.send(payload[sent : sent + (1 << 16)])
                if sent == len(payload):
                    sock.shutdown(socket.SHUT_WR)
            if readable:
                data = sock.recv(1 << 18)
                if not data:
                    break
                received += data
            if not readable and not writable:
                raise TimeoutError(f"{len(received)} of {len(payload)} bytes came back")
        if arguments.mss:
            report["mss"] = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    if received != payload:
        raise ValueError(f"sent {len(payload)} bytes and got {len(received)} others")
    return report | {"bytes": len(payload), "seconds": round(time.monotonic() - begin, 4)}


def probe_udp(arguments: argparse.Namespace) -> Report:
    """Send datagrams and compare each answer. A lost one is sent again each second."""
    family, *_, address = socket.getaddrinfo(arguments.host, arguments.port, type=socket.SOCK_DGRAM)[0]
    payload = os.urandom(arguments.bytes) if arguments.text is None else arguments.text.encode()
    end, tries = time.monotonic() + arguments.timeout, 0
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if arguments.source_port:
            sock.bind(("", arguments.source_port))
        if arguments.df:
            forbid_fragments(sock, family)
        sock.connect(address)
        report: Report = {"local": sock.getsockname()[:2], "remote": sock.getpeername()[:2], "bytes": len(payload)}
        while True:
            tries += 1
            begin = time.monotonic()
            sock.send(payload)
            if select.select([sock], [], [], min(arguments.scale, left(end)))[0]:
                answer = sock.recv(65535)
                if answer != payload:
                    raise ValueError(f"sent {len(payload)} bytes and got {len(answer)} others")
                return report | {"tries": tries, "rtt_ms": ms(begin)}


def probe_http(arguments: argparse.Namespace) -> Report:
    """Send one GET request, and return the body as text."""
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    with socket.create_connection((arguments.host, arguments.port), timeout=arguments.timeout) as sock:
        sock.sendall(f"GET {arguments.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = bytearray()
        while data := sock.recv(1 << 16):
            answer += data
        local = sock.getsockname()[:2]
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):
        raise ConnectionError(f"the server closed the connection after {len(answer)} bytes")
    return {"status": int(head.split(b" ", 2)[1]), "bytes": len(body), "body": body[:4096].decode(), "local": local}


def probe_ping(arguments: argparse.Namespace) -> Report:
    """Send echo requests (RFC 792, RFC 4443), one per second until one is answered, or until `count` answers."""
    family, *_, address = socket.getaddrinfo(arguments.host, None, type=socket.SOCK_RAW)[0]
    six = family == socket.AF_INET6
    request, reply = (128, 129) if six else (8, 0)
    times: list[float] = []
    identifier, end = os.getpid() & 0xFFFF, time.monotonic() + arguments.timeout
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP) as sock:
        if arguments.df:
            forbid_fragments(sock, family)
        if arguments.ttl:
            level, option = (41, socket.IPV6_UNICAST_HOPS) if six else (0, socket.IP_TTL)
            sock.setsockopt(level, option, arguments.ttl)
        sequence = 0
        while len(times) < arguments.count:
            sequence += 1
            message = struct.pack("!BBHHH", request, 0, 0, identifier, sequence) + bytes(arguments.size)
            if not six:
                message = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
            begin = time.monotonic()
            sock.sendto(message, address)
            again = begin + 1
            while select.select([sock], [], [], max(0.0, min(again, end) - time.monotonic()))[0]:
                data, peer = sock.recvfrom(65535)
                icmp = data if six else data[(data[0] & 15) * 4 :]
                if icmp[0] == reply and icmp[4:8] == message[4:8] and peer[0] == address[0]:
                    times.append(ms(begin))
                    break
            left(end)
    return {"rtt_ms": times, "sent": sequence, "size": arguments.size}


def probe_resolve(arguments: argparse.Namespace) -> Report:
    """Return all addresses of a name, through the C library."""
    found = socket.getaddrinfo(arguments.name, None, type=socket.SOCK_STREAM)
    return {"addresses": sorted({str(entry[4][0]) for entry in found})}


def probe_stream(arguments: argparse.Namespace) -> Report:
    """Send numbered lines over one connection, each compared with its echo, until standard input ends. Then drain.

    Writes one line ``connected`` first, and ``alive N`` whenever the number of returned lines has grown by 10.
    """
    sent = received = 0
    longest, buffer, out = 0.0, b"", b""
    with socket.create_connection((arguments.host, arguments.port), timeout=arguments.timeout) as sock:
        print(json.dumps({"connected": sock.getsockname()[:2]}), flush=True)
        sock.setblocking(False)
        last = tick = time.monotonic()
        running = True
        while running or received < sent:
            now = time.monotonic()
            if now - last > arguments.timeout:
                raise TimeoutError(f"no line came back for {arguments.timeout} s ({received} of {sent} did)")
            if running and now >= tick and len(out) < 1 << 16:
                out += f"{sent}\n".encode()
                sent += 1
                tick = now + _STREAM_PERIOD
            watched = [sock, sys.stdin] if running else [sock]
            readable, writable, _ = select.select(watched, [sock] if out else [], [], _STREAM_PERIOD)
            if sys.stdin in readable and not os.read(0, 4096):
                running = False
            if writable:
                out = out[sock.send(out) :]
            if sock in readable:
                data = sock.recv(1 << 16)
                if not data:
                    raise ConnectionResetError("the other end closed the connection")
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    if line != str(received).encode():
                        raise ValueError(f"line {received} came back as {line[:20]!r}")
                    received += 1
                    if received % 10 == 0:
                        print(json.dumps({"alive": received}), flush=True)
    return {"sent": sent, "received": received, "longest_gap": round(longest, 3)}


def probe_inject(arguments: argparse.Namespace) -> Report:
    """Put packets on an interface, bypassing the IP stack: frames on Ethernet, IP packets on a TUN interface."""
    count = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        for line in sys.stdin:
            packet = bytes.fromhex(line)
            protocol = 0x86DD if packet[0] >> 4 == 6 else 0x0800
            sock.sendto(packet, (arguments.interface, protocol))
            count += 1
    return {"packets": count}


def forbid_fragments(sock: socket.socket, family: int) -> None:
    """Set DF, or its IPv6 counterpart."""
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)


def internet_checksum(data: bytes) -> int:
    """Return the ones' complement sum (RFC 1071)."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def left(end: float) -> float:
    """Return the seconds until a moment of the monotonic clock.

    Raises:
        TimeoutError: It has passed.
    """
    remaining = end - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("no answer in time")
    return remaining


def ms(begin: float, end: float | None = None) -> float:
    """Return the milliseconds since a moment, to the microsecond."""
    return round(((time.monotonic() if end is None else end) - begin) * 1e3, 3)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="clients for the laboratory")
    parser.add_argument("--scale", type=float, default=1.0, help="length of a second: emulated machines are slow")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, run, needs_port in (
        ("tcp", probe_tcp, True),
        ("udp", probe_udp, True),
        ("http", probe_http, True),
        ("ping", probe_ping, False),
        ("stream", probe_stream, True),
    ):
        verb = verbs.add_parser(name)
        verb.set_defaults(run=run)
        verb.add_argument("host")
        if needs_port:
            verb.add_argument("port", type=int)
        verb.add_argument(
            "--timeout", type=float, default=5.0, help="seconds in all; for stream: the limit without a line"
        )
    for name in ("tcp", "udp"):
        verbs.choices[name].add_argument("--bytes", type=int, default=64)
        verbs.choices[name].add_argument("--text", help="this payload instead of a random one")
    verbs.choices["tcp"].add_argument("--mss", action="store_true", help="report the connection's segment size")
    verbs.choices["udp"].add_argument("--source-port", type=int)
    verbs.choices["http"].add_argument("path", nargs="?", default="/")
    verbs.choices["ping"].add_argument("--count", type=int, default=1)
    verbs.choices["ping"].add_argument("--size", type=int, default=56)
    verbs.choices["ping"].add_argument("--ttl", type=int)
    for name in ("udp", "ping"):
        verbs.choices[name].add_argument("--df", action="store_true", help="do not fragment")
    resolve = verbs.add_parser("resolve")
    resolve.set_defaults(run=probe_resolve)
    resolve.add_argument("name")
    inject = verbs.add_parser("inject")
    inject.set_defaults(run=probe_inject)
    inject.add_argument("interface")
    arguments = parser.parse_args(argv)
    if hasattr(arguments, "timeout"):
        arguments.timeout *= arguments.scale
    return arguments


def main(argv: list[str]) -> int:
    """Run one verb."""
    arguments = parse_arguments(argv)
    try:
        report: Report = arguments.run(arguments)
    except (OSError, ValueError) as error:
        print(json.dumps({"ok": False, "error": f"{type(error).__name__}: {error}"}))
        return 1
    print(json.dumps({"ok": True, **report}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
