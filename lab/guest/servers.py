"""The laboratory's servers: echo over TCP and UDP, HTTP, and a name server. One file, standard library only.

Runs by path in any machine of the laboratory, as the outside world, as the cloud's metadata service, and as the
application inside the enclave::

    python3 servers.py --name external --echo-port 7 --http-port 80 --dns-port 53 --zone lab.test --a … --aaaa …

It writes ``ready`` once every port is bound. HTTP answers ``/`` with the machine's name, ``/whoami`` with the client's
address as the server sees it, ``/bytes/N`` with N bytes.

The name server answers every name below its zone with the given addresses, and these names specially:

==================  ====================================================================================================
``many.``           `MANY` IPv4 addresses, too long for a datagram of 512 bytes: the client retries over TCP
``big.``            4 KB of text
``short.``          times to live of `SHORT` seconds
``alias.``          CNAME of ``short.``
``svc.``            an HTTPS record with the addresses as hints
``ip-HEX.``         the address of 8 or 32 hexadecimal digits, also several: ``ip-a9fea9fe-c633640a.``
``nx.``             NXDOMAIN
``fail.``           SERVFAIL
``wrong-number.``   a false answer first, with another ID,
``wrong-name.``     to another question,
``wrong-port.``     or from another port
==================  ====================================================================================================

It knows the reverse names of the given addresses, answers other reverse names with NXDOMAIN, and refuses everything
else.
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
SHORT: Final = 2
FALSE: Final = "192.0.2.66"
"""The content of false answers."""

_A, _CNAME, _PTR, _TXT, _AAAA, _TYPE_OPT, _HTTPS = 1, 5, 12, 16, 28, 41, 65
_NOERROR, _SERVFAIL, _NXDOMAIN, _REFUSED = 0, 2, 3, 5
_SAME_NAME: Final = b"\xc0\x0c"  # a pointer to the question (RFC 1035, section 4.1.4)
_LARGEST_PLAIN_UDP: Final = 512


class _Tcp(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # one dual-stack socket, as IPV6_V6ONLY is off by default on Linux
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that disconnects is not an error here."""


class _Udp(socketserver.UDPServer):
    address_family = socket.AF_INET6
    max_packet_size = 65535

    def handle_error(self, request: object, client_address: object) -> None:
        """An answer that cannot be sent (its route is gone) is lost, as on any network."""


class TcpEcho(socketserver.BaseRequestHandler):
    """Echoes what it receives until the client has finished (RFC 862)."""

    request: socket.socket

    def handle(self) -> None:
        """Serve one connection."""
        while data := self.request.recv(1 << 18):
            self.request.sendall(data)


class UdpEcho(socketserver.BaseRequestHandler):
    """Echoes each datagram."""

    request: tuple[bytes, socket.socket]

    def handle(self) -> None:
        """Serve one datagram."""
        data, sock = self.request
        sock.sendto(data, self.client_address)


class Http(BaseHTTPRequestHandler):
    """Serves the paths of the module's docstring."""

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
        """Log one line per request on standard error, with the client's readable address."""
        print(f"http {readable(self.client_address[0])} {format % args}", file=sys.stderr)


_Record = tuple[bytes, int, int, bytes]  # owner, type, time to live in seconds, data


