"""The process around the enclaves: its orders over the control socket, and their outcome."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.unit.service_pair import ServicePair
from wgvsock.addresses import UnixAddress
from wgvsock.enclave.application.ring import Ring
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.relay.application_settings import ApplicationSettings as RelaysSide
from wgvsock.relay.config import EnclaveEntry
from wgvsock.relay.sections import EnclaveSettings, HealthSettings, InterfaceSettings
from wgvsock.system.errors import NetfilterError
from wgvsock.telemetry.reports import ApplicationState, Phase
from wgvsock.testing import without_waiting


async def ask(path: Path, request: str) -> tuple[int, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(f"{request} HTTP/1.1\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


@without_waiting
async def test_a_replacement_that_cannot_be_is_refused_with_the_reason(pair: ServicePair) -> None:
    await pair.up()
    control = pair.folder / "relay/relay.sock"
    status, answer = await ask(control, "POST /replace?enclave=wallet&image=/b.eif")
    assert (status, answer["error"]["code"], answer["error"]["why"]) == (409, "WGV-E084", "this relay serves enclave")
    status, answer = await ask(control, "POST /replace?enclave=enclave&image=/b.eif")
    assert (status, answer["error"]["why"]) == (409, "this relay attached to it and did not launch it")
    assert answer["fix"]
    await pair.down()


@without_waiting
async def test_several_enclaves_are_served_and_told_of_each_by_itself(pair: ServicePair) -> None:
    settings = pair.config.enclave
    one = EnclaveEntry("one", settings.address, settings.provisioning_address)
    two = EnclaveEntry("two", UnixAddress(str(pair.folder / "no")),
                       UnixAddress(str(pair.folder / "no-too")))  # fmt: skip
    pair.config = replace(pair.config, enclave=EnclaveSettings(), interface=InterfaceSettings(), enclaves=(one, two))
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: len(pair.relay.fleet.members) == 2, "both")
    await pair.until(lambda: pair.relay.fleet.attendants[0].readiness().ready, "the first one's readiness")
    status, answer = await ask(pair.folder / "relay/relay.sock", "GET /status")
    assert status == 200
    assert [(enclave["name"], enclave["ready"]) for enclave in answer["enclaves"]] == [("one", True), ("two", False)]
    assert not answer["ready"]
    assert (await ask(pair.folder / "relay/relay.sock", "GET /ready"))[0] == 503
    assert set(pair.filter.tables) == {"wgvsock-relay/one", "wgvsock-relay/two"}
    assert "masquerade" in pair.filter.tables["wgvsock-relay/one"]
    assert "masquerade" not in pair.filter.tables["wgvsock-relay/two"]
    await pair.down()
    assert pair.filter.tables == {}


@without_waiting
async def test_a_stop_that_comes_while_rooms_are_opened_is_heeded(pair: ServicePair) -> None:
    relay = pair.start_relay()
    pair.relay.stop()
    await asyncio.wait_for(relay, 10)
    assert pair.filter.tables == {}


@without_waiting
async def test_what_would_become_of_a_connection(pair: ServicePair) -> None:
    await pair.up()
    control = pair.folder / "relay/relay.sock"
    status, answer = await ask(control, "GET /egress/test?destination=169.254.169.254:80&protocol=tcp&enclave=")
    assert (status, answer["outcomes"]["enclave"][0]["allowed"]) == (200, False)
    status, answer = await ask(control, "GET /egress/test?destination=203.0.113.1&protocol=icmp&enclave=enclave")
    assert (status, answer["outcomes"]["enclave"][0]["why"]) == (200, "allowed by default")
    status, answer = await ask(control, "GET /egress/test?destination=203.0.113.1:80&enclave=wallet")
    assert (status, answer["enclaves"]) == (404, ["enclave"])
    status, answer = await ask(control, "GET /egress/test?destination=203.0.113.1")
    assert (status, answer["error"]["code"]) == (400, "WGV-E001")
    await pair.down()


@without_waiting
async def test_a_reload_answers_with_what_became_of_it(pair: ServicePair) -> None:
    await pair.up()
    control = pair.folder / "relay/relay.sock"
    status, answer = await ask(control, "POST /reload")
    assert (status, answer["ok"], answer["enclaves"]) == (200, True, {"enclave": {"done": True, "error": None}})
    pair.reloaded = lambda: replace(pair.config, name="other")
    status, answer = await ask(control, "POST /reload")
    assert (answer["ok"], answer["done"], answer["enclaves"]) == (False, True, {})
    error = answer["error"]
    assert (error["code"], error["why"], error["exit"]) == ("WGV-E083", '"name" has changed', 2)
    _, told = await ask(control, "GET /status")
    assert (told["reload"]["ok"], told["reload"]["error"]["code"]) == (False, "WGV-E083")
    assert (await ask(control, "GET /order?number=2"))[1] == answer
    assert (await ask(control, "GET /order?number=99"))[0] == 404
    await pair.down()


@without_waiting
async def test_a_reload_that_the_machine_refuses_is_no_success(pair: ServicePair) -> None:
    await pair.up()
    attendant = pair.attendant

    async def refuse(spec: Any, tunnel_config: Any) -> None:
        raise NetfilterError("cannot install the rules", why="the kernel refused")

    before, attendant.room.put_in_force = attendant.room.put_in_force, refuse  # type: ignore[method-assign]
    _, answer = await ask(pair.folder / "relay/relay.sock", "POST /reload")
    assert (answer["ok"], answer["enclaves"]["enclave"]["error"]["code"]) == (False, "WGV-E052")
    attendant.room.put_in_force = before  # type: ignore[method-assign]
    await pair.down()


@without_waiting
async def test_an_attestation_that_was_ordered_has_an_outcome(pair: ServicePair) -> None:
    await pair.up()
    control = pair.folder / "relay/relay.sock"
    _, answer = await ask(control, "POST /reattest")
    assert answer["done"] is False
    _, answer = await ask(control, f"GET /order?number={answer['order']}")
    assert (answer["done"], answer["ok"]) == (True, True)
    pair.set_faults(pcrs={0: bytes([5]) * 48})
    _, answer = await ask(control, "POST /reattest")
    _, answer = await ask(control, f"GET /order?number={answer['order']}")
    assert (answer["enclaves"]["enclave"]["error"]["exit"], answer["ok"]) == (5, False)
    await pair.down()


# The application's life. Its agent's ring is written by the test: no process runs.


def ring_of(pair: ServicePair) -> Ring:
    return pair.enclave._ring


RUNNING = ApplicationState(Phase.RUNNING, starts=1)


@without_waiting
async def test_status_readiness_and_metrics_follow_the_application(pair: ServicePair) -> None:
    pair.enclave_config = replace(pair.enclave_config, application=ApplicationSettings(ready="tcp:127.0.0.1:80"))
    control = pair.folder / "relay/relay.sock"
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up and pair.attendant.room.application.asked, "the reports")
    await pair.until(lambda: pair.is_set_up and pair.attendant.room.application.connected, "the reports")
    probed = replace(RUNNING, probed=True, ready=False, why="Connection refused")
    ring_of(pair).change("started", probed, 0)
    await pair.until(lambda: pair.status()["application"], "the application")
    began = asyncio.get_running_loop().time()
    status, answer = await ask(control, "GET /ready")
    assert (status, answer["enclaves"]["enclave"]["application"]) == (503, False)
    ring_of(pair).change("ready", replace(probed, ready=True, why=""), 0)
    await pair.until(pair.is_ready, "readiness")
    ring_of(pair).change("exited", probed.ended(3, Phase.RESTARTING), 0)
    await pair.until(lambda: not pair.is_ready(), "the end")
    assert asyncio.get_running_loop().time() - began < 1
    application = pair.status()["application"]
    assert (application["phase"], application["exit_status"]) == ("restarting", 3)
    await pair.down()


@pytest.mark.parametrize(("on_exit", "status"), [("stop", 3), ("restart", 0)])
@without_waiting
async def test_the_relay_ends_with_the_application_only_when_told_to(
    pair: ServicePair, on_exit: Literal["stop", "restart"], status: int
) -> None:
    pair.config = replace(pair.config, application=RelaysSide(on_exit=on_exit))
    pair.start_enclave()
    relay = pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    ring_of(pair).write("stdout", b"last words\n", 0)
    ring_of(pair).change("exited", RUNNING.ended(3, Phase.ENDED), 0)
    await pair.until(lambda: ring_of(pair).acknowledged == 2, "the acknowledgement")
    if on_exit == "restart":
        await asyncio.sleep(60)
        assert not relay.done()
        pair.relay.stop()
    assert await relay == status
    assert pair.shown == ["enclave=enclave stream=stdout last words"]
    assert pair.filter.tables == {}
    await pair.down()


@without_waiting
async def test_output_stays_off_the_standard_output_where_that_is_wanted(pair: ServicePair) -> None:
    pair.config = replace(pair.config, application=RelaysSide(output=False))
    await pair.up()
    ring_of(pair).write("stdout", b"hello\n", 0)
    await pair.until(lambda: pair.attendant.room.application.last_line, "the line")
    assert pair.shown == []
    await pair.down()


@without_waiting
async def test_logs_by_number_and_with_patience(pair: ServicePair) -> None:
    await pair.up()
    control = pair.folder / "relay/relay.sock"
    ring_of(pair).write("stdout", b"one\ntwo\n", 0)
    await pair.until(lambda: pair.attendant.room.application.last_line == 2, "the lines")
    _, answer = await ask(control, "GET /logs")
    assert [line["text"] for line in answer["lines"]] == ["one", "two"]
    assert (answer["enclave"], answer["last"]) == ("enclave", 2)
    _, answer = await ask(control, "GET /logs?after=1&enclave=enclave")
    assert [line["text"] for line in answer["lines"]] == ["two"]
    waiting = asyncio.ensure_future(ask(control, "GET /logs?after=2&wait=1"))
    await asyncio.sleep(1)
    assert not waiting.done()
    ring_of(pair).write("stderr", b"three\n", 0)
    _, answer = await waiting
    assert [line["text"] for line in answer["lines"]] == ["three"]
    _, answer = await ask(control, "GET /logs?after=3&wait=1")
    assert (answer["lines"], answer["last"]) == ([], 3)
    for odd in ("99", "x", "-1", "9" * 30):  # of another process of the relay, or nonsense: from the beginning
        _, answer = await ask(control, f"GET /logs?after={odd}")
        assert len(answer["lines"]) == 3
    status, answer = await ask(control, "GET /logs?enclave=other")
    assert (status, answer["enclaves"]) == (404, ["enclave"])
    await pair.down()


@without_waiting
async def test_logs_and_signals_are_for_the_control_socket_alone(pair: ServicePair) -> None:
    health = UnixAddress(str(pair.folder / "health.sock"))
    pair.config = replace(pair.config, health=HealthSettings(listen=health, expose=("status",)))
    await pair.up()
    for request in ("GET /logs", "POST /signal?name=HUP"):
        reader, writer = await asyncio.open_unix_connection(health.path)
        writer.write(f"{request} HTTP/1.1\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 404")
        writer.close()
    await pair.down()


@without_waiting
async def test_signals_go_through_the_tunnel(pair: ServicePair) -> None:
    pair.enclave_config = replace(pair.enclave_config, application=ApplicationSettings(signals=("HUP",)))
    await pair.up()
    control = pair.folder / "relay/relay.sock"
    status, answer = await ask(control, "POST /signal?name=HUP")
    assert (status, answer["sent"], answer["why"]) == (409, False, "the application is not running")
    _, answer = await ask(control, "POST /signal?name=TERM")
    assert answer["why"] == "the image permits HUP"
    assert (await ask(control, "POST /signal?name=HUP&enclave=x"))[0] == 404
    pair.enclave_machine.in_tunnel.clear()
    _, answer = await ask(control, "POST /signal?name=HUP")
    assert not answer["sent"]
    await pair.down()


@without_waiting
async def test_a_relay_that_starts_again_shows_nothing_twice(pair: ServicePair) -> None:
    await pair.up()
    ring_of(pair).write("stdout", b"one\n", 0)
    await pair.until(lambda: ring_of(pair).acknowledged == 1, "the acknowledgement")
    pair.relay.stop()
    await pair.tasks.pop()
    pair.start_relay()
    await pair.until(pair.is_ready, "readiness")
    ring_of(pair).write("stdout", b"two\n", 0)
    await pair.until(lambda: len(pair.shown) > 1, "the line")
    assert pair.shown == ["enclave=enclave stream=stdout one", "enclave=enclave stream=stdout two"]
    await pair.down()
