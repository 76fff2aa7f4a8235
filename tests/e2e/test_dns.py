"""Names in the enclave: the production agent writes its resolv.conf, and the C library's resolver uses it."""

from __future__ import annotations

import pytest

from lab.guest.servers import MANY
from lab.ladder import Ladder
from lab.topology import Node

pytestmark = pytest.mark.lab


def test_the_enclave_got_the_relays_resolver_settings(tunnel: Ladder) -> None:
    lines = tunnel.backend.run(Node.ENCLAVE, ["cat", "/etc/resolv.conf"]).check().stdout.decode().splitlines()
    assert f"nameserver {tunnel.topology.external4}" in lines
    assert f"search {tunnel.topology.zone}" in lines


def test_a_name_resolves_to_both_families(tunnel: Ladder) -> None:
    report = tunnel.probe(Node.ENCLAVE, "resolve", f"www.{tunnel.topology.zone}")
    assert set(report["addresses"]) == {tunnel.topology.external4, tunnel.topology.external6}


def test_the_search_domain_completes_a_short_name(tunnel: Ladder) -> None:
    assert tunnel.topology.external4 in tunnel.probe(Node.ENCLAVE, "resolve", "www")["addresses"]


def test_a_long_answer_comes_over_tcp(tunnel: Ladder) -> None:
    report = tunnel.probe(Node.ENCLAVE, "resolve", f"many.{tunnel.topology.zone}")
    assert len(report["addresses"]) == MANY


def test_a_name_that_does_not_exist_is_an_error_of_its_own(tunnel: Ladder) -> None:
    report = tunnel.try_probe(Node.ENCLAVE, "resolve", f"nx.{tunnel.topology.zone}")
    assert "Name or service not known" in report["error"]


def test_a_connection_by_name(tunnel: Ladder) -> None:
    report = tunnel.probe(Node.ENCLAVE, "http", f"www.{tunnel.topology.zone}", "80")
    assert report["body"] == "hello from external\n"
