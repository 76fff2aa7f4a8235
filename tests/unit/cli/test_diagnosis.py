"""Each problem is one line with its remedy. What works has none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.cli.statuses import REFUSED, broken, enclave, refused_enclave, relay
from wgvsock.cli.diagnosis import diagnose, diagnose_reload

NO_ROUTE = {"code": "WGV-E082", "what": "cannot find the uplink", "why": "there is no default route", "fix": "name it"}


def test_nothing_is_wrong() -> None:
    assert diagnose(enclave()) == []
    assert diagnose_reload(relay()) == []
    assert diagnose({}) == diagnose(None) == diagnose([]) == diagnose_reload(None) == []


@pytest.mark.parametrize(
    ("changes", "layer", "severity", "words"),
    [
        ({"conditions": broken(uplink=False), "nat": {"problem": NO_ROUTE}}, "uplink", "broken", "no default route"),
        ({"conditions": broken(uplink=False)}, "uplink", "broken", "the way out is broken"),
        ({"nat": {"open": False}}, "uplink", "broken", "packet filter is closed"),
        ({"nat": {"open": True, "contested": ["rules"]}}, "uplink", "warning", "undoes the relay's repairs: rules"),
        (
            {"nat": {"open": True, "unset_sysctls": ["net.ipv6.conf.all.forwarding"]}},
            "uplink",
            "warning",
            "IPv6 is not forwarded, because net.ipv6.conf.all.forwarding is not set",
        ),
        ({"conditions": broken(handshake=False)}, "tunnel", "broken", "session or its stream is down"),
        ({"conditions": broken(path=False)}, "path", "broken", "no packet comes back"),
        ({"path": {"rtt_ms": {"last": 603.2}}}, "path", "warning", "the round trip takes 603 ms"),
        ({"dns": {"servers": ["10.0.0.2"], "silent": ["10.0.0.2"]}}, "names", "warning", "no name server answers"),
        ({"dns": {"servers": ["a", "b"], "silent": ["a"]}}, "names", "warning", "a name server does not answer: a"),
        (
            {"conditions": broken(application=False), "application": {"phase": "running", "why": "timed out"}},
            "application",
            "broken",
            "not ready: timed out",
        ),
        (
            {"conditions": broken(application=False), "application": {"phase": "restarting", "why": ""}},
            "application",
            "broken",
            "it is restarting",
        ),
        ({"clock_offset_seconds": 10.2}, "clock", "warning", "10 s ahead of the relay's"),
        ({"clock_offset_seconds": -7.5}, "clock", "warning", "8 s behind the relay's"),
        ({"attestation": {"exchange_ms": 5200.0}}, "attestation", "warning", "5.2 s for its document"),
        ({"root_is_aws": False}, "attestation", "warning", "root other than AWS's"),
        ({"debug_allowed": True}, "attestation", "warning", "debug mode"),
        (
            {"provisioning": {"error": REFUSED, "trusted_for_seconds": 42}},
            "attestation",
            "warning",
            "valid for another 42 s",
        ),
        ({"conditions": broken(attested=False)}, "attestation", "broken", "not attested yet"),
    ],
)
def test_one_thing_is_wrong(changes: dict[str, Any], layer: str, severity: str, words: str) -> None:
    (finding,) = diagnose(enclave(**changes))
    assert (finding.layer, finding.severity) == (layer, severity)
    assert words in finding.what


def test_a_refused_enclave() -> None:
    first, *_ = diagnose(refused_enclave())
    assert first.what == (
        "the enclave was refused: the document was rejected by the check pcr.set: PCR0 differs (WGV-E030)"
    )
    assert first.fix == "add the measurements"


def test_a_reload_that_was_refused() -> None:
    error = {"code": "WGV-E083", "what": "cannot reload", "why": '"name" has changed', "fix": "restart"}
    (finding,) = diagnose_reload(relay(reload={"ok": False, "error": error, "enclaves": {}}))
    assert finding.what == 'the last reload was refused: cannot reload: "name" has changed (WGV-E083)'
    (finding,) = diagnose_reload(relay(reload={"ok": False, "error": None, "enclaves": {"a": {"error": error}}}))
    assert finding.fix == "restart"
    assert len(diagnose_reload({"reload": {"ok": False, "enclaves": 1}})) == 1
