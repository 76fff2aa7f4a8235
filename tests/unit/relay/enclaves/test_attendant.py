"""A relay's life: attestation, readiness, loss, refusal, reload, restart, and everything undone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, cast

import pytest

from lab.nsm.signer import LabEnclave
from tests.unit.service_pair import ServicePair, status_of
from wgvsock.addresses import UnixAddress
from wgvsock.devices.errors import TunGoneError
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning import EnclaveProvisioned
from wgvsock.provisioning.errors import BusyError, ConnectionLostError, RateLimitedError
from wgvsock.relay.enclaves.provisioner import Provisioner
from wgvsock.relay.errors import UplinkError
from wgvsock.relay.sections import DnsSettings, HealthSettings, PcrSetSettings, PublishSettings
from wgvsock.relay.status import relay_status
from wgvsock.runtime.errors import AlreadyRunningError
from wgvsock.system.errors import NetfilterError
from wgvsock.system.resolver import ResolverSettings
from wgvsock.telemetry.status import metrics
from wgvsock.testing import MemoryTun, without_waiting
from wgvsock.testing.echo import is_request
from wgvsock.transports.errors import ConnectError, VsockUnavailableError


def packet(source: str, destination: str) -> bytes:
    """An IPv4 packet of 60 bytes, UDP, without checksums."""
    head = bytes.fromhex("4500003c 00000000 40110000")
    return head + ip_interface(source).ip.packed + ip_interface(destination).ip.packed + bytes(40)


async def arrival(pair: ServicePair, tun: MemoryTun) -> bytes | None:
    """Return the next packet that a tunnel hands to its kernel, except requests of the path probe."""
    taken: list[bytes | None] = [None]

    def arrived() -> bool:
        taken[0] = tun.take()
        return taken[0] is not None and not is_request(taken[0], tun.packet_headroom)

    await pair.until(arrived, "a packet")
    return taken[0]


def peers(pair: ServicePair) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pair.status()["wireguard"]["peers"]
    return found


@without_waiting
async def test_ready_only_after_attestation_handshake_and_rules(pair: ServicePair) -> None:
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up, "the start")
    await asyncio.sleep(5)
    assert pair.filter.rules is not None  # this machine forwards from now on: nothing may pass until
    assert not pair.filter.is_open
    assert not pair.readiness().ready
    assert pair.status()["state"] == "provisioning"
    assert not peers(pair)
    pair.start_enclave()
    await pair.until(pair.is_ready, "readiness")
    status = pair.status()
    conditions = {"attested": True, "handshake": True, "rules": True, "uplink": True, "path": None}
    conditions |= {"application": None}
    assert status["conditions"] == conditions
    assert status["attestation"]["module_id"] == pair.lab_enclave.module_id
    assert status["attestation"]["pcrs"]["PCR0"] == pair.lab_enclave.measurements[0].hex()
    assert pair.filter.is_open
    (peer,) = peers(pair)
    assert peer["allowed_ips"] == ["10.73.0.2/32", "fd73::2/128"]
    assert peer["public_key"] == status["attestation"]["public_key"]
    assert 'wgvsock_ready{role="relay"} 1' in metrics(relay_status(pair.relay.snapshot()))
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
    assert pair.status()["state"] == "stopping"


@without_waiting
async def test_attestation_is_repeated_with_new_keys_and_without_a_gap(pair: ServicePair) -> None:
    await pair.up()
    before = pair.status()["wireguard"]["public_key"]
    tables = len(pair.filter.history)
    await asyncio.sleep(pair.config.provisioning.reattest_every)
    await pair.until(lambda: pair.status()["provisioning"]["attempts"]["ok"] == 2, "the second attestation")
    assert pair.status()["wireguard"]["public_key"] != before
    assert pair.is_ready()
    assert len(pair.filter.history) == tables
    assert len(peers(pair)) == 1
    await pair.down()


@without_waiting
async def test_attestation_on_demand(pair: ServicePair) -> None:
    await pair.up()
    pair.relay.reattest()
    await pair.until(lambda: pair.status()["provisioning"]["attempts"]["ok"] == 2, "the second attestation")
    await pair.down()


@without_waiting
async def test_a_demand_during_an_exchange_is_not_lost(pair: ServicePair) -> None:
    await pair.up()
    provision = pair.attendant.room.provisioner.provision

    async def interrupted(*arguments: Any, **options: Any) -> Any:
        result = await provision(*arguments, **options)
        if pair.status()["provisioning"]["attempts"]["ok"] == 1:
            pair.relay.reattest()
        return result

    pair.attendant.room.provisioner = cast("Any", _Wrapped(pair.attendant.room.provisioner, interrupted))
    pair.relay.reattest()
    await pair.until(lambda: pair.status()["provisioning"]["attempts"]["ok"] == 3, "the third attestation")
    await pair.down()


class _Wrapped:
    """A provisioner with one verb replaced."""

    def __init__(self, provisioner: Any, provision: Any) -> None:
        self.deadlines, self.took = provisioner.deadlines, 0.0
        self.provision = provision


@without_waiting
async def test_a_refused_enclave_is_no_peer_and_closes_the_way_at_once(pair: ServicePair) -> None:
    await pair.up()
    pair.set_faults(debug=True)
    pair.relay.reattest()
    await pair.until(lambda: not pair.is_ready(), "the refusal")
    await pair.until(lambda: not pair.filter.is_open, "the closing")
    status = pair.status()
    assert not status["wireguard"]["peers"]
    assert status["attestation"] is None
    assert status["provisioning"]["error"]["code"] == "WGV-E030"
    assert status["provisioning"]["attempts"]["rejected"] >= 1
    pair.set_faults()
    await pair.until(pair.is_ready, "readiness after a correct attempt")
    assert pair.status()["provisioning"]["error"] is None
    await pair.down()


@without_waiting
async def test_an_enclave_of_another_image_is_never_a_peer(pair: ServicePair) -> None:
    pair.lab_enclave = LabEnclave(measurements={**pair.lab_enclave.measurements, 2: b"\x55" * 48})
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the refusal")
    await asyncio.sleep(3)
    assert not peers(pair)
    assert not pair.filter.is_open
    assert pair.status()["provisioning"]["error"]["why"]
    await pair.down()


@without_waiting
async def test_a_lost_enclave_closes_the_way_and_its_return_opens_it(pair: ServicePair) -> None:
    pair.start_relay()
    enclave = pair.start_enclave()
    await pair.until(pair.is_ready, "readiness")
    await pair.kill(enclave)
    pair.tasks.remove(enclave)
    await pair.until(lambda: not pair.is_ready(), "the loss")
    assert not pair.readiness().handshake
    await pair.until(lambda: not pair.filter.is_open, "the closing")
    assert pair.filter.rules is not None  # the table stays, so that known flows keep their translation
    assert not peers(pair)
    pair.start_enclave()
    await pair.until(pair.is_ready, "the return")
    assert pair.filter.is_open
    assert pair.machine.flows_forgiven
    await pair.down()


@without_waiting
async def test_a_short_interruption_keeps_peer_and_rules(pair: ServicePair) -> None:
    await pair.up()
    attempts = pair.status()["provisioning"]["attempts"]["ok"]
    forgiven = pair.machine.flows_forgiven
    peer = pair.attendant.room.session.peer
    assert peer is not None
    stream: Any = peer.endpoint
    stream.close("the test cuts it")
    await pair.until(lambda: not pair.is_ready(), "the interruption")
    await pair.until(pair.is_ready, "the reconnection")
    await pair.until(lambda: pair.machine.flows_forgiven > forgiven, "the flows to be forgiven")
    assert pair.status()["provisioning"]["attempts"]["ok"] == attempts
    await pair.down()


@without_waiting
async def test_a_provisioning_port_that_is_gone_is_borne_for_a_while(pair: ServicePair) -> None:
    await pair.up()
    (pair.folder / "p").unlink()
    pair.relay.reattest()
    await pair.until(lambda: pair.status()["provisioning"]["error"], "a failed attempt")
    assert pair.is_ready()
    await asyncio.sleep(pair.config.provisioning.grace + 30)
    assert not pair.is_ready()
    assert not peers(pair)
    await pair.down()


@pytest.mark.parametrize(
    "error",
    [
        BusyError("newer connections replaced one that had sent no request"),
        RateLimitedError(),
        ConnectionLostError("evicted"),
        ConnectError("cannot connect", why="the backlog is full"),
    ],
    ids=lambda error: type(error).__name__,
)
@without_waiting
async def test_a_crowded_enclave_is_asked_again_soon(
    pair: ServicePair, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Nineteen in twenty attempts find no place at its port. The relay is back long before trust ends."""
    await pair.up()
    provision = Provisioner.provision
    asked = 0

    async def crowded(*arguments: Any, **known: Any) -> EnclaveProvisioned:
        nonlocal asked
        asked += 1
        if asked < 20:
            raise error
        return await provision(*arguments, **known)

    monkeypatch.setattr(Provisioner, "provision", crowded)
    attempts, began = pair.status()["provisioning"]["attempts"]["ok"], asyncio.get_running_loop().time()
    pair.relay.reattest()
    await pair.until(lambda: pair.status()["provisioning"]["attempts"]["ok"] > attempts, "the attestation")
    assert asyncio.get_running_loop().time() - began < 3.0
    await pair.down()


