"""An HTTPS application for an enclave, and a proxy that takes its place: what clients attest, and what they refuse.

In the enclave it generates a key and a certificate that no authority signs, and forwards the path of attestation
documents to the agent's local socket. With ``--upstream`` it ends TLS with its own certificate and forwards requests::

    python3 -m lab.programs.tls_application --port 8080 --certificate /run/tls.pem --agent /run/wgvsock-attestation.sock
    python3 -m lab.programs.tls_application --port 8443 --certificate /run/proxy.pem --upstream 192.0.2.1:8080
"""

from __future__ import annotations

import argparse
import socket
import socketserver
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_TIMEOUT = 10.0  # seconds
_MAX_HEAD = 16_384


def make_certificate(path: Path, *hosts: str) -> Path:
    """Write a new certificate, PEM, and its key beside it. Return the key's path.

    Args:
        path: Path of the certificate.
        hosts: Names that clients check. Empty: clients know the certificate.
    """
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=30))
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, hosts)]), critical=False)
    key_path = path.with_suffix(".key")
    key_path.touch(mode=0o600)
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return key_path


class Server(socketserver.ThreadingTCPServer):
    """Ends TLS, and forwards one request per connection.

    Args:
        port: On every address.
        context: With the certificate.
        agent: The agent's local socket. None: there is an upstream.
        upstream: Another server of this kind.
    """

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, context: ssl.SSLContext, agent: str | None, upstream: tuple[str, int] | None) -> None:
        self.context, self.agent, self.upstream = context, agent, upstream
        super().__init__(("::", port), Handler)

    def connect(self) -> socket.socket:
        """Return the server that answers."""
        if self.upstream is None:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(_TIMEOUT)
            sock.connect(self.agent or "")
            return sock
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(socket.create_connection(self.upstream, _TIMEOUT))

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that disconnects is not an error here."""


class Handler(socketserver.BaseRequestHandler):
    """Serve one connection."""

    server: Server

    def handle(self) -> None:
        """Forward the request, and return the answer."""
        self.request.settimeout(_TIMEOUT)
        with self.server.context.wrap_socket(self.request, server_side=True) as client, self.server.connect() as server:
            head = b""
            while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD and (data := client.recv(4096)):
                head += data
            server.sendall(head)
            while data := server.recv(65536):
                client.sendall(data)


def main(argv: list[str]) -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="lab.programs.tls_application")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--agent", metavar="SOCKET")
    parser.add_argument("--upstream", metavar="HOST:PORT")
    arguments = parser.parse_args(argv)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.certificate, make_certificate(arguments.certificate))
    host, _, port = (arguments.upstream or "").rpartition(":")
    with Server(arguments.port, context, arguments.agent, (host, int(port)) if host else None) as server:
        print("ready", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
