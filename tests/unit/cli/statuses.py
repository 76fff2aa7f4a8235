"""Snapshots as services answer with them, for tests of what people see."""

from __future__ import annotations

from typing import Any

NOW = 1_795_014_400.0
"""2026-11-18T15:06:40Z."""

REFUSED = {"code": "WGV-E030", "what": "the document was rejected by the check pcr.set", "why": "PCR0 differs",
           "fix": "add the measurements"}  # fmt: skip


def register(index: int, measured: str | None, allowed: str) -> dict[str, Any]:
    return {"pcr": f"PCR{index}", "measured": measured, "allowed": allowed, "equal": measured == allowed}


def enclave(**changes: Any) -> dict[str, Any]:
    """A service that has been ready for a while."""
    return {
        "name": "wallet",
        "state": "ready",
        "ready": True,
        "conditions": {
            "attested": True, "handshake": True, "rules": True, "uplink": True, "path": True, "application": True
        },
        "address": "vsock:16:51820",
        "launched": None,
        "attestation": {
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
            "timestamp": "2026-11-18T14:54:40+00:00",
            "pcrs": {"PCR0": "5c" * 48, "PCR1": "1d" * 48, "PCR2": "22" * 48},
            "public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            "policy": "wallet 1.4",
            "age_seconds": 723.4,
            "exchange_ms": 61.2,
            "handshake_ms": 3.1,
        },
        "root_is_aws": True,
        "debug_allowed": False,
        "provisioning": {
            "attempts": {"ok": 2, "failed": 0, "rejected": 1},
            "next_in_seconds": 2876.6,
            "trusted_for_seconds": 2936.6,
            "error": None,
        },
        "refusal": {
            "time": "2026-11-18T13:01:40.000+00:00",
            "check": "pcr.set",
            "why": 'PCR0 differs from the nearest of 2 allowed sets "wallet 1.4"',
            "registers": [register(0, "9a" * 48, "5c" * 48), register(1, "1d" * 48, "1d" * 48)],
            "document": "20261118T130140.000Z-wallet-pcr.set.cbor",
        },
        "wireguard": {
            "interface": "wg0",
            "public_key": "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
            "peers": [
                {
                    "public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
                    "endpoint": "vsock:16:51820",
                    "handshake_age_seconds": 34.2,
                    "rx_bytes": 1_284_333,
                    "tx_bytes": 849_000,
                    "rx_packets": 1900,
                    "tx_packets": 1700,
                    "profile": "gso",
                }
            ],
        },
        "path": {"alive": True, "rtt_ms": {"last": 0.412, "min": 0.33, "p50": 0.4}, "sent": 120, "lost": 2},
        "clock_offset_seconds": 0.003,
        "processor": {
            "processors": 2, "clock_seconds": 900.0, "busy_seconds": 120.0, "agent_seconds": 30.0,
            "percent": 37.2, "agent_percent": 9.0,
        },
        "application": {"phase": "running", "starts": 1, "ready": True, "why": "", "exit_status": None},
        "nat": {
            "open": True, "backend": "nft", "uplink": "eth0", "mtu": 1500, "problem": None, "contested": [],
            "published": ["tcp:443->198.18.73.3:8443", "udp:53->198.18.73.3:53"],
        },
        "egress": {"default": "deny", "pins": 4, "names_refused": 2},
        "dns": {"servers": ["10.0.0.2", "10.0.0.3"], "silent": [], "queries": {"answered": 120, "refused_name": 3}},
        "counters": {"dropped": {"no_session": 4, "replay": 2}},
        "replacement": None,
        **changes,
    }  # fmt: skip


def relay(*enclaves: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The answer of a relay that serves these."""
    served = list(enclaves) or [enclave()]
    return {
        "schema": "wgvsock/v1",
        "role": "relay",
        "name": "relay",
        "pid": 1,
        "state": "ready",
        "ready": all(one["ready"] for one in served),
        "reload": {"time": "2026-11-18T15:01:40.000+00:00", "ok": True, "error": None, "enclaves": {}},
        "enclaves": served,
        **changes,
    }


def broken(**conditions: bool) -> dict[str, Any]:
    """Conditions of an enclave that is not ready."""
    return {**enclave()["conditions"], **conditions}


def refused_enclave() -> dict[str, Any]:
    """One whose image is not allowed."""
    return enclave(
        state="provisioning",
        ready=False,
        conditions=broken(attested=False, handshake=False, rules=False),
        attestation=None,
        provisioning={"attempts": {}, "next_in_seconds": 0.0, "trusted_for_seconds": 0.0, "error": REFUSED},
        path=None,
        application=None,
        processor=None,
    )
