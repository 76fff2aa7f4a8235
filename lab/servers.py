"""The laboratory's servers: echo over TCP and UDP, HTTP, and a name server. One file, standard library alone.

Runs by path in any machine of the laboratory, as the outside world, as the cloud's metadata service, and as the
application inside the enclave::

    python3 servers.py --name external --echo-port 7 --http-port 80 --dns-port 53 --zone lab.test --a … --aaaa …

It writes ``ready`` once every port is bound. HTTP answers ``/`` with the machine's name, ``/whoami`` with the client's
address as the server sees it, ``/bytes/N`` with N bytes. The name server answers every name below its zone with the
given addresses, ``many.`` with `MANY` IPv4 addresses (too long for a datagram of 512 bytes: the client has to come back
over TCP, RFC 7766), ``nx.`` with NXDOMAIN, and refuses all others.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import socket
import socketserver
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler
from typing import Final

MANY: Final = 60
TTL: Final = 60
_TYPE_OPT: Final = 41
_NOERROR, _NXDOMAIN, _REFUSED = 0, 3, 5
_LARGEST_PLAIN_UDP: Final = 512


class _Tcp(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # one dual-stack socket, as IPV6_V6ONLY is off by default on Linux
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no event here."""


class _Udp(socketserver.UDPServer):
    address_family = socket.AF_INET6
    max_packet_size = 65535

    def handle_error(self, request: object, client_address: object) -> None:
        """An answer that cannot be sent (its route is gone) is lost, as on any network."""


class TcpEcho(socketserver.BaseRequestHandler):
    """Sends back what it receives until the client has finished (RFC 862)."""

    request: socket.socket

    def handle(self) -> None:
        """Serve one connection."""
        while data := self.request.recv(1 << 18):
            self.request.sendall(data)


class UdpEcho(socketserver.BaseRequestHandler):
    """Sends each datagram back."""

    request: tuple[bytes, socket.socket]

    def handle(self) -> None:
        """Serve one datagram."""
        data, sock = self.request
        sock.sendto(data, self.client_address)


class Http(BaseHTTPRequestHandler):
    """The paths of the module's docstring."""

    protocol_version = "HTTP/1.1"
    machine = "?"

    def do_GET(self) -> None:
        """Answer a GET."""
        if self.path == "/":
            body = f"hello from {self.machine}\n".encode()
        elif self.path == "/whoami":
            body = json.dumps({"address": readable(self.client_address[0]), "port": self.client_address[1]}).encode()
        elif self.path.startswith("/bytes/") and self.path[7:].isdigit():
            body = b"\0" * int(self.path[7:])
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """One line a request on standard error, with the client's readable address."""
        print(f"http {readable(self.client_address[0])} {format % args}", file=sys.stderr)


class Zone:
    """Answers DNS queries (RFC 1035) for one zone."""

    def __init__(self, name: str, a: str, aaaa: str) -> None:
        self.labels = name.lower().split(".")
        self.a = ipaddress.IPv4Address(a).packed
        self.aaaa = ipaddress.IPv6Address(aaaa).packed

    def answer(self, query: bytes, *, over_tcp: bool) -> bytes:
        """A whole response message; empty for something that is no query."""
        if len(query) < 12 or query[2] & 0x80:
            return b""
        identifier, flags, questions, *_ = struct.unpack_from("!6H", query)
        labels, end = _read_name(query, 12)
        if questions != 1 or len(query) < end + 4:
            return b""
        kind = struct.unpack_from("!H", query, end)[0]
        code, records = self._look_up(labels, kind)
        opt = b"\0" + struct.pack("!HHIH", _TYPE_OPT, 4096, 0, 0) if _udp_size(query, end + 4) else b""
        body = query[12 : end + 4] + b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, TTL, len(record)) + record for record in records
        )
        limit = 65535 if over_tcp else _udp_size(query, end + 4) or _LARGEST_PLAIN_UDP
        count, truncated = len(records), 0
        if 12 + len(body) + len(opt) > limit:
            body, count, truncated = query[12 : end + 4], 0, 0x0200
        head = struct.pack(
            "!6H", identifier, 0x8480 | (flags & 0x0100) | truncated | code, 1, count, 0, 1 if opt else 0
        )
        return head + body + opt

    def _look_up(self, labels: list[str], kind: int) -> tuple[int, list[bytes]]:
        if labels[-len(self.labels) :] != self.labels:
            return _REFUSED, []
        if labels[0] == "nx":
            return _NXDOMAIN, []
        match kind:
            case 1 if labels[0] == "many":
                return _NOERROR, [self.a[:3] + bytes([1 + number]) for number in range(MANY)]
            case 1:
                return _NOERROR, [self.a]
            case 28 if labels[0] != "many":
                return _NOERROR, [self.aaaa]
            case _:
                return _NOERROR, []


