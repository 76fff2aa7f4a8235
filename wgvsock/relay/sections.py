"""The tables of ``relay.toml``, each as a dataclass that validates itself.

A setting that cannot change while the relay runs has the metadata `FIXED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal

from wgvsock.addresses import (
    VMADDR_CID_ANY,
    VMADDR_CID_HYPERVISOR,
    WIREGUARD_PORT,
    Cid,
    IpAddress,
    IpInterface,
    IpNetwork,
    StreamAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
)
from wgvsock.attestation.measurements import parse_fingerprint, parse_pcr
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1, Expectations, PcrSet, Policy, check_roots
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.capabilities import native_with
from wgvsock.settings import Between, ConflictingSettingsError, check_apart, check_interface_name, next_port

Seconds = Annotated[float, Between(0, 604_800)]
PortNumber = Annotated[int, Between(1, 65535)]
ProfileName = Literal["gso", "plain"]

WHEREVER_LAUNCHED: Final = VsockAddress(VMADDR_CID_ANY, WIREGUARD_PORT)
_PCR_KEYS: Final = (0, 1, 2, 3, 4, 8)
_MAX_ADDRESSES: Final = 4


def check_addresses(addresses: tuple[IpInterface, ...]) -> None:
    """Refuse more addresses than the provisioning protocol carries.

    Raises:
        ConfigurationError: There are more than four.
    """
    if len(addresses) > _MAX_ADDRESSES:
        raise ConfigurationError(
            'cannot use "addresses"',
            why=f"an enclave has at most {_MAX_ADDRESSES}",
            fix='omit it, or write ["10.73.0.2/24"]',
        )


FIXED: Final = {"fixed": True}
"""Metadata of a field whose setting is read only at the start. A reload that changes it is refused."""


def fixed_difference(one: object, other: object) -> str | None:
    """The first fixed setting in which two tables differ, with dots, or None."""
    for member in fields(one):  # type: ignore[arg-type]
        before, after = getattr(one, member.name), getattr(other, member.name)
        if before == after or not member.compare:
            continue
        if member.metadata.get("fixed"):
            return member.name
        if is_dataclass(before) and type(before) is type(after) and (inner := fixed_difference(before, after)):
            return f"{member.name}.{inner}"
    return None


@dataclass(frozen=True, slots=True)
class EnclaveSettings:
    """``[enclave]``: where the enclave listens, and its tunnel addresses and routes.

    Attributes:
        address: Address of its WireGuard stream; with ``[launch]`` by default the launched CID and port 51820.
        provisioning_address: Address of its provisioning port; by default the next port.
        addresses: Its addresses on wg0; by default the second address of a pair from the pool, see
            `wgvsock.relay.links`.
        routes: Destinations that it sends to the relay; by default all of each IP version that the uplink has a default
            route for.
    """

    address: StreamAddress = field(default=WHEREVER_LAUNCHED, metadata=FIXED)
    provisioning_address: StreamAddress | None = None
    addresses: tuple[IpInterface, ...] = ()
    routes: tuple[IpNetwork, ...] = ()

    def __post_init__(self) -> None:
        check_addresses(self.addresses)
        for address in (self.address, self.provisioning()):
            if isinstance(address, VsockAddress) and address.cid == VMADDR_CID_HYPERVISOR:
                raise ConfigurationError(
                    f"cannot use the address {address}",
                    why="CID 0 is the hypervisor, and no enclave answers there",
                    fix="write the EnclaveCID that nitro-cli describe-enclaves prints",
                )
        check_apart({"address": self.address, "provisioning_address": self.provisioning()})

    def provisioning(self) -> StreamAddress:
        """The address of the provisioning port.

        Raises:
            ConfigurationError: It is not set and cannot be derived from the WireGuard address.
        """
        if self.provisioning_address is not None:
            return self.provisioning_address
        return next_port(self.address, "provisioning_address")

    def ports(self) -> tuple[StreamAddress, StreamAddress]:
        """The addresses on which the agent listens: for the WireGuard stream, and for provisioning."""
        return self.address, self.provisioning()

    @property
    def cid(self) -> Cid | None:
        """The enclave's CID if the address contains it, otherwise None."""
        if isinstance(self.address, VsockAddress) and self.address.cid != VMADDR_CID_ANY:
            return self.address.cid
        return None

    @property
    def waits_for_cid(self) -> bool:
        """Whether the enclave's CID is known only after its launch."""
        return isinstance(self.address, VsockAddress) and self.address.cid == VMADDR_CID_ANY

    def launched(self, cid: Cid) -> EnclaveSettings:
        """A copy with the launched enclave's CID in place of an open one."""
        return replace(
            self, address=_with_cid(self.address, cid), provisioning_address=_with_cid(self.provisioning(), cid)
        )


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """``[launch]``: what to launch, and what to do with an enclave that a crashed relay left running.

    Attributes:
        image: Path of the enclave image file.
        cpu_count: Virtual CPUs.
        memory_mib: Memory in MiB.
        name: The name of the enclave for nitro-cli, which only one relay on a machine may use. By default it is
            ``wgvsock``, and with several enclaves the names of the relay and the enclave.
        debug: Whether to launch in debug mode, whose attestation is refused unless the policy allows it.
        leftover: What to do if an enclave with this name is already running at the start: adopt it, or terminate it and
            launch a new one.
        nitro_cli: Name on PATH, or path, of nitro-cli.
        ready_timeout: Seconds in which a replacement has to be attested and its ports have to answer.
        drain_timeout: Seconds after which the connections of a replaced enclave are cut.
    """

    image: str
    cpu_count: Annotated[int, Between(1, 1024)] = field(default=2, metadata=FIXED)
    memory_mib: Annotated[int, Between(64, 1 << 22)] = field(default=512, metadata=FIXED)
    name: str | None = field(default=None, metadata=FIXED)
    debug: bool = field(default=False, metadata=FIXED)
    leftover: Literal["adopt", "terminate"] = field(default="adopt", metadata=FIXED)
    nitro_cli: str = field(default="nitro-cli", metadata=FIXED)
    ready_timeout: Annotated[float, Between(1, 86_400)] = field(default=300.0, metadata=FIXED)
    drain_timeout: Annotated[float, Between(0, 86_400)] = field(default=30.0, metadata=FIXED)


