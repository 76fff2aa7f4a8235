"""An HTTPS server as an enclave's application: it shows a certificate, and documents that name its key."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from wgvsock.attestation.client import ClientBinding, spki_sha256
from wgvsock.attestation.policy import PcrSet, Policy
from wgvsock.devices.nsm import NsmClient

Answer = Callable[[bytes], bytes]
"""From the nonce to the whole answer."""


class Identity:
    """A key and a certificate that it has signed itself, as files."""

    def __init__(self, folder: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        self.certificate = builder.sign(key, hashes.SHA256())
        self.pem = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        self.pem.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        self.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    @property
    def der(self) -> bytes:
        """The certificate, DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def spki(self) -> bytes:
        """SHA-256 of its SubjectPublicKeyInfo."""
        return spki_sha256(self.certificate)


class TlsEnclave:
    """One enclave with its module and its certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority = LabAuthority(utc_now)
        self.enclave = LabEnclave()
        self.nsm = NsmClient(FakeNsm(self.authority, self.enclave))
        self.identity = Identity(folder, "enclave")

    def policy(self, enclave: LabEnclave | None = None) -> Policy:
        """Accepts this enclave's image."""
        measured = (enclave or self.enclave).measurements
        return Policy((PcrSet({index: measured[index] for index in (0, 1, 2)}),), (self.authority.root_fingerprint,))

    def document(self, nonce: bytes, user_data: bytes = b"hello") -> bytes:
        """A document for clients."""
        return self.nsm.attest(nonce=nonce, user_data=ClientBinding(self.identity.spki, user_data).encode())

    def answer(self, nonce: bytes) -> bytes:
        """The well-behaved endpoint."""
        return ok(self.document(nonce))


def ok(body: bytes) -> bytes:
    """A good answer with this body."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/cbor\r\n\r\n" + body


@contextmanager
def serving(answer: Answer, identity: Identity | None, asked: list[str] | None = None) -> Iterator[str]:
    """Start a server on loopback with this answer. Returns its URL. Without an identity it uses plain HTTP."""
    context = None
    if identity is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.pem, identity.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with plain, context.wrap_socket(plain, server_side=True) if context else plain as sock:
                    request = b""
                    while b"\r\n\r\n" not in request and (data := sock.recv(4096)):
                        request += data
                    if not request:
                        continue
                    target = request.split(b" ")[1].decode()
                    if asked is not None:
                        asked.append(target)
                    sock.sendall(answer(bytes.fromhex(parse_qs(target.partition("?")[2])["nonce"][0])))
            except (OSError, ValueError, LookupError):  # whoever speaks something else
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    scheme = "https" if identity else "http"
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)
