"""An agent's life: identity, configuration, activation, rollback, the application, and everything undone."""

from __future__ import annotations

import asyncio
import base64
import signal
import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from lab.nsm.signer import FakeNsm
from tests import egress_cases
from tests.unit.service_pair import ServicePair, enclave_config
from wgvsock.devices.errors import TunGoneError
from wgvsock.devices.nsm import NsmClient, NsmError
from wgvsock.egress.policy import Packet
from wgvsock.enclave.application.reports import ReportServer
from wgvsock.enclave.errors import ApplicationError, KeyCommitmentError
from wgvsock.enclave.supervisor import EnclaveSupervisor
from wgvsock.provisioning import RETIREMENT, Deadlines
from wgvsock.provisioning.pin import public_key_of
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.netlink import Route
from wgvsock.telemetry.reports import ApplicationState, Phase
from wgvsock.testing import MemoryTun, without_waiting

ORIGINAL = "nameserver 127.0.0.1\n"


def is_up(pair: ServicePair) -> bool:
    return pair.enclave.is_serving


@without_waiting
async def test_what_the_relay_assigns_is_in_force(pair: ServicePair) -> None:
    await pair.up()
    assert pair.enclave_kernel.up[0] == "lo"
    assert [str(address) for address in pair.enclave_kernel.addresses["wg0"]] == ["10.73.0.2/24", "fd73::2/64"]
    assert len(pair.enclave_kernel.routes["wg0"]) == 2
    assert all(isinstance(route, Route) and route.gateway for route in pair.enclave_kernel.routes["wg0"])
    assert "nameserver 10.96.0.10" in (pair.folder / "resolv.conf").read_text()
    status = pair.enclave_status()
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


@pytest.mark.parametrize("pinned", [False, True])
@without_waiting
async def test_without_a_pin_it_says_at_its_start_who_provisions_it(
    pair: ServicePair, caplog: pytest.LogCaptureFixture, pinned: bool
) -> None:
    pin = base64.b64encode(public_key_of(bytes(32))).decode() if pinned else None
    pair.enclave_config = replace(pair.enclave_config, pin_public_key=pin)
    pair.start_enclave()
    await pair.until(lambda: is_up(pair), "the start")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    consequence = "there is no relay pin: the first client to connect can provision this enclave and carry its traffic"
    assert warnings == ([] if pinned else [consequence])
    await pair.down()


@without_waiting
async def test_before_a_relay_comes_there_is_no_peer(pair: ServicePair) -> None:
    pair.start_enclave()
    await pair.until(lambda: is_up(pair), "the start")
    status = pair.enclave_status()
    assert (status["state"], status["ready"], status["network"]) == ("unprovisioned", False, None)
    assert status["wireguard"]["peers"] == []
    await pair.down()


@without_waiting
async def test_a_configuration_that_nobody_proves_is_rolled_back(pair: ServicePair) -> None:
    pair.set_faults(debug=True)  # the relay refuses the document
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: is_up(pair), "the start")
    await pair.until(lambda: pair.enclave_status()["provisioning"]["attempts"]["failed"], "the refusal")
    pair.relay.stop()
    await pair.until(lambda: pair.enclave_kernel.addresses.get("wg0") == [], "the rollback")
    assert pair.enclave_kernel.routes["wg0"] == []
    assert (pair.folder / "resolv.conf").read_text() == ORIGINAL
    assert not pair.enclave_status()["wireguard"]["peers"]
    await pair.down()


@without_waiting
async def test_a_relay_that_lost_everything_is_taken_once_the_old_one_is_silent(pair: ServicePair) -> None:
    """The pod is gone, and its seed too. The enclave has no pin."""
    await pair.up()
    pair.relay.stop()
    await pair.tasks.pop()
    (pair.folder / f"relay/{pair.config.name}.key").unlink()
    began = asyncio.get_running_loop().time()
    pair.start_relay()
    await pair.until(lambda: pair.enclave_status()["provisioning"]["attempts"]["failed"], "the refusal")
    assert not pair.is_ready()
    await pair.until(pair.is_ready, "the adoption")
    assert asyncio.get_running_loop().time() - began > Deadlines().silence - 30
    await pair.down()


