"""A service's status as text: its state, the problems with their remedies, then the facts.

The service may have another version, or a different program may answer at the socket. A value that is missing or has an
unexpected type is left out or appears as ``?``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

from wgvsock.cli.diagnosis import Finding, diagnose, diagnose_reload
from wgvsock.cli.foreign import at, items, text
from wgvsock.cli.screen import Line, Tone, labelled
from wgvsock.cli.units import count, duration, milliseconds, number, since, size
from wgvsock.text import shortened

_MAX_TEXT: Final = 500
"""Most characters of one value. ``--json`` has all of them."""

_MAX_ITEMS: Final = 20
"""Most enclaves, peers, counters and so on."""

_MAX_REFUSED: Final = 5
"""Most destinations that an enclave's own policy refused last."""

_MAX_FINDINGS: Final = 10

_SERVING: Final = ("ready", "active")
"""States of a service that is running normally. Any problem is named separately."""

_PCR_DIGITS: Final = 48
"""Digits of a PCR that was accepted: half of them, which fit on a line."""

_DIGITS: Final = 16
"""Digits of other digests: enough to tell two apart by eye. ``wgvsock attest verify`` shows all of them."""


def render(status: Any, columns: int, now: float) -> list[Line]:
    """All lines about a service.

    Args:
        status: The service's answer.
        columns: Columns of the terminal.
        now: Unix time in seconds.
    """
    enclaves = items(status, "enclaves")
    lines = [_headline(status, enclaves)]
    if not enclaves:
        lines += _tunnel(status, columns, now)
    for enclave in enclaves[:_MAX_ITEMS]:
        lines.append(Line(f"enclave {_text(enclave, 'name')}: {state(enclave)}", _tone(enclave)))
        lines += _tunnel(enclave, columns, now)
    if len(enclaves) > _MAX_ITEMS:
        lines.append(Line(f"and {len(enclaves) - _MAX_ITEMS} more enclaves: see --json"))
    lines += _findings(diagnose_reload(status), columns)
    if at(status, "reload", "ok") is True:
        lines += labelled("reload", f"applied {since(at(status, 'reload', 'time'), now)} ago", columns)
    return lines


def state(tunnel: Any) -> str:
    """One tunnel's state in words."""
    findings = diagnose(tunnel)
    broken = [finding for finding in findings if finding.severity == "broken"]
    if at(tunnel, "ready") is True:
        warnings = len(findings)
        return "ready" + (f", with {count(warnings, 'warning')}" if warnings else "")
    if at(tunnel, "state") == "superseded":
        return "superseded: a newer relay with the same signing key serves the enclave"
    where = "" if at(tunnel, "state") in _SERVING else f" ({_text(tunnel, 'state')})"
    return f"not ready{where}" + (f": {broken[0].layer} is broken" if broken else "")


def _headline(status: Any, enclaves: list[Any]) -> Line:
    head = f"{_text(status, 'role')} {_text(status, 'name')}: "
    if not enclaves:
        return Line(head + state(status), _tone(status))
    ready = sum(at(enclave, "ready") is True for enclave in enclaves)
    if len(enclaves) == 1:
        words = state(enclaves[0]) if at(status, "state") == "ready" else _text(status, "state")
    else:
        words = f"{_text(status, 'state')}, {ready} of {count(len(enclaves), 'enclave')} ready"
    tone: Tone = "good" if at(status, "ready") is True else "bad"
    return Line(head + words, tone)


def _tone(tunnel: Any) -> Tone:
    if at(tunnel, "ready") is not True:
        return "bad"
    return "warn" if diagnose(tunnel) else "good"


def _findings(findings: Iterable[Finding], columns: int) -> list[Line]:
    lines: list[Line] = []
    for finding in itertools.islice(findings, _MAX_FINDINGS):
        label, tone = ("problem", "bad") if finding.severity == "broken" else ("warning", "warn")
        lines += labelled(label, finding.what, columns, tone)  # type: ignore[arg-type]
        if finding.fix:
            lines += labelled("", f"fix: {finding.fix}", columns)
    return lines


def _tunnel(tunnel: Any, columns: int, now: float) -> list[Line]:
    lines = _findings(diagnose(tunnel), columns)
    for label, words in _facts(tunnel, now):
        lines += labelled(label, words, columns)
    if (replacement := at(tunnel, "replacement")) is not None:
        lines += labelled("replaced by", f"{state(replacement)}, at {_text(replacement, 'address')}", columns)
    return lines


def _facts(tunnel: Any, now: float) -> Iterator[tuple[str, str]]:
    if at(tunnel, "address") is not None:
        yield "address", f"{_text(tunnel, 'address')}, tunnel {_text(tunnel, 'wireguard', 'interface')}"
    yield from _attestation(tunnel)
    yield from _refusal(at(tunnel, "refusal"), now)
    for peer in items(tunnel, "wireguard", "peers")[:_MAX_ITEMS]:
        yield "peer", _peer(peer)
    if path := at(tunnel, "path"):
        yield "path", _path(path)
    if number(at(tunnel, "processor", "percent")) is not None:
        yield "processor", _processor(at(tunnel, "processor"))
    if application := at(tunnel, "application"):
        yield "application", _application(application)
    if nat := at(tunnel, "nat"):
        way = "open" if at(nat, "open") is True else "closed"
        yield "way out", f"{way} on {_text(nat, 'uplink')} ({_text(nat, 'backend')}), MTU {_text(nat, 'mtu')}"
        if ports := items(nat, "published"):
            listed = ", ".join(_text(port) for port in ports[:_MAX_ITEMS])
            more = f" and {len(ports) - _MAX_ITEMS} more" if len(ports) > _MAX_ITEMS else ""
            yield "ports", listed + more
        if engine := at(nat, "engine"):
            held = f"{_text(engine, 'connections')} of {_text(engine, 'max_connections')} connections"
            yield "engine", f"{held}, {_text(engine, 'restarts')} restarts, libslirp {_text(engine, 'version')}"
    if names := at(tunnel, "dns"):
        servers = ", ".join(map(_text, items(names, "servers")[:_MAX_ITEMS])) or "none"
        yield "names", f"servers {servers}; {_counts(_table(names, 'queries'))}"
    if egress := at(tunnel, "egress"):
        yield from _egress(egress)
    if dropped := sorted(_table(tunnel, "counters", "dropped")):
        yield "dropped", _counts(dropped)


