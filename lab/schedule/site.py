"""The laboratory of a schedule: its Relay and enclaves, their configuration, and how each fault is injected."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final

from lab import uplinks
from lab.backend import Process
from lab.errors import LabError
from lab.ladder import Ladder
from lab.netns import build, namespaces
from lab.netns.backend import NetnsBackend
from lab.schedule.faults import Fault
from lab.schedule.launched import IMAGES, SERVICE, Launched
from lab.schedule.launched import NAME as LAUNCHED
from lab.schedule.model import Seen, enclaves_in, see
from lab.topology import Node, Service
from lab.watch.tap import TapControl
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT, IpNetwork
from wgvsock.relay.links import POOL
from wgvsock.relay.uplink.userspace import TUNNEL_MTU

_QUICK_CONNTRACK: Final = {
    "tcp_timeout_established": 10,  # when one end of a connection was reset, the other's side knows it for five days
    "tcp_timeout_max_retrans": 10,
    "tcp_timeout_unacknowledged": 10,
    "tcp_timeout_time_wait": 2,
    "tcp_timeout_close": 2,
    "tcp_timeout_close_wait": 5,
    "tcp_timeout_last_ack": 5,
    "tcp_timeout_fin_wait": 5,
    "tcp_timeout_syn_sent": 5,
    "tcp_timeout_syn_recv": 5,
    "udp_timeout": 5,
    "udp_timeout_stream": 5,
    "icmp_timeout": 2,
    "icmpv6_timeout": 2,
}
"""Seconds after which the pod's kernel forgets finished connections: what it still knows is not finished, or leaked.
All live traffic sends ten times per second, except for outages of a few seconds.
"""


@dataclass(frozen=True, slots=True)
class Room:
    """One enclave as a schedule needs it.

    Attributes:
        number: Its position in the plan, from 0.
        name: In the Relay's configuration. None: it is the only one.
        networks: The networks of its addresses.
        interface: The interface of the pod at which they may be seen, as a pattern (fnmatch).
        service: What its application serves.
        table: Its packet filter table in the pod.
    """

    number: int
    name: str | None
    networks: tuple[IpNetwork, ...]
    interface: str
    service: Service
    table: str

    def __str__(self) -> str:
        return self.name or "enclave"


@dataclass(frozen=True, slots=True)
class OwnRoom(Room):
    """An enclave that the laboratory runs itself, and can affect directly.

    Attributes:
        node: Its machine. The agent's process and the module at the signer have the same name.
        tap: Its vsock point.
    """

    node: Node
    tap: TapControl


SCRIPTS: Final[dict[Fault, str]] = {
    Fault.RULES_FLUSHED: "nft flush ruleset",
    Fault.TABLE_DELETED: "nft delete table inet {table}",
    Fault.FILTER_EMPTIED: "nft flush chain inet {table} forward",
    Fault.TRANSLATION_EMPTIED: "nft flush chain inet {table} prerouting; nft flush chain inet {table} postrouting",
    Fault.RULE_INSERTED: "nft insert rule inet {table} forward counter drop",
    Fault.FOREIGN_TABLE: "nft add table inet somebody; nft add chain inet somebody there",
    Fault.FORWARDING_OFF: "cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 0 > ip_forward",  # 0 to 0 changes nothing
    Fault.FORWARDING6_OFF: "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    Fault.UPLINK_FORWARDING_OFF: "echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding",
    Fault.TUNNEL_FORWARDING_OFF: "echo 0 > /proc/sys/net/ipv4/conf/{interface}/forwarding",
    Fault.ADDRESSES_FLUSHED: "ip address flush dev {interface}",
    Fault.ADDRESS_GONE: "ip address delete $(ip -o -4 address show dev {interface} | awk '{{print $4; exit}}')"
    " dev {interface}",
    Fault.TUNNEL_DOWN: "ip link set {interface} down",
    Fault.TUNNEL_BOUNCED: "ip link set {interface} down; ip link set {interface} up",
    Fault.TUNNEL_MTU: "ip link set {interface} mtu 1280",
    Fault.UPLINK_ADDRESS: "ip address add 10.20.0.11/24 dev eth0",
    Fault.ROUTE_GONE: "ip route show default > /run/default4; ip -6 route show default > /run/default6;"
    " ip route delete default; ip -6 route delete default",
}
"""What another program does to the pod."""

MENDING: Final[dict[Fault, str]] = {
    Fault.FOREIGN_TABLE: "nft delete table inet somebody",
    Fault.UPLINK_ADDRESS: "ip address delete 10.20.0.11/24 dev eth0",
    Fault.ROUTE_GONE: "ip route add $(cat /run/default4); ip -6 route add $(cat /run/default6);"
    " rm /run/default4 /run/default6",
}
"""How that program ends it, where necessary."""

UPLINK_MTU: Final = 1500
"""The MTU of the pod's uplink in bytes, which is the default of a tunnel through the kernel."""