@without_waiting
async def test_a_refused_successor_leaves_what_works(pair: ServicePair) -> None:
    await pair.up()
    before = pair.enclave_status()["wireguard"]["peers"][0]["public_key"]
    pair.set_faults(debug=True)
    pair.relay.reattest()
    await pair.until(lambda: pair.enclave_status()["provisioning"]["attempts"]["failed"], "the refusal")
    await pair.until(lambda: len(pair.enclave_status()["wireguard"]["peers"]) == 1, "the rollback")
    assert pair.enclave_status()["wireguard"]["peers"][0]["public_key"] == before
    assert pair.enclave_kernel.addresses["wg0"]
    await pair.down()


@without_waiting
async def test_a_successor_takes_over_and_the_old_peer_retires(pair: ServicePair) -> None:
    await pair.up()
    old = pair.enclave_status()["wireguard"]["peers"][0]["public_key"]
    pair.reloaded = lambda: replace(pair.config, dns=replace(pair.config.dns, search=("new.test",)))
    pair.relay.reload()
    await pair.until(lambda: "new.test" in (pair.folder / "resolv.conf").read_text(), "the successor")
    both = {peer["public_key"]: peer for peer in pair.enclave_status()["wireguard"]["peers"]}
    assert len(both) == 2
    assert both[old]["allowed_ips"] == []
    await asyncio.sleep(RETIREMENT + 1)
    (peer,) = pair.enclave_status()["wireguard"]["peers"]
    assert peer["public_key"] != old
    assert peer["allowed_ips"] == ["0.0.0.0/0", "::/0"]
    await pair.down()


@without_waiting
async def test_a_kernel_that_refuses_is_reported_to_the_relay(pair: ServicePair) -> None:
    pair.enclave_kernel.refuses.add("set_routes")
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the failure")
    assert pair.status()["provisioning"]["error"]["code"] == "WGV-E049"
    pair.enclave_kernel.refuses.clear()
    await pair.until(pair.is_ready, "a correct attempt")
    await pair.down()


@without_waiting
async def test_a_module_that_fails_is_reported_to_the_relay(pair: ServicePair) -> None:
    class Module(FakeNsm):
        fails = False

        def request(self, request: bytes) -> bytes:
            if self.fails:
                raise NsmError("no document", why="the test says so")
            return super().request(request)

    module = Module(pair.authority, pair.lab_enclave)
    pair.start_enclave(module=module)
    await pair.until(lambda: is_up(pair), "the start")
    module.fails = True
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the failure")
    assert pair.status()["provisioning"]["error"]["code"] == "WGV-E046"
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
        pair.enclave_config, pair.enclave_machine, FakeNsm(pair.authority, pair.lab_enclave), seed=seeded.append
    )
    supervisor.stop()
    assert await supervisor.run() == 0
    assert len(seeded) == 1
    unseeded = EnclaveSupervisor(
        pair.enclave_config, pair.enclave_machine, FakeNsm(pair.authority, pair.lab_enclave), seed=None
    )
    unseeded.stop()
    assert await unseeded.run() == 0


@without_waiting
async def test_no_loopback_no_agent(pair: ServicePair) -> None:
    pair.enclave_kernel.refuses.add("bring_up")
    with pytest.raises(NetlinkSetupError):
        await pair.start_enclave()
    assert pair.enclave_tuns[0].fileno() == -1


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
    await pair.until(lambda: "cannot restore" in caplog.text, "the log line")
    await pair.down()


# The application. These run in real time, for their processes do.


def application_of(pair: ServicePair) -> bool | None:
    """Whether it is running. None: it was not started."""
    state = pair.enclave.snapshot().application if pair.enclave.is_serving else None
    return None if state is None else state.phase is Phase.RUNNING


def is_running(pair: ServicePair) -> bool:
    return application_of(pair) is True


