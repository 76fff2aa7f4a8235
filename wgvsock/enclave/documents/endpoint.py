"""Serves documents: to the enclave's clients through the tunnel, and to its application on a Unix socket.

==================================================  =====================================================  =========
``GET /.well-known/nitro-attestation?nonce=HEX``    a document for clients; ``&format=base64`` for text    both
``PUT /user-data?hex=HEX``                          goes into every document for clients from now on       local
``PUT /public-key?hex=HEX``                         likewise                                               local
``POST /document?nonce=…&user_data=…&public_key=…`` a document for the application itself                  local
==================================================  =====================================================  =========
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Final

from wgvsock.addresses import IpAddress, UnixAddress
from wgvsock.attestation.client import MAX_NONCE, MIN_NONCE, WELL_KNOWN
from wgvsock.enclave.application.process import identity
from wgvsock.enclave.documents.maker import DocumentMaker
from wgvsock.enclave.documents.settings import AttestationEndpointSettings
from wgvsock.enclave.errors import DocumentError
from wgvsock.enclave.tunnel_port import TunnelPort
from wgvsock.machine.base import EnclaveMachine
from wgvsock.telemetry.endpoint import Answer, Endpoint, Inquiry, Routes, Server

_HEX: Final = re.compile(r"([0-9A-Fa-f]{2})*")
_CBOR: Final = "application/cbor"
_TEXT: Final = "text/plain; charset=us-ascii"


class DocumentEndpoint:
    """Both endpoints: the clients' in the tunnel and the application's local one.

    Args:
        machine: The machine to listen on.
        interface: The tunnel's interface.
        settings: Which of the two to serve, and where.
        maker: Makes the documents.
        user: The application's user, who will own the local socket, or None for the agent's user.
    """

    def __init__(
        self,
        machine: EnclaveMachine,
        interface: str,
        settings: AttestationEndpointSettings,
        maker: DocumentMaker,
        user: str | None,
    ) -> None:
        self._settings = settings
        self._maker = maker
        self._user = user
        public: Routes = {("GET", WELL_KNOWN): Inquiry(self._for_client)}
        self._server = Server(public)
        self._port = TunnelPort(machine, interface, settings.port, self._server.accept, "documents")
        local: Routes = {
            ("PUT", "/user-data"): Inquiry(lambda query: self._register(query, maker.register_user_data)),
            ("PUT", "/public-key"): Inquiry(lambda query: self._register(query, maker.register_public_key)),
            ("POST", "/document"): Inquiry(self._own),
        }
        self._local = Endpoint(UnixAddress(settings.socket), {**public, **local})

    async def start(self) -> None:
        """Start serving the application, if configured.

        Raises:
            TransportError: The socket cannot be bound.
        """
        if not self._settings.local:
            return
        await self._local.start()
        owner = identity(self._user)
        if owner:
            os.chown(self._settings.socket, owner["user"], owner["group"])

    def listen(self, addresses: Collection[IpAddress]) -> None:
        """Serve clients on exactly these addresses of the tunnel."""
        self._port.listen(addresses)

    def close(self) -> None:
        """Stop serving."""
        self._port.close()
        self._server.close()
        self._local.close()

    async def _for_client(self, query: Mapping[str, str]) -> Answer:
        try:
            document = await self._maker.for_client(_nonce(query))
        except DocumentError as error:
            return _refusal(error)
        return _answer(document, query)

    async def _own(self, query: Mapping[str, str]) -> Answer:
        try:
            fields = _hex(query, "nonce"), _hex(query, "user_data") or b"", _hex(query, "public_key")
            return _answer(await self._maker.own(*fields), query)
        except DocumentError as error:
            return _refusal(error)

    async def _register(self, query: Mapping[str, str], register: Callable[[bytes], None]) -> Answer:
        try:
            register(_hex(query, "hex") or b"")
        except DocumentError as error:
            return _refusal(error)
        return Answer("registered\n", _TEXT)


def _nonce(query: Mapping[str, str]) -> bytes:
    nonce = _hex(query, "nonce") or b""
    if not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise DocumentError(f"a nonce has {2 * MIN_NONCE} to {2 * MAX_NONCE} hexadecimal digits", status=400)
    return nonce


def _hex(query: Mapping[str, str], key: str) -> bytes | None:
    """A field of the query, decoded, or None if the query does not have it.

    Raises:
        DocumentError: It is not hexadecimal text.
    """
    text = query.get(key)
    if text is None:
        return None
    if not _HEX.fullmatch(text):  # bytes.fromhex would skip spaces
        raise DocumentError(f"{key} is not hexadecimal text", status=400)
    return bytes.fromhex(text)


def _answer(document: bytes, query: Mapping[str, str]) -> Answer:
    if query.get("format") == "base64":
        return Answer(base64.b64encode(document) + b"\n", _TEXT)
    return Answer(document, _CBOR)


def _refusal(error: DocumentError) -> Answer:
    return Answer(f"{error.why}\n", _TEXT, HTTPStatus(error.status))
