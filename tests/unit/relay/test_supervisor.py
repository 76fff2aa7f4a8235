"""A relay's life: attestation, readiness, loss, refusal, reload, restart, and everything taken back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from lab.nsm.signer import LabEnclave
from tests.unit.service_pair import ServicePair
from wgvsock.addresses import UnixAddress
from wgvsock.devices.errors import TunGoneError
from wgvsock.errors import ConfigurationError
from wgvsock.relay.config import HealthSettings, PcrSetSettings, PublishSettings
from wgvsock.relay.errors import UplinkError
from wgvsock.system.errors import AlreadyRunningError, NetfilterError
from wgvsock.telemetry.status import metrics
from wgvsock.testing import MemoryTun, without_waiting


def packet(source: str, destination: str) -> bytes:
    """An IPv4 packet of 60 bytes, UDP, without checksums."""
    head = bytes.fromhex("4500003c 00000000 40110000")
    return head + ip_interface(source).ip.packed + ip_interface(destination).ip.packed + bytes(40)


async def arrival(pair: ServicePair, tun: MemoryTun) -> bytes | None:
    """The next packet that a tunnel hands to its kernel."""
    taken: list[bytes | None] = [None]

    def arrived() -> bool:
        taken[0] = tun.take()
        return taken[0] is not None

    await pair.until(arrived, "a packet")
    return taken[0]


def peers(pair: ServicePair) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pair.relay.status()["wireguard"]["peers"]
    return found


@without_waiting
async def test_ready_only_after_attestation_handshake_and_rules(pair: ServicePair) -> None:
    pair.start_relay()
    await pair.until(lambda: hasattr(pair.relay, "_nat"), "the start")
    await asyncio.sleep(5)
    assert pair.filter.rules is not None  # this machine forwards from now on: nothing may pass until
    assert not pair.filter.is_open
    assert not pair.relay.readiness().ready
    assert pair.relay.status()["state"] == "provisioning"
    assert not peers(pair)
    pair.start_enclave()
    await pair.until(pair.is_ready, "readiness")
    status = pair.relay.status()
    assert status["conditions"] == {"attested": True, "handshake": True, "rules": True}
    assert status["attestation"]["module_id"] == pair.lab_enclave.module_id
    assert status["attestation"]["pcrs"]["PCR0"] == pair.lab_enclave.measurements[0].hex()
    assert pair.filter.is_open
    (peer,) = peers(pair)
    assert peer["allowed_ips"] == ["10.73.0.2/32", "fd73::2/128"]
    assert peer["public_key"] == status["attestation"]["public_key"]
    assert 'wgvsock_ready{role="relay"} 1' in metrics(status)
    await pair.down()


@without_waiting
async def test_packets_pass_both_ways(pair: ServicePair) -> None:
    await pair.up()
    relay, enclave = pair.relay_tuns[0], pair.enclave_tuns[0]
    header = bytes(relay.packet_headroom)
    enclave.inject(header + packet("10.73.0.2", "198.51.100.10"))
    assert await arrival(pair, relay) == header + packet("10.73.0.2", "198.51.100.10")
    relay.inject(header + packet("198.51.100.10", "10.73.0.2"))
    assert await arrival(pair, enclave) == header + packet("198.51.100.10", "10.73.0.2")
    await pair.down()


@without_waiting
async def test_everything_is_taken_back(pair: ServicePair) -> None:
    await pair.up()
    await pair.down()
    assert pair.filter.rules is None
    assert sorted(path.name for path in (pair.folder / "relay").iterdir()) == ["relay.key", "relay.lock"]
    assert pair.relay.status()["state"] == "stopping"


@without_waiting
async def test_attestation_is_repeated_with_new_keys_and_without_a_gap(pair: ServicePair) -> None:
    await pair.up()
    before = pair.relay.status()["wireguard"]["public_key"]
    tables = len(pair.filter.history)
    await asyncio.sleep(pair.config.provisioning.reattest_every)
    await pair.until(lambda: pair.relay.status()["provisioning"]["attempts"]["ok"] == 2, "the second attestation")
    assert pair.relay.status()["wireguard"]["public_key"] != before
    assert pair.is_ready()
    assert len(pair.filter.history) == tables
    assert len(peers(pair)) == 1
    await pair.down()


@without_waiting
async def test_attestation_on_demand(pair: ServicePair) -> None:
    await pair.up()
    pair.relay.reattest()
    await pair.until(lambda: pair.relay.status()["provisioning"]["attempts"]["ok"] == 2, "the second attestation")
    await pair.down()


@without_waiting
async def test_a_demand_during_an_exchange_is_not_lost(pair: ServicePair) -> None:
    await pair.up()
    provision = pair.relay._provisioner.provision

    async def interrupted(*arguments: Any) -> Any:
        result = await provision(*arguments)
        if pair.relay.status()["provisioning"]["attempts"]["ok"] == 1:
            pair.relay.reattest()
        return result

    object.__setattr__(pair.relay, "_provisioner", _Wrapped(pair.relay._provisioner, interrupted))
    pair.relay.reattest()
    await pair.until(lambda: pair.relay.status()["provisioning"]["attempts"]["ok"] == 3, "the third attestation")
    await pair.down()


class _Wrapped:
    """A provisioner whose one verb is another."""

    def __init__(self, provisioner: Any, provision: Any) -> None:
        self.deadlines = provisioner.deadlines
        self.provision = provision


@without_waiting
async def test_a_refused_enclave_is_no_peer_and_closes_the_way_at_once(pair: ServicePair) -> None:
    await pair.up()
    pair.set_faults(debug=True)
    pair.relay.reattest()
    await pair.until(lambda: not pair.is_ready(), "the refusal")
    await pair.until(lambda: not pair.filter.is_open, "the closing")
    status = pair.relay.status()
    assert not status["wireguard"]["peers"]
    assert status["attestation"] is None
    assert status["provisioning"]["error"]["code"] == "WGV-E030"
    assert status["provisioning"]["attempts"]["rejected"] >= 1
    pair.set_faults()
    await pair.until(pair.is_ready, "readiness after a correct attempt")
    assert pair.relay.status()["provisioning"]["error"] is None
    await pair.down()


@without_waiting
async def test_an_enclave_of_another_image_is_never_a_peer(pair: ServicePair) -> None:
    pair.lab_enclave = LabEnclave(measurements={**pair.lab_enclave.measurements, 2: b"\x55" * 48})
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: getattr(pair.relay, "_last_error", None), "the refusal")
    await asyncio.sleep(3)
    assert not peers(pair)
    assert not pair.filter.is_open
    assert pair.relay.status()["provisioning"]["error"]["why"]
    await pair.down()


@without_waiting
async def test_a_lost_enclave_closes_the_way_and_its_return_opens_it(pair: ServicePair) -> None:
    pair.start_relay()
    enclave = pair.start_enclave()
    await pair.until(pair.is_ready, "readiness")
    await pair.kill(enclave)
    pair.tasks.remove(enclave)
    await pair.until(lambda: not pair.is_ready(), "the loss")
    assert not pair.relay.readiness().handshake
    await pair.until(lambda: not pair.filter.is_open, "the closing")
    assert pair.filter.rules is not None  # the table stays, so that known flows keep their translation
    assert not peers(pair)
    pair.start_enclave()
    await pair.until(pair.is_ready, "the return")
    assert pair.filter.is_open
    assert pair.flows_forgiven
    await pair.down()


@without_waiting
async def test_a_short_interruption_keeps_peer_and_rules(pair: ServicePair) -> None:
    await pair.up()
    attempts = pair.relay.status()["provisioning"]["attempts"]["ok"]
    forgiven = pair.flows_forgiven
    peer = pair.relay._session.peer
    assert peer is not None
    stream: Any = peer.endpoint
    stream.close("the test cuts it")
    await pair.until(lambda: not pair.is_ready(), "the interruption")
    await pair.until(pair.is_ready, "the reconnection")
    await pair.until(lambda: pair.flows_forgiven > forgiven, "the flows to be forgiven")
    assert pair.relay.status()["provisioning"]["attempts"]["ok"] == attempts
    await pair.down()


@without_waiting
async def test_a_provisioning_port_that_is_gone_is_borne_for_a_while(pair: ServicePair) -> None:
    await pair.up()
    (pair.folder / "p").unlink()
    pair.relay.reattest()
    await pair.until(lambda: pair.relay.status()["provisioning"]["error"], "a failed attempt")
    assert pair.is_ready()
    await asyncio.sleep(pair.config.provisioning.grace + 30)
    assert not pair.is_ready()
    assert not peers(pair)
    await pair.down()


@without_waiting
async def test_an_enclave_that_answers_no_handshake_is_removed(
    pair: ServicePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.config = replace(pair.config, enclave=replace(pair.config.enclave, address=UnixAddress(f"{pair.folder}/no")))
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: getattr(pair.relay, "_last_error", None), "the failure")
    assert pair.relay.status()["provisioning"]["error"]["code"] == "WGV-E080"
    assert not peers(pair)
    assert not pair.filter.is_open
    await pair.down()


@without_waiting
async def test_an_enclave_that_vanishes_during_attestation_is_given_up_at_once(pair: ServicePair) -> None:
    pair.start_relay()
    enclave = pair.start_enclave()
    await pair.until(pair.is_ready, "readiness")
    await pair.kill(enclave)
    pair.tasks.remove(enclave)
    pair.relay._attest_by = 0.0  # the period is over in the moment of the loss
    await pair.until(lambda: not peers(pair), "the end of the peer", limit=30)
    await pair.down()


@without_waiting
async def test_what_cannot_be_taken_back_is_logged(pair: ServicePair, caplog: pytest.LogCaptureFixture) -> None:
    await pair.up()
    pair.filter.refuses.add("nft")
    await pair.down()
    assert "cannot change the packet filter" in caplog.text
    caplog.clear()
    pair.filter.refuses.clear()
    pair.relay_kernel.defaults = {4: None, 6: None}
    with pytest.raises(UplinkError):
        await pair.start_relay()
    assert pair.filter.rules is None  # the next start made up for it


# Reload.


def publish(pair: ServicePair, port: int) -> None:
    nat = replace(pair.config.nat, publish=(PublishSettings("tcp", port),))
    pair.reloaded = lambda: replace(pair.config, nat=nat)


@without_waiting
async def test_reload_applies_the_difference(pair: ServicePair) -> None:
    await pair.up()
    publish(pair, 4433)
    pair.relay.reload()
    await pair.until(lambda: "tcp dport 4433" in (pair.filter.rules or ""), "the published port")
    assert pair.relay.status()["nat"]["published"] == ["tcp:4433->10.73.0.2:4433", "tcp:4433->fd73::2:4433"]
    assert pair.relay.status()["provisioning"]["attempts"]["ok"] == 1  # the enclave has nothing to do with it
    await pair.down()


@without_waiting
async def test_reload_asks_the_enclave_where_it_is_concerned(pair: ServicePair) -> None:
    await pair.up()
    pair.reloaded = lambda: replace(pair.config, dns=replace(pair.config.dns, search=("new.test",)))
    pair.relay.reload()
    await pair.until(lambda: "new.test" in (pair.folder / "resolv.conf").read_text(), "the new search domain")
    assert pair.is_ready()
    await pair.down()


@without_waiting
async def test_a_reload_that_names_another_image_ends_the_trust(pair: ServicePair) -> None:
    await pair.up()
    other = PcrSetSettings("01" * 48, "02" * 48, "03" * 48)
    pair.reloaded = lambda: replace(pair.config, attestation=replace(pair.config.attestation, pcr_sets=(other,)))
    pair.relay.reload()
    await pair.until(lambda: not pair.is_ready(), "the end of trust")
    await pair.until(lambda: not pair.filter.is_open, "the closing")
    await pair.down()


@pytest.mark.parametrize("wrong", ["unreadable", "restart", "rejected", "kernel"])
@without_waiting
async def test_a_wrong_reload_changes_nothing(pair: ServicePair, wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    await pair.up()
    table = pair.filter.rules

    def unreadable() -> Any:
        raise ConfigurationError("relay.toml, line 3: no", why="it is wrong", fix="write it anew")

    changed = {
        "unreadable": unreadable,
        "restart": lambda: replace(pair.config, name="other"),
        "rejected": lambda: replace(pair.config, dns=replace(pair.config.dns, search=("-",))),
        "kernel": lambda: replace(
            pair.config, interface=replace(pair.config.interface, addresses=(ip_interface("10.73.0.9/24"),))
        ),
    }
    pair.reloaded = changed[wrong]
    calls = pair.relay_kernel.set_addresses

    async def refuse_the_new(name: str, addresses: Any) -> None:
        if ip_interface("10.73.0.9/24") in addresses:
            pair.relay_kernel.refuses.add("set_addresses")
        await calls(name, addresses)

    object.__setattr__(pair.relay_kernel, "set_addresses", refuse_the_new)
    original = pair.relay_kernel._check

    def check(method: str) -> None:
        try:
            original(method)
        finally:
            pair.relay_kernel.refuses.clear()

    object.__setattr__(pair.relay_kernel, "_check", check)
    pair.relay.reload()
    await pair.until(lambda: "not reloaded" in caplog.text, "the refusal")
    await asyncio.sleep(1)
    assert pair.is_ready()
    assert pair.filter.rules == table
    assert pair.relay._config == pair.config
    await pair.down()


@without_waiting
async def test_without_a_way_to_reload_nothing_happens(pair: ServicePair) -> None:
    await pair.up()
    pair.relay._reload_config = None
    pair.relay.reload()
    await asyncio.sleep(1)
    assert pair.is_ready()
    await pair.down()


# Restart.


@without_waiting
async def test_a_restart_leaves_the_closed_way_to_the_next_relay(pair: ServicePair) -> None:
    pair.start_enclave()
    relay = pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    pair.relay.stop(keep_flows=True)
    await relay
    assert pair.filter.rules is not None
    assert not pair.filter.is_open
    tables = len(pair.filter.history)
    pair.start_relay()
    await pair.until(pair.is_ready, "the next relay's readiness")
    # It never was without a table, and was opened only after attestation; the enclave recognised the signing key.
    assert all("chain" in table for table in pair.filter.history[tables:])
    assert pair.filter.is_open
    await pair.down()
    assert pair.filter.rules is None


@without_waiting
async def test_what_a_killed_relay_left_is_closed_first(pair: ServicePair) -> None:
    pair.start_enclave()
    relay = pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    pair.relay._leaves_rules = True  # a relay that is killed takes nothing back, and closes nothing
    await pair.kill(relay)
    pair.tasks.remove(relay)
    assert pair.filter.is_open
    tables = len(pair.filter.history)
    pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    closed, opened = pair.filter.history[tables:]
    assert "masquerade" not in closed
    assert "masquerade" in opened
    await pair.down()
    assert pair.filter.rules is None


# What a start needs.


@without_waiting
async def test_one_relay_of_a_name(pair: ServicePair) -> None:
    await pair.up()
    first = pair.relay
    with pytest.raises(AlreadyRunningError):
        await pair.start_relay()
    assert pair.filter.is_open
    pair.tasks.pop()
    pair.relay = first
    await pair.down()


@without_waiting
async def test_no_uplink(pair: ServicePair) -> None:
    pair.relay_kernel.defaults = {4: None, 6: None}
    with pytest.raises(UplinkError):
        await pair.start_relay()
    assert pair.filter.rules is None


@without_waiting
async def test_rules_that_the_kernel_refuses_stop_the_start(pair: ServicePair) -> None:
    pair.filter.refuses.add("nft")
    with pytest.raises(NetfilterError):
        await pair.start_relay()


@without_waiting
async def test_an_interface_that_somebody_removes_ends_the_relay(pair: ServicePair) -> None:
    pair.start_enclave()
    relay = pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    pair.relay_tuns[0].remove()
    with pytest.raises(TunGoneError):
        await relay
    assert pair.filter.rules is None
    pair.tasks.remove(relay)
    await pair.down()


@without_waiting
async def test_the_control_socket_and_the_health_port(pair: ServicePair) -> None:
    health = pair.folder / "h"
    pair.config = replace(pair.config, health=HealthSettings(UnixAddress(str(health))))
    await pair.up()

    async def ask(path: Path, request: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(f"{request} HTTP/1.1\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        return answer

    control = pair.folder / "relay/relay.sock"
    assert "200 OK" in await ask(control, "GET /live")
    assert "200 OK" in await ask(health, "GET /ready")
    assert '"schema": "wgvsock/v1"' in await ask(health, "GET /status")
    assert "wgvsock_up" in await ask(health, "GET /metrics")
    assert "404" in await ask(health, "POST /reattest")
    assert "202 Accepted" in await ask(control, "POST /reload")
    assert "202 Accepted" in await ask(control, "POST /reattest")
    await pair.until(lambda: pair.relay.status()["provisioning"]["attempts"]["ok"] == 2, "the second attestation")
    await pair.down()
    assert not control.exists()


@without_waiting
async def test_risky_settings_are_warned_of(pair: ServicePair, caplog: pytest.LogCaptureFixture) -> None:
    attestation = replace(
        pair.config.attestation, allow_debug=True, pcr_sets=(PcrSetSettings("00" * 48, "00" * 48, "00" * 48),)
    )
    pair.config = replace(pair.config, attestation=attestation)
    pair.start_relay()
    await pair.until(lambda: hasattr(pair.relay, "_nat"), "the start")
    for word in ("other than AWS's", "debug mode", "zeros"):
        assert word in caplog.text
    await pair.down()
