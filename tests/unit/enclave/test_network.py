"""The effect of an assignment on the kernel and on resolv.conf."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import Policy, Site
from wgvsock.enclave.egress import site_of
from wgvsock.enclave.network import EnclaveNetwork, make_routes
from wgvsock.runtime.journal import Journal, Place
from wgvsock.system import resolver
from wgvsock.system.netlink import Route
from wgvsock.testing.kernel import MemoryKernel
from wgvsock.testing.provisioning import TUNNEL_CONFIG


@pytest.fixture
def kernel() -> MemoryKernel:
    return MemoryKernel()


@pytest.fixture
def network(kernel: MemoryKernel, tmp_path: Path) -> EnclaveNetwork:
    journal = Journal(str(tmp_path / "run"), "test", resolver.performers(), place=Place("boot", "net:[1]"))
    journal.open()
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    return EnclaveNetwork(cast("Any", kernel), journal, "wg0", 500, str(tmp_path / "resolv.conf"))


def test_loopback(network: EnclaveNetwork, kernel: MemoryKernel) -> None:
    asyncio.run(network.bring_up_loopback())
    assert kernel.up == ["lo"]


def test_an_assignment_is_applied_and_cleared(network: EnclaveNetwork, kernel: MemoryKernel) -> None:
    asyncio.run(network.apply(TUNNEL_CONFIG))
    assert kernel.up == ["wg0"]
    assert kernel.addresses["wg0"] == list(TUNNEL_CONFIG.addresses)
    assert kernel.routes["wg0"] == [
        Route(ip_network("0.0.0.0/0"), ip_address("10.73.0.1")),
        Route(ip_network("::/0"), ip_address("fd73::1")),
    ]
    text = Path(network.resolv_conf).read_text()
    assert "nameserver 10.96.0.10\nsearch default.svc.cluster.local\noptions ndots:5\n" in text
    asyncio.run(network.clear())
    assert kernel.addresses["wg0"] == []
    assert kernel.routes["wg0"] == []
    assert Path(network.resolv_conf).read_text() == "nameserver 127.0.0.1\n"


def test_dns_can_be_left_alone(network: EnclaveNetwork) -> None:
    path = Path(network.resolv_conf)
    network.resolv_conf = ""
    asyncio.run(network.apply(TUNNEL_CONFIG))
    assert path.read_text() == "nameserver 127.0.0.1\n"


def test_a_successor_s_addresses_come_beside_its_predecessor_s(network: EnclaveNetwork, kernel: MemoryKernel) -> None:
    successor = replace(TUNNEL_CONFIG, addresses=(ip_interface("10.73.0.3/24"), ip_interface("fd73::2/64")))
    asyncio.run(network.add_addresses(successor, TUNNEL_CONFIG))
    assert [str(address) for address in kernel.addresses["wg0"]] == ["10.73.0.3/24", "fd73::2/64", "10.73.0.2/24"]


def test_what_cannot_be_put_back_is_logged(network: EnclaveNetwork, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(network.apply(TUNNEL_CONFIG))
    path = Path(network.resolv_conf)
    path.unlink()
    path.mkdir()
    asyncio.run(network.clear())
    assert "cannot restore" in caplog.text


def test_routes_follow_the_gateway_of_their_family() -> None:
    config = replace(
        TUNNEL_CONFIG,
        gateways=(ip_address("10.73.0.1"),),
        allowed_ips=(ip_network("10.73.0.0/24"), ip_network("192.0.2.0/24"), ip_network("::/0")),
    )
    # The first is on the link already; IPv6 has no gateway and goes straight into the tunnel.
    assert make_routes(config) == [
        Route(ip_network("192.0.2.0/24"), ip_address("10.73.0.1")),
        Route(ip_network("::/0"), None),
    ]


def test_a_gate_is_told_where_relay_and_name_servers_are(
    network: EnclaveNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[Site] = []
    network.gate = Gate(Policy(), bytes)
    monkeypatch.setattr(network.gate, "place", placed.append)
    asyncio.run(network.apply(TUNNEL_CONFIG))
    asyncio.run(network.clear())
    assert placed == [site_of(TUNNEL_CONFIG), Site()]
