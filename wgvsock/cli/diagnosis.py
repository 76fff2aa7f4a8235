"""Derives the problems of a tunnel from a service's status: one line and a remedy each, the lowest layer first.

``wgvsock status`` shows all of them. ``wgvsock netcheck`` stops at the first broken layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from wgvsock.cli.foreign import at, items, text
from wgvsock.cli.units import duration, milliseconds, number
from wgvsock.telemetry.schema import CLOCK_SUSPECT

SLOW_PATH: Final = 250.0
"""Milliseconds of round-trip time from which a path counts as slow. Relay and enclave share a machine and normally need
a thousandth of that. An application notices a quarter of a second in every exchange."""

SLOW_DOCUMENT: Final = 2000.0
"""Milliseconds from which an exchange counts as slow. It usually takes about 50, most of them in the security module.
The limit is 10 s."""

_MAX_TEXT: Final = 500

Severity = Literal["broken", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        layer: ``attestation``, ``tunnel``, ``path``, ``uplink``, ``names``, ``application``, ``clock``, …
        severity: ``broken`` if packets do not pass, otherwise ``warning``.
        what: What is wrong.
        fix: What the operator can do about it.
    """

    layer: str
    severity: Severity
    what: str
    fix: str = ""


def diagnose(tunnel: Any) -> list[Finding]:
    """Everything that is wrong with one enclave's tunnel, the lowest layer first."""
    return [*_attestation(tunnel), *_tunnel(tunnel), *_uplink(tunnel), *_names(tunnel), *_beyond(tunnel)]


def diagnose_reload(status: Any) -> list[Finding]:
    """A warning if the last reload was refused."""
    reload = at(status, "reload")
    if at(reload, "ok") is not False:
        return []
    enclaves = at(reload, "enclaves")
    outcomes = [at(one, "error") for one in enclaves.values()] if isinstance(enclaves, dict) else []
    error = next((each for each in (at(reload, "error"), *outcomes) if each), None)
    return [Finding("reload", "warning", f"the last reload was refused: {_because(error)}", _text(error, "fix"))]


def _attestation(tunnel: Any) -> Iterator[Finding]:
    conditions, error = at(tunnel, "conditions"), at(tunnel, "provisioning", "error")
    if at(conditions, "attested") is False:
        refused = "the enclave was refused: " if _is_refusal(error) else ""
        if error:
            yield Finding("attestation", "broken", f"{refused}{_because(error)}", _text(error, "fix"))
        else:
            yield Finding("attestation", "broken", "the enclave is not attested yet", "wait, or see the relay's log")
    elif error:
        trusted = duration(at(tunnel, "provisioning", "trusted_for_seconds"))
        what = f"the last attestation failed, and the one before is valid for another {trusted}: {_because(error)}"
        yield Finding("attestation", "warning", what, _text(error, "fix"))
    took = number(at(tunnel, "attestation", "exchange_ms"))
    if took is not None and took >= SLOW_DOCUMENT:
        yield Finding(
            "attestation",
            "warning",
            f"the enclave took {milliseconds(took)} for its document: its security module (NSM) is slow",
            "check the load of the parent instance and the number of CPUs of the enclave",
        )
    if at(tunnel, "root_is_aws") is False:
        yield Finding("attestation", "warning", "an attestation root other than AWS's is accepted")
    if at(tunnel, "debug_allowed"):
        yield Finding("attestation", "warning", "enclaves in debug mode are accepted")


def _tunnel(tunnel: Any) -> Iterator[Finding]:
    conditions = at(tunnel, "conditions")
    if at(conditions, "attested") is True and at(conditions, "handshake") is False:
        yield Finding(
            "tunnel",
            "broken",
            "the WireGuard session or its stream is down",
            "run wgvsock ping to find the layer, and see in the enclave's log why it answers no handshake",
        )
    if at(conditions, "path") is False:
        yield Finding(
            "path",
            "broken",
            "no packet comes back from the enclave's kernel",
            "inside the enclave, check interface, addresses, routes and packet filter",
        )
    last = number(at(tunnel, "path", "rtt_ms", "last"))
    if last is not None and last >= SLOW_PATH:
        yield Finding(
            "path",
            "warning",
            f"the path to the enclave is slow: the round trip takes {milliseconds(last)}",
            "check the load of the parent instance and of the enclave's CPUs",
        )


def _uplink(tunnel: Any) -> Iterator[Finding]:
    nat = at(tunnel, "nat")
    problem = at(nat, "problem")
    if problem:
        yield Finding("uplink", "broken", f"the way out is broken: {_because(problem)}", _text(problem, "fix"))
    elif at(tunnel, "conditions", "uplink") is False:
        yield Finding("uplink", "broken", "the way out is broken", "see the relay's log")
    elif at(nat, "open") is False and at(tunnel, "conditions", "attested") is True:
        yield Finding("uplink", "broken", "the packet filter is closed", "see the relay's log")
    if unset := [text(name, most=_MAX_TEXT) for name in items(nat, "unset_sysctls")[:5]]:
        yield Finding(
            "uplink",
            "warning",
            f"IPv6 is not forwarded, because {', '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set",
            f"set it on this machine, or in the pod's securityContext: sysctl -w {unset[0]}=1",
        )
    for kind in items(nat, "contested")[:5]:
        yield Finding(
            "uplink",
            "warning",
            f"another program undoes the relay's repairs: {text(kind, most=_MAX_TEXT)}",
            "make that program leave the relay's rules, routes and sysctls alone",
        )


def _names(tunnel: Any) -> Iterator[Finding]:
    silent = [text(server, most=_MAX_TEXT) for server in items(tunnel, "dns", "silent")[:10]]
    if silent:
        every = len(silent) >= len(items(tunnel, "dns", "servers"))
        who = "no name server answers" if every else "a name server does not answer"
        yield Finding(
            "names",
            "warning",
            f"{who}: {', '.join(silent)}",
            "query it from this machine, or name others in [dns] servers",
        )


def _beyond(tunnel: Any) -> Iterator[Finding]:
    if at(tunnel, "conditions", "application") is False:
        why = at(tunnel, "application", "why")
        phase = _text(tunnel, "application", "phase")
        reason = _text(tunnel, "application", "why") if why else f"it is {phase}"
        yield Finding(
            "application", "broken", f"the application is not ready: {reason}", "see its output with wgvsock logs"
        )
    offset = number(at(tunnel, "clock_offset_seconds"))
    if offset is not None and abs(offset) >= CLOCK_SUSPECT:
        ahead = "ahead of" if offset > 0 else "behind"
        yield Finding(
            "clock",
            "warning",
            f"the enclave's clock is {duration(abs(offset))} {ahead} the relay's",
            "set \"[clock] set\" in the image's enclave.toml, or correct this machine's clock",
        )


def _is_refusal(error: Any) -> bool:
    return _text(error, "code") in REFUSED_CODES


REFUSED_CODES: Final = frozenset(f"WGV-E{number_:03d}" for number_ in range(30, 40))
"""The codes of attestation."""


def _because(error: Any) -> str:
    """An error on one line, with its code."""
    why = _text(error, "why") if at(error, "why") else ""
    return f"{_text(error, 'what')}{f': {why}' if why else ''} ({_text(error, 'code')})"


def _text(value: Any, *path: str) -> str:
    return text(value, *path, most=_MAX_TEXT) if at(value, *path) is not None else ""
