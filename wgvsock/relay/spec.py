"""The complete settings of one enclave, and the conflicts between two enclaves."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address
from typing import Final, NoReturn

from wgvsock.addresses import Cid, Port, TcpAddress, UnixAddress
from wgvsock.egress.settings import EgressSettings
from wgvsock.relay.application_settings import ApplicationSettings
from wgvsock.relay.links import link, numbered
from wgvsock.relay.sections import (
    AttestationSettings,
    DnsSettings,
    EnclaveSettings,
    HealthSettings,
    InterfaceSettings,
    LaunchSettings,
    NatSettings,
    ProvisioningSettings,
    fixed_difference,
)
from wgvsock.relay.uplink_settings import UplinkSettings
from wgvsock.settings import ConflictingSettingsError, KeyPath, check_apart
from wgvsock.system.nitro_cli import EnclaveInfo

ONLY: Final = "enclave"
"""Name of the enclave in the short form of the configuration, which has no name for it."""

_LAUNCH_NAME: Final = "wgvsock"
_SUCCESSOR: Final = "2"


@dataclass(frozen=True, slots=True)
class EnclaveSpec:
    """The complete configuration of one enclave.

    Attributes:
        name: The enclave's name.
        relay: The relay's name.
        runtime_directory: The relay's runtime directory.
        place: Its position in the pool of links, and its ``wg`` number, where the operator configured neither.
        variant: ``""``, or a suffix that distinguishes a successor's names from its predecessor's while both run.
        home: What the operator configured, if this enclave is a successor with another link, interface and names.
        draining: Whether a successor serves in its place, so that it keeps only its present clients.
        application: What to do with its application's reports.
        uplink: How its packets leave the machine.
    """

    name: str
    relay: str
    runtime_directory: str
    place: int
    attestation: AttestationSettings
    enclave: EnclaveSettings
    launch: LaunchSettings | None
    interface: InterfaceSettings
    dns: DnsSettings
    egress: EgressSettings
    provisioning: ProvisioningSettings
    nat: NatSettings
    variant: str = ""
    home: EnclaveSpec | None = field(default=None, compare=False)
    draining: bool = False
    application: ApplicationSettings = field(default_factory=ApplicationSettings)
    uplink: UplinkSettings = field(default_factory=UplinkSettings)

    @property
    def owner(self) -> str:
        """Identifies its packet filter rules and its changes to this machine. A service name contains no slash."""
        if self.variant:
            return f"{self.relay}/{self.name}/{self.variant}"
        return self.relay if self.name == ONLY else f"{self.relay}/{self.name}"

    @property
    def launch_name(self) -> str:
        """Its name for nitro-cli."""
        name = _LAUNCH_NAME if self.name == ONLY else f"{self.relay}-{self.name}"
        if self.launch is not None and self.launch.name is not None:
            name = self.launch.name
        return f"{name}-{self.variant}" if self.variant else name

    @property
    def cid(self) -> Cid | None:
        """The CID that the enclave has to have, or None for any."""
        return self.enclave.cid

    @property
    def places(self) -> set[int]:
        """The places that no other enclave may use: its own, its home's, and those of ``wg`` names in use."""
        number = numbered(self.interface.name)
        own = {self.place} if number is None else {self.place, number}
        return own if self.home is None else own | self.home.places

    def linked(self) -> EnclaveSpec:
        """A copy with a link from the pool if the operator configured no addresses."""
        return self if self.enclave.addresses else self._at(self.place)

    def without_ipv6(self) -> EnclaveSpec:
        """A copy without IPv6 addresses if they come from the pool. Addresses that the operator configured stay."""
        if self.enclave.addresses != link(self.place).enclave:
            return self
        four, own = (
            tuple(address for address in side.addresses if address.version == 4)
            for side in (self.enclave, self.interface)
        )
        return replace(
            self, enclave=replace(self.enclave, addresses=four), interface=replace(self.interface, addresses=own)
        )

    def launched(self, enclave: EnclaveInfo) -> EnclaveSpec:
        """A copy for a launched enclave: with its CID if that was open, and only its module ID accepted."""
        return replace(
            self,
            enclave=self.enclave.launched(enclave.cid),
            attestation=replace(self.attestation, module_id=enclave.enclave_id),
        )

    def successor(self, place: int) -> EnclaveSpec:
        """A copy for a room beside this one, with another link, interface and names.

        If this spec is a successor's, the copy returns to the home's link, interface and names.

        Args:
            place: The place of the copy if this spec is at home.
        """
        if self.home is not None:
            return replace(
                self,
                place=self.home.place,
                variant=self.home.variant,
                home=None,
                enclave=replace(self.enclave, addresses=self.home.enclave.addresses),
                interface=self.home.interface,
            )
        moved = self._at(place)
        interface = replace(moved.interface, name=f"wg{place}")
        return replace(moved, place=place, variant=_SUCCESSOR, home=self, interface=interface)

    def renamed(self) -> EnclaveSpec:
        """A copy with the names of a successor, which the running enclave may have after a replacement."""
        return replace(self, variant=_SUCCESSOR, home=self)

    def in_place_of(self, running: EnclaveSpec) -> EnclaveSpec:
        """A copy for a running room. If that is a successor's, it keeps its link, interface and names."""
        if running.home is None:
            return self
        return replace(
            self,
            place=running.place,
            variant=running.variant,
            home=self,
            enclave=replace(self.enclave, addresses=running.enclave.addresses),
            interface=replace(self.interface, name=running.interface.name, addresses=running.interface.addresses),
        )

    def following(self, known: EnclaveSpec, new: EnclaveSpec) -> EnclaveSpec:
        """A copy with what differs between two configurations, except for the image and the published ports."""
        before, after = known.in_place_of(self), new.in_place_of(self)
        names = [entry.name for entry in fields(self) if entry.name != "launch"]
        changes = {name: getattr(after, name) for name in names if getattr(before, name) != getattr(after, name)}
        changed: EnclaveSpec = replace(self, **changes)
        return replace(changed, nat=replace(changed.nat, publish=self.nat.publish))

    def differs_in_image(self, other: EnclaveSpec) -> bool:
        """Whether `other` is launched from another image but otherwise in the same way."""
        if self.launch is None or other.launch is None or self.launch.image == other.launch.image:
            return False
        return replace(self.launch, image=other.launch.image) == other.launch

    def restart_needed_for(self, other: EnclaveSpec) -> str | None:
        """The first setting that differs and cannot change while this enclave is served, or None."""
        return "launch" if self.launch != other.launch else fixed_difference(self, other)

    def check(self, where: KeyPath) -> None:
        """Refuse conflicting settings.

        Args:
            where: Where the enclave is in the file.

        Raises:
            ConfigurationError: Two settings conflict, or a necessary one is missing.
        """
        if self.launch is None and self.enclave.waits_for_cid:
            raise ConflictingSettingsError(
                "no enclave is configured",
                key=where,
                why='both "enclave.address" and the table "launch" are missing',
                fix='write enclave.address = "vsock:16:51820" to attach to a running enclave, or launch.image',
            )
        if self.interface.name == self.nat.uplink:
            raise ConflictingSettingsError(
                "the tunnel cannot be its own uplink",
                key=where,
                why=f"both interfaces are {self.nat.uplink}",
                fix='change "nat.uplink"',
            )
        agent = {address.port for address in self.enclave.ports() if isinstance(address, TcpAddress)}
        agent.add(Port(self.application.report_port))
        for position, entry in enumerate(self.nat.publish):
            if entry.protocol == "tcp" and (entry.enclave_port or entry.port) in agent:
                raise ConflictingSettingsError(
                    f"cannot publish tcp port {entry.port}",
                    key=_publish_key(where, position),
                    why="the agent itself listens on that port inside the enclave",
                    fix="publish a port of the application",
                )

    def _at(self, place: int) -> EnclaveSpec:
        ends = link(place)
        return replace(
            self,
            enclave=replace(self.enclave, addresses=ends.enclave),
            interface=replace(self.interface, addresses=ends.relay),
        )


