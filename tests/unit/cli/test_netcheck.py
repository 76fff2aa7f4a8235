"""The first broken layer, with its remedy, and no request beyond it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.statuses import REFUSED, broken, enclave, refused_enclave, relay
from tests.unit.cli.test_ping import DOWN, HANDSHAKE, IP, NO_SESSION, SILENT, STREAM
from tests.unit.control_sockets import ControlSockets
from wgvsock.cli import main
from wgvsock.cli.netcheck import check, render
from wgvsock.telemetry.endpoint import Answer, Inquiry, Routes, as_json

SOCKET = "/run/wgvsock/relay.sock"
COMMAND = ("netcheck", "--socket", SOCKET)
GOLDEN = Path(__file__).parent / "golden"
WELL = {"server": "10.0.0.2", "ok": True, "ms": 1.2, "why": ""}
DEAD = {"server": "10.0.0.3", "ok": False, "ms": None, "why": "no answer within 1.5 s"}
WORLD = {"destination": "www.lab.test:443", "ok": True, "ms": 23.0, "why": "", "denied": ""}
NO_ROUTE = {"code": "WGV-E082", "what": "cannot find the uplink",
            "why": "there is no default route", "fix": 'set "uplink" in [nat]'}  # fmt: skip


class Relay:
    """A relay with this answer."""

    def __init__(self, sockets: ControlSockets) -> None:
        self.sockets = sockets
        self.asked: list[str] = []
        self.serve()

    def serve(self, status: Any = None, *, ping: Any = None, names: Any = None, world: Any = WORLD) -> None:
        layers = {"stream": STREAM, "handshake": HANDSHAKE, "ip": IP, **(ping or {})}

        async def look(query: Any) -> Answer:
            self.asked.append("ping")
            return as_json({"schema": "wgvsock/v1", "enclave": "wallet", **layers})

        async def beyond(query: Any) -> Answer:
            self.asked.append(f"netcheck {query.get('world')}")
            found = [WELL] if names is None else names
            return as_json({"schema": "wgvsock/v1", "enclave": "wallet", "names": found, "world": world})

        status = status or relay()
        routes: Routes = {("GET", "/status"): lambda: as_json(status), ("POST", "/ping"): Inquiry(look),
                  ("POST", "/netcheck"): Inquiry(beyond)}  # fmt: skip
        self.sockets.serve(SOCKET, routes)


@pytest.fixture
def served(sockets: ControlSockets) -> Relay:
    return Relay(sockets)


def states() -> list[tuple[str, str]]:
    return [(one.layer, one.state) for one in check(SOCKET, None, None)]


ALL = ["attestation", "stream", "handshake", "path", "way out", "names", "world", "application", "clock"]


def test_all_is_well(served: Relay, prints: Callable[..., str]) -> None:
    assert states() == [(layer, "ok") for layer in ALL]
    assert prints(*COMMAND).splitlines()[0] == "  attestation  ok        attested 12 min 3 s ago"


@pytest.mark.parametrize(
    ("changes", "layer", "words"),
    [
        ({"status": relay(refused_enclave())}, "attestation", "the enclave was refused"),
        ({"ping": {"stream": DOWN, "handshake": NO_SESSION, "ip": SILENT}}, "stream", ""),
        ({"ping": {"handshake": NO_SESSION, "ip": SILENT}}, "handshake", ""),
        ({"ping": {"ip": {**SILENT, "path": False}}}, "path", "no longer answers"),
        (
            {"status": relay(enclave(conditions=broken(uplink=False), nat={"problem": NO_ROUTE}))},
            "way out",
            "there is no default route (WGV-E082)",
        ),
        ({"names": [DEAD]}, "names", "no name server answers: 10.0.0.3: no answer within 1.5 s"),
        ({"world": {**WORLD, "ok": False, "ms": None, "why": "no connection"}}, "world", "www.lab.test:443: no conn"),
        (
            {"status": relay(enclave(conditions=broken(application=False), application={"why": "timed out"}))},
            "application",
            "the application is not ready: timed out",
        ),
    ],
)
def test_it_stops_at_the_first_broken_layer(
    served: Relay, changes: dict[str, Any], layer: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served.serve(**changes)
    found = list(check(SOCKET, None, None))
    assert [one.layer for one in found] == ALL[: ALL.index(layer) + 1]
    assert found[-1].state == "broken"
    assert words in found[-1].what
    assert found[-1].fix
    assert main(COMMAND) == 6
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error[WGV-E102]: {layer} is broken\n")
    assert "broken    " in captured.out.splitlines()[-1] or "broken" in captured.out


@pytest.mark.parametrize(
    ("changes", "layer", "words"),
    [
        ({"ping": {"ip": {**IP, "rtt_ms": 603.0}}}, "path", "the round trip takes 603 ms"),
        ({"ping": {"ip": {**SILENT, "path": None}}}, "path", "has never answered"),
        ({"names": [WELL, DEAD]}, "names", "10.0.0.2 in 1.20 ms; failed: 10.0.0.3: no answer"),
        ({"names": []}, "names", "there is no name server"),
        ({"world": {**WORLD, "denied": "denied by default"}}, "world", "the policy keeps the enclave from it"),
        ({"status": relay(enclave(clock_offset_seconds=10.1))}, "clock", "10 s ahead of the relay's"),
        ({"status": relay(enclave(attestation={"exchange_ms": 5000}))}, "attestation", "5.0 s for its document"),
        ({"status": relay(reload={"ok": False, "error": REFUSED, "enclaves": {}})}, "reload", "was refused"),
    ],
)
def test_what_is_not_as_it_should_be_is_told_and_stops_nothing(
    served: Relay, changes: dict[str, Any], layer: str, words: str
) -> None:
    served.serve(**changes)
    found = list(check(SOCKET, None, None))
    (warning,) = [one for one in found if one.state == "warning"]
    assert warning.layer == layer
    assert words in warning.what
    assert found[-1].layer in {"clock", "reload"}
    assert main(COMMAND) == 4


def test_an_enclave_that_answers_no_echo_and_sends_packets(served: Relay) -> None:
    served.serve(ping={"ip": {**SILENT, "path": True}})
    assert ("path", "ok") in states()


def test_a_world_that_nobody_named_is_not_asked(served: Relay) -> None:
    served.serve(world=None)
    assert ("world", "not asked") in states()


def test_where_to_connect_is_passed_on(served: Relay) -> None:
    main([*COMMAND, "--world", "198.51.100.1:80"])
    assert served.asked == ["ping", "netcheck 198.51.100.1:80"]


def test_as_json(served: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    served.serve(names=[DEAD])
    assert main([*COMMAND, "--json"]) == 6
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["broken"], answer["schema"]) == (False, "names", "wgvsock/v1")
    assert [layer["layer"] for layer in answer["layers"]] == ALL[:6]


def test_of_several_enclaves_one_has_to_be_named(served: Relay, fails: Callable[..., Any]) -> None:
    served.serve(relay(enclave(), enclave(name="vault")))
    assert fails(*COMMAND, status=2).why == "it serves wallet, vault"
    assert fails(*COMMAND, "x", status=2).what == "the relay has no enclave x"
    assert main([*COMMAND, "wallet"]) == 0
    served.serve({**relay(), "enclaves": []})
    assert fails(*COMMAND, status=2).fix == "see wgvsock status"


def test_a_destination_that_is_none(served: Relay, fails: Callable[..., Any]) -> None:
    async def refuse(_query: Any) -> Answer:
        return as_json({"schema": "wgvsock/v1", "error": {"code": "WGV-E001", "what": "no destination", "why": "x"}})

    async def look(_query: Any) -> Answer:
        layers = {"stream": STREAM, "handshake": HANDSHAKE, "ip": IP}
        return as_json({"schema": "wgvsock/v1", "enclave": "wallet", **layers})

    routes: Routes = {("GET", "/status"): lambda: as_json(relay()), ("POST", "/ping"): Inquiry(look),
              ("POST", "/netcheck"): Inquiry(refuse)}  # fmt: skip
    served.sockets.serve(SOCKET, routes)
    assert fails(*COMMAND, "--world", "x", status=2).what == "no destination"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_golden_text(served: Relay, columns: int) -> None:
    served.serve(relay(enclave(clock_offset_seconds=10.1)), names=[WELL, DEAD])
    lines = [line.text for line in render(check(SOCKET, None, None), columns)]
    shown = "\n".join(lines) + "\n"
    assert shown == (GOLDEN / f"netcheck-{columns}.txt").read_text(encoding="utf-8")
    assert max(map(len, lines)) <= columns
