"""An HTTPS server whose key never leaves the enclave, and whose certificate the enclave's attestation vouches for.

No authority signs the certificate. A client requests the attestation document over the same connection: the document
names the certificate's key, and the security module has signed the document.
"""

import http.client
import socket
import ssl
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

GREETING = "Hello over TLS that ends in an attested enclave"
CERTIFICATE, KEY = Path("/run/tls.pem"), Path("/run/tls.key")
AGENT = "/run/wgvsock-attestation.sock"
DOCUMENTS = "/.well-known/nitro-attestation"
TIMEOUT = 10  # seconds


def make_certificate() -> None:
    """Write a new key and its self-signed certificate."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "enclave")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=365))
    KEY.touch(mode=0o600)
    KEY.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    CERTIFICATE.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


class Agent(http.client.HTTPConnection):
    """A connection to the agent's local socket."""

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(AGENT)


class Greeter(BaseHTTPRequestHandler):
    """Sends the greeting, and forwards the path of documents to the agent."""

    timeout = TIMEOUT

    def do_GET(self) -> None:
        """Answer."""
        if self.path.split("?")[0] != DOCUMENTS:
            self.reply(200, "text/plain; charset=utf-8", f"{GREETING}, {self.client_address[0]}\n".encode())
            return
        agent = Agent("agent")
        agent.request("GET", self.path)
        answer = agent.getresponse()
        self.reply(answer.status, answer.getheader("Content-Type", ""), answer.read())
        agent.close()

    def reply(self, status: int, kind: str, body: bytes) -> None:
        """Send one answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Runs each TLS handshake in its connection's thread, so that a silent client does not block others."""

    daemon_threads = True
    context: ssl.SSLContext

    def finish_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        """Serve one connection."""
        request.settimeout(TIMEOUT)
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)


if __name__ == "__main__":
    make_certificate()
    server = Server(("0.0.0.0", 8443), Greeter)  # noqa: S104 (the tunnel is the enclave's only interface)
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(CERTIFICATE, KEY)
    server.serve_forever()
