"""The network side of `wgvsock.provisioning.RelayProvisioning`, with one connection per attempt."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from wgvsock.addresses import Cid, VsockAddress
from wgvsock.attestation.verifier import Verifier
from wgvsock.provisioning import Deadlines, EnclaveProvisioned, ProvisioningFailed, RelayProvisioning, TunnelConfig
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.transports.sockets import connect_stream, send_all

_CHUNK = 16_384
"""Bytes in one read, enough for the longest message."""


@dataclass(slots=True)
class Provisioner:
    """Carries out exchanges for one relay.

    Attributes:
        signing_seed: Ed25519 seed that signs every request, 32 bytes.
        random: Returns as many random bytes as asked for.
        utc_now: The wall clock that documents are checked against.
        incarnation: When this relay's process started, as Unix time in milliseconds.
        deadlines: The time limits, in seconds.
        took: Duration of the last successful exchange, including the connection, in seconds.
        newest_epoch: Epoch of the last request, in milliseconds. The enclave requires it to increase.
        profile: The profile that comes first of those that are configured, or None for the configured order.
    """

    signing_seed: bytes = field(repr=False)
    random: Callable[[int], bytes]
    utc_now: Callable[[], datetime]
    incarnation: int
    deadlines: Deadlines
    newest_epoch: int = 0
    took: float = 0.0
    profile: str | None = None

    async def provision(
        self,
        spec: EnclaveSpec,
        tunnel_config: TunnelConfig,
        relay_public_key: bytes,
        *,
        launched_cid: Cid | None = None,
        attested_before: str | None = None,
    ) -> EnclaveProvisioned:
        """Connect, offer the settings, and verify the answer.

        Args:
            spec: The enclave's address and attestation policy.
            tunnel_config: The settings for the enclave.
            relay_public_key: The relay's WireGuard public key for this exchange, 32 bytes.
            launched_cid: CID of the launched enclave, which the connection has to lead to.
            attested_before: The module_id that the running tunnel belongs to. If the configuration sets no module_id, a
                document of another enclave is refused.

        Raises:
            TransportError: The connection failed.
            ProvisioningError: The exchange failed.
            AttestationError: The enclave was refused.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        address = spec.enclave.provisioning()
        expectations = spec.attestation.expectations()
        if expectations.enclave_id is None:
            expectations = replace(expectations, enclave_id=attested_before)
        sock = await connect_stream(address, deadline=started + self.deadlines.exchange)
        with sock:
            self.newest_epoch = max(self.newest_epoch + 1, int(self.utc_now().timestamp() * 1000))
            exchange = RelayProvisioning(
                config=tunnel_config,
                relay_public_key=relay_public_key,
                verifier=Verifier(spec.attestation.policy()),
                expectations=expectations,
                epoch_ms=self.newest_epoch,
                random=self.random,
                utc_now=self.utc_now,
                now=loop.time(),
                incarnation=self.incarnation,
                signing_seed=self.signing_seed,
                connected_cid=address.cid if isinstance(address, VsockAddress) else None,
                launched_cid=launched_cid,
                capabilities=spec.interface.capabilities(self.profile),
                deadlines=self.deadlines,
            )
            provisioned = await run_exchange(sock, exchange)
        self.took = loop.time() - started
        return provisioned


async def run_exchange(sock: socket.socket, exchange: RelayProvisioning) -> EnclaveProvisioned:
    """Pass bytes between a connected, non-blocking socket and the exchange until the exchange ends.

    Raises:
        ProvisioningError: The exchange failed.
        AttestationError: The enclave was refused.
    """
    loop = asyncio.get_running_loop()
    while True:
        if data := exchange.data_to_send():
            # The connection may be gone before RESULT is sent. The outcome does not depend on RESULT.
            try:
                await asyncio.wait_for(send_all(sock, data), exchange_time(exchange, loop.time()))
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
    """Seconds that a send may take: until the next deadline, or one second after the exchange has ended."""
    deadline = exchange.next_deadline()
    return 1.0 if deadline is None else max(0.0, deadline - now)
