"""The rules in force, read through tools on PATH, and those that result from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control_sockets import ControlSockets
from wgvsock.testing.kernel import MemoryKernel

Prints = Callable[..., str]


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration that publishes a port, with its runtime directory in the test's folder."""
    path = tmp_path / "relay.toml"
    pcrs = "\n".join(f'pcr{index} = "{index:096x}"' for index in (0, 1, 2))
    path.write_text(
        f"""
        name = "first"
        runtime_directory = "{tmp_path}"
        [enclave]
        address = "vsock:16:51820"
        addresses = ["10.73.0.2/24", "fd73::2/64"]
        [interface]
        addresses = ["10.73.0.1/24", "fd73::1/64"]
        [[attestation.pcr_sets]]
        {pcrs}
        [dns]
        servers = ["10.96.0.10"]
        [[nat.publish]]
        protocol = "tcp"
        port = 443
        enclave_port = 8443
        """
    )
    return str(path)


# nat show


def serve(sockets: ControlSockets, tmp_path: Path, backend: str) -> dict[str, Any]:
    nat = {"open": True, "owner": "first", "backend": backend, "uplink": "eth0", "mtu": 1500, "published": []}
    serve_nat(sockets, tmp_path, nat)
    return nat


def serve_nat(sockets: ControlSockets, tmp_path: Path, *nats: object) -> None:
    enclaves = [{"name": f"enclave{number}", "nat": nat} for number, nat in enumerate(nats)]
    sockets.serve_status(str(tmp_path / "first.sock"), {"schema": "wgvsock/v1", "enclaves": enclaves})


def test_the_table_of_nft(
    sockets: ControlSockets, tools: Callable[[str, str], None], tmp_path: Path, config: str, prints: Prints
) -> None:
    serve(sockets, tmp_path, "nft")
    tools("nft", 'echo "table of: $*"')
    assert prints("nat", "show", "-c", config) == "table of: list table inet wgvsock-first\n"


def test_iptables_rules_are_ours_alone(
    sockets: ControlSockets, tools: Callable[[str, str], None], tmp_path: Path, config: str, prints: Prints
) -> None:
    serve(sockets, tmp_path, "iptables")
    tools("iptables-save", 'echo "-A FORWARD -j WGVSOCK-first-FWD"; echo "-A FORWARD -j WGVSOCK-second-FWD"')
    tools("ip6tables-save", 'echo ":WGVSOCK-first-FWD - [0:0]"; echo COMMIT')
    assert prints("nat", "show", "-c", config) == "-A FORWARD -j WGVSOCK-first-FWD\n:WGVSOCK-first-FWD - [0:0]\n"


def test_rules_as_json(
    sockets: ControlSockets,
    tools: Callable[[str, str], None],
    tmp_path: Path,
    config: str,
    prints_json: Callable[..., dict[str, Any]],
) -> None:
    nat = serve(sockets, tmp_path, "nft")
    tools("nft", "echo rules")
    answer = prints_json("nat", "show", "-c", config)
    assert answer == {"schema": "wgvsock/v1", "enclaves": [{"enclave": "enclave0", **nat, "rules": "rules\n"}]}


def test_the_rules_of_each_enclave(
    sockets: ControlSockets, tools: Callable[[str, str], None], tmp_path: Path, config: str, prints: Prints
) -> None:
    serve_nat(sockets, tmp_path, *({"backend": "nft", "owner": f"first/{name}"} for name in ("a", "b")))
    tools("nft", 'echo "$4"')
    assert prints("nat", "show", "-c", config) == "wgvsock-first/a\nwgvsock-first/b\n"


@pytest.mark.parametrize(
    "nat", [None, "open", {}, {"backend": "x"}, {"backend": ["nft"]}, {"backend": {}}, {"backend": "nft"}]
)
def test_a_service_that_names_no_packet_filter(
    sockets: ControlSockets, tmp_path: Path, config: str, fails: Callable[..., Any], nat: object
) -> None:
    serve_nat(sockets, tmp_path, nat)
    assert "reports no packet filter" in fails("nat", "show", "-c", config, status=6).what