def run_with_application(pair: ServicePair, command: list[str], act: Any) -> int:
    """Run both services and an application in an ordinary event loop. Returns the agent's exit status."""

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

    async def ends() -> None:
        await pair.until(lambda: application_of(pair) is False, "the application's end")

    status = run_with_application(pair, ["sh", "-c", f"grep -q 10.96.0.10 {network} && exit 5; exit 6"], ends)
    assert status == 5
    assert pair.enclave._ring.acknowledged == pair.enclave._ring.last == 2  # the relay has heard of the end
    assert network.read_text() == ORIGINAL


@without_waiting
@pytest.mark.parametrize("command", [["sleep", "600"], []], ids=["application", "none"])
async def test_a_relay_reads_that_there_is_a_probe_before_the_application_starts(
    pair: ServicePair, command: list[str]
) -> None:
    """Otherwise it would be ready for a moment, as with an application without a probe."""
    application = replace(pair.enclave_config.application, ready="exec:/bin/true")
    pair.enclave_config = replace(pair.enclave_config, application=application)
    pair.start_enclave(command)
    await pair.until(lambda: pair.enclave.is_serving, "the agent to listen")
    assert pair.enclave._ring.state == ApplicationState(probed=bool(command))
    await pair.down()


@pytest.mark.slow
def test_stopping_ends_the_application_first(pair: ServicePair) -> None:
    async def stop() -> None:
        await pair.until(lambda: is_running(pair), "the application")
        pair.enclave.stop()

    assert run_with_application(pair, ["sleep", "600"], stop) == 0


@pytest.mark.slow
def test_both_are_stopped_at_once(pair: ServicePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay was still there when the application ended, and went without acknowledging the last report."""
    waiting: list[float] = []

    async def delivered(reports: ReportServer, seconds: float) -> None:
        waiting.append(seconds)
        await asyncio.sleep(seconds)

    monkeypatch.setattr(ReportServer, "delivered", delivered)
    pair.enclave_config = replace(pair.enclave_config, stop_timeout=3600.0)

    async def stop() -> None:
        await pair.until(lambda: is_running(pair), "the application")
        pair.enclave.stop()
        await pair.until(lambda: waiting, "the agent to wait for the relay")
        pair.relay.stop()

    assert run_with_application(pair, ["sleep", "600"], stop) == 0
    assert waiting == [3600.0]


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


SYN = memoryview(egress_cases.raw(Packet(ip_address("203.0.113.1"), 6, 443)))
QUERY = memoryview(egress_cases.raw(Packet(ip_address("10.96.0.10"), 17, 53)))


def datagrams(tun: MemoryTun) -> list[bytes]:
    """TCP and UDP that a kernel in memory received. The relay's probe of the path pings."""
    found = []
    while (packet := tun.take()) is not None:
        found.append(packet[tun.packet_headroom :])
    return [packet for packet in found if packet[9] in {6, 17}]


@pytest.mark.parametrize("measured", [True, False])
@without_waiting
async def test_the_image_s_policy_holds_whatever_the_relay_lets_through(pair: ServicePair, measured: bool) -> None:
    extra = '[egress]\ndefault = "deny"' if measured else ""
    pair.enclave_config = enclave_config(pair.folder, extra)
    await pair.up()
    (tun,), (relay_tun,) = pair.enclave_tuns, pair.relay_tuns
    own = ip_address("10.73.0.2").packed
    for packet in (SYN, QUERY):
        tun.inject(bytes(tun.packet_headroom) + packet[:12] + own + packet[16:])
    arrived: list[bytes] = []

    def has_arrived() -> bool:
        arrived.extend(datagrams(relay_tun))
        return any(packet[9] == 17 for packet in arrived)

    await pair.until(has_arrived, "the query")
    assert [packet[9] for packet in arrived] == ([17] if measured else [6, 17])
    told = datagrams(tun)
    status = pair.enclave_status()
    if measured:
        assert [(packet[9], packet[33]) for packet in told] == [(6, 0x14)]  # a reset
        assert status["egress"]["denied"] == {"default": 1}
        assert status["egress"]["refused"][0]["destination"] == "203.0.113.1"
        assert status["counters"]["dropped"]["egress_denied"] == 1
    else:
        assert told == []
        assert status["egress"] is None
    await pair.down()
