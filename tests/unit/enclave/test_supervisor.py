"""An agent's life: identity, configuration, activation, rollback, the application, and everything taken back."""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import replace
from typing import Any

import pytest

from lab.nsm.signer import FakeNsm
from tests.unit.service_pair import ServicePair, enclave_config
from wgvsock.devices.errors import TunGoneError
from wgvsock.devices.nsm import NsmClient, NsmError
from wgvsock.enclave.errors import ApplicationError, KeyCommitmentError
from wgvsock.enclave.supervisor import RETIREMENT, EnclaveSupervisor
from wgvsock.provisioning import ConfigurationRolledBack
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.netlink import Route
from wgvsock.testing import without_waiting
from wgvsock.wireguard import HandshakeCompleted

ORIGINAL = "nameserver 127.0.0.1\n"


def is_up(pair: ServicePair) -> bool:
    return hasattr(pair.enclave, "_server")


@without_waiting
async def test_what_the_relay_assigns_is_in_force(pair: ServicePair) -> None:
    await pair.up()
    assert pair.enclave_kernel.up[0] == "lo"
    assert [str(address) for address in pair.enclave_kernel.addresses["wg0"]] == ["10.73.0.2/24", "fd73::2/64"]
    assert len(pair.enclave_kernel.routes["wg0"]) == 2
    assert all(isinstance(route, Route) and route.gateway for route in pair.enclave_kernel.routes["wg0"])
    assert "nameserver 10.96.0.10" in (pair.folder / "resolv.conf").read_text()
    status = pair.enclave.status()
    assert (status["role"], status["state"], status["ready"]) == ("enclave", "active", True)
    assert status["network"]["dns"] == ["10.96.0.10"]
    assert status["provisioning"]["attempts"] == {"ok": 1, "failed": 0}
    assert status["wireguard"]["peers"][0]["allowed_ips"] == ["0.0.0.0/0", "::/0"]
    await pair.down()


@without_waiting
async def test_everything_is_taken_back(pair: ServicePair) -> None:
    await pair.up()
    await pair.down()
    assert (pair.folder / "resolv.conf").read_text() == ORIGINAL
    assert [path.name for path in (pair.folder / "enclave").iterdir()] == ["enclave.lock"]


@without_waiting
async def test_before_a_relay_comes_there_is_no_peer(pair: ServicePair) -> None:
    pair.start_enclave()
    await pair.until(lambda: is_up(pair), "the start")
    status = pair.enclave.status()
    assert (status["state"], status["ready"], status["network"]) == ("unprovisioned", False, None)
    assert status["wireguard"]["peers"] == []
    assert pair.enclave._last_authenticated() == float("-inf")
    await pair.down()


@without_waiting
async def test_a_configuration_that_nobody_proves_is_rolled_back(pair: ServicePair) -> None:
    pair.set_faults(debug=True)  # the relay refuses the document
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: is_up(pair), "the start")
    await pair.until(lambda: pair.enclave.status()["provisioning"]["attempts"]["failed"], "the refusal")
    pair.relay.stop()
    await pair.until(lambda: pair.enclave_kernel.addresses.get("wg0") == [], "the rollback")
    assert pair.enclave_kernel.routes["wg0"] == []
    assert (pair.folder / "resolv.conf").read_text() == ORIGINAL
    assert not pair.enclave.status()["wireguard"]["peers"]
    await pair.down()


@without_waiting
async def test_a_refused_successor_leaves_what_works(pair: ServicePair) -> None:
    await pair.up()
    before = pair.enclave.status()["wireguard"]["peers"][0]["public_key"]
    pair.set_faults(debug=True)
    pair.relay.reattest()
    await pair.until(lambda: pair.enclave.status()["provisioning"]["attempts"]["failed"], "the refusal")
    await pair.until(lambda: len(pair.enclave.status()["wireguard"]["peers"]) == 1, "the rollback")
    assert pair.enclave.status()["wireguard"]["peers"][0]["public_key"] == before
    assert pair.enclave_kernel.addresses["wg0"]
    await pair.down()


@without_waiting
async def test_a_successor_takes_over_and_the_old_peer_retires(pair: ServicePair) -> None:
    await pair.up()
    old = pair.enclave.status()["wireguard"]["peers"][0]["public_key"]
    pair.reloaded = lambda: replace(pair.config, dns=replace(pair.config.dns, search=("new.test",)))
    pair.relay.reload()
    await pair.until(lambda: "new.test" in (pair.folder / "resolv.conf").read_text(), "the successor")
    both = {peer["public_key"]: peer for peer in pair.enclave.status()["wireguard"]["peers"]}
    assert len(both) == 2
    assert both[old]["allowed_ips"] == []
    await asyncio.sleep(RETIREMENT + 1)
    (peer,) = pair.enclave.status()["wireguard"]["peers"]
    assert peer["public_key"] != old
    assert peer["allowed_ips"] == ["0.0.0.0/0", "::/0"]
    await pair.down()


