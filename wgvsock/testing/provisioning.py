"""A relay and an enclave that provision over memory, with a place for a man in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Final

from wgvsock.attestation.policy import Expectations
from wgvsock.attestation.verifier import Verifier
from wgvsock.provisioning import (
    Assignment,
    AttestationNeeded,
    ConfigurationActivated,
    ConfigurationOffered,
    ConfigurationRolledBack,
    EnclaveEvent,
    EnclaveProvisioning,
    Exchange,
    RelayEvent,
    RelayProvisioning,
    TunnelConfig,
)
from wgvsock.testing.clock import ManualClock, SeededRandom

SIGNING_SEED: Final = b"relay signing seed, for tests..."
RELAY_PUBLIC_KEY: Final = bytes(range(1, 33))

TUNNEL_CONFIG: Final = TunnelConfig(
    addresses=(ip_interface("10.73.0.2/24"), ip_interface("fd73::2/64")),
    gateways=(ip_address("10.73.0.1"), ip_address("fd73::1")),
    mtu=1500,
    allowed_ips=(ip_network("0.0.0.0/0"), ip_network("::/0")),
    nameservers=(ip_address("10.96.0.10"),),
    search=("default.svc.cluster.local",),
    resolver_options=("ndots:5",),
    persistent_keepalive=25,
)

Tamper = Callable[[bytes], bytes]


def _unchanged(data: bytes) -> bytes:
    return data


class ProvisioningPair:
    """One enclave with the simplest of shells, and as many connections from relays as a test makes.

    The shell applies every assignment and has every document made at once, unless `applies` or `attests` is False.

    Args:
        verifier: The relay's.
        attest: The enclave's security module.
        expectations: What the relay knows of the enclave.
        wireguard_public_key: The enclave's WireGuard key, 32 bytes.
        clock: Time of both.
        enclave_options: Further arguments of `EnclaveProvisioning`.
    """

    def __init__(
        self,
        *,
        verifier: Verifier,
        attest: Callable[[AttestationNeeded], bytes],
        expectations: Expectations,
        wireguard_public_key: bytes,
        clock: ManualClock,
        **enclave_options: Any,
    ) -> None:
        self.verifier = verifier
        self.attest = attest
        self.expectations = expectations
        self.wireguard_public_key = wireguard_public_key
        self.clock = clock
        self.random = SeededRandom("provisioning")
        self.enclave = EnclaveProvisioning(random=self.random, **enclave_options)
        self.applies = True
        self.attests = True
        self.events: list[EnclaveEvent] = []
        self.in_force: Assignment | None = None
        """The newest assignment that the shell has applied, as an interface would hold it."""

    def utc_now(self) -> datetime:
        """The wall clock of both sides."""
        return datetime.fromtimestamp(self.clock.wall_clock() / 1e9, UTC)

    def relay(self, **options: Any) -> RelayProvisioning:
        """A relay's side for one connection; `options` replace the usual arguments of `RelayProvisioning`."""
        usual: dict[str, Any] = {
            "config": TUNNEL_CONFIG,
            "relay_public_key": RELAY_PUBLIC_KEY,
            "verifier": self.verifier,
            "expectations": self.expectations,
            "epoch_ms": self.clock.wall_clock() // 10**6,
            "random": self.random,
            "utc_now": self.utc_now,
            "now": self.clock.now,
            "signing_seed": SIGNING_SEED,
        }
        return RelayProvisioning(**usual | options)

    def connect(self, **options: Any) -> Connection:
        """A new connection, a second after the last one; `options` as in `relay`."""
        self.clock.advance(1.0)
        relay = self.relay(**options)
        return Connection(self, relay, self.enclave.accept(self.clock.now))

    def provision(self, **options: Any) -> RelayEvent | None:
        """One whole exchange; the relay's event."""
        return self.connect(**options).run()

    def drain(self) -> list[EnclaveEvent]:
        """Let the shell work through the enclave's events; those that it met."""
        seen = list(self._shell())
        self.events += seen
        return seen

    def _shell(self) -> Iterator[EnclaveEvent]:
        while (event := self.enclave.next_event()) is not None:
            yield event
            match event:
                case ConfigurationOffered(exchange, assignment) if self.applies:
                    self.in_force = assignment
                    exchange.configuration_applied(self.wireguard_public_key, self.clock.now)
                case AttestationNeeded(exchange) if self.attests:
                    exchange.attestation_ready(self.attest(event), self.clock.now)
                case ConfigurationRolledBack(_, restores):
                    self.in_force = restores
                case ConfigurationActivated(assignment):
                    self.in_force = assignment
                case _:
                    pass


class Connection:
    """One connection of a `ProvisioningPair`; `to_enclave` and `to_relay` may change what passes."""

    def __init__(self, pair: ProvisioningPair, relay: RelayProvisioning, exchange: Exchange) -> None:
        self.pair = pair
        self.relay = relay
        self.exchange = exchange
        self.to_enclave: Tamper = _unchanged
        self.to_relay: Tamper = _unchanged
        self.sent_by_relay: list[bytes] = []
        self.sent_by_enclave: list[bytes] = []

    def carry_to_relay(self) -> bool:
        """Carry what the enclave has to send; False when it was nothing."""
        self.pair.drain()
        data = self.exchange.data_to_send()
        if data:
            self.sent_by_enclave.append(data)
            self.relay.receive_data(self.to_relay(data), self.pair.clock.now)
        return bool(data)

    def carry_to_enclave(self) -> bool:
        """Carry what the relay has to send; False when it was nothing."""
        data = self.relay.data_to_send()
        if data:
            self.sent_by_relay.append(data)
            self.exchange.receive_data(self.to_enclave(data), self.pair.clock.now)
            self.pair.drain()
        return bool(data)

    def run(self) -> RelayEvent | None:
        """Carry bytes until both sides have nothing to say; then each closes what it has ended."""
        while self.carry_to_relay() | self.carry_to_enclave():
            pass
        if self.relay.closed:
            self.exchange.receive_eof()
        if self.exchange.closed:
            self.relay.receive_eof()
        self.pair.drain()
        return self.relay.next_event()
