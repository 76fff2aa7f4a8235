"""The whole paper in one command: an attested enclave reaches the outside and is reached, and every step is checked.

Relay and Enclave are separate processes that run the production services. Only what was seen in this run is reported:
at the capture points, in the bytes at the vsock point, or in the Relay's own status.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cbor2

from lab import uplinks
from lab.cli.narration import Narrator
from lab.errors import LabError
from lab.ladder import Ladder
from lab.topology import Node, Point
from lab.watch.dissect import Frame, dissect
from lab.watch.observation import Observation
from lab.watch.tap import Kind
from lab.watch.walkthrough import Passage
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT
from wgvsock.errors import WgvsockError
from wgvsock.telemetry.schema import SCHEMA

ARTIFACTS: Final = Path("artifacts/demo")

_ABOUT: Final = {
    "HELLO": "a nonce, an ephemeral key, capabilities",
    "REQUEST": "a nonce, the Relay's keys, the settings; signed, sealed",
    "RESPONSE": "attestation document, bound to both messages; sealed",
    "RESULT": "the Relay's verdict",
    "handshake initiation": "Noise IKpsk2, preshared key from the exchange",
    "handshake response": "both keys and the transcript are proved",
}


@dataclass(slots=True)
class Demonstration:
    """Runs the demonstration, reports what happens, and keeps the record.

    Args:
        ladder: A laboratory that is not up yet.
        narrator: Prints the report.
    """

    ladder: Ladder
    narrator: Narrator
    record: dict[str, Any] = field(default_factory=dict)
    _begin: float = field(default_factory=time.monotonic)

    def run(self) -> bool:
        """Run the whole demonstration, and return whether everything was as required."""
        backend, tell = self.ladder.backend, self.narrator
        tell.title("wgvsock", "attested WireGuard over VSOCK: the complete path of a packet")
        tell.picture(self.ladder.topology)
        try:
            self._raise_network()
            self._start_services()
            self._attestation()
            self._wireguard()
            passages = [self._egress(), self._ingress()]
            others = self._other_traffic()
        except (WgvsockError, LookupError) as error:
            backend.keep_artifacts(ARTIFACTS)
            tell.failure(str(getattr(error, "what", error)), getattr(error, "why", ""), str(ARTIFACTS))
            self.record |= {"schema": SCHEMA, "ok": False, "error": str(error)}
            return False
        ok = self._conclude(passages, others)
        if not ok:
            backend.keep_artifacts(ARTIFACTS)
        return ok

    def _raise_network(self) -> None:
        backend, tell = self.ladder.backend, self.narrator
        if Point.RELAY_WG0 not in uplinks.packet_points():
            raise LabError("the demonstration follows packets through the Relay's wg0", fix="unset UPLINK")
        begin = time.monotonic()
        backend.up()
        tell.heading("The laboratory", f"{backend.name}, {time.monotonic() - begin:.2f} s")
        tell.fact("machines", "enclave, pod, node, external; the enclave's only connection is the vsock")
        tell.fact("fake NSM", f"a fresh AWS-shaped root, SHA-256 {_short(backend.root_sha256)}: pinned explicitly")

    def _start_services(self) -> None:
        lab, tell = self.ladder, self.narrator
        lab.start_relay()
        lab.start_enclave()
        assert lab.relay is not None  # noqa: S101 (just started)
        assert lab.enclave is not None  # noqa: S101
        tell.fact("Relay", f"pid {lab.relay.pid}, in the pod: wgvsock relay run")
        tell.fact("Enclave", f"pid {lab.enclave.pid}, in the enclave: the production supervisor, with the fake NSM")
        lab.wait_ready()
        lab.wait_application()

    def _attestation(self) -> None:
        lab, tell = self.ladder, self.narrator
        exchange = _last_exchange(lab.history.update().provisioning)
        status = lab.relay_status()
        tell.heading("Provisioning and attestation", f"wgvsock/prov/1, vsock port {PROVISIONING_PORT}")
        _tell_frames(tell, exchange)
        response = next(frame for frame in exchange if frame.name == "RESPONSE")
        document = cbor2.loads(cbor2.loads(response.fields[3])[2])
        pcrs = {
            f"PCR{number}": document["pcrs"][number].hex() for number in (0, 1, 2, 16) if number in document["pcrs"]
        }
        attested = status["attestation"]
        verified = attested["pcrs"]["PCR0"] == pcrs["PCR0"] == lab.backend.enclave_measurements["PCR0"]
        tell.fact("verified", "chain to the pinned root, ES384 signature, freshness, nonce, PCRs, binding", ok=verified)
        tell.fact("PCR0", _short(pcrs["PCR0"]), ok=verified)
        tell.fact("module", attested["module_id"])
        self.record["attestation"] = {
            "verified": verified,
            "module_id": attested["module_id"],
            "root_sha256": lab.backend.root_sha256,
            "pcr0": pcrs["PCR0"],
            "pcrs": pcrs,
            "document_bytes": len(response.fields[3]),
        }
        self.record["provisioning"] = {
            "protocol": "wgvsock/prov/1",
            "messages": [
                {"name": frame.name, "from": _sender(frame), "bytes": len(frame.payload)} for frame in exchange
            ],
            "milliseconds": round((exchange[-1].time - exchange[0].time) * 1e3, 3),
            "capabilities": attested["capabilities"],
        }

    def _wireguard(self) -> None:
        lab, tell = self.ladder, self.narrator
        frames = [frame for frame in dissect(lab.backend.tap.chunks()) if frame.name.startswith("handshake")]
        handshake = frames[-2:]
        status = lab.relay_status()
        (peer,) = status["wireguard"]["peers"]
        tell.heading("WireGuard", f"vsock port {WIREGUARD_PORT}")
        _tell_frames(tell, handshake)
        milliseconds = status["attestation"]["handshake_ms"]
        tell.fact("session", f"after {milliseconds:.1f} ms; the peer's key is the attested one")
        self.record["wireguard"] = {
            "handshake_ms": milliseconds,
            "messages": [{"name": f.name, "from": _sender(f), "bytes": len(f.payload)} for f in handshake],
            "peer_public_key": peer["public_key"],
            "peer_is_attested": peer["public_key"] == status["attestation"]["public_key"],
            "allowed_ips": peer["allowed_ips"],
            "profile": peer["profile"],
        }

    def _egress(self) -> Passage:
        topology = self.ladder.topology
        port = topology.service(Node.EXTERNAL).echo_port
        self.narrator.heading("Egress", f"the application calls {topology.external4}:{port}")
        with self.ladder.observe() as observation:
            arguments = ("udp", topology.external4, str(port), "--text", observation.token)
            report = self.ladder.probe(Node.ENCLAVE, *arguments)
            observation.wait_for(Point.ENCLAVE_WG0, self.ladder.backend.deadline(5), from_port=port)
        return self._tell_passage(observation, "egress", port, report["rtt_ms"])

    def _ingress(self) -> Passage:
        topology = self.ladder.topology
        port = topology.application.echo_port
        self.narrator.heading("Ingress", f"a client calls the pod, {topology.pod4}:{port}")
        with self.ladder.observe() as observation:
            arguments = ("udp", topology.pod4, str(port), "--text", observation.token)
            report = self.ladder.probe(Node.EXTERNAL, *arguments)
            observation.wait_for(Point.EXTERNAL_ETH0, self.ladder.backend.deadline(5), from_port=port)
        return self._tell_passage(observation, "ingress", port, report["rtt_ms"])

    def _tell_passage(self, observation: Observation, direction: str, port: int, rtt_ms: float) -> Passage:
        topology = self.ladder.topology
        passage = Passage.of(
            observation,
            direction,
            port,
            rtt_ms,
            enclave=topology.enclave4,
            pod=topology.pod4,
            external=topology.external4,
        )
        for step in passage.steps:
            self.narrator.step(step)
        self.record[direction] = passage.report()
        return passage

    def _other_traffic(self) -> dict[str, Any]:
        lab, topology = self.ladder, self.ladder.topology
        self.narrator.heading("Other IP traffic")
        tcp = lab.probe(Node.ENCLAVE, "tcp", topology.external4, "7", "--bytes", "1000000")
        six = lab.probe(Node.ENCLAVE, "tcp", topology.external6, "7", "--bytes", "100000")
        http = lab.probe(Node.EXTERNAL, "http", topology.pod6, str(topology.application.http_port), "/whoami")
        ping = lab.probe(Node.ENCLAVE, "ping", topology.external4)
        names = lab.probe(Node.ENCLAVE, "resolve", f"www.{topology.zone}")
        client = json.loads(http["body"])["address"]
        metadata = lab.try_probe(Node.ENCLAVE, "http", topology.metadata4, "80", "--timeout", "0.5")
        reachable = lab.try_probe(Node.POD, "http", topology.metadata4, "80", "--timeout", "2")
        tell = self.narrator
        tell.fact("TCP", f"{tcp['bytes']:,} bytes out and back, compared, in {tcp['seconds'] * 1e3:.0f} ms")
        tell.fact("IPv6", f"TCP out; HTTP in, and the application saw its client as {client}")
        tell.fact("ICMP", f"ping answered in {ping['rtt_ms'][0]:.1f} ms")
        tell.fact("DNS", f"www.{topology.zone} is {', '.join(names['addresses'])}")
        closed = reachable["ok"] and not metadata["ok"]
        tell.fact("metadata", f"{topology.metadata4} answers the pod, and is closed to the enclave", ok=closed)
        return {
            "tcp_bytes": tcp["bytes"],
            "tcp6_bytes": six["bytes"],
            "http6_client_seen_by_application": client,
            "ping_ms": ping["rtt_ms"][0],
            "dns": names["addresses"],
            "metadata_closed": closed,
            "ok": closed and client == topology.external6,
        }

    def _conclude(self, passages: Sequence[Passage], others: dict[str, Any]) -> bool:
        attestation, wireguard = self.record["attestation"], self.record["wireguard"]
        readable = any(passage.readable for passage in passages)
        crossed = sum(passage.vsock_bytes for passage in passages)
        ok = (
            all(passage.ok for passage in passages)
            and attestation["verified"]
            and wireguard["peer_is_attested"]
            and others["ok"]
        )
        wireguard["vsock"] = {"bytes": crossed, "plaintext_found": readable}
        seconds = round(time.monotonic() - self._begin, 2)
        story, self.record = self.record, {"schema": SCHEMA, "ok": ok, "backend": self.ladder.backend.name}
        self.record |= story | {"other_traffic": others, "seconds": seconds}
        steps = ", ".join(f"{sum(s.ok for s in p.steps)} of {len(p.steps)} {p.direction} steps" for p in passages)
        egress, ingress = passages
        self.narrator.verdict(
            [
                ("attested", f"PCR0 {_short(attestation['pcr0'])}, before the first packet passed"),
                ("followed", steps),
                ("MASQUERADE", _rewritten(egress, "source")),
                ("DNAT", _rewritten(ingress, "destination")),
                ("vsock", f"{crossed} bytes, {'PLAINTEXT FOUND' if readable else 'no plaintext in any of them'}"),
            ],
            ok=ok,
            seconds=seconds,
        )
        return ok


def _rewritten(passage: Passage, end: str) -> str:
    nat = passage.report()["nat"]
    return f"{nat['before'][end]} -> {nat['after'][end]}"


def _last_exchange(frames: list[Frame]) -> list[Frame]:
    """Return the frames of the newest provisioning connection that reached a verdict."""
    finished = max(frame.connection for frame in frames if frame.name == "RESULT")
    return [frame for frame in frames if frame.connection == finished]


def _tell_frames(tell: Narrator, frames: list[Frame]) -> None:
    for frame in frames:
        arrow = "enclave → relay" if frame.kind is Kind.TO_RELAY else "relay → enclave"
        since = (frame.time - frames[0].time) * 1e3
        tell.message(arrow, frame.name, len(frame.payload), _ABOUT.get(frame.name, ""), since)


def _sender(frame: Frame) -> str:
    return "enclave" if frame.kind is Kind.TO_RELAY else "relay"


def _short(digits: str) -> str:
    return f"{digits[:16]}…{digits[-8:]}"
