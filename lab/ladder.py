"""The stages of a laboratory, for the behaviour suite and the demonstration alike.

network -> Relay and Enclave started -> provisioned -> tunnel up. A stage that fails leaves the laboratory as it is, for
inspection, and every later stage raises the same error.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lab import uplinks
from lab.backend import Backend, Process
from lab.deadline import Deadline
from lab.errors import LabError
from lab.guest.command import alone
from lab.topology import Node, Point
from lab.watch.observation import Observation, VsockHistory

_Options = tuple[Mapping[str, Any] | None, Mapping[str, float] | None]

PROBE: Final = alone("probe")
_BULK: Final = alone("bulk")
_BULK_PORT: Final = "5999"

_ROUND_TRIPS: Final = 30
_LEAST_PATIENCE: Final = 0.3  # seconds

_STATE: Final = {
    "links": "ip -o link | sed 's/ qlen.*//'",
    "addresses": "ip -o address | sed 's/valid_lft.*//'",
    "routes": "ip route show table all | sort; ip -6 route show table all | sort",
    "rules": "ip rule; ip -6 rule; {rules}",
    "forwarding": "cd /proc/sys/net && grep . ipv4/ip_forward ipv4/conf/*/forwarding ipv6/conf/*/forwarding",
    "resolver": "cat /etc/resolv.conf",
}


class ProbeError(LabError):
    """A probe got no answer, or a wrong one."""


class Ladder:
    """A laboratory with its two services.

    Args:
        backend: The laboratory, not yet up.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.topology = backend.topology
        self.relay: Process | None = None
        self.enclave: Process | None = None
        self.neighbours: dict[Node, Process] = {}  # the agents of additional enclaves
        self.history = VsockHistory(backend)
        self._options: dict[str, _Options] = {}

    # -- the rungs -----------------------------------------------------------------------------------------------------

    def start_relay(self, config: Mapping[str, Any] | None = None, timings: Mapping[str, float] | None = None) -> None:
        """Start the Relay."""
        self._options["relay"] = (config, timings)
        self.relay = self.backend.start_relay(config, timings=timings)

    def start_enclave(
        self,
        config: Mapping[str, Any] | None = None,
        timings: Mapping[str, float] | None = None,
        application: Sequence[str] | None = None,
    ) -> None:
        """Start the Enclave, by default with the laboratory's application."""
        self._options["enclave"] = ({} if application else config, timings)  # {} prevents another default
        self.enclave = self.backend.start_enclave(config, timings=timings, application=application)

    def start_neighbour(self, node: Node) -> None:
        """Start an additional Enclave."""
        self.neighbours[node] = self.backend.start_neighbour(node)

    def stop_neighbour(self, node: Node) -> None:
        """Stop it as an operator does. Does nothing if it is not running."""
        if (process := self.neighbours.pop(node, None)) is not None:
            self._stop(process)

    def raise_tunnel(self, timings: Mapping[str, float] | None = None) -> None:
        """Reach a state without faults and with default configurations, in which the application answers.

        Services that already run like this are kept.
        """
        self.backend.tap.resume()
        self.backend.nsm.reset()
        if self.runs(timings):
            with contextlib.suppress(LabError):
                self._wait_tunnel()
                return
        self.clear()
        self.start_enclave(timings=timings)
        self.start_relay(timings=timings)
        self._wait_tunnel()

    def raise_all(self) -> None:
        """Start the Relay and every enclave of the plan, and wait until each application answers."""
        self.clear()
        self.start_enclave()
        for tenant in self.topology.neighbours:
            self.start_neighbour(tenant.node)
        self.start_relay()
        self._wait_tunnel()

    def runs(self, timings: Mapping[str, float] | None = None) -> bool:
        """Return whether both services run, with default configurations and these timings."""
        processes = (self.relay, self.enclave)
        running = all(process is not None and process.poll() is None for process in processes)
        return running and all(options == (None, timings) for options in self._options.values())

    def _wait_tunnel(self) -> None:
        self.wait_ready()
        self.wait_application()

    def wait_ready(self, deadline: Deadline | None = None) -> dict[str, Any]:
        """Wait until the Relay reports that it is attested, has a session and its rules, and return its status.

        Raises:
            LabError: One of the two has ended.
            LabTimeoutError: It is not ready in time.
        """
        return (deadline or self.backend.deadline(20)).poll(self.look_ready, "the Relay to be ready")

    def look_ready(self) -> dict[str, Any] | None:
        """Return the Relay's status if it reports that it is ready.

        Raises:
            LabError: One of the two services has ended.
        """
        for process in self._services():
            if process.poll() is not None:
                raise LabError(f"{process.name} ended with {process.poll()}", why=process.output()[-2000:])
        status = self.backend.status(Node.POD)
        return status if status is not None and status.get("ready") else None

    def wait_application(self, deadline: Deadline | None = None) -> None:
        """Wait until the application in the enclave answers.

        Raises:
            LabTimeoutError: It does not answer in time.
        """
        ports = [str(tenant.application.echo_port) for tenant in self.topology.tenants]

        def all_answer() -> bool:
            host = self.topology.pod4
            return all(self.try_probe(Node.EXTERNAL, "tcp", host, port, "--timeout", "2")["ok"] for port in ports)

        (deadline or self.backend.deadline(10)).poll(all_answer, "the application to answer")

    # -- using it ------------------------------------------------------------------------------------------------------

    def carry(self, sender: Node, *, size: int, streams: int = 1, family: int = 4) -> float:
        """Carry bytes between the enclave, which dials, and the external host, and return the seconds that it took.

        Raises:
            LabError: It failed, or the two ends saw different bytes.
        """
        role = "client" if sender is Node.ENCLAVE else "server"
        deadline = self.backend.deadline(120)
        options = ("--bytes", str(size), "--streams", str(streams), "--timeout", f"{deadline.remaining / 2:.0f}")
        serve = [*_BULK, "serve", _BULK_PORT, role, *options]
        server = self.backend.spawn(Node.EXTERNAL, serve, name=f"bulk-{role}")
        try:
            server.wait_for_line("ready", deadline)
            external = str(getattr(self.topology, f"external{family}"))
            dial = [*_BULK, "dial", external, _BULK_PORT, role, *options]
            begin = time.monotonic()
            report = json.loads(self.backend.run(Node.ENCLAVE, dial, deadline=deadline).check().stdout)
            seconds = time.monotonic() - begin
            server.wait(deadline)
            seen = json.loads(server.output().splitlines()[-1])
        finally:
            server.kill()
        if not seen == report == {**report, "bytes": size, "streams": streams}:
            raise LabError("a transfer was not complete", why=f"{report} in the enclave, {seen} outside")
        return seconds

    def probe(self, node: Node, *arguments: str, deadline: Deadline | None = None) -> dict[str, Any]:
        """Run a verb of `lab.guest.probe` in a machine.

        Raises:
            ProbeError: No answer came, or a wrong one.
        """
        report = self.try_probe(node, *arguments, deadline=deadline)
        if not report["ok"]:
            raise ProbeError(f"{' '.join(arguments)} in {node} failed", why=report["error"])
        return report

    def try_probe(self, node: Node, *arguments: str, deadline: Deadline | None = None) -> dict[str, Any]:
        """Do the same. The report says whether it went well."""
        return self._probe(node, self.backend.scale, arguments, deadline)

    def patience(self) -> float:
        """Return a time in which an answer would long have arrived: many times a ping from the enclave outwards."""
        report = self.probe(Node.ENCLAVE, "ping", self.topology.external4)
        return max(_LEAST_PATIENCE, _ROUND_TRIPS * float(report["rtt_ms"][0]) / 1e3)

    def has_no_answer(self, node: Node, *arguments: str, patience: float | None = None) -> bool:
        """Return whether a probe fails that waits this many seconds, by default `patience`, measured now."""
        timeout = self.patience() if patience is None else patience
        return not self._probe(node, 1.0, (*arguments, "--timeout", f"{timeout:g}"), None)["ok"]

    def _probe(self, node: Node, scale: float, arguments: Sequence[str], deadline: Deadline | None) -> dict[str, Any]:
        argv = [*PROBE, "--scale", f"{scale:g}", *arguments]
        done = self.backend.run(node, argv, deadline=deadline or self.backend.deadline(15))
        if not done.stdout:
            done.check()
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report

    def peak_memory(self, node: Node) -> float:
        """Return the largest resident set of the Relay (in the pod) or the Enclave so far, in MiB.

        Raises:
            LabError: It does not answer.
        """
        status = self.backend.status(node)
        if status is None:
            raise LabError(f"the service in {node} does not answer")
        text = self.backend.run(node, ["cat", f"/proc/{status['pid']}/status"]).check().stdout.decode()
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", text)
        return int(kilobytes) / 1024

    def send_frame(self, node: Node, packet: Any) -> None:
        """Put a Scapy IP packet on a machine's cable, addressed to the machine at its other end."""
        from scapy.layers.l2 import Ether

        for link in self.topology.links:
            for near, far in ((link.left, link.right), (link.right, link.left)):
                if near.node is node:
                    frame = Ether(src=near.mac, dst=far.mac) / packet
                    lines = bytes(frame).hex().encode() + b"\n"
                    self.backend.run(node, [*PROBE, "inject", near.name], stdin=lines).check()
                    return
        raise LabError(f"{node} has no cable")

    def enclave_status(self, node: Node = Node.ENCLAVE) -> dict[str, Any]:
        """Return the Relay's current status of one enclave.

        Raises:
            LabError: It does not answer, or serves no such enclave.
        """
        status = self.relay_status()
        if not self.topology.neighbours:
            only: dict[str, Any] = status["enclaves"][0]
            return only
        name = self.topology.tenant(node).name
        for entry in status["enclaves"]:
            if entry["name"] == name:
                found: dict[str, Any] = entry
                return found
        raise LabError(f"the Relay serves no enclave {name}")

    def relay_status(self) -> dict[str, Any]:
        """Return the Relay's current status.

        Raises:
            LabError: It does not answer.
        """
        status = self.backend.status(Node.POD)
        if status is None:
            raise LabError("the Relay does not answer")
        return status

    def drops(self, node: Node) -> dict[str, int]:
        """Return the number of packets that the Relay (in the pod) or the Enclave has dropped so far, by reason."""
        status = self.backend.status(node)
        if status is None:
            raise LabError(f"the service in {node} does not answer")
        drops: dict[str, int] = status["counters"]["dropped"]
        return drops

    def observe(self, *points: Point) -> Observation:
        """Start to watch the vsock point and these points, by default every one."""
        return Observation(self.backend, self.history, points or uplinks.packet_points())

    def attest_again(self) -> None:
        """Make the Relay attest the Enclave now, without waiting for its interval or its back-off."""
        if self.relay is not None:
            self.relay.signal(signal.SIGUSR1)

    def restart_relay(
        self, config: Mapping[str, Any] | None = None, timings: Mapping[str, float] | None = None
    ) -> None:
        """Stop the Relay for a restart (SIGUSR2: connections are kept), and start it again."""
        self.stop_relay(signal.SIGUSR2)
        self.start_relay(config, timings)

    def stop_relay(self, signum: int = signal.SIGTERM) -> None:
        """Stop the Relay as an operator does. Does nothing if it is not running.

        Raises:
            LabError: It did not end with 0.
        """
        if self.relay is not None:
            self._stop(self.relay, signum)
        self.relay = None

    def restart_enclave(
        self, config: Mapping[str, Any] | None = None, timings: Mapping[str, float] | None = None
    ) -> None:
        """Stop the Enclave's agent as an operator does, and start it again."""
        if self.enclave is not None:
            self._stop(self.enclave)
        self.start_enclave(config, timings)

    def nat_rules(self) -> str:
        """Return the rules in force in the pod, as their tool lists them, in lower case. Empty without any."""
        listing = self.backend.run(Node.POD, ["sh", "-c", self.backend.filter.listing]).check().stdout
        return listing.decode().strip().lower()

    def translates(self) -> bool:
        """Return whether rules in force in the pod translate new flows, to or from the enclave."""
        return re.search(r"masquerade|dnat (ip|ip6) to|-j dnat", self.nat_rules()) is not None

    def state(self, node: Node) -> dict[str, str]:
        """Describe everything that a service changes in its machine, for a comparison before and after."""
        listing = self.backend.filter.listing
        commands = [command.replace("{rules}", listing) for command in _STATE.values()]
        script = "\n".join(f"({command})\nprintf '\\0'" for command in commands)
        parts = self.backend.run(node, ["sh", "-c", script]).check().stdout.decode().split("\0")
        return dict(zip(_STATE, parts, strict=False))

    def clear(self) -> None:
        """End every fault and both services, by force if necessary."""
        self.backend.tap.resume()
        self.backend.nsm.reset()
        try:
            self.stop()
        finally:
            for process in self._services():
                process.kill()
            self._forget()

    def stop(self) -> None:
        """Stop both services as an operator does.

        Raises:
            LabError: One did not end with 0.
        """
        for process in self._services():
            if process.poll() is None:
                self._stop(process)
        self._forget()

    def _services(self) -> list[Process]:
        return [process for process in (self.relay, self.enclave, *self.neighbours.values()) if process is not None]

    def _forget(self) -> None:
        self.relay = self.enclave = None
        self.neighbours.clear()

    def _stop(self, process: Process, signum: int = signal.SIGTERM) -> None:
        process.signal(signum)
        code = process.wait(self.backend.deadline(15))
        process.kill()
        if code != 0:
            raise LabError(f"{process.name} ended with {code}", why=process.output()[-2000:])
