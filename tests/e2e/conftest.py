"""The laboratory of the behaviour suite, and the state in which a test finds it.

One laboratory serves the whole session. `network` is machines, cables, servers, signer and tap. `tunnel` adds a running
Relay and Enclave, for tests that only send traffic. A test that starts, stops or reconfigures the services uses
`own_lab`, in which none runs. A failure leaves logs, configurations and captures in artifacts/.

A test that needs no laboratory would give the same result on every backend: it runs only on the first, `netns`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import uplinks
from lab.backend import Backend
from lab.backends import backend_class
from lab.cli.raising import why_not_here
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.process import LocalProcess
from lab.topology import TWO_ENCLAVES, Node

ARTIFACTS = Path("artifacts/e2e")
BACKEND = os.environ.get("LAB", "netns")

LABORATORIES = {"network", "lab"}
"""The fixtures that start the chosen backend."""

NESTED = ("test_nested.py", "test_egress_lifecycle.py", "test_ingress_lifecycle.py")
"""All tests that run where a guest is in an emulated guest, in this order: the first shows how long each step takes."""

_labs: list[Ladder] = []


INTERFACE = "the Relay has no wg0"
RULES = "there are no rules of the packet filter, so nothing is to be repaired"
TRACKING = "connection tracking has no flow of the enclave: the engine's sockets are the pod's own"
SWITCHES = "the Relay needs no switch of the kernel's"
ENDS_WITH_THE_RELAY = "connections end with the engine, and the engine with the Relay"
LARGE_MTU = "the tunnel's MTU is 65,000, so the enclave fragments nothing"

KERNELS_OWN: dict[str, str | dict[str, str]] = {
    "test_egress_lifecycle.py": {
        "test_step_4_relay_receives_and_decrypts": INTERFACE,
        "test_step_5_injected_into_the_pods_wg0": INTERFACE,
        "test_step_6_routed_by_the_pod": INTERFACE,
        "test_step_7_masquerade_rewrites_the_source_and_nothing_else": INTERFACE,
        "test_step_8_leaves_through_eth0_and_the_reply_finds_its_way_back": INTERFACE,
    },
    "test_ingress_lifecycle.py": {
        "test_step_2_destination_rewritten_to_the_enclave_and_nothing_else": INTERFACE,
        "test_step_3_the_route_says_wg0": INTERFACE,
        "test_step_4_the_tun_hands_it_to_the_relay": INTERFACE,
        "test_step_5_encrypted_with_the_session_key": f"it compares with wg0: {INTERFACE}",
        "test_step_8_injected_into_the_enclaves_wg0": "its TTL is the engine's",
        "test_step_9_the_application_answers_and_the_reply_finds_its_way_back": INTERFACE,
    },
    "test_conntrack.py": {
        "test_an_enclave_that_talks_on_does_not_open_a_withdrawn_port_again": TRACKING,
        "test_a_relay_that_stops_leaves_no_flow_of_its_enclave": TRACKING,
    },
    "test_dataplane.py": {
        "test_super_packets_were_in_use": "the profile is plain, whose packets are as large with an MTU of 65,000",
    },
    "test_demo.py": f"the demonstration follows packets through wg0: {INTERFACE}",
    "test_dns_forwarder.py": {
        "test_flushed_addresses_come_back_and_so_does_the_name_service": INTERFACE,
    },
    "test_lab_up.py": {
        "test_a_relay_that_cannot_start_fails_the_run_with_its_last_words": f"its obstacle is a wg0: {INTERFACE}",
    },
    "test_measured_egress.py": {
        "test_a_packet_that_the_relay_forges_opens_no_connection": f"it forges at wg0: {INTERFACE}",
    },
    "test_nat.py": {
        "test_ping_to_the_pod_is_answered_by_the_pod": INTERFACE,
        "test_relay_and_enclave_reach_each_other_inside": INTERFACE,
        "test_the_relays_own_services_are_closed_to_the_enclave": INTERFACE,
    },
    "test_odd_packets.py": {
        "test_datagrams_larger_than_the_mtu_are_fragmented_and_put_together": LARGE_MTU,
        "test_one_byte_more_is_refused_where_it_is_sent": LARGE_MTU,
    },
    "test_path.py": {
        "test_the_reply_of_an_operators_ping_is_left_to_the_kernel": INTERFACE,
    },
    "test_recovery.py": {
        "test_relay_restarted_under_traffic": ENDS_WITH_THE_RELAY,
        "test_relay_killed_under_traffic": ENDS_WITH_THE_RELAY,
    },
    "test_replacement.py": {
        "test_connections_to_the_new_one_live_through_a_restart_of_the_relay": ENDS_WITH_THE_RELAY,
        "test_a_new_one_that_is_no_good_leaves_the_old_one_serving[silent]": "the Relay has no route to ask its ports",
    },
    "test_two_enclaves.py": {
        "test_a_restart_of_the_relay_keeps_the_connections_of_both": ENDS_WITH_THE_RELAY,
    },
    "test_shared_machine.py": {
        "test_a_container_that_restarts_with_an_empty_run_knows_what_was_before": RULES,
        "test_a_default_route_that_moves_is_followed": f"the kernel's routing is followed by each new socket: {RULES}",
        "test_a_deleted_interface_ends_the_relay_which_leaves_nothing": INTERFACE,
        "test_a_drop_in_front_of_ours_is_named": RULES,
        "test_a_forward_policy_that_drops_is_passed_or_named": RULES,
        "test_a_killed_relay_leaves_nothing_that_carries_the_enclave_s_packets_elsewhere": RULES,
        "test_a_reject_of_firewalld_s_is_named": RULES,
        "test_a_renamed_interface_is_named_and_taken_back": INTERFACE,
        "test_a_restart_in_the_middle_of_a_change_leaves_no_open_way": RULES,
        "test_a_sidecar_s_redirection_is_named": RULES,
        "test_an_nft_without_fib_is_no_nft": RULES,
        "test_ipv6_that_is_switched_off_is_named": SWITCHES,
        "test_nor_does_a_relay_that_restarts": RULES,
        "test_not_one_packet_leaves_untranslated_while_the_rules_are_gone": RULES,
        "test_rules_that_are_changed_are_put_right": RULES,
        "test_what_is_changed_is_put_right": f"{INTERFACE}, and needs no switch",
        "test_where_proc_sys_cannot_be_written_ipv4_goes_on": SWITCHES,
        "test_without_ipv6_the_addresses_of_the_pool_are_ipv4": f"IPv6 is off for new interfaces alone: {INTERFACE}",
    },
}
"""Tests of what a Relay without an interface lacks, by file, or by name where other tests of the file apply.