class Zone:
    """Answers DNS queries (RFC 1035) for one zone."""

    def __init__(self, name: str, a: str, aaaa: str) -> None:
        self.labels = name.lower().split(".")
        both = ipaddress.ip_address(a), ipaddress.ip_address(aaaa)
        self.addresses = [address.packed for address in both]
        self.reverse = [address.reverse_pointer.split(".") for address in both]

    def answer(self, query: bytes, *, over_tcp: bool) -> bytes:
        """Return a complete response message, or nothing for something that is not a query."""
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
            owner + struct.pack("!HHIH", kind, 1, life, len(data)) + data for owner, kind, life, data in records
        )
        limit = 65535 if over_tcp else _udp_size(query, end + 4) or _LARGEST_PLAIN_UDP
        count, truncated = len(records), 0
        if 12 + len(body) + len(opt) > limit:
            body, count, truncated = query[12 : end + 4], 0, 0x0200
        head = struct.pack(
            "!6H", identifier, 0x8480 | (flags & 0x0100) | truncated | code, 1, count, 0, 1 if opt else 0
        )
        return head + body + opt

    def falsehoods(self, query: bytes) -> tuple[list[bytes], bool]:
        """Return the false answers before the right one, and whether they come from another port."""
        label = _read_name(query, 12)[0][:1]
        false = Zone(".".join(self.labels), FALSE, "::")
        match label:
            case ["wrong-number"]:
                return [bytes([query[0] ^ 1]) + false.answer(query, over_tcp=False)[1:]], False
            case ["wrong-name"]:
                other = query.replace(b"\x0awrong-name", b"\x0aright-name")
                return [false.answer(other, over_tcp=False)], False
            case ["wrong-port"]:
                return [false.answer(query, over_tcp=False)], True
        return [], False

    def _look_up(self, labels: list[str], kind: int) -> tuple[int, list[_Record]]:
        if labels[-1:] == ["arpa"]:
            known = labels in self.reverse
            target = _name(["www", *self.labels])
            return (_NOERROR if known else _NXDOMAIN), [(_SAME_NAME, _PTR, TTL, target)] if known else []
        if labels[-len(self.labels) :] != self.labels:
            return _REFUSED, []
        first = labels[0]
        if first in {"nx", "fail"}:
            return {"nx": _NXDOMAIN, "fail": _SERVFAIL}[first], []
        if first == "many":
            a = self.addresses[0][:3]
            return _NOERROR, [(_SAME_NAME, _A, TTL, a + bytes([1 + n])) for n in range(MANY)] if kind == _A else []
        if first == "big" and kind == _TXT:
            return _NOERROR, [(_SAME_NAME, _TXT, TTL, b"\xf0" + bytes([65 + number]) * 240) for number in range(15)]
        if first == "svc" and kind == _HTTPS:
            hints = b"".join(
                struct.pack("!HH", 4 if len(address) == 4 else 6, len(address)) + address for address in self.addresses
            )
            return _NOERROR, [(_SAME_NAME, _HTTPS, SHORT, b"\0\1\0" + hints)]
        if first == "alias":
            target = _name(["short", *self.labels])
            return _NOERROR, [(_SAME_NAME, _CNAME, SHORT, target), *_addresses(target, SHORT, self.addresses, kind)]
        if first.startswith("ip-"):
            given = [bytes.fromhex(digits) for digits in first.split("-")[1:]]
            return _NOERROR, _addresses(_SAME_NAME, SHORT, given, kind)
        return _NOERROR, _addresses(_SAME_NAME, SHORT if first == "short" else TTL, self.addresses, kind)


def _addresses(owner: bytes, life: int, addresses: list[bytes], kind: int) -> list[_Record]:
    sizes = {_A: 4, _AAAA: 16}
    return [(owner, kind, life, address) for address in addresses if sizes.get(kind) == len(address)]


def _name(labels: list[str]) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def _read_name(message: bytes, offset: int) -> tuple[list[str], int]:
    labels = []
    while offset < len(message) and (length := message[offset]):
        labels.append(message[offset + 1 : offset + 1 + length].decode("ascii", "replace").lower())
        offset += 1 + length
    return labels, offset + 1


def _udp_size(query: bytes, offset: int) -> int:
    """Return the size that the client's OPT record (RFC 6891) accepts, or 0 without one."""
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
        false, elsewhere = self.zone.falsehoods(query)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            for answer in false:
                (other if elsewhere else sock).sendto(answer, self.client_address)
        sock.sendto(self.zone.answer(query, over_tcp=False), self.client_address)


class TcpDns(socketserver.StreamRequestHandler):
    """Serves queries preceded by two bytes of length each."""

    zone: Zone

    def handle(self) -> None:
        """Answer until the client has finished."""
        while len(prefix := self.rfile.read(2)) == 2:
            query = self.rfile.read(int.from_bytes(prefix, "big"))
            print(f"dns tcp {readable(self.client_address[0])} {len(query)} bytes", file=sys.stderr)
            answer = self.zone.answer(query, over_tcp=True)
            self.wfile.write(len(answer).to_bytes(2, "big") + answer)


def readable(address: str) -> str:
    """Return an address as people write it: an IPv4 client of a dual-stack socket appears as ``::ffff:a.b.c.d``."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return str(ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else str(ip)


def serve(arguments: argparse.Namespace) -> list[socketserver.BaseServer]:
    """Bind every requested server, and start each in a thread."""
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