@without_waiting
async def test_an_enclave_that_answers_no_handshake_is_removed(
    pair: ServicePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.config = replace(pair.config, enclave=replace(pair.config.enclave, address=UnixAddress(f"{pair.folder}/no")))
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the failure")
    assert pair.status()["provisioning"]["error"]["code"] == "WGV-E080"
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
    pair.attendant.trust.attest_by = 0.0  # the period is over in the moment of the loss
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


# What somebody on the way can do, and how long.

ANOTHER = "i-0123456789abcdef0-enc0000000000000001"


@pytest.mark.parametrize(
    "faults",
    [
        {"module_id": ANOTHER, "pcrs": {0: b"\x66" * 48}},
        {"corrupt_signature": True},
        {"wrong_root": True},
        {"clock_offset": -600.0},
        {"payload": {"nonce": bytes(32)}},
        {"payload": {"user_data": bytes(64)}},
        {"payload": {"public_key": bytes(44)}},
        {"trailing_bytes": 1},
    ],
    ids=["swapped", "signature", "root", "stale", "nonce", "binding", "public key", "cbor"],
)
@without_waiting
async def test_a_refusal_that_anybody_can_bring_about_is_borne_until_trust_ends(
    pair: ServicePair, faults: dict[str, Any]
) -> None:
    await pair.up()
    loop = asyncio.get_running_loop()
    peer = pair.attendant.room.session.peer
    pair.set_faults(**faults)
    pair.relay.reattest()
    ends = loop.time() + pair.config.provisioning.grace
    await pair.until(lambda: pair.status()["provisioning"]["attempts"]["rejected"] > 2, "refusals", limit=50)
    status = pair.status()
    assert status["ready"]
    assert status["provisioning"]["error"]["code"] == "WGV-E030"
    assert 0 < status["provisioning"]["trusted_for_seconds"] <= pair.config.provisioning.grace
    assert pair.filter.is_open
    assert pair.attendant.room.session.peer is peer

    await pair.until(lambda: not pair.filter.is_open, "the end of trust")
    assert ends <= loop.time() < ends + 1  # however long the back-off has become
    assert not pair.is_ready()
    assert not peers(pair)
    pair.set_faults()
    await pair.until(pair.is_ready, "readiness")
    await pair.down()


@pytest.mark.parametrize("end", ["trust", "loss"])
@without_waiting
async def test_the_end_of_a_tunnel_does_not_wait_for_an_exchange_that_hangs(pair: ServicePair, end: str) -> None:
    grace = 5.0 if end == "trust" else 60.0
    pair.config = replace(pair.config, provisioning=replace(pair.config.provisioning, grace=grace))
    enclave = pair.start_enclave()
    pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    loop = asyncio.get_running_loop()

    async def hangs(*arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(1000)

    pair.attendant.room.provisioner = cast("Any", _Wrapped(pair.attendant.room.provisioner, hangs))
    if end == "trust":
        pair.relay.reattest()
    else:
        await pair.kill(enclave)
        pair.tasks.remove(enclave)
    began = loop.time()
    await pair.until(lambda: not pair.filter.is_open, "the end of the tunnel")
    assert loop.time() - began < 6.0
    await pair.down()


@without_waiting
async def test_an_attached_enclave_is_the_one_that_was_attested_as_long_as_it_lives(pair: ServicePair) -> None:
    """No module_id is configured: a new document has to name the running tunnel's own."""
    await pair.up()
    pair.set_faults(module_id=ANOTHER, pcrs={0: b"\x66" * 48})
    pair.relay.reattest()
    await pair.until(lambda: pair.status()["provisioning"]["error"], "the refusal")
    assert "module_id.launched" in pair.status()["provisioning"]["error"]["what"]
    assert pair.is_ready()
    await pair.down()


# Two relays with one signing key.


def in_another_place(pair: ServicePair) -> None:
    """The next relay starts on another machine, with the first one's key."""
    pair.next_relay_machine()
    elsewhere = pair.folder / "second"
    elsewhere.mkdir(mode=0o700)
    key = elsewhere / "relay.key"
    key.write_bytes((pair.folder / "relay/relay.key").read_bytes())
    key.chmod(0o600)
    pair.config = replace(pair.config, runtime_directory=str(elsewhere))


@without_waiting
async def test_the_older_of_two_relays_steps_back_at_once_and_does_not_fight(
    pair: ServicePair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pair.start_enclave()
    pair.start_relay()
    older = pair.relay
    older.incarnation -= 60_000
    await pair.until(pair.is_ready, "readiness")
    in_another_place(pair)
    running = pair.start_relay()
    younger = pair.relay
    await pair.until(pair.is_ready, "the younger one's readiness")
    await pair.until(lambda: not older.fleet.attendants[0].readiness().ready, "the older one's end", limit=1)
    await pair.until(lambda: status_of(older)["state"] == "superseded", "stepping back", limit=3)
    status = status_of(older)
    assert (status["ready"], status["nat"]["open"], status["wireguard"]["peers"]) == (False, False, [])
    assert status["provisioning"]["error"]["code"] == "WGV-E044"
    assert "newer relay" in status["provisioning"]["error"]["what"]
    (peer,) = pair.enclave_status()["wireguard"]["peers"]
    assert peer["public_key"] == status_of(younger)["wireguard"]["public_key"]

    attempts = status_of(younger)["provisioning"]["attempts"]
    lines = len(caplog.records)
    await asyncio.sleep(900)
    assert status_of(younger)["provisioning"]["attempts"] == attempts
    assert younger.fleet.attendants[0].readiness().ready
    assert status_of(older)["state"] == "superseded"
    said = [record for record in caplog.records[lines:] if record.levelname != "DEBUG"]
    assert not [record for record in said if record.name.startswith("wgvsock.relay")]
    assert status_of(older)["provisioning"]["attempts"]["failed"] <= 900 / 60 + 2

    younger.stop()  # and when the younger one has been gone for long enough, the older comes back
    await running
    pair.relay = older
    await pair.until(pair.is_ready, "the return", limit=180 + 60 + 5)
    await pair.down()


@without_waiting
async def test_a_relay_whose_key_is_lost_comes_back_after_silence(pair: ServicePair) -> None:
    pair.start_enclave()
    lost = pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    pair.relay.stop()
    await lost
    (pair.folder / "relay/relay.key").unlink()
    loop = asyncio.get_running_loop()
    began = loop.time()
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the refusal")
    assert pair.status()["provisioning"]["error"]["code"] == "WGV-E044"
    await pair.until(pair.is_ready, "readiness")
    assert 170 < loop.time() - began < 180 + 45
    await pair.down()


@without_waiting
async def test_a_refusal_shows_what_was_measured_beside_what_is_allowed_and_keeps_the_document(
    pair: ServicePair,
) -> None:
    audit = pair.folder / "audit.jsonl"
    pair.config = replace(pair.config, audit=str(audit))
    pair.set_faults(pcrs={0: b"\x05" * 48})
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the refusal")
    refusal = pair.status()["refusal"]
    assert (refusal["check"], refusal["why"]) == ("pcr.set", "PCR0 differs from the allowed set")
    assert refusal["registers"][0] == {
        "pcr": "PCR0",
        "measured": "05" * 48,
        "allowed": pair.lab_enclave.measurements[0].hex(),
        "equal": False,
    }
    assert (pair.folder / "relay/refused/relay" / refusal["document"]).stat().st_size > 1000
    pair.set_faults()
    await pair.until(pair.is_ready, "readiness")
    assert pair.status()["provisioning"]["error"] is None
    assert pair.status()["refusal"] == refusal  # it is not forgotten
    outcomes = [json.loads(line)["outcome"] for line in audit.read_text().splitlines()]
    assert (outcomes[0], outcomes[-1]) == ("refused", "accepted")
    await pair.down()


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
    assert pair.status()["nat"]["published"] == ["tcp:4433->10.73.0.2:4433", "tcp:4433->fd73::2:4433"]
    assert pair.status()["provisioning"]["attempts"]["ok"] == 1  # the enclave has nothing to do with it
    await pair.down()


@without_waiting
async def test_a_reload_that_is_asked_for_at_the_start_comes_after_it(pair: ServicePair) -> None:
    publish(pair, 4433)
    pair.start_enclave()
    pair.start_relay()
    pair.relay.reload()
    await pair.until(lambda: "tcp dport 4433" in (pair.filter.rules or ""), "the published port")
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
async def test_a_reload_is_not_lost_when_the_machine_changes_at_the_same_moment(pair: ServicePair) -> None:
    pair.config = replace(pair.config, dns=DnsSettings())
    await pair.up()
    told, (attendant,) = pair.folder / "resolv.conf", pair.relay.fleet.attendants
    pair.reloaded = lambda: replace(pair.config, dns=replace(pair.config.dns, search=("new.test",)))
    pair.machine.resolver_settings = ResolverSettings((ip_address("10.0.0.2"),), ())
    pair.relay.reload()
    attendant._follow_uplink()
    await pair.until(lambda: "nameserver 10.0.0.2" in told.read_text(), "the new server")
    assert "search new.test" in told.read_text()
    await pair.down()


@without_waiting
async def test_where_the_relay_looks_names_up_the_enclave_hears_of_other_search_domains_alone(
    pair: ServicePair,
) -> None:
    pair.config = replace(pair.config, dns=DnsSettings(forward=True))
    pair.machine.resolver_settings = ResolverSettings((ip_address("10.0.0.1"),), ("a.test",))
    await pair.up()
    told = pair.folder / "resolv.conf"
    assert told.read_text().splitlines()[1:] == ["nameserver 10.73.0.1", "nameserver fd73::1", "search a.test"]
    assert "ip daddr 10.73.0.1 udp dport 53 accept" in (pair.filter.rules or "")

    def servers() -> list[str]:
        return list(pair.status()["dns"]["servers"])

    attested = pair.status()["provisioning"]["attempts"]["ok"]
    pair.machine.resolver_settings = ResolverSettings((ip_address("10.0.0.2"),), ("a.test",))
    await pair.until(lambda: servers() == ["10.0.0.2"], "the new server")
    assert pair.status()["provisioning"]["attempts"]["ok"] == attested
    pair.machine.resolver_settings = ResolverSettings((ip_address("10.0.0.2"),), ("b.test",))
    await pair.until(lambda: "search b.test" in told.read_text(), "the new search domain")
    assert servers() == ["10.0.0.2"]
    await pair.down()


@without_waiting
async def test_a_reload_begins_and_ends_to_look_names_up(pair: ServicePair) -> None:
    await pair.up()
    told, direct = pair.folder / "resolv.conf", pair.config
    pair.config = replace(direct, dns=replace(direct.dns, forward=True))
    pair.relay.reload()
    await pair.until(lambda: "nameserver 10.73.0.1" in told.read_text(), "the gateway")
    assert pair.status()["dns"]["servers"] == ["10.96.0.10"]
    pair.config = direct
    pair.relay.reload()
    await pair.until(lambda: "nameserver 10.96.0.10" in told.read_text(), "the server")
    assert pair.status()["dns"] is None
    await pair.down()


@without_waiting
async def test_a_reload_that_names_another_image_ends_the_trust(pair: ServicePair) -> None:
    await pair.up()
    other = PcrSetSettings("01" * 48, "02" * 48, "03" * 48)
    pair.reloaded = lambda: replace(pair.config, attestation=replace(pair.policy, pcr_sets=(other,)))
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

    async def refuse_the_new(name: str, addresses: Any) -> bool:
        if ip_interface("10.73.0.9/24") in addresses:
            pair.relay_kernel.refuses.add("set_addresses")
        return await calls(name, addresses)

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
    assert pair.attendant.spec == pair.config.specs()[0]
    await pair.down()


@without_waiting
async def test_without_a_way_to_reload_nothing_happens(pair: ServicePair) -> None:
    pair.reloaded = None
    await pair.up()
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
    pair.attendant.leaves_rules = True  # a relay that is killed takes nothing back, and closes nothing
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
async def test_a_machine_that_makes_no_vsock_socket_ends_the_relay(
    pair: ServicePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> EnclaveProvisioned:
        raise VsockUnavailableError("cannot open AF_VSOCK", why="Operation not permitted")

    monkeypatch.setattr(Provisioner, "provision", refuse)
    with pytest.raises(VsockUnavailableError):
        await pair.start_relay()
    assert pair.filter.rules is None


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


async def ask(path: Path, request: str) -> str:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(f"{request} HTTP/1.1\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer


@without_waiting
async def test_the_control_socket_and_the_health_port(pair: ServicePair) -> None:
    health = pair.folder / "h"
    pair.config = replace(pair.config, health=HealthSettings(UnixAddress(str(health))))
    await pair.up()

    control = pair.folder / "relay/relay.sock"
    assert "200 OK" in await ask(control, "GET /live")
    assert "200 OK" in await ask(health, "GET /ready")
    assert "wgvsock_up" in await ask(health, "GET /metrics")
    for order in ("GET /status", "POST /reattest", "POST /reload"):
        assert "404" in await ask(health, order)  # nobody asks there who it is
    assert '"schema": "wgvsock/v1"' in await ask(control, "GET /status")
    assert "200 OK" in await ask(control, "POST /reload")
    assert "202 Accepted" in await ask(control, "POST /reattest")
    await pair.until(lambda: pair.status()["provisioning"]["attempts"]["ok"] == 2, "the second attestation")
    await pair.down()
    assert not control.exists()


@without_waiting
async def test_what_the_health_port_serves_when_it_is_asked_for(pair: ServicePair) -> None:
    pair.config = replace(
        pair.config, health=HealthSettings(UnixAddress(str(pair.folder / "h")), expose=("status", "control"))
    )
    await pair.up()
    for order, status in (("GET /status", 200), ("POST /reattest", 202), ("POST /reload", 200), ("POST /replace", 409)):
        assert f" {status} " in await ask(pair.folder / "h", order)
    await pair.down()


@without_waiting
async def test_risky_settings_are_warned_of(pair: ServicePair, caplog: pytest.LogCaptureFixture) -> None:
    attestation = replace(pair.policy, allow_debug=True, pcr_sets=(PcrSetSettings("00" * 48, "00" * 48, "00" * 48),))
    pair.config = replace(pair.config, attestation=attestation)
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up, "the start")
    for word in ("other than AWS's", "debug mode", "zeros"):
        assert word in caplog.text
    await pair.down()
