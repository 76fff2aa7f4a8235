"""``relay.toml``: the relay, the enclaves that it serves, and the complete settings of each enclave.

Most relays have one enclave, in the short form ``[enclave]`` and ``[launch]``. A relay with several has
``[[enclaves]]``. Then ``[attestation]``, ``[dns]``, ``[egress]``, ``[provisioning]``, ``[interface]``, ``[nat]``,
``[uplink]`` and ``[application]`` apply to all of them. Both forms result in one `EnclaveSpec` per enclave, and no
other module depends on which form was used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from wgvsock import settings
from wgvsock.addresses import IpInterface, IpNetwork, StreamAddress, UnixAddress
from wgvsock.egress.settings import EgressSettings
from wgvsock.errors import ConfigurationError
from wgvsock.relay.application_settings import ApplicationSettings
from wgvsock.relay.judgements import AUDIT_TO_STDOUT
from wgvsock.relay.links import MAX_LINKS, free_place, numbered
from wgvsock.relay.sections import (
    FIXED,
    WHEREVER_LAUNCHED,
    AttestationSettings,
    DnsSettings,
    EnclaveSettings,
    HealthSettings,
    InterfaceSettings,
    LaunchSettings,
    NatSettings,
    ProvisioningSettings,
    PublishSettings,
    check_addresses,
    fixed_difference,
)
from wgvsock.relay.spec import ONLY, EnclaveSpec, check_health, check_neighbours
from wgvsock.relay.uplink_settings import UplinkSettings
from wgvsock.runtime.directory import RUNTIME_DIRECTORY, control_socket_path
from wgvsock.settings import ConflictingSettingsError, KeyPath, check_interface_name, check_service_name

DEFAULT_PATH: Final = "/etc/wgvsock/relay.toml"

MAX_ENCLAVES: Final = MAX_LINKS // 2
"""Half of the links, because during a replacement each enclave has a successor beside it."""


@dataclass(frozen=True, slots=True)
class EnclaveEntry:
    """``[[enclaves]]``: one of several enclaves. Omitted settings have the same defaults as those of a single enclave.

    Attributes:
        name: Label in status and metrics, and part of the names of its filter rules.
        address: As ``enclave.address``.
        provisioning_address: As ``enclave.provisioning_address``.
        addresses: As ``enclave.addresses``.
        relay_addresses: As ``interface.addresses``, for the relay's end of this tunnel.
        routes: As ``enclave.routes``.
        interface: Name of its TUN interface; by default ``wg`` and the lowest free number.
        signing_key_file: As ``provisioning.signing_key_file``, whose value is the default.
        launch: As ``[launch]``.
        attestation: As ``[attestation]``, whose table is the default.
        dns: As ``[dns]``, whose table is the default.
        egress: As ``[egress]``, whose table is the default.
        publish: As ``[[nat.publish]]``.
        application: As ``[application]``, whose table is the default.
    """

    name: str
    address: StreamAddress = field(default=WHEREVER_LAUNCHED, metadata=FIXED)
    provisioning_address: StreamAddress | None = None
    addresses: tuple[IpInterface, ...] = ()
    relay_addresses: tuple[IpInterface, ...] = ()
    routes: tuple[IpNetwork, ...] = ()
    interface: str | None = field(default=None, metadata=FIXED)
    signing_key_file: str | None = field(default=None, metadata=FIXED)
    launch: LaunchSettings | None = None
    attestation: AttestationSettings | None = None
    dns: DnsSettings | None = None
    egress: EgressSettings | None = None
    publish: tuple[PublishSettings, ...] = ()
    application: ApplicationSettings | None = None

    def __post_init__(self) -> None:
        check_service_name(self.name)
        if self.name == ONLY:
            raise ConflictingSettingsError(
                f'no enclave can be named "{ONLY}"',
                key=("name",),
                why="a single enclave has this name",
                fix="choose another",
            )
        check_addresses(self.addresses)
        if self.interface is not None:
            check_interface_name(self.interface)
        NatSettings(publish=self.publish)  # checks the ports
        EnclaveSettings(self.address, self.provisioning_address)


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """The whole file.

    Attributes:
        attestation: Which enclaves are accepted. It is the default for ``[[enclaves]]`` without such a table.
        launch: How the relay launches the enclave. Without this table, it attaches to a running one.
        enclaves: Several enclaves, in place of ``[enclave]`` and ``[launch]``.
        name: Part of the names of the state journal, the signing key and the control socket in `runtime_directory`.
        runtime_directory: Directory of the relay's state; a reboot empties it.
        log_level: Lowest level to log.
        audit: Where to write one JSON line for each attestation document that was judged: the absolute path of a file,
            or ``stdout``.
    """

    attestation: AttestationSettings | None = None
    enclave: EnclaveSettings = field(default_factory=EnclaveSettings)
    launch: LaunchSettings | None = None
    enclaves: tuple[EnclaveEntry, ...] = ()
    name: str = field(default="relay", metadata=FIXED)
    runtime_directory: str = field(default=RUNTIME_DIRECTORY, metadata=FIXED)
    log_level: Literal["debug", "info", "warning", "error"] = field(default="info", metadata=FIXED)
    audit: str | None = field(default=None, metadata=FIXED)
    interface: InterfaceSettings = field(default_factory=InterfaceSettings)
    dns: DnsSettings = field(default_factory=DnsSettings)
    egress: EgressSettings = field(default_factory=EgressSettings)
    provisioning: ProvisioningSettings = field(default_factory=ProvisioningSettings)
    nat: NatSettings = field(default_factory=NatSettings)
    uplink: UplinkSettings = field(default_factory=UplinkSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    application: ApplicationSettings = field(default_factory=ApplicationSettings)

    def __post_init__(self) -> None:
        check_service_name(self.name)
        _check_audit(self.audit)
        if self.enclaves:
            self._check_list()
        self._check_ends(self.interface.addresses, self.enclave.addresses, ())
        for position, entry in enumerate(self.enclaves):
            self._check_ends(entry.relay_addresses, entry.addresses, ("enclaves", position))
        specs = self.specs()
        for position, spec in enumerate(specs):
            where: KeyPath = ("enclaves", position) if self.enclaves else ()
            spec.check(where)
            check_health(self.health, self.control_socket(), spec, where)
            for other in specs[:position]:
                check_neighbours(other, spec, where)

    def control_socket(self) -> UnixAddress:
        """The address of the control socket, which ``wgvsock status`` connects to."""
        return UnixAddress(control_socket_path(self.runtime_directory, self.name))

    def specs(self, held: Mapping[str, int] | None = None, taken: Iterable[int] = ()) -> tuple[EnclaveSpec, ...]:
        """The settings of each enclave, in the order of the file.

        Args:
            held: The places of enclaves that are already served, by name. They keep their places.
            taken: Further places that no other enclave gets.

        Raises:
            ConfigurationError: An enclave has no attestation policy.
        """
        places = dict(held or {})
        if not self.enclaves:
            return (self._only(places.get(ONLY, 0)),)
        named = {numbered(entry.interface) for entry in self.enclaves}
        used = {*places.values(), *taken, *(number for number in named if number is not None)}
        for entry in self.enclaves:
            if entry.name not in places:
                places[entry.name] = free_place(used)
                used.add(places[entry.name])
        return tuple(self._spec(entry, places[entry.name]) for entry in self.enclaves)

    def restart_needed_for(self, other: RelayConfig) -> str | None:
        """The first setting of the whole relay that differs and needs a restart, or None."""
        return fixed_difference(self, other)

    def _only(self, place: int) -> EnclaveSpec:
        return EnclaveSpec(
            name=ONLY,
            relay=self.name,
            runtime_directory=self.runtime_directory,
            place=place,
            attestation=_policy(self.attestation, ()),
            enclave=self.enclave,
            launch=self.launch,
            interface=self.interface,
            dns=self.dns,
            egress=self.egress,
            provisioning=self.provisioning,
            nat=self.nat,
            application=self.application,
            uplink=self.uplink,
        ).linked()

    def _spec(self, entry: EnclaveEntry, place: int) -> EnclaveSpec:
        signing_key_file = entry.signing_key_file or self.provisioning.signing_key_file
        return EnclaveSpec(
            name=entry.name,
            relay=self.name,
            runtime_directory=self.runtime_directory,
            place=place,
            attestation=_policy(entry.attestation or self.attestation, ("enclaves", self.enclaves.index(entry))),
            enclave=EnclaveSettings(entry.address, entry.provisioning_address, entry.addresses, entry.routes),
            launch=entry.launch,
            interface=replace(self.interface, name=entry.interface or f"wg{place}", addresses=entry.relay_addresses),
            dns=entry.dns or self.dns,
            egress=entry.egress or self.egress,
            provisioning=replace(self.provisioning, signing_key_file=signing_key_file),
            nat=replace(self.nat, publish=entry.publish),
            application=entry.application or self.application,
            uplink=self.uplink,
        ).linked()

    def _check_list(self) -> None:
        if len(self.enclaves) > MAX_ENCLAVES:
            raise ConfigurationError(
                "a relay cannot serve so many enclaves",
                why=f"there are {len(self.enclaves)}, and the limit is {MAX_ENCLAVES}",
                fix="start a second relay with another name",
            )
        short_form = {
            ("enclave",): self.enclave != EnclaveSettings(),
            ("launch",): self.launch is not None,
            ("nat", "publish"): bool(self.nat.publish),
            ("interface", "addresses"): bool(self.interface.addresses),
            ("interface", "name"): self.interface.name != InterfaceSettings().name,
        }
        for key, is_used in short_form.items():
            if is_used:
                raise ConflictingSettingsError(
                    f'cannot use "{".".join(key)}" beside [[enclaves]]',
                    key=key,
                    why="it belongs to the short form, for a relay with one enclave",
                    fix="move it into the enclave's table in [[enclaves]]",
                )

    @staticmethod
    def _check_ends(ours: tuple[IpInterface, ...], theirs: tuple[IpInterface, ...], where: KeyPath) -> None:
        if bool(ours) != bool(theirs):
            raise ConflictingSettingsError(
                "cannot use the tunnel's addresses",
                key=where or ("interface" if ours else "enclave", "addresses"),
                why="only one end of the tunnel has addresses",
                fix="give both ends addresses in one prefix, or omit both",
            )


def _check_audit(audit: str | None) -> None:
    if audit not in {None, AUDIT_TO_STDOUT} and not str(audit).startswith("/"):
        raise ConflictingSettingsError(
            'cannot use "audit"',
            key=("audit",),
            why="it is neither an absolute path nor stdout",
            fix='write audit = "/var/log/wgvsock/audit.jsonl", or audit = "stdout"',
        )


def _policy(attestation: AttestationSettings | None, where: KeyPath) -> AttestationSettings:
    if attestation is None:
        raise ConflictingSettingsError(
            'the table "attestation" is missing',
            key=where,
            why="nothing says which enclaves are accepted",
            fix="add [attestation] with a table [[attestation.pcr_sets]]: wgvsock config init relay",
        )
    return attestation


def load(path: str) -> RelayConfig:
    """Read and check a configuration file.

    Raises:
        ConfigurationError: See `wgvsock.settings.read`.
    """
    return settings.read(RelayConfig, path)