@dataclass(frozen=True, slots=True)
class InterfaceSettings:
    """``[interface]``: the relay's end of the tunnel.

    Attributes:
        name: Name of the TUN interface.
        addresses: The relay's addresses, the enclave's gateways; by default the first one of each pair from the pool.
        mtu: MTU on both sides, in bytes; by default the uplink's.
        queue_length: Length of the interface's transmit queue, in packets.
        busy_poll_us: Microseconds after each packet in which the relay does not sleep. 0: it always does.
        persistent_keepalive: Keepalive interval on both sides, in seconds; 0 turns it off.
        profiles: Accepted forms of transport data, the preferred one first.
    """

    name: str = field(default="wg0", metadata=FIXED)
    addresses: tuple[IpInterface, ...] = ()
    mtu: Annotated[int, Between(1280, 65535)] | None = None
    queue_length: Annotated[int, Between(1, 100_000)] = 1000
    busy_poll_us: Annotated[int, Between(0, 1_000_000)] = field(default=0, metadata=FIXED)
    persistent_keepalive: Annotated[int, Between(0, 65535)] = 25
    profiles: tuple[ProfileName, ...] = field(default=("gso", "plain"), metadata=FIXED)

    def __post_init__(self) -> None:
        check_interface_name(self.name)
        if not self.profiles:
            raise ConfigurationError('cannot use "profiles"', why="the list is empty", fix='write ["gso", "plain"]')

    def capabilities(self, first: str | None = None) -> tuple[str, ...]:
        """The capabilities that provisioning offers, the preferred one first: the profile `first`, if configured."""
        return native_with(sorted(self.profiles, key=lambda profile: profile != first))


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """``[dns]``: the enclave's resolver. Omitted settings are copied from the relay's own resolv.conf.

    Attributes:
        servers: The name servers.
        search: Domains that complete a short name.
        options: See resolv.conf(5).
        forward: Whether the relay asks the name servers on behalf of the enclave; by default if the policy has rules
            for names, or if all servers are on the relay's loopback.
    """

    servers: tuple[IpAddress, ...] | None = None
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None
    forward: bool | None = None


