"""For clients of an enclave: fetch its attestation document, verify it, and bind it to the TLS connection.

::

    from wgvsock.attest import fetch
    from wgvsock.attestation.policy import PcrSet, Policy

    document = fetch("https://wallet.example:8443", Policy((PcrSet({0: …, 1: …, 2: …}),)))

The certificate needs no certificate authority: its key is in the document, and AWS's root vouches for the document.
Talk to the enclave only on connections whose certificate has the same key (`AttestedServer.spki_sha256`).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import SplitResult, urlsplit

from wgvsock.attestation.client import WELL_KNOWN, check_tls_certificate, parse_client_binding
from wgvsock.attestation.policy import Expectations, Policy
from wgvsock.attestation.verifier import VerifiedDocument, Verifier, check_identity
from wgvsock.errors import ConfigurationError, TransportError
from wgvsock.transports.blocking import receive_to_end

MAX_ANSWER: Final = 65_536
"""Bytes. A document has about 5000, and base64 adds a third."""

_NONCE: Final = 32
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


class FetchError(TransportError):
    """The enclave's endpoint did not return a document."""

    code = "WGV-E058"


@dataclass(frozen=True, slots=True)
class AttestedServer:
    """A server that is an enclave running an accepted image.

    Attributes:
        document: The verified document, decoded.
        encoded: The document as received: CBOR, not base64.
        nonce: The 32-byte nonce that the document answers.
        user_data: The bytes that the application registered.
        spki_sha256: SHA-256 of the SubjectPublicKeyInfo in the connection's certificate, 32 bytes.
    """

    document: VerifiedDocument
    encoded: bytes
    nonce: bytes
    user_data: bytes
    spki_sha256: bytes | None


def fetch(
    url: str,
    policy: Policy,
    *,
    enclave_id: str | None = None,
    instance_id: str | None = None,
    role_arn: str | None = None,
    document_url: str | None = None,
    timeout: float = 10.0,
    random: Callable[[int], bytes] = os.urandom,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AttestedServer:
    """Verify that the server at a URL is an enclave that a policy accepts.

    Args:
        url: ``https://HOST[:PORT][/PATH]``. The path defaults to the well-known one.
        policy: The accepted images and roots.
        enclave_id: The only enclave of that image to accept, as nitro-cli or an earlier document names it.
        instance_id: The parent instance (``i-…``) that the enclave must run on, measured in PCR4.
        role_arn: The IAM role that the parent must have, measured in PCR3.
        document_url: Where to fetch the document if not at `url`: ``http:`` or ``https:``. The document still has to
            name the key of the certificate at `url`.
        timeout: Seconds for each connection.
        random: Source of entropy for the nonce: called with a number of bytes.
        now: The wall clock.

    Returns:
        The verified document, and what ties it to the TLS connection.

    Raises:
        ConfigurationError: A URL, an id or a role is malformed.
        FetchError: There is no answer, or the answer contains no document.
        RejectedDocumentError: The document was refused. The class names the first check that failed.
    """
    meant = Expectations(user_data=b"", enclave_id=enclave_id, instance_id=instance_id, role_arn=role_arn)
    nonce = random(_NONCE)
    server = _split(url, {"https"})
    if document_url is None:
        encoded, certificate = _ask(server, nonce, timeout)
    else:
        encoded, _ = _ask(_split(document_url, {"http", "https"}), nonce, timeout)
        _, certificate = _ask(server, None, timeout)
    assert certificate is not None  # noqa: S101 - of https
    document = Verifier(policy).verify(encoded, nonce=nonce, now=now())
    check_identity(document, meant)
    binding = parse_client_binding(document.user_data)
    check_tls_certificate(binding, certificate)
    return AttestedServer(document, encoded, nonce, binding.user_data, binding.spki_sha256)


def _ask(url: SplitResult, nonce: bytes | None, timeout: float) -> tuple[bytes, bytes | None]:
    """The document, and the certificate of the connection it came over. Without a nonce, only the certificate."""
    where, deadline = url.geturl(), time.monotonic() + timeout
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname or "", port), timeout) as plain:
            if url.scheme == "http":
                return _get(plain, url, nonce or b"", deadline), None
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the document vouches for the key, so no authority has to
            with context.wrap_socket(plain, server_hostname=url.hostname) as sock:
                certificate = sock.getpeercert(binary_form=True)
                return b"" if nonce is None else _get(sock, url, nonce, deadline), certificate
    except OSError as error:  # ssl.SSLError is one
        raise _no_answer(where, error.strerror or str(error) or "timed out") from error


def _get(sock: socket.socket, url: SplitResult, nonce: bytes, deadline: float) -> bytes:
    path, query = url.path or WELL_KNOWN, f"{url.query}&" if url.query else ""
    # HTTP/1.0: the answer is not chunked, and ends with the connection.
    request = f"GET {path}?{query}nonce={nonce.hex()} HTTP/1.0\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n"
    sock.sendall(request.encode("ascii"))
    answer = receive_to_end(sock, limit=MAX_ANSWER, deadline=deadline)
    if answer is None:
        raise _no_answer(url.geturl(), f"the answer is longer than {MAX_ANSWER} bytes")
    return _document(answer, url.geturl())


def _document(answer: bytes, where: str) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = _STATUS.match(head + b"\r\n")
    if status is None:
        raise _no_answer(where, "the answer is not HTTP")
    if int(status[1]) != 200:
        said = body[:100].decode("ascii", "replace").strip()
        raise _no_answer(where, f"it answers with HTTP status {int(status[1])}: {said}")
    try:
        return base64.b64decode(body.strip(), validate=True)
    except binascii.Error:
        return body  # not base64: the document as the module made it


def _split(url: str, schemes: set[str]) -> SplitResult:
    try:
        split = urlsplit(url)
        usable = split.scheme in schemes and split.hostname and (split.port is None or split.port > 0)
    except ValueError:
        usable = None
    if not usable or not (url.isascii() and url.isprintable() and " " not in url) or split.username is not None:
        raise ConfigurationError(
            f"cannot use the URL {url}",
            why=f"it is not an {' or '.join(sorted(schemes))} URL",
            fix="write https://HOST:PORT",
        )
    return split


def _no_answer(where: str, why: str) -> FetchError:
    return FetchError(
        f"{where} returned no attestation document",
        why=why,
        fix="check that the endpoint is published and serves this path",
    )
