"""Makes the documents one at a time, so that provisioning never waits for more than one of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wgvsock.attestation.client import MAX_USER_DATA, ClientBinding, own_user_data, spki_sha256
from wgvsock.devices.nsm import MAX_FIELD_SIZE, NsmClient, NsmError
from wgvsock.enclave.errors import DocumentError
from wgvsock.machine.base import EnclaveMachine
from wgvsock.provisioning import Allowance
from wgvsock.runtime.private import read_beginning
from wgvsock.telemetry.logs import error_fields

RATE: Final = 10.0
"""Documents a second for all clients together: the module takes milliseconds for each, and makes one at a time."""

BURST: Final = 20.0
"""Documents that may be requested at once after a quiet period."""

MAX_WAITING: Final = 8
"""Requests that may wait for the module. Any further request is told to try again."""

_MAX_CERTIFICATE: Final = 65_536
"""Bytes of the PEM file. Only its first certificate counts."""

_log = logging.getLogger(__name__)


class DocumentMaker:
    """Asks the module for documents, and holds what the application has registered.

    Args:
        machine: Runs the calls to the module.
        nsm: The Nitro Security Module.
        timeout: Seconds that a document may take.
        tls_certificate: PEM file with the certificate that the application presents, or None if it uses no TLS.
    """

    def __init__(self, machine: EnclaveMachine, nsm: NsmClient, *, timeout: float, tls_certificate: str | None) -> None:
        self._machine = machine
        self._nsm = nsm
        self._timeout = timeout
        self._tls_certificate = tls_certificate
        self._allowance = Allowance(RATE, BURST)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._user_data = b""
        self._public_key: bytes | None = None

    def register_user_data(self, user_data: bytes) -> None:
        """Put this into every document for clients from now on.

        Args:
            user_data: At most `MAX_USER_DATA` bytes.

        Raises:
            DocumentError: It is too long.
        """
        if len(user_data) > MAX_USER_DATA:
            raise DocumentError(f"user data has at most {MAX_USER_DATA} bytes", status=413)
        self._user_data = user_data

    def register_public_key(self, public_key: bytes) -> None:
        """Put this public key into every document for clients from now on.

        Args:
            public_key: At most `MAX_FIELD_SIZE` bytes. Empty removes the key.

        Raises:
            DocumentError: It is too long.
        """
        if len(public_key) > MAX_FIELD_SIZE:
            raise DocumentError(f"a public key has at most {MAX_FIELD_SIZE} bytes", status=413)
        self._public_key = public_key or None

    async def for_client(self, nonce: bytes) -> bytes:
        """Make a document for one of the enclave's clients.

        Args:
            nonce: The client's nonce.

        Returns:
            The document as the module made it: CBOR.

        Raises:
            DocumentError: No document can be made now.
        """
        binding = ClientBinding(self._certificate_digest(), self._user_data)
        return await self._make(
            lambda: self._nsm.attest(nonce=nonce, user_data=binding.encode(), public_key=self._public_key)
        )

    async def own(self, nonce: bytes | None, user_data: bytes, public_key: bytes | None) -> bytes:
        """Make a document for the application itself, for example as KMS's ``Recipient``.

        Args:
            nonce: At most `MAX_FIELD_SIZE` bytes, or None to leave it out.
            user_data: At most `MAX_USER_DATA` bytes. The document marks them as the application's own.
            public_key: At most `MAX_FIELD_SIZE` bytes, or None to leave it out.

        Returns:
            The document as the module made it: CBOR.

        Raises:
            DocumentError: No document can be made now, or a field is too long.
        """
        if len(user_data) > MAX_USER_DATA or max(len(nonce or b""), len(public_key or b"")) > MAX_FIELD_SIZE:
            raise DocumentError("a field of the document is too long", status=413)
        tagged = own_user_data(user_data)
        return await self._make(lambda: self._nsm.attest(nonce=nonce, user_data=tagged, public_key=public_key))

    async def _make(self, call: Callable[[], bytes]) -> bytes:
        now = self._machine.monotonic()
        if self._waiting >= MAX_WAITING or self._allowance.spend(0, now) > 0:
            raise DocumentError("too many requests for documents: try again in a second", status=429)
        self._allowance.spend(1, now)
        self._waiting += 1
        try:
            async with self._turn:
                return await self._machine.ask_module(call, timeout=self._timeout)
        except NsmError as error:
            _log.error("cannot make a document", extra=error_fields(error))
            raise DocumentError("the security module returned no document", status=503) from error
        finally:
            self._waiting -= 1

    def _certificate_digest(self) -> bytes | None:
        if self._tls_certificate is None:
            return None
        from cryptography import x509  # a tenth of what an agent would import, for who has a certificate

        try:
            pem = read_beginning(Path(self._tls_certificate), _MAX_CERTIFICATE)
            return spki_sha256(x509.load_pem_x509_certificate(pem))
        except (OSError, ValueError) as error:
            _log.warning("the application's certificate cannot be read: %s", error)
            raise DocumentError("the application has no certificate yet", status=503) from error