@dataclass(frozen=True, slots=True)
class PcrSetSettings:
    """``[[attestation.pcr_sets]]``: one complete set of measurements, 96 hexadecimal digits each."""

    pcr0: str
    pcr1: str
    pcr2: str
    pcr3: str | None = None
    pcr4: str | None = None
    pcr8: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self.pcr_set()

    def pcr_set(self) -> PcrSet:
        """The set for the verifier.

        Raises:
            ConfigurationError: A value is not a SHA-384 digest in hexadecimal.
        """
        values = {f"pcr{index}": getattr(self, f"pcr{index}") for index in _PCR_KEYS}
        return PcrSet(dict(parse_pcr(key, text) for key, text in values.items() if text is not None), self.name)


@dataclass(frozen=True, slots=True)
class AttestationSettings:
    """``[attestation]``: which enclaves are accepted.

    Attributes:
        pcr_sets: Accepted measurements. A document has to match one of them completely.
        root_sha256: Fingerprints of accepted root certificates; by default only AWS's root G1.
        allow_debug: Whether to accept enclaves in debug mode, whose measurements are zero.
        max_age: Maximum age of a document, in seconds.
        max_future: Seconds that a document may be ahead of the relay's clock.
        key_pcr: The PCR that commits to the enclave's WireGuard key; -1 turns this off.
        module_id: The only enclave to accept, by its module ID.
        instance_id: The parent instance, which PCR4 has to measure.
        role_arn: The parent's IAM role, which PCR3 has to measure.
    """

    pcr_sets: tuple[PcrSetSettings, ...]
    root_sha256: tuple[str, ...] = (AWS_NITRO_ROOT_G1.hex(),)
    allow_debug: bool = False
    max_age: Seconds = 120.0
    max_future: Seconds = 30.0
    key_pcr: Annotated[int, Between(-1, 31)] = 16
    module_id: str | None = None
    instance_id: str | None = None
    role_arn: str | None = None

    def __post_init__(self) -> None:
        self.policy()
        self.expectations()

    @property
    def has_foreign_root(self) -> bool:
        """Whether a root other than AWS's root G1 is accepted."""
        return any(root != AWS_NITRO_ROOT_G1 for root in self.policy().accepted_roots)

    @property
    def has_placeholder(self) -> bool:
        """Whether a PCR set has the zeros of ``wgvsock config init``, which match only an enclave in debug mode."""
        return any(not any(value) for entry in self.pcr_sets for value in entry.pcr_set().values.values())

    def policy(self) -> Policy:
        """The policy for the verifier.

        Raises:
            ConfigurationError: There is no PCR set, or a fingerprint is invalid.
        """
        roots = tuple(parse_fingerprint(root, "root_sha256") for root in self.root_sha256)
        check_roots(roots)
        return Policy(
            pcr_sets=tuple(entry.pcr_set() for entry in self.pcr_sets),
            accepted_roots=roots,
            max_age=timedelta(seconds=self.max_age),
            max_future=timedelta(seconds=self.max_future),
            allow_debug=self.allow_debug,
        )

    def expectations(self) -> Expectations:
        """The values expected from this one enclave. The exchange adds the user data.

        Raises:
            ConfigurationError: The module_id, the instance_id or the role_arn is malformed.
        """
        return Expectations(
            user_data=b"",
            enclave_id=self.module_id,
            instance_id=self.instance_id,
            role_arn=self.role_arn,
            wireguard_key_pcr=None if self.key_pcr < 0 else self.key_pcr,
        )


