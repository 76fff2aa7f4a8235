"""A relay and an enclave that provision in memory, with a hook for a man in the middle."""

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
from wgvsock.provisioning.messages import Hello, decode_hello, split_request
from wgvsock.provisioning.transcript import Ephemeral, binding_hash, transcript_hash
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


class RelayHalf:
    """A relay's cryptography in answer to a HELLO, for tests that make its messages by hand or read an enclave's.

    Args:
        hello: HELLO as on the wire, without the length of its frame.
        seed: Seed of the relay's ephemeral key, 32 bytes.
    """

    def __init__(self, hello: bytes, seed: bytes = b"r" * 32) -> None:
        remote = decode_hello(hello)
        assert isinstance(remote, Hello)  # noqa: S101 - a mistake of the test
        self.hello = hello
        self.ephemeral = Ephemeral(seed)
        self.remote = remote.ephemeral
        self.binding = binding_hash(hello, self.ephemeral.public)
        self._keys = self.ephemeral.sealing_keys(self.remote, self.binding)
        self.transcript = b""

    def request(self, plaintext: bytes) -> bytes:
        """M1 for a REQUEST's map."""
        message = self.ephemeral.public + self._keys.to_enclave.seal(plaintext, self.binding)
        self.transcript = transcript_hash(self.hello, message)
        return message

    def result(self, plaintext: bytes) -> bytes:
        """M3 for a RESULT's map."""
        return self._keys.to_enclave.seal(plaintext, self.transcript)

    def open(self, message: bytes) -> bytes:
        """Open a message that the enclave has sealed."""
        return self._keys.to_relay.open(message, self.transcript)


class EnclaveHalf:
    """An enclave's cryptography, once a REQUEST has arrived.

    Args:
        hello: HELLO as sent, without the length of its frame.
        request: M1 as received, without the length of its frame.
        seed: Seed of the ephemeral key in HELLO, 32 bytes.
    """

    def __init__(self, hello: bytes, request: bytes, seed: bytes = b"e" * 32) -> None:
        ephemeral, sealed = split_request(request)
        self.ephemeral = Ephemeral(seed)
        binding = binding_hash(hello, ephemeral)
        self._keys = self.ephemeral.sealing_keys(ephemeral, binding)
        self.request = self._keys.to_enclave.open(sealed, binding)
        """REQUEST's map."""
        self.transcript = transcript_hash(hello, request)

    def response(self, plaintext: bytes) -> bytes:
        """M2 for the map of a RESPONSE or an ERROR."""
        return self._keys.to_relay.seal(plaintext, self.transcript)

    def open(self, message: bytes) -> bytes:
        """Open M3, which gives RESULT's map."""
        return self._keys.to_enclave.open(message, self.transcript)


class ProvisioningPair:
    """One enclave with a minimal shell, and as many connections from relays as a test makes.

    The shell applies every assignment and gets every document at once, unless `applies` or `attests` is False.

    Args:
        verifier: The relay's verifier.
        attest: Makes documents, as the enclave's security module does.
        expectations: What the relay knows about the enclave.
        wireguard_public_key: The enclave's WireGuard key, 32 bytes.
        clock: The clock of both.
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
        self.draws: list[bytes] = []
        """All random bytes of both sides so far, including the seeds of ephemeral keys."""
        self._source = SeededRandom("provisioning")
        self.enclave = EnclaveProvisioning(random=self.random, **enclave_options)
        self.applies = True
        self.attests = True
        self.events: list[EnclaveEvent] = []
        self.in_force: Assignment | None = None
        """The newest assignment that the shell has applied and not rolled back."""

    def random(self, size: int) -> bytes:
        """Random bytes for both sides."""
        self.draws.append(self._source(size))
        return self.draws[-1]

    def utc_now(self) -> datetime:
        """The wall clock of both sides."""
        return datetime.fromtimestamp(self.clock.wall_clock() / 1e9, UTC)

    def relay(self, **options: Any) -> RelayProvisioning:
        """A relay's side of one connection. `options` replace the usual arguments of `RelayProvisioning`."""
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
        """A new connection, one second after the last one. `options` are those of `relay`."""
        self.clock.advance(1.0)
        relay = self.relay(**options)
        return Connection(self, relay, self.enclave.accept(self.clock.now))

    def provision(self, **options: Any) -> RelayEvent | None:
        """Run one whole exchange, and return the relay's event."""
        return self.connect(**options).run()

    def drain(self) -> list[EnclaveEvent]:
        """Let the shell handle the enclave's events, and return them."""
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
    """One connection of a `ProvisioningPair`. `to_enclave` and `to_relay` may change the bytes in transit."""

    def __init__(self, pair: ProvisioningPair, relay: RelayProvisioning, exchange: Exchange) -> None:
        self.pair = pair
        self.relay = relay
        self.exchange = exchange
        self.to_enclave: Tamper = _unchanged
        self.to_relay: Tamper = _unchanged
        self.sent_by_relay: list[bytes] = []
        self.sent_by_enclave: list[bytes] = []

    def carry_to_relay(self) -> bool:
        """Carry the enclave's bytes to the relay. Returns False if there were none."""
        self.pair.drain()
        data = self.exchange.data_to_send()
        if data:
            self.sent_by_enclave.append(data)
            self.relay.receive_data(self.to_relay(data), self.pair.clock.now)
        return bool(data)

    def carry_to_enclave(self) -> bool:
        """Carry the relay's bytes to the enclave. Returns False if there were none."""
        data = self.relay.data_to_send()
        if data:
            self.sent_by_relay.append(data)
            self.exchange.receive_data(self.to_enclave(data), self.pair.clock.now)
            self.pair.drain()
        return bool(data)

    @property
    def opened_by_enclave(self) -> list[bytes]:
        """The maps of the relay's messages."""
        hello = self.sent_by_enclave[0][4:]
        ephemeral = decode_hello(hello).ephemeral  # type: ignore[union-attr] # an ERROR has none, and the test fails
        seed = next(draw for draw in self.pair.draws if len(draw) == 32 and Ephemeral(draw).public == ephemeral)
        half = EnclaveHalf(hello, self.sent_by_relay[0][4:], seed)
        return [half.request, *(half.open(data[4:]) for data in self.sent_by_relay[1:])]

    def run(self) -> RelayEvent | None:
        """Carry bytes until both sides are silent, then close the connection of each side that has ended."""
        while self.carry_to_relay() | self.carry_to_enclave():
            pass
        if self.relay.closed:
            self.exchange.receive_eof()
        if self.exchange.closed:
            self.relay.receive_eof()
        self.pair.drain()
        return self.relay.next_event()