def _attestation(tunnel: Any) -> Iterator[tuple[str, str]]:
    attestation = at(tunnel, "attestation")
    if not attestation:
        return
    age, following = at(attestation, "age_seconds"), at(tunnel, "provisioning", "next_in_seconds")
    when = f"{duration(age)} ago" if age is not None else f"at {_text(attestation, 'timestamp')}"
    again = f", again in {duration(following)}" if following is not None else ""
    matched = f', image "{_text(attestation, "policy")}"' if at(attestation, "policy") else ""
    yield "attested", f"{when}{again}{matched}"
    yield "module", _text(attestation, "module_id")
    yield "PCR0", _digest(attestation, "pcrs", "PCR0", most=_PCR_DIGITS)


def _refusal(refusal: Any, now: float) -> Iterator[tuple[str, str]]:
    if not refusal:
        return
    yield "refused", f"{since(at(refusal, 'time'), now)} ago: {_text(refusal, 'check')}, {_text(refusal, 'why')}"
    for register in items(refusal, "registers")[:_MAX_ITEMS]:
        if at(register, "equal") is False:
            measured = _digest(register, "measured") if at(register, "measured") else "missing"
            yield _text(register, "pcr"), f"measured {measured}, allowed {_digest(register, 'allowed')}"
    if at(refusal, "document"):
        yield "document", f"wgvsock attest verify {_text(refusal, 'document')}"


def _digest(value: Any, *path: str, most: int = _DIGITS) -> str:
    found = _text(value, *path)
    return found if len(found) <= most else f"{found[:most]}…"


def _peer(peer: Any) -> str:
    age = at(peer, "handshake_age_seconds")
    handshake = "no handshake yet" if age is None else f"handshake {duration(age)} ago"
    received, sent = size(at(peer, "rx_bytes")), size(at(peer, "tx_bytes"))
    return f"{_text(peer, 'public_key')}, {handshake}, {received} in, {sent} out, {_text(peer, 'profile')}"


def _path(path: Any) -> str:
    known, alive = at(path, "alive"), "unknown"
    if known is not None:
        alive = "packets pass" if known is True else "no packet comes back"
    times = at(path, "rtt_ms")
    words = [alive]
    if number(at(times, "last")) is not None:
        least, median = milliseconds(at(times, "min")), milliseconds(at(times, "p50"))
        words.append(f"round trip {milliseconds(at(times, 'last'))} (minimum {least}, median {median})")
    words.append(f"{_text(path, 'lost')} of {_text(path, 'sent')} lost")
    return ", ".join(words)


def _processor(processor: Any) -> str:
    used, agent = number(at(processor, "percent")), number(at(processor, "agent_percent"))
    part = "" if agent is None else f" (agent {agent:.0f} %)"
    return f"{used:.0f} % of one CPU{part}, {count(at(processor, 'processors'), 'CPU')} available"


def _application(application: Any) -> str:
    words = [_text(application, "phase")]
    if (ready := at(application, "ready")) is not None:
        words.append("ready" if ready is True else "not ready")
    words.append(f"started {count(at(application, 'starts'), 'time')}")
    if at(application, "exit_status") is not None:
        words.append(f"last exit status {_text(application, 'exit_status')}")
    if at(application, "lost_bytes"):  # an endless line is lost without counting as one
        lines = count(at(application, "lost_lines"), "line")
        words.append(f"{lines} ({size(at(application, 'lost_bytes'))}) of output lost")
    return ", ".join(words)


def _egress(egress: Any) -> Iterator[tuple[str, str]]:
    """The policy. ``wgvsock egress`` shows more about a relay's, but an image's own is shown only here."""
    default = f"{_text(egress, 'default')} by default"
    if at(egress, "denied") is None:
        pinned = f"{count(at(egress, 'pins'), 'address', 'addresses')} pinned"
        yield "egress", f"{default}, {pinned}, {count(at(egress, 'names_refused'), 'name')} refused"
        return
    yield "egress", f"{default}, denied: {_counts(sorted(_table(egress, 'denied')))}"
    for refused in items(egress, "refused")[:_MAX_REFUSED]:
        port = "" if at(refused, "port") is None else f" {_text(refused, 'port')}"
        times = f"{count(at(refused, 'count'), 'time')}, {duration(at(refused, 'last_seconds'))} ago"
        flow = f"{_text(refused, 'protocol')}{port} to {_text(refused, 'destination')}"
        yield "denied", f"{flow}, {_text(refused, 'by')}, {times}"


def _counts(pairs: list[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {_text(found)}" for name, found in pairs) or "none yet"


def _text(value: Any, *path: str) -> str:
    return text(value, *path, most=_MAX_TEXT)


def _table(value: Any, *path: str) -> list[tuple[str, Any]]:
    found = at(value, *path)
    pairs = list(found.items())[:_MAX_ITEMS] if isinstance(found, dict) else []
    return [(shortened(key, _MAX_TEXT), item) for key, item in pairs]