def test_what_a_tool_prints_cannot_steer_the_terminal(
    sockets: ControlSockets, tools: Callable[[str, str], None], tmp_path: Path, config: str, prints: Prints
) -> None:
    serve(sockets, tmp_path, "nft")
    tools("nft", r"""printf 'table\n\tchain \033[2J \377\n'""")
    assert prints("nat", "show", "-c", config) == "table\n    chain \\u001b[2J \\xff\n"


def test_no_rules(
    sockets: ControlSockets, tools: Callable[[str, str], None], tmp_path: Path, config: str, prints: Prints
) -> None:
    serve(sockets, tmp_path, "nft")
    tools("nft", 'echo "Error: No such file or directory" >&2; exit 1')
    assert not prints("nat", "show", "-c", config, status=3)


@pytest.mark.usefixtures("tools")
def test_the_tool_is_missing(sockets: ControlSockets, tmp_path: Path, config: str, fails: Callable[..., Any]) -> None:
    serve(sockets, tmp_path, "nft")
    failure = fails("nat", "show", "-c", config, status=7)
    assert (failure.code, failure.what) == ("WGV-E052", "cannot run nft")


@pytest.mark.usefixtures("sockets")
def test_no_relay_runs(config: str, fails: Callable[..., Any]) -> None:
    assert fails("nat", "show", "-c", config, status=3).code == "WGV-E087"


# nat render


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> MemoryKernel:
    """The machine that `nat render` inspects."""
    made = MemoryKernel()
    monkeypatch.setattr("wgvsock.system.netlink.open_netlink", made.open)
    return made


@pytest.mark.usefixtures("kernel")
def test_rules_for_nft(config: str, prints: Prints) -> None:
    rules = prints("nat", "render", "-c", config)
    assert "\\t" not in rules  # it is for `nft -f -`
    assert rules.startswith("table inet wgvsock-first\ndelete table inet wgvsock-first\ntable inet wgvsock-first {\n")
    assert 'oifname "eth0" ip saddr 10.73.0.0/24 masquerade\n' in rules
    assert "tcp dport 443 dnat ip to 10.73.0.2:8443\n" in rules
    assert "ct original proto-dst 53 ct original ip daddr 10.96.0.10 counter goto admit" in rules


@pytest.mark.usefixtures("kernel")
def test_rules_for_iptables(config: str, prints: Prints) -> None:
    rules = prints("nat", "render", "-c", config, "--backend", "iptables")
    assert "10.73.0.0/24" in rules
    assert "fd73::/64" in rules
    assert rules.count("COMMIT\n") >= 4  # filter and nat, for each family
    assert "table inet" not in rules


def test_rules_as_json_by_tool(config: str, kernel: MemoryKernel, prints_json: Callable[..., dict[str, Any]]) -> None:
    kernel.defaults = {4: "eth9", 6: None}
    kernel.mtus["eth9"] = 9001
    answer = prints_json("nat", "render", "-c", config)
    assert (answer["uplink"], list(answer["rules"])) == ("eth9", ["nft"])
    assert '"eth9"' in answer["rules"]["nft"]
    answer = prints_json("nat", "render", "-c", config, "--backend", "iptables")
    assert list(answer["rules"]) == ["iptables", "ip6tables"]
    assert "fd73::/64" not in answer["rules"]["iptables"]
    assert "10.73.0.0/24" not in answer["rules"]["ip6tables"]


def test_another_uplink(config: str, kernel: MemoryKernel, prints: Prints) -> None:
    kernel.mtus["ens5"] = 1500
    rules = prints("nat", "render", "-c", config, "--uplink", "ens5")
    assert '"ens5"' in rules
    assert '"eth0"' not in rules


def test_nothing_is_changed(config: str, kernel: MemoryKernel, prints: Prints) -> None:
    prints("nat", "render", "-c", config)
    assert not kernel.up
    assert not kernel.addresses
    assert not kernel.routes
    assert not kernel.forwarding


def test_no_uplink(config: str, kernel: MemoryKernel, fails: Callable[..., Any]) -> None:
    kernel.defaults = {4: None, 6: None}
    assert fails("nat", "render", "-c", config, status=7).code == "WGV-E082"


@pytest.mark.usefixtures("kernel")
def test_the_default_configuration(config: str, prints: Prints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgvsock.relay.config.DEFAULT_PATH", config)
    assert prints("nat", "render") == prints("nat", "render", "-c", config)