docs/userspace.md says what applies instead, and names the tests.
"""


def why_kernels_own(item: pytest.Item) -> str | None:
    """Return why a test is not for a Relay without an interface, or None if it is."""
    own = KERNELS_OWN.get(item.path.name)
    if isinstance(own, dict):  # by one case of a test, or by the test
        return own.get(item.name) or own.get(getattr(item, "originalname", item.name))
    return own


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if uplinks.asked_for() == "userspace":
        for item in items:
            if why := why_kernels_own(item):
                item.add_marker(pytest.mark.skip(reason=f"UPLINK=userspace: {why}"))
    if BACKEND == "netns":
        return
    here = Path(__file__).parent
    idle = [item for item in items if item.path.is_relative_to(here) and not _has_a_place(item)]
    items[:] = [item for item in items if item not in idle]
    if BACKEND == "nested":
        items.sort(key=lambda item: NESTED.index(item.path.name) if item.path.name in NESTED else len(NESTED))
    config.hook.pytest_deselected(items=idle)


def _has_a_place(item: pytest.Item) -> bool:
    """Return whether a test shows more on the chosen backend than on `netns`."""
    if BACKEND == "nested":
        return item.path.name in NESTED
    return not LABORATORIES.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        folder = ARTIFACTS / re.sub(r"[^\w.-]+", "-", item.nodeid.removeprefix("tests/e2e/")).strip("-")
        for number, ladder in enumerate(_labs):
            ladder.backend.keep_artifacts(folder / f"lab-{number}")
        report.sections.append(("artifacts", f"kept in {folder}"))
    return report


@pytest.fixture(scope="session", autouse=True)
def _root_namespace_untouched() -> Iterator[None]:
    """Keep this machine's own network out of the laboratory."""

    def ours() -> list[str]:
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=False).stdout
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
        return [line for line in (links + tables).splitlines() if "wgvsock" in line or "pod0" in line]

    before = ours()
    yield
    assert ours() == before


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_suite() -> Iterator[None]:
    """Clean up however the suite ends: a terminated one removes everything like an interrupted one.

    A killed one leaves no guest behind.
    """
    LocalProcess.dies_with_starter = True
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)
    LocalProcess.dies_with_starter = False


@pytest.fixture(scope="session")
def network() -> Iterator[Ladder]:
    """Provide machines, cables, servers, signer and tap, and check that nothing is left of them at the end."""
    chosen = backend_class(BACKEND)
    if reason := why_not_here(chosen):
        pytest.skip(f"the {BACKEND} backend cannot run here: {reason}")
    ladder = Ladder(chosen(f"{os.getpid():x}"))
    _labs.append(ladder)
    try:
        ladder.backend.up()
        _skip_without_filter(ladder.backend)
        yield ladder
    finally:
        _labs.remove(ladder)
        ladder.backend.down()
    assert ladder.backend.leftovers() == []


def _skip_without_filter(backend: Backend) -> None:
    trial = backend.run(Node.POD, backend.with_filter(backend.filter.trial))
    if trial.exit_code:
        why = trial.stderr.decode(errors="replace").strip()
        pytest.skip(f"the kernel of the pod cannot do {backend.filter}: {why}")


@pytest.fixture(scope="module")
def tunnel(network: Ladder) -> Ladder:
    """Attested and provisioned, with a session and rules: the Relay reports ready, and the application answers."""
    network.raise_tunnel()
    return network


@pytest.fixture(scope="session")
def _two_enclaves() -> Iterator[Ladder]:
    """A separate laboratory with two enclaves behind one Relay. Only `netns` has such."""
    if reason := why_not_here(NetnsBackend):
        pytest.skip(f"the netns backend cannot run here: {reason}")
    ladder = Ladder(NetnsBackend(f"{os.getpid():x}t", topology=TWO_ENCLAVES))
    _labs.append(ladder)
    try:
        ladder.backend.up()
        yield ladder
    finally:
        _labs.remove(ladder)
        ladder.backend.down()
    assert ladder.backend.leftovers() == []


@pytest.fixture
def two_enclaves(_two_enclaves: Ladder) -> Iterator[Ladder]:
    """The laboratory with two enclaves, in which nothing runs. What the test starts is stopped afterwards."""
    _two_enclaves.clear()
    yield _two_enclaves
    _two_enclaves.clear()


@pytest.fixture
def own_lab(network: Ladder) -> Iterator[Ladder]:
    """The laboratory, in which nothing runs. What the test starts is stopped afterwards."""
    network.clear()
    yield network
    network.clear()