@without_waiting
async def test_a_kernel_that_refuses_is_reported_to_the_relay(pair: ServicePair) -> None:
    pair.enclave_kernel.refuses.add("set_routes")
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: getattr(pair.relay, "_last_error", None), "the failure")
    assert pair.relay.status()["provisioning"]["error"]["code"] == "WGV-E049"
    pair.enclave_kernel.refuses.clear()
    await pair.until(pair.is_ready, "a correct attempt")
    await pair.down()


@without_waiting
async def test_a_kernel_that_refuses_a_successor_s_routes_is_logged(
    pair: ServicePair, caplog: pytest.LogCaptureFixture
) -> None:
    await pair.up()
    pair.enclave_kernel.refuses.add("set_routes")
    pair.relay.reattest()
    await pair.until(lambda: "a part of the network is not set up" in caplog.text, "the log line")
    assert pair.is_ready()
    await pair.down()


@without_waiting
async def test_a_module_that_fails_is_reported_to_the_relay(pair: ServicePair, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: NsmClient, **fields: Any) -> bytes:
        raise NsmError("no document", why="the test says so")

    pair.start_enclave()
    await pair.until(lambda: is_up(pair), "the start")
    monkeypatch.setattr(NsmClient, "attest", refuse)
    pair.start_relay()
    await pair.until(lambda: getattr(pair.relay, "_last_error", None), "the failure")
    assert pair.relay.status()["provisioning"]["error"]["code"] == "WGV-E046"
    await pair.down()


@without_waiting
async def test_the_same_relay_key_again_is_the_same_peer(pair: ServicePair) -> None:
    await pair.up()
    active = pair.enclave._provisioning.active
    assert active is not None
    again = replace(active, preshared_key=b"n" * 32)
    pair.enclave._install_peer(again, active)
    peer = pair.enclave._device.peers[active.relay_public_key]
    assert peer.preshared_key == b"n" * 32
    await pair.enclave._work(ConfigurationRolledBack(again, active))
    assert peer.preshared_key == active.preshared_key
    await pair.enclave._activate(again, active)  # and when it proves itself, nobody retires
    assert not pair.enclave._retirements
    await pair.down()


@without_waiting
async def test_a_handshake_that_began_before_proves_nothing(pair: ServicePair, monkeypatch: pytest.MonkeyPatch) -> None:
    await pair.up()
    told: list[bytes] = []
    monkeypatch.setattr(pair.enclave._provisioning, "activate", lambda key, now: told.append(key))
    (peer,) = pair.enclave._device.peers.values()
    pair.enclave._applied_at = pair.enclave._clock()
    pair.enclave._core_reports(HandshakeCompleted(peer, False, 0.5))
    assert told == []
    await asyncio.sleep(1)
    pair.enclave._core_reports(HandshakeCompleted(peer, False, 0.5))
    assert told == [peer.public_key]
    await pair.down()


# What a start needs.


@without_waiting
async def test_a_second_agent_of_the_same_boot(pair: ServicePair) -> None:
    module = FakeNsm(pair.authority, pair.lab_enclave)
    first = pair.start_enclave(module=module)
    await pair.until(lambda: is_up(pair), "the start")
    pair.enclave.stop()
    await first
    with pytest.raises(KeyCommitmentError):
        await pair.start_enclave(module=module)


@without_waiting
async def test_without_commitment_a_second_agent_may_come(pair: ServicePair) -> None:
    pair.enclave_config = enclave_config(pair.folder, "key_pcr = -1")
    module = FakeNsm(pair.authority, pair.lab_enclave)
    for _ in range(2):
        agent = pair.start_enclave(module=module)
        await pair.until(lambda: is_up(pair), "the start")
        pair.enclave.stop()
        assert await agent == 0


@without_waiting
async def test_the_kernel_is_seeded_once(pair: ServicePair) -> None:
    seeded: list[NsmClient] = []
    supervisor = EnclaveSupervisor(
        pair.enclave_config,
        FakeNsm(pair.authority, pair.lab_enclave),
        clock=asyncio.get_running_loop().time,
        seed=seeded.append,
    )
    supervisor.stop()
    assert await supervisor.run() == 0
    assert len(seeded) == 1
    unseeded = EnclaveSupervisor(
        pair.enclave_config, FakeNsm(pair.authority, pair.lab_enclave), clock=asyncio.get_running_loop().time, seed=None
    )
    unseeded.stop()
    assert await unseeded.run() == 0