def _read_name(message: bytes, offset: int) -> tuple[list[str], int]:
    labels = []
    while offset < len(message) and (length := message[offset]):
        labels.append(message[offset + 1 : offset + 1 + length].decode("ascii", "replace").lower())
        offset += 1 + length
    return labels, offset + 1


def _udp_size(query: bytes, offset: int) -> int:
    """What the client's OPT record (RFC 6891) says it takes; 0 without one."""
    if len(query) >= offset + 11 and query[offset] == 0 and struct.unpack_from("!H", query, offset + 1)[0] == _TYPE_OPT:
        size: int = struct.unpack_from("!H", query, offset + 3)[0]
        return max(_LARGEST_PLAIN_UDP, size)
    return 0


class UdpDns(socketserver.BaseRequestHandler):
    """One query in one datagram."""

    request: tuple[bytes, socket.socket]
    zone: Zone

    def handle(self) -> None:
        """Answer it."""
        query, sock = self.request
        print(f"dns udp {readable(self.client_address[0])} {len(query)} bytes", file=sys.stderr)
        sock.sendto(self.zone.answer(query, over_tcp=False), self.client_address)


class TcpDns(socketserver.StreamRequestHandler):
    """Queries behind two bytes of length each."""

    zone: Zone

    def handle(self) -> None:
        """Answer until the client has finished."""
        while len(prefix := self.rfile.read(2)) == 2:
            query = self.rfile.read(int.from_bytes(prefix, "big"))
            print(f"dns tcp {readable(self.client_address[0])} {len(query)} bytes", file=sys.stderr)
            answer = self.zone.answer(query, over_tcp=True)
            self.wfile.write(len(answer).to_bytes(2, "big") + answer)


def readable(address: str) -> str:
    """An address as people write it: an IPv4 client of a dual-stack socket shows as ``::ffff:a.b.c.d``."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return str(ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else str(ip)


def serve(arguments: argparse.Namespace) -> list[socketserver.BaseServer]:
    """Bind every server that is asked for, and start each in a thread."""
    http = type("BoundHttp", (Http,), {"machine": arguments.name})
    servers: list[socketserver.BaseServer] = [
        _Tcp(("::", arguments.echo_port), TcpEcho),
        _Udp(("::", arguments.echo_port), UdpEcho),
        _Tcp(("::", arguments.http_port), http),
    ]
    if arguments.dns_port is not None:
        zone = Zone(arguments.zone, arguments.a, arguments.aaaa)
        servers += [
            _Udp(("::", arguments.dns_port), type("BoundUdpDns", (UdpDns,), {"zone": zone})),
            _Tcp(("::", arguments.dns_port), type("BoundTcpDns", (TcpDns,), {"zone": zone})),
        ]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 3600}, daemon=True).start()
    return servers


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="echo, HTTP and DNS for the laboratory")
    parser.add_argument("--name", required=True, help="what / answers with")
    parser.add_argument("--echo-port", type=int, default=7)
    parser.add_argument("--http-port", type=int, default=80)
    parser.add_argument("--dns-port", type=int)
    parser.add_argument("--zone", default="lab.test")
    parser.add_argument("--a", default="198.51.100.10", help="IPv4 address of every name below the zone")
    parser.add_argument("--aaaa", default="2001:db8:100::10", help="IPv6 address of every name below the zone")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Serve until killed."""
    serve(parse_arguments(argv))
    print("ready", flush=True)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
