"""``relay.toml``: what the operator tells the relay, and what follows from it for the parts that carry it out."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import ip_interface
from typing import Annotated, Final, Literal

from wgvsock import settings
from wgvsock.addresses import (
    VMADDR_CID_ANY,
    WIREGUARD_PORT,
    Cid,
    StreamAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
)
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1, Expectations, PcrSet, Policy, check_roots
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.capabilities import FRAMING_NATIVE, PROFILE_GSO, PROFILE_PLAIN
from wgvsock.relay.launcher import LaunchSettings
from wgvsock.settings import (
    Between,
    IpAddress,
    IpInterface,
    IpNetwork,
    check_interface_name,
    check_service_name,
    next_port,
)
from wgvsock.system.nitro_cli import EnclaveInfo

DEFAULT_PATH: Final = "/etc/wgvsock/relay.toml"

Seconds = Annotated[float, Between(0, 604_800)]
PortNumber = Annotated[int, Between(1, 65535)]
ProfileName = Literal["gso", "plain"]

_WHEREVER_LAUNCHED: Final = VsockAddress(VMADDR_CID_ANY, WIREGUARD_PORT)
_CAPABILITY: Final = {"gso": PROFILE_GSO, "plain": PROFILE_PLAIN}
_PCR_KEYS: Final = (0, 1, 2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class EnclaveSettings:
    """``[enclave]``: where the enclave is and what it is given.

    Attributes:
        address: Its WireGuard stream; by default, with ``[launch]``, the launched enclave's CID and port 51820.
        provisioning_address: Its provisioning port; by default the next port.
        addresses: What it gets on wg0.
        routes: What it sends to the relay; by default everything of each family that the uplink has a route for.
    """

    address: StreamAddress = _WHEREVER_LAUNCHED
    provisioning_address: StreamAddress | None = None
    addresses: tuple[IpInterface, ...] = (ip_interface("10.73.0.2/24"), ip_interface("fd73::2/64"))
    routes: tuple[IpNetwork, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.addresses) <= 4:
            raise ConfigurationError(
                'cannot use "addresses"',
                why="an enclave has one to four",
                fix='leave it out, or write ["10.73.0.2/24"]',
            )
        self.provisioning()

    def provisioning(self) -> StreamAddress:
        """The provisioning port's address.

        Raises:
            ConfigurationError: It does not follow from the WireGuard address.
        """
        if self.provisioning_address is not None:
            return self.provisioning_address
        return next_port(self.address, "provisioning_address")

    @property
    def cid(self) -> Cid | None:
        """The enclave's CID, where the address says it."""
        if isinstance(self.address, VsockAddress) and self.address.cid != VMADDR_CID_ANY:
            return self.address.cid
        return None

    @property
    def waits_for_cid(self) -> bool:
        """Whether the address is that of an enclave which has yet to be launched."""
        return isinstance(self.address, VsockAddress) and self.address.cid == VMADDR_CID_ANY

    def launched(self, cid: Cid) -> EnclaveSettings:
        """The same with the launched enclave's CID where that was left open."""
        return replace(
            self, address=_with_cid(self.address, cid), provisioning_address=_with_cid(self.provisioning(), cid)
        )


@dataclass(frozen=True, slots=True)
class InterfaceSettings:
    """``[interface]``: the relay's end of the tunnel.

    Attributes:
        name: Of the TUN interface.
        addresses: The relay's addresses, gateways of the enclave.
        mtu: Bytes, on both sides; by default the uplink's.
        queue_length: Packets that wait in the interface.
        persistent_keepalive: Seconds, on both sides; 0 is off.
        profiles: Forms of transport data to agree on, best first.
    """

    name: str = "wg0"
    addresses: tuple[IpInterface, ...] = (ip_interface("10.73.0.1/24"), ip_interface("fd73::1/64"))
    mtu: Annotated[int, Between(1280, 65535)] | None = None
    queue_length: Annotated[int, Between(1, 100_000)] = 500
    persistent_keepalive: Annotated[int, Between(0, 65535)] = 25
    profiles: tuple[ProfileName, ...] = ("gso", "plain")

    def __post_init__(self) -> None:
        check_interface_name(self.name)
        if not self.profiles:
            raise ConfigurationError('cannot use "profiles"', why="it is empty", fix='write ["gso", "plain"]')

    def capabilities(self) -> tuple[str, ...]:
        """What is offered in provisioning, best first."""
        return (FRAMING_NATIVE, *(_CAPABILITY[profile] for profile in self.profiles))


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """``[dns]``: the enclave's resolver; what is left out is copied from the relay's own resolv.conf."""

    servers: tuple[IpAddress, ...] | None = None
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None


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
        """As the verifier knows it.

        Raises:
            ConfigurationError: A value is no SHA-384 digest.
        """
        values = {index: getattr(self, f"pcr{index}") for index in _PCR_KEYS}
        given = {index: from_hex(text, f"pcr{index}", 48) for index, text in values.items() if text is not None}
        return PcrSet(given, self.name)