@dataclass(frozen=True, slots=True)
class ProvisioningSettings:
    """``[provisioning]``: how and when the enclave is provisioned. All times are in seconds.

    Attributes:
        signing_key_file: File with an Ed25519 seed in base64, the private half of the relay pin; by default a key that
            the relay generates once and keeps in the runtime directory.
        reattest_every: Interval of re-attestation.
        reattest_after_loss: After the stream was down for longer than this, the enclave has to be attested again.
        grace: How long a tunnel stays up while a re-attestation that is due fails.
        exchange_timeout: Time limit for a whole exchange.
        handshake_timeout: Time limit for the WireGuard handshake that follows.
    """

    signing_key_file: str | None = field(default=None, metadata=FIXED)
    reattest_every: Annotated[float, Between(10, 604_800)] = 3600.0
    reattest_after_loss: Annotated[float, Between(0.5, 3600)] = 3.0
    grace: Annotated[float, Between(1, 86_400)] = 60.0
    exchange_timeout: Annotated[float, Between(0.5, 3600)] = 10.0
    handshake_timeout: Annotated[float, Between(0.5, 3600)] = 10.0


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """``[[nat.publish]]``: a port of the uplink to forward to the enclave, by default to the same port."""

    protocol: Literal["tcp", "udp"]
    port: PortNumber
    enclave_port: PortNumber | None = None


@dataclass(frozen=True, slots=True)
class NatSettings:
    """``[nat]``: the uplink, address translation, and published ports.

    Attributes:
        uplink: Interface of the uplink; by default that of the default route.
        masquerade: Whether to replace the enclave's source address with the uplink's.
        publish: Ports to forward to the enclave.
    """

    uplink: str | None = field(default=None, metadata=FIXED)
    masquerade: bool = True
    publish: tuple[PublishSettings, ...] = ()

    MOVED: ClassVar[Mapping[str, str]] = {
        "allow_link_local": 'write a table [[egress.allow]] with network and protocol = "any" for each',
        "allow_relay": "write a table [[egress.allow]] with relay = true, and the ports that are needed",
    }

    def __post_init__(self) -> None:
        if self.uplink is not None:
            check_interface_name(self.uplink)
        seen: set[tuple[str, int]] = set()
        for position, entry in enumerate(self.publish):
            if (entry.protocol, entry.port) in seen:
                raise ConflictingSettingsError(
                    f"cannot publish {entry.protocol} port {entry.port}",
                    key=("publish", position, "port"),
                    why="it is listed twice",
                    fix="remove one of the two",
                )
            seen.add((entry.protocol, entry.port))


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """``[health]``: where probes and metrics are served, in addition to the control socket.

    Attributes:
        listen: The address to listen on; by default none.
        expose: What else is served there without authentication; otherwise the control socket alone serves it.
            ``status`` names keys, PCRs and addresses. ``control`` takes orders, such as to attest again, to reload, to
            replace an enclave or to send a signal.
    """

    listen: StreamAddress | None = field(default=None, metadata=FIXED)
    expose: tuple[Literal["status", "control"], ...] = field(default=(), metadata=FIXED)

    def __post_init__(self) -> None:
        if not isinstance(self.listen, TcpAddress | UnixAddress | None):
            raise ConfigurationError(
                'cannot use "listen"', why="it is neither tcp: nor unix:", fix='write "tcp:0.0.0.0:9808"'
            )
        if isinstance(self.listen, TcpAddress) and not self.listen.port:
            raise ConfigurationError('cannot use "listen"', why="port 0 is not valid", fix='write "tcp:0.0.0.0:9808"')


def _with_cid(address: StreamAddress, cid: Cid) -> StreamAddress:
    if isinstance(address, VsockAddress) and address.cid == VMADDR_CID_ANY:
        return VsockAddress(cid, address.port)
    return address
