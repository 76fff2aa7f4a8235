"""What an enclave may reach, as judged by the kernel: the core's table, and what no table of first packets shows.

Each experiment is a separate network namespace with the relay's rules and two TUNs (tests/e2e/egress_bench.py).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import pytest

from tests.egress_cases import CASES, POLICIES
from wgvsock.system.filter.nft_egress import MAX_DENIED

pytestmark = pytest.mark.lab

BACKENDS = pytest.mark.parametrize("backend", ["nft", "iptables"])
AT_ONCE = 0.05
"""Seconds within which the enclave has to know that it was denied."""


def bench(experiment: str, *arguments: str) -> Any:
    command = ["unshare", "--net", sys.executable, "-m", "tests.e2e.egress_bench", experiment, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("backend", "policy"),
    [
        (backend, policy)
        for backend in ("nft", "iptables")
        for policy in POLICIES
        if (backend, policy) != ("iptables", "names")
    ],
)
def test_the_kernel_judges_as_the_core_does(backend: str, policy: str) -> None:
    """The sender learns of a denial at once: by a reset, or an ICMP error."""
    cases = {str(case): case for case in CASES if case.policy == policy}
    results = bench("table", backend, policy)
    assert {result["case"] for result in results} == set(cases)
    waits = []
    for result in results:
        case = cases[result["case"]]
        if case.by == "relay ping":
            assert (result["by"], result["answer"]) == ([], "pong"), case
            continue
        assert result["by"] == [case.by], case
        is_relays_own = case.packet.destination in _here()
        assert result["left"] == (case.allowed and not is_relays_own), case
        if not case.allowed and case.packet.protocol in {6, 17}:
            assert result["answer"] == ("reset" if case.packet.protocol == 6 else "prohibited"), case
            waits.append(result["took"])
    assert not waits or statistics.median(waits) < AT_ONCE


def _here() -> frozenset[Any]:
    from tests.egress_cases import SITE

    return SITE.relay


def test_what_was_denied_is_listed_and_never_more_than_there_is_room_for() -> None:
    found = bench("listed", "nft")
    assert found["first"] == [
        ["2001:db8:9::1", "udp", 53, 1, "denied by default"],
        ["203.0.113.1", "icmp", None, 1, "denied by default"],
        ["203.0.113.1", "tcp", 443, 2, "denied by default"],
        ["203.0.113.1", "tcp", 80, 1, "denied by default"],
    ]
    assert MAX_DENIED <= found["most"] <= MAX_DENIED + 2
    assert found["emptied"] <= 2
    assert found["counts"]["default"] == 3005  # of each, also when no more were noted


def test_an_address_ends_with_its_pin_and_a_renewed_one_goes_on() -> None:
    found = bench("pins", "nft")
    assert [found[step]["by"] for step in ("first", "renewed", "ended")] == [["allow 1"], ["allow 1"], ["default"]]
    assert found["ended"]["answer"] == "reset"
    assert found["intact"]
    assert found["established"] == {**found["established"], "by": [], "left": 1}


def test_an_address_outlives_rules_that_were_flushed_and_a_relay_that_was_restarted() -> None:
    found = bench("repair", "nft")
    assert found == {"before": ["allow 1"], "gone": True, "after": ["allow 1"], "restarted": ["allow 1"]}


def test_an_address_outlives_a_relay_that_was_killed() -> None:
    assert bench("killed", "nft") == {"pinned": [["www.lab.test", "203.0.113.10", True]], "by": ["allow 1"]}


@BACKENDS
def test_an_enclave_has_so_many_flows_and_opens_so_many_in_a_second(backend: str) -> None:
    found = bench("limits", backend)
    assert found["many"] == {"default": 60, "too many flows": 40}
    assert found["tracked"] <= 21
    assert found["quick"]["too many new flows"] >= 50


@BACKENDS
def test_an_error_passes_when_it_is_about_a_flow_of_the_enclave(backend: str) -> None:
    """Neither the pod nor remote hosts believe what it says about other flows."""
    found = bench("errors", backend)
    assert found["without rules"] == "600"
    for version in (4, 6):
        for what in ("into the pod", "to the world"):
            by, left, mtu = found[f"{what} {version}"]
            assert (left, mtu) == (0, "")
            # iptables drops what leaves untranslated before it looks at errors.
            assert by == ["errors about flows of others"] or (backend, what) == ("iptables", "to the world")
        assert found[f"its own {version}"] == [[], 1, ""]


@BACKENDS
def test_no_client_of_a_published_port_has_an_address_of_the_tunnel(backend: str) -> None:
    found = bench("sources", backend)
    clients = {address for address, (arrived, _) in found.items() if arrived}
    assert clients == {"203.0.113.1", "2001:db8:9::1", "169.254.1.1"}
    assert all(found[address][1] == 1 for address in clients)  # a link-local client gets its reply as well


@BACKENDS
def test_rules_are_about_what_the_enclave_wrote(backend: str) -> None:
    """kube-proxy on this machine translates service addresses before the relay's rules see their packets."""
    assert bench("translated", backend) == {
        "name server": ["resolver"],
        "service": ["allow 1"],
        "metadata": ["closed network"],
        "endpoint": ["default"],
    }