Expectation = Callable[[dict[str, Any]], bool]
"""What the Relay's status has to show before a fault counts as over."""


class Site:
    """A laboratory with counted services.

    Args:
        ladder: On a `NetnsBackend` that is up.
        launched: An enclave that the Relay launches in addition to those of the laboratory's plan, which then has
            several.
    """

    def __init__(self, ladder: Ladder, launched: Launched | None = None) -> None:
        if not isinstance(ladder.backend, NetnsBackend):
            raise LabError("a schedule needs the backend netns")
        self.ladder = ladder
        self.backend = ladder.backend
        self.backend.counting = True
        self.config = copy.deepcopy(self.backend.relay_config())
        tenants = ladder.topology.tenants
        several = len(tenants) > 1
        self.own_rooms = [
            OwnRoom(
                number,
                tenant.name if several else None,
                (ip_network(tenant.enclave4), ip_network(tenant.enclave6)),
                tenant.interface,
                tenant.application,
                f"wgvsock-relay/{tenant.name}" if several else "wgvsock-relay",
                tenant.node,
                self.backend.tap_of(tenant.node),
            )
            for number, tenant in enumerate(tenants)
        ]
        self.rooms: list[Room] = [*self.own_rooms]
        self._launched = launched
        if launched is not None:
            self.backend.vsock_folder = launched.vsock
            self.config["enclaves"].append(launched.config())
            table = f"wgvsock-relay/{LAUNCHED}"
            self.rooms.append(Room(len(tenants), LAUNCHED, POOL, "wg[2-9]", SERVICE, table))
        self._expected: list[Expectation] = []

    def start(self) -> None:
        """Set fast conntrack time-outs, and start the services."""
        settings = [f"echo {seconds} > nf_conntrack_{key}" for key, seconds in _QUICK_CONNTRACK.items()]
        self.in_pod("cd /proc/sys/net/netfilter; " + "; ".join(settings))
        namespaces.forget_connections(build.namespace(self.backend.prefix, Node.POD))
        self.restart()

    def restart(self) -> None:
        """Start fresh services, where none run."""
        for room in self.own_rooms:
            self._start_agent(room)
        self.ladder.start_relay(self.config)
        self.ladder.wait_ready()
        self.ladder.wait_application()

    def close(self) -> None:
        """Make the Relay end what it launched, before its parent instance is removed."""
        if self._launched is not None:
            self.ladder.stop_relay(signal.SIGTERM)
            self.backend.vsock_folder = None

    def in_pod(self, script: str) -> str:
        """Run a script of another program in the pod."""
        return self.backend.run(Node.POD, ["sh", "-ec", script]).check().stdout.decode()

    def look(self) -> tuple[Seen, ...]:
        """Return what the Relay reports about each enclave now."""
        status = self.backend.status(Node.POD)
        return tuple(see(status, room.name) for room in self.rooms)

    def is_as_wanted(self) -> bool:
        """Return whether the Relay is ready for all, and shows what was requested."""
        status = self.backend.status(Node.POD)
        if status is None or not all(see(status, room.name).ready for room in self.rooms):
            return False
        if any(entry.get("replacement") for entry in enclaves_in(status)):
            return False
        self._expected = [expected for expected in self._expected if not expected(status)]
        return not self._expected

    # -- the faults ----------------------------------------------------------------------------------------------------

    def strike(self, fault: Fault, room: Room) -> None:
        """Inject a fault. `mend` ends a lasting one."""
        match fault:
            case Fault.RELAY_KILLED:
                self._relay().kill()
                self._start_relay()
            case Fault.RELAY_STOPPED | Fault.RELAY_RESTARTED:
                self.ladder.stop_relay(signal.SIGTERM if fault is Fault.RELAY_STOPPED else signal.SIGUSR2)
                self._start_relay()
            case Fault.RELAY_FROZEN:
                self._relay().signal(signal.SIGSTOP)
            case Fault.REATTESTED:
                self._attest_again()
            case Fault.PORTS_RELOADED | Fault.NAMES_RELOADED | Fault.MTU_RELOADED:
                self._reload(fault)
            case Fault.RELOADED_BROKEN:
                (self.backend.directory / "relay.toml").write_text("no toml")
                self._relay().signal(signal.SIGHUP)
                self._relay().wait_for_line("was not reloaded", self.backend.deadline(5))
                self.backend.write_config(Node.POD, self.config)
            case Fault.IMAGE_REPLACED:
                self._replace_image()
            case Fault.ENGINE_KILLED:
                self._kill_engine(room)
            case _ if fault in SCRIPTS:
                status = self.backend.status(Node.POD)
                before, attested = _repairs(status), _attested(status)
                self.in_pod(SCRIPTS[fault].format(table=room.table, interface=room.interface))
                if fault not in MENDING:
                    # Traffic may continue before that: what is gone may be what would have stopped it. An enclave
                    # that is attested again has its rules written again, and nothing notices that they had changed.
                    self._expected.append(lambda now: _repairs(now) > before or _attested(now) != attested)
            case _:
                self._strike_enclave(fault, self._own(room))

    def _strike_enclave(self, fault: Fault, room: OwnRoom) -> None:
        match fault:
            case Fault.AGENT_FROZEN:
                self.agent(room).signal(signal.SIGSTOP)
            case Fault.AGENT_KILLED | Fault.AGENT_RESTARTED:
                self._restart_agent(room, kill=fault is Fault.AGENT_KILLED)
            case Fault.MODULE_FAILS:
                self.backend.nsm.set_faults(room.node, error="InternalError")
                self._relay().signal(signal.SIGUSR1)
            case Fault.MODULE_DEBUG:
                self.backend.nsm.set_faults(room.node, debug=True)
                self._relay().signal(signal.SIGUSR1)
            case Fault.EXCHANGE_FLIPPED:
                room.tap.flip(to="enclave", offset=40, port=PROVISIONING_PORT)
                self._relay().signal(signal.SIGUSR1)
            case Fault.STREAM_CUT:
                room.tap.drop()
            case Fault.STREAM_REFUSED:
                room.tap.refuse()
                room.tap.drop()
            case Fault.STREAM_STALLED:
                room.tap.stall()
            case Fault.STREAM_HELD:
                room.tap.hold()
            case Fault.STREAM_SLOW:
                room.tap.delay(0.2)
            case Fault.LENGTH_FLIPPED:
                room.tap.flip(to="relay", offset=2, port=WIREGUARD_PORT)
            case Fault.PAYLOAD_FLIPPED:
                room.tap.flip(to="enclave", offset=60, port=WIREGUARD_PORT)
            case _:
                raise LabError(f"{fault} is not implemented")

    def mend(self, fault: Fault, room: Room) -> None:
        """End a lasting fault."""
        match fault:
            case Fault.RELAY_FROZEN:
                self._relay().signal(signal.SIGCONT)
            case Fault.AGENT_FROZEN:
                self.agent(self._own(room)).signal(signal.SIGCONT)
            case Fault.MODULE_FAILS | Fault.MODULE_DEBUG:
                self.backend.nsm.reset(self._own(room).node)
                self._attest_again()
            case Fault.EXCHANGE_FLIPPED:
                self._own(room).tap.resume()
                self._attest_again()
            case Fault.IMAGE_REPLACED:
                pass  # it ends on its own
            case _ if fault in MENDING:
                self.in_pod(MENDING[fault])
            case _:
                self._own(room).tap.resume()

    def bring_home(self) -> None:
        """Replace the launched enclave's image once more if its successor's room serves: a fresh one uses the first.

        Raises:
            LabTimeoutError: It was not replaced.
        """
        status = self.backend.status(Node.POD)
        if self._launched is None or status is None or status["enclaves"][-1]["nat"]["owner"].endswith(LAUNCHED):
            return
        self._replace_image()
        self.backend.deadline(25).poll(self.is_as_wanted, "the launched enclave to be replaced")

    # -- how -----------------------------------------------------------------------------------------------------------

    @staticmethod
    def _own(room: Room) -> OwnRoom:
        if not isinstance(room, OwnRoom):
            raise LabError(f"{room} is the Relay's, and out of the laboratory's reach")
        return room

    def _replace_image(self) -> None:
        """Reload with the other image."""
        if self._launched is None:
            raise LabError("no enclave is launched")
        launch = self.config["enclaves"][-1]["launch"]
        launch["image"] = next(path for path in map(self._launched.image, IMAGES) if path != launch["image"])
        wanted = self._launched.measurement(launch["image"])
        self.backend.write_config(Node.POD, self.config)
        self._relay().signal(signal.SIGHUP)
        self._expected.append(lambda status: status["enclaves"][-1]["attestation"]["pcrs"]["PCR2"] == wanted)

    def _kill_engine(self, room: Room) -> None:
        """Kill an enclave's engine, and require another."""
        status = self.backend.status(Node.POD)
        before = None if status is None else enclaves_in(status)[room.number]["nat"]["engine"]["pid"]
        if before is None:  # there is none without trust
            return
        self.in_pod(f"kill -KILL {before}")
        self._expected.append(lambda now: enclaves_in(now)[room.number]["nat"]["engine"]["pid"] not in {None, before})

    def _relay(self) -> Process:
        if self.ladder.relay is None:
            raise LabError("the Relay is not running")
        return self.ladder.relay

    def agent(self, room: OwnRoom) -> Process:
        """Return the process of an enclave's agent.

        Raises:
            LabError: It is not running.
        """
        processes = {Node.ENCLAVE: self.ladder.enclave, **self.ladder.neighbours}
        if (process := processes.get(room.node)) is None:
            raise LabError(f"the {room.node} is not running")
        return process

    def _start_relay(self) -> None:
        self._expected.clear()
        self.ladder.start_relay(self.config)
        self._expected.append(self._shows_configuration)

    def _restart_agent(self, room: OwnRoom, *, kill: bool) -> None:
        if kill:
            self.agent(room).kill()
        elif room.node is Node.ENCLAVE:
            self.ladder.restart_enclave()
            return
        else:
            self.ladder.stop_neighbour(room.node)
        self._start_agent(room)

    def _start_agent(self, room: OwnRoom) -> None:
        if room.node is Node.ENCLAVE:
            self.ladder.start_enclave()
        else:
            self.ladder.start_neighbour(room.node)

    def _attest_again(self) -> None:
        """Require one more successful attestation of each."""
        before = _attested(self.backend.status(Node.POD))
        self._relay().signal(signal.SIGUSR1)

        def all_attested(status: dict[str, Any]) -> bool:
            pairs = zip(_attested(status), before, strict=False)
            return all(now[0] != then[0] or now[1] > then[1] for now, then in pairs)

        self._expected.append(all_attested)

    def _reload(self, fault: Fault) -> None:
        """Switch one setting to its other value and back, in turn."""
        config = self.config
        match fault:
            case Fault.PORTS_RELOADED:
                published = _published(config)[0]
                entry = {"protocol": "tcp", "port": 8181, "enclave_port": self.ladder.topology.application.http_port}
                published.remove(entry) if entry in published else published.append(entry)
            case Fault.NAMES_RELOADED:
                zone = self.ladder.topology.zone
                config["dns"]["search"] = [zone] if len(config["dns"]["search"]) > 1 else [zone, f"other.{zone}"]
            case _:
                interface = config.setdefault("interface", {})
                interface.pop("mtu") if "mtu" in interface else interface.update(mtu=1400)
        self.backend.write_config(Node.POD, config)
        self._relay().signal(signal.SIGHUP)
        self._expected.append(self._shows_configuration)

    def _shows_configuration(self, status: dict[str, Any]) -> bool:
        default = TUNNEL_MTU if uplinks.asked_for() == "userspace" else UPLINK_MTU
        mtu = self.config.get("interface", {}).get("mtu", default)
        return all(
            room["nat"]["mtu"] == mtu and {entry.partition("->")[0] for entry in room["nat"]["published"]} == ports
            for room, ports in zip(
                enclaves_in(status),
                ({f"{entry['protocol']}:{entry['port']}" for entry in ports} for ports in _published(self.config)),
                strict=True,
            )
        )


def _published(config: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the lists of published ports, one per enclave."""
    if "enclaves" in config:
        return [entry["publish"] for entry in config["enclaves"]]
    return [config["nat"]["publish"]]


def _repairs(status: dict[str, Any] | None) -> int:
    """Return how often the Relay has repaired what another program did."""
    return 0 if status is None else sum(sum(room["nat"]["repairs"].values()) for room in enclaves_in(status))


def _attested(status: dict[str, Any] | None) -> list[tuple[str | None, int]]:
    """Return the module of each enclave, which differs in a replacement, and its successful attestations."""
    return [
        ((room["attestation"] or {}).get("module_id"), int(room["provisioning"]["attempts"]["ok"]))
        for room in ([] if status is None else enclaves_in(status))
    ]