@without_waiting
async def test_no_loopback_no_agent(pair: ServicePair) -> None:
    pair.enclave_kernel.refuses.add("bring_up")
    with pytest.raises(NetlinkSetupError):
        await pair.start_enclave()
    assert pair.enclave_tuns[0]._ours.fileno() == -1


@without_waiting
async def test_an_interface_that_somebody_removes_ends_the_agent(pair: ServicePair) -> None:
    agent = pair.start_enclave()
    pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    pair.enclave_tuns[0].remove()
    with pytest.raises(TunGoneError):
        await agent
    assert (pair.folder / "resolv.conf").read_text() == ORIGINAL
    pair.tasks.remove(agent)
    await pair.down()


@without_waiting
async def test_what_a_killed_agent_left_is_undone_first(pair: ServicePair, caplog: pytest.LogCaptureFixture) -> None:
    pair.start_enclave()
    relay = pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    record = (pair.folder / "enclave/enclave.json").read_text()
    pair.relay.stop()
    await relay
    pair.enclave.stop()
    await pair.tasks[0]
    path = pair.folder / "resolv.conf"
    (pair.folder / "enclave/enclave.json").write_text(record)  # as if it had been killed
    (pair.folder / "enclave/enclave.json").chmod(0o600)
    path.write_text("left by the killed one\n")
    pair.start_enclave()
    await pair.until(lambda: path.read_text() == ORIGINAL, "the recovery")
    await pair.down()
    (pair.folder / "enclave/enclave.json").write_text(record)
    (pair.folder / "enclave/enclave.json").chmod(0o600)
    path.unlink()
    path.mkdir()
    pair.start_enclave()
    await pair.until(lambda: "cannot put" in caplog.text, "the log line")
    await pair.down()


# The application. These run in real time, for their processes do.


def is_running(pair: ServicePair) -> bool:
    return pair.enclave._application is not None and pair.enclave._application.is_running


def run_with_application(pair: ServicePair, command: list[str], act: Any) -> int:
    """Both services and an application in an ordinary event loop; the agent's exit status."""

    async def body() -> int:
        agent = pair.start_enclave(command)
        pair.start_relay()
        try:
            return await asyncio.wait_for(_first(agent, act), 60)
        finally:
            await pair.down()

    async def _first(agent: asyncio.Task[int], act: Any) -> int:
        acting = asyncio.ensure_future(act())
        status = await agent
        await acting
        return status

    return asyncio.run(body())


async def nothing() -> None:
    pass


@pytest.mark.slow
def test_the_application_starts_when_the_link_is_up_and_its_status_is_ours(pair: ServicePair) -> None:
    network = pair.folder / "resolv.conf"
    status = run_with_application(pair, ["sh", "-c", f"grep -q 10.96.0.10 {network} && exit 5; exit 6"], nothing)
    assert status == 5
    assert pair.enclave.status()["application"] == {"running": False}
    assert network.read_text() == ORIGINAL


@pytest.mark.slow
def test_stopping_ends_the_application_first(pair: ServicePair) -> None:
    async def stop() -> None:
        await pair.until(lambda: is_running(pair), "the application")
        pair.enclave.stop()

    assert run_with_application(pair, ["sleep", "600"], stop) == 0


@pytest.mark.slow
def test_an_application_that_ends_in_another_way_when_asked_to(pair: ServicePair) -> None:
    marker = pair.folder / "up"

    async def stop() -> None:
        await pair.until(marker.exists, "the application")
        pair.enclave.stop()

    command = ["sh", "-c", f"trap 'exit 4' TERM; touch {marker}; while :; do sleep 0.01; done"]
    assert run_with_application(pair, command, stop) == 4


@pytest.mark.slow
def test_signals_reach_the_application(pair: ServicePair) -> None:
    async def signal_it() -> None:
        pair.enclave.forward(signal.SIGUSR1)  # to nobody yet
        await pair.until(lambda: is_running(pair), "the application")
        pair.enclave.forward(signal.SIGUSR1)

    assert run_with_application(pair, ["sleep", "600"], signal_it) == 128 + signal.SIGUSR1


@pytest.mark.slow
def test_an_application_that_cannot_be_started(pair: ServicePair) -> None:
    with pytest.raises(ApplicationError):
        run_with_application(pair, ["/no/such/program"], nothing)


@without_waiting
async def test_the_control_socket(pair: ServicePair) -> None:
    pair.start_enclave()
    await pair.until(lambda: is_up(pair), "the start")
    await asyncio.sleep(0.1)
    loop = asyncio.get_running_loop()
    for path, expected in (("/status", '"role": "enclave"'), ("/metrics", "wgvsock_ready")):
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(str(pair.folder / "enclave/enclave.sock"))
            client.send(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            assert expected in (await loop.sock_recv(client, 65536)).decode()
    await pair.down()
