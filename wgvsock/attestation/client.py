r"""Documents for an enclave's clients and for its application: what their user_data contains, and how it is checked.

Each use of the module starts user_data with a different tag, so that no document can be passed off as another.
Provisioning's begins with ``wgvsock/prov/1\0\0`` (`wgvsock.provisioning.transcript`).

=================  ==============================================================================================
client document    ``"wgvsock/client/1\0"``, SHA-256 of the TLS certificate's SubjectPublicKeyInfo or 32 zero bytes,
                   what the application has registered
own document       ``"wgvsock/own/1\0"``, what the application asked to include
=================  ==============================================================================================
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wgvsock.attestation.errors import ClientDomainError, TlsCertificateError
from wgvsock.errors import ConfigurationError

if TYPE_CHECKING:  # an enclave whose application has no certificate loads no X.509
    from cryptography import x509

CLIENT_TAG: Final = b"wgvsock/client/1\0"
OWN_TAG: Final = b"wgvsock/own/1\0"

WELL_KNOWN: Final = "/.well-known/nitro-attestation"
"""Path of the document for clients."""

MIN_NONCE: Final = 20
MAX_NONCE: Final = 64
"""Bytes of a client's nonce. The minimum is what nitriding's clients use, the maximum an eighth of the 512 that
the module takes."""

MAX_USER_DATA: Final = 400
"""Bytes that an application may add. With tag and digest they stay below the 512 that the module takes."""

_NO_CERTIFICATE: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class ClientBinding:
    """The parts of a client document's user_data.

    Attributes:
        spki_sha256: SHA-256 of the TLS certificate's SubjectPublicKeyInfo, 32 bytes. None if the enclave names no
            certificate.
        user_data: What the application has registered, up to 400 bytes.
    """

    spki_sha256: bytes | None
    user_data: bytes

    def encode(self) -> bytes:
        """The document's user_data, up to 449 bytes.

        Raises:
            ConfigurationError: The application's part is longer than 400 bytes.
        """
        _check_length(self.user_data)
        return CLIENT_TAG + (self.spki_sha256 or _NO_CERTIFICATE) + self.user_data


def own_user_data(user_data: bytes) -> bytes:
    """The user_data of a document that the application asked for, with its tag.

    Raises:
        ConfigurationError: It is longer than 400 bytes.
    """
    _check_length(user_data)
    return OWN_TAG + user_data


def parse_client_binding(user_data: bytes | None) -> ClientBinding:
    """Split a client document's user_data into its parts.

    Raises:
        ClientDomainError: The document was made for another purpose.
    """
    if user_data is None or not user_data.startswith(CLIENT_TAG) or len(user_data) < len(CLIENT_TAG) + 32:
        raise ClientDomainError("its user_data is not in the form for clients")
    digest, rest = user_data[len(CLIENT_TAG) : len(CLIENT_TAG) + 32], user_data[len(CLIENT_TAG) + 32 :]
    return ClientBinding(None if digest == _NO_CERTIFICATE else digest, rest)


def check_tls_certificate(binding: ClientBinding, certificate: bytes) -> None:
    """Check that the enclave itself holds the key of a TLS certificate, whatever carries the bytes.

    Args:
        binding: From the verified document.
        certificate: DER, from the TLS handshake, in which the server proved possession of its key.

    Raises:
        TlsCertificateError: The document names another key or none, or the certificate cannot be read.
    """
    from cryptography import x509

    if binding.spki_sha256 is None:
        raise TlsCertificateError("the document names no TLS certificate: nothing binds it to this connection")
    try:
        found = spki_sha256(x509.load_der_x509_certificate(certificate))
    except ValueError:
        raise TlsCertificateError("the certificate of this connection cannot be read") from None
    if not hmac.compare_digest(found, binding.spki_sha256):
        raise TlsCertificateError(
            "the key of this connection's certificate is not the enclave's: something intercepts the connection"
        )


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 5280, section 4.1; DER), 32 bytes."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


def _check_length(user_data: bytes) -> None:
    if len(user_data) > MAX_USER_DATA:
        raise ConfigurationError(
            "cannot put the user data into a document",
            why=f"it has {len(user_data)} bytes, and at most {MAX_USER_DATA} fit",
            fix="register a digest of it",
        )
