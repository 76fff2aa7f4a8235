"""Asks the enclave: the network side of `wgvsock.provisioning.RelayProvisioning`, one connection an attempt."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from wgvsock.addresses import VsockAddress
from wgvsock.attestation.verifier import Verifier
from wgvsock.provisioning import Deadlines, EnclaveProvisioned, ProvisioningFailed, RelayProvisioning, TunnelConfig
from wgvsock.relay.config import RelayConfig
from wgvsock.transports.sockets import connect_stream

_CHUNK = 16_384
"""Bytes of one read: the longest message fits."""


@dataclass(slots=True)
class Provisioner:
    """Carries out exchanges for one relay.

    Attributes:
        signing_seed: Ed25519 seed that every request is signed with.
        random: Entropy.
        utc_now: The wall clock that documents are judged by.
        deadlines: Seconds for everything.
        newest_epoch: Of the last request, milliseconds; the enclave wants them to grow.
    """

    signing_seed: bytes = field(repr=False)
    random: Callable[[int], bytes]
    utc_now: Callable[[], datetime]
    deadlines: Deadlines
    newest_epoch: int = 0

    async def provision(
        self, config: RelayConfig, tunnel_config: TunnelConfig, relay_public_key: bytes
    ) -> EnclaveProvisioned:
        """Connect, offer the settings, and have the answer verified.

        Raises:
            TransportError: No connection.
            ProvisioningError: The exchange failed.
            AttestationError: The enclave was refused.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        address = config.enclave.provisioning()
        sock = await connect_stream(address, deadline=started + self.deadlines.exchange)
        with sock:
            self.newest_epoch = max(self.newest_epoch + 1, int(self.utc_now().timestamp() * 1000))
            exchange = RelayProvisioning(
                config=tunnel_config,
                relay_public_key=relay_public_key,
                verifier=Verifier(config.attestation.policy()),
                expectations=config.attestation.expectations(),
                epoch_ms=self.newest_epoch,
                random=self.random,
                utc_now=self.utc_now,
                now=loop.time(),
                signing_seed=self.signing_seed,
                connected_cid=address.cid if isinstance(address, VsockAddress) else None,
                capabilities=config.interface.capabilities(),
                deadlines=self.deadlines,
            )
            return await run_exchange(sock, exchange)


async def run_exchange(sock: socket.socket, exchange: RelayProvisioning) -> EnclaveProvisioned:
    """Carry bytes between a connected, non-blocking socket and the exchange until it has an outcome.

    Raises:
        ProvisioningError: The exchange failed.
        AttestationError: The enclave was refused.
    """
    loop = asyncio.get_running_loop()
    while True:
        if data := exchange.data_to_send():
            # A RESULT may find the connection gone already; the outcome does not depend on it.
            try:
                await asyncio.wait_for(loop.sock_sendall(sock, data), exchange_time(exchange, loop.time()))
            except (OSError, TimeoutError):
                exchange.receive_eof()
        match exchange.next_event():
            case EnclaveProvisioned() as provisioned:
                return provisioned
            case ProvisioningFailed(error):
                raise error
        try:
            async with asyncio.timeout_at(exchange.next_deadline()):
                received = await loop.sock_recv(sock, _CHUNK)
        except TimeoutError:
            exchange.handle_timers(loop.time())
        except OSError:
            exchange.receive_eof()
        else:
            if received:
                exchange.receive_data(received, loop.time())
            else:
                exchange.receive_eof()


def exchange_time(exchange: RelayProvisioning, now: float) -> float:
    """Seconds that a send may take: up to the next deadline; a second for the last word of a closed exchange."""
    deadline = exchange.next_deadline()
    return 1.0 if deadline is None else max(0.0, deadline - now)