@dataclass(frozen=True, slots=True)
class AttestationSettings:
    """``[attestation]``: which enclaves are accepted.

    Attributes:
        pcr_sets: A document has to match one of them completely.
        root_sha256: Fingerprints of accepted root certificates; by default AWS's G1 alone.
        allow_debug: Accept enclaves in debug mode, which are not measured.
        max_age: Seconds that a document may be old.
        max_future: Seconds that it may be ahead of our clock.
        key_pcr: PCR that commits to the enclave's WireGuard key; -1 is off.
        module_id: The only instance to accept.
        instance_id: The parent instance that PCR4 has to measure.
        role_arn: The parent's IAM role that PCR3 has to measure.
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
        """Whether a root other than AWS's G1 is accepted."""
        return any(bytes.fromhex(root) != AWS_NITRO_ROOT_G1 for root in self.root_sha256)

    @property
    def has_placeholder(self) -> bool:
        """Whether a PCR set is the zeros of ``wgvsock config init``, which match no enclave but one in debug mode."""
        return any(not any(value) for entry in self.pcr_sets for value in entry.pcr_set().values.values())

    def policy(self) -> Policy:
        """As the verifier knows it.

        Raises:
            ConfigurationError: No PCR set, or a fingerprint is none.
        """
        roots = tuple(from_hex(root, "root_sha256", 32) for root in self.root_sha256)
        check_roots(roots)
        return Policy(
            pcr_sets=tuple(entry.pcr_set() for entry in self.pcr_sets),
            accepted_roots=roots,
            max_age=timedelta(seconds=self.max_age),
            max_future=timedelta(seconds=self.max_future),
            allow_debug=self.allow_debug,
        )

    def expectations(self) -> Expectations:
        """What is known of the one enclave; the exchange fills the binding in.

        Raises:
            ConfigurationError: The module_id has another form.
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
    """``[provisioning]``: how the enclave is asked, and when again. All times in seconds.

    Attributes:
        signing_key_file: Ed25519 seed in base64, the relay pin's private half; by default a key of our own is made once
            and kept in the runtime directory.
        reattest_every: Period of re-attestation.
        reattest_after_loss: A stream that was gone for longer is trusted again only after attestation.
        grace: How long a tunnel lives on while a re-attestation that is due cannot be carried out.
        exchange_timeout: For a whole exchange.
        handshake_timeout: For the WireGuard handshake that follows it.
    """

    signing_key_file: str | None = None
    reattest_every: Annotated[float, Between(10, 604_800)] = 3600.0
    reattest_after_loss: Annotated[float, Between(0.5, 3600)] = 3.0
    grace: Annotated[float, Between(1, 86_400)] = 60.0
    exchange_timeout: Annotated[float, Between(0.5, 3600)] = 10.0
    handshake_timeout: Annotated[float, Between(0.5, 3600)] = 10.0


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """``[[nat.publish]]``: a port of the uplink that leads to the enclave; `enclave_port` is the same by default."""

    protocol: Literal["tcp", "udp"]
    port: PortNumber
    enclave_port: PortNumber | None = None


@dataclass(frozen=True, slots=True)
class NatSettings:
    """``[nat]``: the way to the world and back.

    Attributes:
        uplink: Interface that leads to the world; by default the default route's.
        masquerade: Hide the enclave behind the uplink's address.
        allow_link_local: Link-local and metadata addresses that the enclave may reach all the same.
        allow_relay: The enclave may open connections to the relay's own machine: other containers of its pod.
        publish: Ports.
    """

    uplink: str | None = None
    masquerade: bool = True
    allow_link_local: tuple[IpNetwork, ...] = ()
    allow_relay: bool = False
    publish: tuple[PublishSettings, ...] = ()

    def __post_init__(self) -> None:
        if self.uplink is not None:
            check_interface_name(self.uplink)
        ports = [(entry.protocol, entry.port) for entry in self.publish]
        for protocol, port in ports:
            if ports.count((protocol, port)) > 1:
                raise ConfigurationError(
                    f"cannot publish {protocol} port {port}", why="it occurs twice", fix="remove one of the two"
                )


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """``[health]``: where probes and metrics are served, beside the control socket."""

    listen: StreamAddress | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.listen, TcpAddress | UnixAddress | None):
            raise ConfigurationError(
                'cannot use "listen"', why="it is neither tcp: nor unix:", fix='write "tcp:0.0.0.0:9808"'
            )


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """The whole file.

    Attributes:
        launch: The enclave is launched by the relay; without this table one that runs is attached to.
        name: Names state journal, signing key and control socket in `runtime_directory`.
        runtime_directory: For this process's state; emptied by a boot.
        log_level: Lowest level to log.
    """

    attestation: AttestationSettings
    enclave: EnclaveSettings = field(default_factory=EnclaveSettings)
    launch: LaunchSettings | None = None
    name: str = "relay"
    runtime_directory: str = "/run/wgvsock"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    interface: InterfaceSettings = field(default_factory=InterfaceSettings)
    dns: DnsSettings = field(default_factory=DnsSettings)
    provisioning: ProvisioningSettings = field(default_factory=ProvisioningSettings)
    nat: NatSettings = field(default_factory=NatSettings)
    health: HealthSettings = field(default_factory=HealthSettings)

    def __post_init__(self) -> None:
        check_service_name(self.name)
        if self.launch is None and self.enclave.waits_for_cid:
            raise ConfigurationError(
                "no enclave is named",
                why='"enclave.address" is missing, and so is the table "launch"',
                fix='write enclave.address = "vsock:16:51820" to attach to a running enclave, or launch.image',
            )
        if self.interface.name == self.nat.uplink:
            raise ConfigurationError(
                "the tunnel cannot be its own uplink", why=f"both are {self.nat.uplink}", fix='change "nat.uplink"'
            )

    def launched(self, enclave: EnclaveInfo) -> RelayConfig:
        """The same for an enclave that was launched: its CID where that was left open, and no other module_id."""
        return replace(
            self,
            enclave=self.enclave.launched(enclave.cid),
            attestation=replace(self.attestation, module_id=enclave.enclave_id),
        )

    def restart_needed_for(self, other: RelayConfig) -> str | None:
        """The first setting that differs and cannot be changed while the relay runs; None: all can."""
        return next((key for key in _FIXED if _lookup(self, key) != _lookup(other, key)), None)


_FIXED: Final = (
    "name",
    "runtime_directory",
    "log_level",
    "interface.name",
    "interface.profiles",
    "enclave.address",
    "launch",
    "provisioning.signing_key_file",
    "nat.uplink",
    "health.listen",
)


def _lookup(config: RelayConfig, key: str) -> object:
    return functools.reduce(getattr, key.split("."), config)


def _with_cid(address: StreamAddress, cid: Cid) -> StreamAddress:
    if isinstance(address, VsockAddress) and address.cid == VMADDR_CID_ANY:
        return VsockAddress(cid, address.port)
    return address


def load(path: str) -> RelayConfig:
    """Read and check a file.

    Raises:
        ConfigurationError: See `wgvsock.settings.read`.
    """
    return settings.read(RelayConfig, path)


def from_hex(text: str, key: str, length: int) -> bytes:
    """Bytes of a given length from hexadecimal text.

    Raises:
        ConfigurationError: It is not that.
    """
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != length:
        raise ConfigurationError(
            f'cannot use "{key}"',
            why=f"it is not {2 * length} hexadecimal digits",
            fix="copy it from nitro-cli's output",
        )
    return value
