"""Renders the relay's snapshots as ``status --json``, as answers to probes, and as the source of the metrics."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from wgvsock.dns.snapshot import ForwarderSnapshot
from wgvsock.egress.trial import Outcome
from wgvsock.errors import ConfigurationError, WgvsockError
from wgvsock.relay.enclaves.application import ApplicationSnapshot, Line
from wgvsock.relay.enclaves.ping import Ping
from wgvsock.relay.enclaves.processor import ProcessorSnapshot
from wgvsock.relay.enclaves.reach import Reach
from wgvsock.relay.judgements import Refusal
from wgvsock.relay.orders import Order
from wgvsock.relay.snapshots import Attestation, EnclaveSnapshot, Readiness, RelaySnapshot
from wgvsock.relay.uplink.base import EgressSnapshot, UplinkSnapshot
from wgvsock.system.nitro_cli import EnclaveInfo
from wgvsock.telemetry.endpoint import Answer, as_json
from wgvsock.telemetry.schema import SCHEMA
from wgvsock.telemetry.status import application_status, key_text, rounded_seconds, service_status
from wgvsock.tunnel.probe import PathSnapshot

MAX_LISTED: Final = 1000
"""Addresses and names of one kind in one answer, for all enclaves together. Enclaves choose them, and each takes a few
hundred bytes."""


def relay_status(relay: RelaySnapshot) -> dict[str, Any]:
    """The whole snapshot as JSON values."""
    return {
        **service_status("relay", relay.name, relay.pid, relay.state.value, ready=relay.ready),
        # For rates: the processor time used, and a clock that nobody sets.
        "processor_seconds": round(time.process_time(), 3),
        "monotonic_seconds": round(time.monotonic(), 3),
        "reload": None if relay.reload is None else _order(relay.reload),
        "enclaves": [_enclave(enclave) for enclave in relay.enclaves],
    }


def ready_answer(relay: RelaySnapshot) -> Answer:
    """The answer to ``GET /ready``: 200 or 503, with the conditions of each enclave."""
    conditions = {enclave.name: _conditions(enclave.readiness) for enclave in relay.enclaves}
    status = HTTPStatus.OK if relay.ready else HTTPStatus.SERVICE_UNAVAILABLE
    return as_json({"schema": SCHEMA, "ready": relay.ready, "enclaves": conditions}, status)


def live_answer() -> Answer:
    """The answer to ``GET /live``, which shows that the event loop runs."""
    return as_json({"schema": SCHEMA, "live": True})


def ping_answer(name: str, ping: Ping) -> Answer:
    """The answer to ``POST /ping``: the result of testing each layer of an enclave's tunnel."""
    stream = {
        "ok": ping.stream,
        "connected_seconds": rounded_seconds(ping.stream_age),
        "connect_ms": _milliseconds(ping.connect),
    }
    handshake = {
        "ok": ping.handshake,
        "age_seconds": rounded_seconds(ping.handshake_age),
        "took_ms": _milliseconds(ping.handshake_took),
    }
    ip = {
        "ok": ping.echo is not None,
        "destination": ping.destination,
        "rtt_ms": _milliseconds(ping.echo),
        "path": ping.alive,
    }
    return as_json({"schema": SCHEMA, "enclave": name, "stream": stream, "handshake": handshake, "ip": ip})


def reach_answer(name: str, found: Reach) -> Answer:
    """The answer to ``POST /netcheck``: the result of testing the network beyond an enclave's tunnel."""
    servers = [
        {"server": str(one.address), "ok": one.seconds is not None, "ms": _milliseconds(one.seconds), "why": one.why}
        for one in found.servers
    ]
    world = None
    if found.world is not None:
        took = found.world.seconds
        world = {"destination": str(found.world.destination), "ok": took is not None, "ms": _milliseconds(took)}
        world |= {"why": found.world.why, "denied": found.world.denied}
    return as_json({"schema": SCHEMA, "enclave": name, "names": servers, "world": world})


def name_refusal(names: Iterable[str]) -> Answer:
    """The answer to a request that needs an enclave but names none that exists: the names to choose from."""
    return as_json({"schema": SCHEMA, "enclave": None, "enclaves": sorted(names)}, HTTPStatus.NOT_FOUND)