def check_health(health: HealthSettings, control: UnixAddress, spec: EnclaveSpec, where: KeyPath) -> None:
    """Refuse a health endpoint that conflicts with an enclave's addresses, or that nobody could reach.

    Packets to a published port go to the enclave whenever they arrive on the uplink, so an endpoint on that port would
    not get them.

    Args:
        health: The health endpoint.
        control: The control socket.
        spec: The enclave.
        where: Where the enclave is in the file.

    Raises:
        ConflictingSettingsError: There is such a conflict.
    """
    if health.listen is None:
        return
    check_apart({"control socket": control, "health.listen": health.listen})
    for key, address in zip(("address", "provisioning_address"), spec.enclave.ports(), strict=True):
        if not isinstance(address, TcpAddress) or _is_loopback(address) or address == health.listen:
            check_apart({f"enclave.{key}": address, "health.listen": health.listen})
    if not isinstance(health.listen, TcpAddress) or _is_loopback(health.listen):
        return
    families = {address.version for address in spec.enclave.addresses}
    for position, entry in enumerate(spec.nat.publish):
        same_port = entry.protocol == "tcp" and entry.port == health.listen.port
        if same_port and (health.listen.host == "::" or ip_address(health.listen.host).version in families):
            raise ConflictingSettingsError(
                f"cannot publish tcp port {entry.port}",
                key=_publish_key(where, position),
                why=f'probes and metrics are served there: "health.listen" is {health.listen}',
                fix='publish another port (enclave_port may stay), or change "health.listen"',
            )


def check_neighbours(one: EnclaveSpec, other: EnclaveSpec, where: KeyPath) -> None:
    """Refuse settings that two enclaves cannot share.

    Args:
        one: An enclave.
        other: Another enclave, which errors refer to.
        where: Where `other` is in the file.

    Raises:
        ConflictingSettingsError: The enclaves share such a setting.
    """

    def refuse(key: str, value: object) -> NoReturn:
        raise ConflictingSettingsError(
            f'the enclaves "{one.name}" and "{other.name}" cannot share {value}',
            key=(*where, key),
            why="each enclave needs its own",
            fix="change it for one of the two",
        )

    if one.name == other.name:
        refuse("name", "a name")
    if one.interface.name == other.interface.name:
        refuse("interface", f"the interface {one.interface.name}")
    if one.launch is not None and other.launch is not None and one.launch_name == other.launch_name:
        refuse("launch", f"the name {one.launch_name}")
    for ours in one.enclave.addresses:
        for theirs in other.enclave.addresses:
            if ours.version == theirs.version and ours.network.overlaps(theirs.network):
                refuse("addresses", f"the prefix {ours.network}")
    if not one.enclave.waits_for_cid:
        for address in one.enclave.ports():
            if address in other.enclave.ports():
                refuse("address", address)
    published = {(entry.protocol, entry.port) for entry in one.nat.publish}
    for entry in other.nat.publish:
        if (entry.protocol, entry.port) in published:
            refuse("publish", f"the published {entry.protocol} port {entry.port}")


def _publish_key(where: KeyPath, position: int) -> KeyPath:
    return (*where, "publish", position, "port") if where else ("nat", "publish", position, "port")


def _is_loopback(address: TcpAddress) -> bool:
    return ip_address(address.host).is_loopback
