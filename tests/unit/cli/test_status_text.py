"""What people see of a service: golden texts at two widths, and any odd answer is shown."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cli.statuses import NOW, broken, enclave, refused_enclave, relay
from tests.unit.service_pair import ServicePair
from wgvsock.cli.screen import show
from wgvsock.cli.status import exit_status
from wgvsock.cli.status_text import render, state
from wgvsock.relay.status import relay_status
from wgvsock.testing import without_waiting

GOLDEN = Path(__file__).parent / "golden"
KEYS = ("code", "what", "peers", "dropped", "open", "backend", "published", "PCR0", "ready", "name", "enclaves")

SCENES: dict[str, dict[str, Any]] = {
    "ready": relay(),
    "refused": relay(refused_enclave(), reload=None),
    "two": relay(
        enclave(replacement=enclave(name="wallet", ready=False, state="provisioning", address="vsock:18:51820")),
        enclave(
            name="vault",
            ready=False,
            conditions=broken(path=False, application=False),
            application={"phase": "running", "starts": 3, "ready": False, "why": "timed out", "exit_status": 137},
            refusal=None,
        ),
        reload={
            "time": "2026-11-18T15:01:40.000+00:00",
            "ok": False,
            "error": {
                "code": "WGV-E083", "what": "cannot reload the configuration", "why": '"name" has changed',
                "fix": "restart the relay to apply it",
            },
            "enclaves": {},
        },
    ),
}  # fmt: skip


def texts(status: Any, columns: int = 80) -> list[str]:
    return [line.text for line in render(status, columns, NOW)]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("scene", SCENES)
def test_the_golden_text(scene: str, columns: int) -> None:
    shown = "\n".join(texts(SCENES[scene], columns)) + "\n"
    assert shown == (GOLDEN / f"status-{scene}-{columns}.txt").read_text(encoding="utf-8")
    assert max(map(len, shown.splitlines())) <= columns


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ready"),
        ({"clock_offset_seconds": 9}, "ready, with 1 warning"),
        ({"ready": False, "conditions": broken(handshake=False)}, "not ready: tunnel is broken"),
        ({"ready": False, "state": "starting", "conditions": None}, "not ready (starting)"),
        (
            {"ready": False, "state": "superseded"},
            "superseded: a newer relay with the same signing key serves the enclave",
        ),
    ],
)
def test_the_state_in_words(changes: dict[str, Any], words: str) -> None:
    assert state(enclave(**changes)) == words


def test_an_enclave_s_own_status() -> None:
    refused = [
        {"destination": "203.0.113.7", "protocol": "tcp", "port": 443, "by": "default", "count": 3,
         "last_seconds": 1.2},
        {"destination": "fe80::1", "protocol": "icmp", "port": None, "by": "closed network", "count": 1,
         "last_seconds": None},
    ]  # fmt: skip
    status = {
        "role": "enclave", "name": "app", "state": "active", "ready": True,
        "egress": {"default": "deny", "denied": {"default": 3, "closed network": 1}, "refused": refused},
        "application": {"phase": "ended", "starts": 1, "ready": None, "exit_status": 0,
                        "lost_lines": 5, "lost_bytes": 99},
        "counters": {"dropped": {"no_route": 2, "backlog": 1}},
    }  # fmt: skip
    assert texts(status) == [
        "enclave app: ready",
        "  application  ended, started 1 time, last exit status 0, 5 lines (99 B) of",
        "               output lost",
        "  egress       deny by default, denied: closed network 1, default 3",
        "  denied       tcp 443 to 203.0.113.7, default, 3 times, 1 s ago",
        "  denied       icmp to fe80::1, closed network, 1 time, ? ago",
        "  dropped      backlog 1, no_route 2",
    ]


def test_a_relay_without_enclaves_yet() -> None:
    assert texts({"role": "relay", "name": "first", "state": "starting", "ready": False, "enclaves": []}) == [
        "relay first: not ready (starting)"
    ]


def test_what_a_service_says_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show(render({"role": "relay", "name": "x: ready\nrelay y\x1b[2J\u202e", "ready": True}, 80, NOW))
    assert capsys.readouterr().out == r"relay x: ready\nrelay y\u001b[2J\u202e: ready" + "\n"


def test_a_huge_snapshot_is_shown_in_part() -> None:
    status = relay(*[enclave()] * 200)
    one = status["enclaves"][0]
    one["name"] = "x" * 1_000_000
    one["wireguard"]["peers"] *= 100_000
    one["nat"]["published"] = [10**4000, {"a": 1}] * 100_000
    lines = texts(status)
    assert len(lines) < 3000
    assert max(map(len, lines)) < 1000
    assert "and 180 more enclaves: see --json" in lines


def test_real_services(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)

    @without_waiting
    async def test() -> None:
        await pair.up()
        relay_said, enclave_said = relay_status(pair.relay.snapshot()), pair.enclave_status()
        await pair.down()
        assert (exit_status(relay_said), exit_status(enclave_said)) == (0, 0)
        lines = texts(relay_said, 200)
        assert lines[:3] == [
            "relay relay: ready, with 1 warning",
            "enclave enclave: ready, with 1 warning",
            "  warning      an attestation root other than AWS's is accepted",
        ]
        assert f"  PCR0         {pair.lab_enclave.measurements[0].hex()[:48]}…" in lines
        assert any(line.startswith("  way out      open on eth0 (nft)") for line in lines)
        assert texts(enclave_said)[0] == "enclave enclave: ready"

    test()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner),
    max_leaves=12,
)


@st.composite
def odd_snapshots(draw: st.DrawFn) -> dict[str, Any]:
    """A real snapshot with parts missing or replaced."""
    status = relay(enclave(), refused_enclave(), enclave(replacement=enclave()))
    for _ in range(draw(st.integers(1, 4))):
        table: Any = status
        while True:
            key = draw(st.sampled_from(sorted(table)))
            if isinstance(table[key], dict) and table[key] and draw(st.booleans()):
                table = table[key]
                continue
            if draw(st.booleans()):
                table[key] = draw(JSON)
            else:
                del table[key]
            break
        if not status:
            break
    return status


@given(odd_snapshots())
def test_no_answer_is_too_odd_to_be_shown(status: dict[str, Any]) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        show(render(status, 80, NOW))
    assert exit_status(status) in {0, 4, 5}
    assert out.getvalue().replace("\n", "").isprintable()
    assert len(out.getvalue()) < 20_000