def egress_answer(relay: RelaySnapshot, name: str) -> Answer:
    """The answer to ``GET /egress``: what enclaves may reach and what they tried to reach.

    Args:
        relay: The relay.
        name: The only enclave to include; ``""`` for all.
    """
    wanted = [enclave for enclave in relay.enclaves if name in {"", enclave.name}]
    if not wanted:
        return name_refusal(enclave.name for enclave in relay.enclaves)
    found = [
        {
            "name": enclave.name,
            **_egress(enclave.uplink.egress),
            **_egress_lists(enclave.uplink.egress, MAX_LISTED // len(wanted)),
        }
        for enclave in wanted
        if enclave.uplink is not None
    ]
    return as_json({"schema": SCHEMA, "enclaves": found})


def lines_answer(name: str, lines: Iterable[Line], last: int) -> Answer:
    """The answer to ``GET /logs``: lines from an enclave's application, and the number of the last one."""
    values = [
        {"number": line.number, "time_ms": line.time_ms, "stream": line.stream, "text": line.text} for line in lines
    ]
    return as_json({"schema": SCHEMA, "enclave": name, "lines": values, "last": last})


def signal_answer(*, sent: bool, why: str) -> Answer:
    """The answer to ``POST /signal``: 202 or 409, with the reason if the signal was not sent."""
    status = HTTPStatus.ACCEPTED if sent else HTTPStatus.CONFLICT
    return as_json({"schema": SCHEMA, "sent": sent, "why": why}, status)


def trial_answer(found: Mapping[str, Iterable[Outcome]]) -> Answer:
    """The answer to ``GET /egress/test``: the predicted outcomes by enclave."""
    return as_json(
        {"schema": SCHEMA, "outcomes": {name: [each.plain() for each in told] for name, told in found.items()}}
    )


def trial_refusal(error: ConfigurationError) -> Answer:
    """The answer to ``GET /egress/test`` with an invalid destination."""
    return as_json({"schema": SCHEMA, "error": _error(error), "fix": error.fix}, HTTPStatus.BAD_REQUEST)


def order_answer(order: Order | None) -> Answer:
    """The answer to ``POST /reload``, ``POST /reattest`` and ``GET /order``: an order's result so far."""
    if order is None:
        return as_json({"schema": SCHEMA, "order": None}, HTTPStatus.NOT_FOUND)
    return as_json({"schema": SCHEMA, **_order(order)}, HTTPStatus.OK if order.done else HTTPStatus.ACCEPTED)


def replace_refusal(error: WgvsockError) -> Answer:
    """The answer to a ``POST /replace`` that is refused."""
    return as_json({"schema": SCHEMA, "error": _error(error), "fix": error.fix}, HTTPStatus.CONFLICT)


def _enclave(enclave: EnclaveSnapshot) -> dict[str, Any]:
    return {
        "name": enclave.name,
        "state": enclave.state.value,
        "ready": enclave.readiness.ready,
        "conditions": _conditions(enclave.readiness),
        "address": enclave.address,
        "launched": None if enclave.launched is None else _launched(enclave.launched),
        "attestation": None if enclave.attestation is None else _attestation(enclave.attestation, enclave.attested_for),
        "root_is_aws": enclave.root_is_aws,
        "debug_allowed": enclave.debug_allowed,
        "provisioning": {
            "attempts": dict(enclave.attempts),
            "next_in_seconds": round(enclave.next_attestation, 1),
            "trusted_for_seconds": round(enclave.trusted_for, 1),
            "error": _error(enclave.error),
        },
        "refusal": None if enclave.refusal is None else _refusal(enclave.refusal),
        "wireguard": enclave.wireguard,
        "path": None if enclave.path is None else _path(enclave.path),
        "clock_offset_seconds": rounded_seconds(enclave.clock_offset),
        "processor": None if enclave.processor is None else _processor(enclave.processor),
        "application": None if enclave.application is None else _application(enclave.application),
        "nat": None if enclave.uplink is None else _nat(enclave.uplink),
        "egress": None if enclave.uplink is None else _egress(enclave.uplink.egress),
        "dns": None if enclave.dns is None else _dns(enclave.dns),
        "counters": enclave.counters,
        "replacement": None if enclave.replacement is None else _enclave(enclave.replacement),
    }


def _order(order: Order) -> dict[str, Any]:
    errors = order.errors()
    return {
        "order": order.number,
        "kind": order.kind,
        "time": order.time.isoformat(timespec="milliseconds"),
        "done": order.done,
        "ok": order.ok,
        "error": _failure(order.error),
        "enclaves": {name: {"done": name in errors, "error": _failure(errors.get(name))} for name in order.outcomes},
        "replacing": list(order.replacing),
    }


def _failure(error: WgvsockError | None) -> dict[str, Any] | None:
    """An error with the exit status for a command that ends because of it."""
    named = _error(error)
    return None if error is None or named is None else {**named, "exit": error.exit_code}


def _conditions(readiness: Readiness) -> dict[str, bool | None]:
    return dataclasses.asdict(readiness)


def _launched(enclave: EnclaveInfo) -> dict[str, Any]:
    return {"name": enclave.name, "enclave_id": enclave.enclave_id, "cid": enclave.cid, "debug": enclave.debug}


def _attestation(attestation: Attestation, age: float) -> dict[str, Any]:
    enclave = attestation.enclave
    return {
        "module_id": enclave.module_id,
        "timestamp": enclave.timestamp.isoformat(),
        "pcrs": {f"PCR{index}": value.hex() for index, value in sorted(enclave.pcrs.items())},
        "public_key": key_text(enclave.wireguard_public_key),
        "capabilities": list(attestation.capabilities),
        "policy": enclave.matched,
        "age_seconds": round(age, 1),
        "exchange_ms": _milliseconds(attestation.exchange_seconds),
        "handshake_ms": _milliseconds(attestation.handshake_seconds),
    }


def _refusal(refusal: Refusal) -> dict[str, Any]:
    evidence = refusal.evidence
    return {
        "time": refusal.time.isoformat(timespec="milliseconds"),
        "check": refusal.error.check,
        "why": refusal.error.why,
        "fix": refusal.error.fix,
        "module_id": evidence.module_id,
        **evidence.plain(),
        "document": refusal.kept,
    }


def _path(path: PathSnapshot) -> dict[str, Any]:
    times = {"last": path.last, "min": path.minimum, "p50": path.median}
    return {
        "alive": path.alive,
        "rtt_ms": {name: _milliseconds(seconds) for name, seconds in times.items()},
        "sent": path.sent,
        "lost": path.lost,
    }


def _application(application: ApplicationSnapshot) -> dict[str, Any]:
    lost = {"lost_lines": application.lost_lines, "lost_bytes": application.lost_bytes}
    return {**application_status(application.state), "reports": application.connected, **lost}


def _processor(use: ProcessorSnapshot) -> dict[str, Any]:
    return {
        "processors": use.times.processors,
        "clock_seconds": use.times.clock_ms / 1000,
        "busy_seconds": use.times.busy_ms / 1000,
        "agent_seconds": use.times.own_ms / 1000,
        "percent": None if use.percent is None else round(use.percent, 1),
        "agent_percent": None if use.agent_percent is None else round(use.agent_percent, 1),
    }


def _nat(uplink: UplinkSnapshot) -> dict[str, Any]:
    return {
        "open": uplink.is_open,
        "backend": uplink.backend,
        "owner": uplink.owner,
        "uplink": uplink.interfaces,
        "mtu": uplink.mtu,
        "unset_sysctls": list(uplink.unset_sysctls),
        "repairs": dict(uplink.repairs),
        "deleted_flows": dict(uplink.deleted_flows),
        "contested": list(uplink.contested),
        "problem": _error(uplink.problem),
        "published": list(uplink.published),
        "engine": None if uplink.engine is None else dataclasses.asdict(uplink.engine),
    }


def _dns(forwarder: ForwarderSnapshot) -> dict[str, Any]:
    return {
        "listen": [str(address) for address in forwarder.listen],
        "servers": [str(server) for server in forwarder.servers],
        "silent": [str(server) for server in forwarder.silent],
        "in_flight": forwarder.in_flight,
        "queries": dict(forwarder.queries),
        "upstream": dict(forwarder.upstream),
    }


def _egress(egress: EgressSnapshot) -> dict[str, Any]:
    return {
        "default": egress.default,
        "flows": {**{rule.key: rule.flows for rule in egress.rules}, **egress.others},
        "pins": len(egress.pins),
        "names_refused": egress.names_refused,
        "addresses_withheld": egress.addresses_withheld,
    }


def _egress_lists(egress: EgressSnapshot, most: int) -> dict[str, Any]:
    return {
        "rules": [{"key": rule.key, "rule": rule.text, "flows": rule.flows} for rule in egress.rules],
        "pinned": [
            {"name": name, "address": address, "seconds_left": rounded_seconds(left)}
            for name, address, left in egress.pins[:most]
        ],
        "denied": [
            {
                "address": one.address,
                "protocol": one.protocol,
                "port": one.port,
                "name": one.name,
                "packets": one.count,
                "first_seconds_ago": rounded_seconds(one.first),
                "last_seconds_ago": rounded_seconds(one.last),
                "by": one.by,
            }
            for one in egress.denied[:most]
        ],
        "refused": [
            {
                "name": one.name,
                "questions": one.count,
                "last_seconds_ago": rounded_seconds(one.last),
                "withheld": list(one.withheld),
            }
            for one in egress.refused[:most]
        ],
    }


def _error(error: WgvsockError | None) -> dict[str, str] | None:
    return None if error is None else {"code": error.code, "what": error.what, "why": error.why, "fix": error.fix}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
