"""The rungs that a laboratory climbs, for the behaviour suite and for the demonstration alike.

network -> Relay and Enclave started -> provisioned -> tunnel up. A rung that breaks leaves the laboratory as it is, to
be looked at; whoever climbs on gets the same error.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lab.backend import Backend, Process
from lab.deadline import Deadline
from lab.errors import LabError
from lab.observation import Observation, VsockHistory
from lab.topology import PACKET_POINTS, Node, Point

_Options = tuple[Mapping[str, Any] | None, Mapping[str, float] | None]

PROBE: Final = (sys.executable, "-I", "-S", str(Path(__file__).parent / "probe.py"))


_ROUND_TRIPS: Final = 30
_LEAST_PATIENCE: Final = 0.3  # seconds

_STATE: Final = {
    "links": "ip -o link | sed 's/ qlen.*//'",
    "addresses": "ip -o address | sed 's/valid_lft.*//'",
    "routes": "ip route show table all | sort; ip -6 route show table all | sort",
    "rules": "ip rule; ip -6 rule; nft list ruleset",
    "forwarding": "cd /proc/sys/net && grep . ipv4/ip_forward ipv4/conf/*/forwarding ipv6/conf/*/forwarding",
    "resolver": "cat /etc/resolv.conf",
}


class ProbeError(LabError):
    """A probe got no answer, or a wrong one."""


class Ladder:
    """A laboratory with the two services that run in it.

    Args:
        backend: The laboratory, not yet up.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.topology = backend.topology
        self.relay: Process | None = None
        self.enclave: Process | None = None
        self.history = VsockHistory(backend)
        self._options: dict[str, _Options] = {}

    # -- the rungs -----------------------------------------------------------------------------------------------------

    def start_relay(self, config: Mapping[str, Any] | None = None, timings: Mapping[str, float] | None = None) -> None:
        """Start the Relay."""
        self._options["relay"] = (config, timings)
        self.relay = self.backend.start_relay(config, timings=timings)

    def start_enclave(
        self, config: Mapping[str, Any] | None = None, timings: Mapping[str, float] | None = None
    ) -> None:
        """Start the Enclave."""
        self._options["enclave"] = (config, timings)
        self.enclave = self.backend.start_enclave(config, timings=timings)

    def raise_tunnel(self, timings: Mapping[str, float] | None = None) -> None:
        """Without faults and with default configurations, until the application answers.

        Services that run so already are kept.
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

    def runs(self, timings: Mapping[str, float] | None = None) -> bool:
        """Whether both services run, with default configurations and these timings."""
        processes = (self.relay, self.enclave)
        running = all(process is not None and process.poll() is None for process in processes)
        return running and all(options == (None, timings) for options in self._options.values())

    def _wait_tunnel(self) -> None:
        self.wait_ready()
        self.wait_application()

    def wait_ready(self, deadline: Deadline | None = None) -> dict[str, Any]:
        """Wait until the Relay says that it is attested, has a session and its rules; its status.

        Raises:
            LabError: One of the two has ended.
            LabTimeoutError: It is not ready in time.
        """
        return (deadline or self.backend.deadline(20)).poll(self.look_ready, "the Relay to be ready")

    def look_ready(self) -> dict[str, Any] | None:
        """The Relay's status, if it says that it is ready.

        Raises:
            LabError: One of the two services has ended.
        """
        for process in (self.relay, self.enclave):
            if process is not None and process.poll() is not None:
                raise LabError(f"{process.name} ended with {process.poll()}", why=process.output()[-2000:])
        status = self.backend.status(Node.POD)
        return status if status is not None and status.get("ready") else None

    def wait_application(self, deadline: Deadline | None = None) -> None:
        """Wait until the application in the enclave answers.

        Raises:
            LabTimeoutError: It does not in time.
        """
        port = str(self.topology.application.echo_port)
        (deadline or self.backend.deadline(10)).poll(
            lambda: self.try_probe(Node.EXTERNAL, "tcp", self.topology.pod4, port, "--timeout", "2")["ok"],
            "the application to answer",
        )

    # -- using it ------------------------------------------------------------------------------------------------------

    def probe(self, node: Node, *arguments: str, deadline: Deadline | None = None) -> dict[str, Any]:
        """Run a verb of `lab.probe` in a machine.

        Raises:
            ProbeError: No answer came, or a wrong one.
        """
        report = self.try_probe(node, *arguments, deadline=deadline)
        if not report["ok"]:
            raise ProbeError(f"{' '.join(arguments)} in {node} failed", why=report["error"])
        return report

    def try_probe(self, node: Node, *arguments: str, deadline: Deadline | None = None) -> dict[str, Any]:
        """The same; the report says whether it went well."""
        return self._probe(node, self.backend.scale, arguments, deadline)

    def patience(self) -> float:
        """Seconds in which an answer would long have come: many times a ping from the enclave to the world and back."""
        report = self.probe(Node.ENCLAVE, "ping", self.topology.external4)
        return max(_LEAST_PATIENCE, _ROUND_TRIPS * float(report["rtt_ms"][0]) / 1e3)

    def has_no_answer(self, node: Node, *arguments: str, patience: float | None = None) -> bool:
        """Whether a probe fails that waits so many seconds; by default `patience`, measured now."""
        timeout = self.patience() if patience is None else patience
        return not self._probe(node, 1.0, (*arguments, "--timeout", f"{timeout:g}"), None)["ok"]

    def _probe(self, node: Node, scale: float, arguments: Sequence[str], deadline: Deadline | None) -> dict[str, Any]:
        argv = [*PROBE, "--scale", f"{scale:g}", *arguments]
        done = self.backend.run(node, argv, deadline=deadline or self.backend.deadline(15))
        if not done.stdout:
            done.check()
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report

    def send_frame(self, node: Node, packet: Any) -> None:
        """Put an IP packet of Scapy's on a machine's cable, addressed to the machine at its other end."""
        from scapy.layers.l2 import Ether

        for link in self.topology.links:
            for near, far in ((link.left, link.right), (link.right, link.left)):
                if near.node is node:
                    frame = Ether(src=near.mac, dst=far.mac) / packet
                    lines = bytes(frame).hex().encode() + b"\n"
                    self.backend.run(node, [*PROBE, "inject", near.name], stdin=lines).check()
                    return
        raise LabError(f"{node} has no cable")

    def relay_status(self) -> dict[str, Any]:
        """What the Relay says of itself now.

        Raises:
            LabError: It does not answer.
        """
        status = self.backend.status(Node.POD)
        if status is None:
            raise LabError("the Relay does not answer")
        return status

    def drops(self, node: Node) -> dict[str, int]:
        """The packets that the Relay (in the pod) or the Enclave has dropped so far, by reason."""
        status = self.backend.status(node)
        if status is None:
            raise LabError(f"the service in {node} does not answer")
        drops: dict[str, int] = status["counters"]["dropped"]
        return drops

    def observe(self, *points: Point) -> Observation:
        """Start to watch the vsock point and these; by default every one."""
        return Observation(self.backend, self.history, points or tuple(PACKET_POINTS))

    def attest_again(self) -> None:
        """Have the Relay attest the Enclave now, without waiting for its period or its back-off."""
        if self.relay is not None:
            self.relay.signal(signal.SIGUSR1)

    def restart_relay(
        self, config: Mapping[str, Any] | None = None, timings: Mapping[str, float] | None = None
    ) -> None:
        """Stop the Relay for a restart (SIGUSR2: connections are kept), and start it again."""
        self.stop_relay(signal.SIGUSR2)
        self.start_relay(config, timings)

    def stop_relay(self, signum: int = signal.SIGTERM) -> None:
        """Stop the Relay as an operator does; nothing where it does not run.

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
        """The rules in force in the pod, as nft lists them; empty without any."""
        return self.backend.run(Node.POD, ["nft", "list", "ruleset"]).check().stdout.decode().strip()

    def state(self, node: Node) -> dict[str, str]:
        """Everything a service changes in its machine, in words, to be compared before and after."""
        script = "\n".join(f"({command})\nprintf '\\0'" for command in _STATE.values())
        parts = self.backend.run(node, ["sh", "-c", script]).check().stdout.decode().split("\0")
        return dict(zip(_STATE, parts, strict=False))

    def clear(self) -> None:
        """End every fault and both services, by force where they do not heed."""
        self.backend.tap.resume()
        self.backend.nsm.reset()
        try:
            self.stop()
        finally:
            for process in (self.relay, self.enclave):
                if process is not None:
                    process.kill()
            self.relay = self.enclave = None

    def stop(self) -> None:
        """Stop both services as an operator does.

        Raises:
            LabError: One did not end with 0.
        """
        for process in (self.relay, self.enclave):
            if process is not None and process.poll() is None:
                self._stop(process)
        self.relay = self.enclave = None

    def _stop(self, process: Process, signum: int = signal.SIGTERM) -> None:
        process.signal(signum)
        code = process.wait(self.backend.deadline(15))
        process.kill()
        if code != 0:
            raise LabError(f"{process.name} ended with {code}", why=process.output()[-2000:])
