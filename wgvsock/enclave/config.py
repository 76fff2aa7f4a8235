"""``enclave.toml``: what is built into the enclave's image, and thereby measured. The relay tells the rest."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from wgvsock import settings
from wgvsock.addresses import (
    NITRO_PARENT_CID,
    VMADDR_CID_ANY,
    WIREGUARD_PORT,
    Cid,
    StreamAddress,
    VsockAddress,
)
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.capabilities import FRAMING_NATIVE, PROFILE_GSO, PROFILE_PLAIN
from wgvsock.provisioning.pin import check_pin
from wgvsock.settings import Between, check_interface_name, check_service_name, next_port

DEFAULT_PATH: Final = "/etc/wgvsock/enclave.toml"

_LISTEN: Final = VsockAddress(VMADDR_CID_ANY, WIREGUARD_PORT)

_CAPABILITY: Final = {"gso": PROFILE_GSO, "plain": PROFILE_PLAIN}


@dataclass(frozen=True, slots=True)
class EnclaveConfig:
    """The whole file; every key has a default.

    Attributes:
        name: Names state journal and control socket in `runtime_directory`.
        runtime_directory: For this process's state.
        log_level: Lowest level to log.
        listen: Where the relay's WireGuard stream arrives.
        provisioning_listen: Where it provisions; by default the next port.
        parent_cid: The only CID that may connect over vsock: 3 on Nitro, 2 under QEMU.
        interface: Name of the TUN interface.
        queue_length: Packets that wait in the interface.
        profiles: Forms of transport data to offer, best first.
        key_pcr: PCR to commit the WireGuard key to; -1 is off.
        pin_public_key: Relay pin: the Ed25519 key, in base64, whose signature every request needs.
        resolv_conf: Where DNS settings go; "" leaves DNS alone.
        stop_timeout: Seconds that the application has to end in after SIGTERM.
    """

    name: str = "enclave"
    runtime_directory: str = "/run/wgvsock"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    listen: StreamAddress = _LISTEN
    provisioning_listen: StreamAddress | None = None
    parent_cid: Annotated[int, Between(0, 0xFFFFFFFE)] = NITRO_PARENT_CID
    interface: str = "wg0"
    queue_length: Annotated[int, Between(1, 100_000)] = 500
    profiles: tuple[Literal["gso", "plain"], ...] = ("gso", "plain")
    key_pcr: Annotated[int, Between(-1, 31)] = 16
    pin_public_key: str | None = None
    resolv_conf: str = "/etc/resolv.conf"
    stop_timeout: Annotated[float, Between(0, 3600)] = 10.0

    def __post_init__(self) -> None:
        check_service_name(self.name)
        check_interface_name(self.interface)
        self.provisioning()
        self.pin()
        if not self.profiles:
            raise ConfigurationError('cannot use "profiles"', why="it is empty", fix='write ["gso", "plain"]')
        if 0 <= self.key_pcr < 16:
            raise ConfigurationError(
                'cannot use "key_pcr"', why="PCR0 to PCR15 are locked at boot", fix="choose 16 to 31, or -1 for none"
            )

    def provisioning(self) -> StreamAddress:
        """The provisioning port's address.

        Raises:
            ConfigurationError: It does not follow from the WireGuard address.
        """
        return self.provisioning_listen or next_port(self.listen, "provisioning_listen")

    def pin(self) -> bytes | None:
        """The relay pin, 32 bytes.

        Raises:
            ConfigurationError: It is no usable Ed25519 public key.
        """
        if self.pin_public_key is None:
            return None
        try:
            pin = base64.b64decode(self.pin_public_key, validate=True)
        except binascii.Error:
            pin = b""
        check_pin(pin)
        return pin

    def allowed_cids(self) -> frozenset[Cid]:
        """Who may connect over vsock."""
        return frozenset({Cid(self.parent_cid)})

    def capabilities(self) -> tuple[str, ...]:
        """What is offered in provisioning, best first."""
        return (FRAMING_NATIVE, *(_CAPABILITY[profile] for profile in self.profiles))


def load(path: str) -> EnclaveConfig:
    """Read and check a file.

    Raises:
        ConfigurationError: See `wgvsock.settings.read`.
    """
    return settings.read(EnclaveConfig, path)
