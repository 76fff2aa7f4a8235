"""``[attestation_endpoint]`` of ``enclave.toml``: documents for the enclave's clients and for its application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from wgvsock.settings import Between

LOCAL_SOCKET: Final = "/run/wgvsock-attestation.sock"
"""Outside the agent's runtime directory, because an application that runs as another user cannot enter that."""


@dataclass(frozen=True, slots=True)
class AttestationEndpointSettings:
    """The table. By default there is no endpoint.

    Attributes:
        port: TCP port on the tunnel's addresses for the enclave's clients, or 0 for none.
        local: Serve the application on `socket`.
        socket: Path of the Unix socket for the application. The application's user owns it, mode 0600.
        tls_certificate: PEM file with the certificate that the application presents to its clients. It is read for each
            document, so the application may create it after the start.
    """

    port: Annotated[int, Between(0, 65535)] = 0
    local: bool = False
    socket: str = LOCAL_SOCKET
    tls_certificate: str | None = None
