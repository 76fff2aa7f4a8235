"""``enclave.toml``: settings built into the enclave's image, and so measured. The rest comes from the relay."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from wgvsock import settings
from wgvsock.addresses import (
    NITRO_PARENT_CID,
    VMADDR_CID_ANY,
    WIREGUARD_PORT,
    Cid,
    StreamAddress,
    UnixAddress,
    VsockAddress,
)
from wgvsock.egress.policy import Policy
from wgvsock.egress.settings import PolicySettings
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.enclave.clock import ClockSettings
from wgvsock.enclave.documents.settings import AttestationEndpointSettings
from wgvsock.enclave.egress import measured_policy
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.capabilities import native_with
from wgvsock.provisioning.pin import check_pin
from wgvsock.runtime.directory import RUNTIME_DIRECTORY, control_socket_path
from wgvsock.settings import (
    Between,
    ConflictingSettingsError,
    check_apart,
    check_interface_name,
    check_service_name,
    next_port,
)

DEFAULT_PATH: Final = "/etc/wgvsock/enclave.toml"

_LISTEN: Final = VsockAddress(VMADDR_CID_ANY, WIREGUARD_PORT)


@dataclass(frozen=True, slots=True)
class EnclaveConfig:
    """The whole file. Every key has a default.

    Attributes:
        name: Names the state journal and the control socket in `runtime_directory`.
        runtime_directory: Directory of this process's state.
        log_level: Lowest level to log.
        listen: Address for the relay's WireGuard stream.
        provisioning_listen: Address for the relay's provisioning. Default: the next port.
        parent_cid: The only CID that may connect over vsock: 3 on Nitro, 2 under QEMU.
        interface: Name of the TUN interface.
        queue_length: Length of the interface's transmit queue, in packets.
        busy_poll_us: Microseconds after each packet in which the agent does not sleep. 0: it always does.
        profiles: Forms of transport data to offer, best first.
        key_pcr: PCR to commit the WireGuard key to. -1 turns the commitment off.
        pin_public_key: Relay pin: the Ed25519 key, in base64, whose signature every request needs.
        resolv_conf: File to write the DNS settings to. "" leaves DNS alone.
        stop_timeout: Seconds that the application has to end after SIGTERM, and the relay to read the last report.
        application: How to run the application, and what to report about it.
        clock: Where the wall clock takes its time from.
        attestation_endpoint: Documents for the enclave's clients and for its application.
        egress: What may leave the enclave. Without this table only the relay decides.
    """

    name: str = "enclave"
    runtime_directory: str = RUNTIME_DIRECTORY
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    listen: StreamAddress = _LISTEN
    provisioning_listen: StreamAddress | None = None
    parent_cid: Annotated[int, Between(0, 0xFFFFFFFE)] = NITRO_PARENT_CID
    interface: str = "wg0"
    queue_length: Annotated[int, Between(1, 100_000)] = 1000
    busy_poll_us: Annotated[int, Between(0, 1_000_000)] = 0
    profiles: tuple[Literal["gso", "plain"], ...] = ("gso", "plain")
    key_pcr: Annotated[int, Between(-1, 31)] = 16
    pin_public_key: str | None = None
    resolv_conf: str = "/etc/resolv.conf"
    stop_timeout: Annotated[float, Between(0, 3600)] = 10.0
    application: ApplicationSettings = field(default_factory=ApplicationSettings)
    clock: ClockSettings = field(default_factory=ClockSettings)
    attestation_endpoint: AttestationEndpointSettings = field(default_factory=AttestationEndpointSettings)
    egress: PolicySettings | None = None

    def __post_init__(self) -> None:
        check_service_name(self.name)
        check_interface_name(self.interface)
        check_apart({"listen": self.listen, "provisioning_listen": self.provisioning()})
        self.pin()
        ports = {"application.report_port": self.application.report_port}
        check_ports_apart(ports | {"attestation_endpoint.port": self.attestation_endpoint.port})
        self.egress_policy()
        if not self.profiles:
            raise ConfigurationError('cannot use "profiles"', why="the list is empty", fix='write ["gso", "plain"]')
        if 0 <= self.key_pcr < 16:
            raise ConfigurationError(
                'cannot use "key_pcr"', why="PCR0 to PCR15 are locked at boot", fix="choose 16 to 31, or -1 for none"
            )

    def provisioning(self) -> StreamAddress:
        """The provisioning port's address.

        Raises:
            ConfigurationError: It cannot be derived from the WireGuard address.
        """
        return self.provisioning_listen or next_port(self.listen, "provisioning_listen")

    def control_socket(self) -> UnixAddress:
        """The socket that ``wgvsock status`` connects to."""
        return UnixAddress(control_socket_path(self.runtime_directory, self.name))

    def pin(self) -> bytes | None:
        """The relay pin.

        Returns:
            The Ed25519 public key, 32 bytes, or None without a pin.

        Raises:
            ConfigurationError: It is not a usable Ed25519 public key.
        """
        if self.pin_public_key is None:
            return None
        try:
            pin = base64.b64decode(self.pin_public_key, validate=True)
        except binascii.Error:
            pin = b""
        check_pin(pin)
        return pin

    def egress_policy(self) -> Policy | None:
        """What may leave the enclave, or None if only the relay decides.

        Raises:
            ConflictingSettingsError: A rule cannot be enforced here.
        """
        if self.egress is None:
            return None
        try:
            return measured_policy(self.egress)
        except ConflictingSettingsError as error:
            raise ConflictingSettingsError(
                error.what, key=("egress", *error.key), why=error.why, fix=error.fix
            ) from None

    def allowed_cids(self) -> frozenset[Cid]:
        """The CIDs that may connect over vsock."""
        return frozenset({Cid(self.parent_cid)})

    def capabilities(self) -> tuple[str, ...]:
        """The capabilities to offer in provisioning, best first."""
        return native_with(self.profiles)


def check_ports_apart(ports: Mapping[str, int]) -> None:
    """Refuse two keys that name the same port on the tunnel's addresses. 0 stands for no port.

    Args:
        ports: Port by key.

    Raises:
        ConfigurationError: Two keys name one port.
    """
    seen: dict[int, str] = {}
    for key, port in ports.items():
        if port and port in seen:
            raise ConfigurationError(
                f'cannot use "{key}"', why=f'"{seen[port]}" is {port} as well', fix="change one of the two"
            )
        seen[port] = key


def load(path: str) -> EnclaveConfig:
    """Read and check a file.

    Raises:
        ConfigurationError: See `wgvsock.settings.read`.
    """
    return settings.read(EnclaveConfig, path)
