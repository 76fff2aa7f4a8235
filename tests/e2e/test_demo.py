"""``python -m lab demo`` as users run it, as root and in a user namespace."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lab.netns.backend import NetnsBackend
from lab.topology import TOPOLOGY, Point

pytestmark = pytest.mark.lab

if BACKEND_LACKS := NetnsBackend.unavailable():
    pytest.skip(f"the netns backend cannot run here: {BACKEND_LACKS}", allow_module_level=True)

LAB = [sys.executable, "-m", "lab"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAB, *arguments], capture_output=True, text=True, timeout=120, check=False)


def may_make_user_namespaces() -> bool:
    return subprocess.run(["unshare", "-Urnm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("way", ["as-root", "in-a-user-namespace"])
def test_the_object_reports_what_was_observed(way: str) -> None:
    arguments = ["--userns"] if way == "in-a-user-namespace" else []
    if arguments and not may_make_user_namespaces():
        pytest.skip("forbidden: user namespaces")
    done = run("demo", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    report: dict[str, Any] = json.loads(line)
    assert (report["schema"], report["ok"]) == ("wgvsock/v1", True)

    egress, ingress = report["egress"], report["ingress"]
    assert [step["step"] for step in egress["steps"] if step["ok"]] == list(range(1, 9))
    assert [step["step"] for step in ingress["steps"] if step["ok"]] == list(range(1, 10))
    assert egress["nat"]["before"]["source"] == TOPOLOGY.enclave4
    assert egress["nat"]["after"]["source"] == TOPOLOGY.pod4
    assert ingress["nat"]["before"]["destination"] == TOPOLOGY.pod4
    assert ingress["nat"]["after"] == {"source": TOPOLOGY.external4, "destination": TOPOLOGY.enclave4}
    for passage in (egress, ingress):
        assert set(passage["request"]) == set(passage["reply"]) == {point.value for point in Point}
        assert passage["vsock"]["bytes"] > 100
        assert passage["vsock"]["plaintext_found"] is False
    assert report["wireguard"]["vsock"]["plaintext_found"] is False
    assert report["wireguard"]["peer_is_attested"] is True
    assert 0 < report["wireguard"]["handshake_ms"] < 10_000
    assert len(bytes.fromhex(report["attestation"]["pcr0"])) == 48
    assert report["attestation"]["pcr0"] == report["attestation"]["pcrs"]["PCR0"]
    names = [message["name"] for message in report["provisioning"]["messages"]]
    assert names == ["HELLO", "REQUEST", "RESPONSE", "RESULT"]


def test_the_story_is_for_people() -> None:
    done = run("demo")
    assert done.returncode == 0, done.stderr
    assert "8 of 8 egress steps, 9 of 9 ingress steps" in done.stdout
    assert "no plaintext in any of them" in done.stdout
    assert "\x1b" not in done.stdout  # no terminal, no colours
    assert max(map(len, done.stdout.splitlines())) <= 120
