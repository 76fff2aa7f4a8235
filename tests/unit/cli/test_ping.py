"""Each layer of a tunnel with its times, a summary, and the first layer without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cli.conftest import Failure
from tests.unit.control_sockets import ControlSockets, text
from wgvsock.cli import main
from wgvsock.cli.ping import _parse, render, render_summary, summarise, unanswered
from wgvsock.errors import TransportError
from wgvsock.telemetry.endpoint import Answer, Inquiry, as_json

SOCKET = "/run/wgvsock/relay.sock"
COMMAND = ("ping", "--socket", SOCKET)
STREAM = {"ok": True, "connected_seconds": 61.4, "connect_ms": 0.412}
HANDSHAKE = {"ok": True, "age_seconds": 41.2, "took_ms": 2.113}
IP = {"ok": True, "destination": "10.73.0.2", "rtt_ms": 0.395, "path": True}
DOWN = {"ok": False, "connected_seconds": None, "connect_ms": None}
NO_SESSION = {"ok": False, "age_seconds": None, "took_ms": None}
SILENT = {**IP, "ok": False, "rtt_ms": None}
LAYERS = "stream 0.412 ms to connect, 61 s ago | handshake 2.113 ms, 41 s ago | ip 0.395 ms"


def answer(**changes: Any) -> dict[str, Any]:
    layers = {"stream": STREAM, "handshake": HANDSHAKE, "ip": IP}
    return {"schema": "wgvsock/v1", "enclave": "wallet", **layers, **changes}


def serve(sockets: ControlSockets, *answers: dict[str, Any]) -> list[Mapping[str, str]]:
    """A relay with these answers, the last one repeated. Returns the requests."""
    queries: list[Mapping[str, str]] = []

    async def reply(query: Mapping[str, str]) -> Answer:
        await asyncio.sleep(0)
        queries.append(query)
        return as_json(answers[min(len(queries), len(answers)) - 1])

    sockets.serve(SOCKET, {("POST", "/ping"): Inquiry(reply)})
    return queries


def test_every_round_shows_every_layer(sockets: ControlSockets, prints: Callable[..., str]) -> None:
    queries = serve(sockets, answer(), answer(ip={**IP, "rtt_ms": 0.405}), answer(ip={**IP, "rtt_ms": 0.5}))
    assert prints(*COMMAND, "-c", "3", "-i", "0").splitlines() == [
        "wallet (10.73.0.2)",
        f"1: {LAYERS}",
        f"2: {LAYERS.replace('0.395', '0.405')}",
        f"3: {LAYERS.replace('0.395', '0.500')}",
        "--- wallet: 3 rounds, 3 answered, 0% lost",
        "rtt min/avg/max = 0.395/0.433/0.500 ms",
    ]
    assert queries == [{}] * 3


def test_rounds_are_a_second_apart(
    sockets: ControlSockets, prints: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = serve(sockets, answer())
    slept: list[float] = []
    monkeypatch.setattr("wgvsock.cli.ping.time.sleep", slept.append)
    prints(*COMMAND, "wallet &c=1")
    assert slept == [1.0] * 3
    assert queries == [{"enclave": "wallet &c=1"}] * 4


def test_a_lost_round_is_counted_and_no_failure(sockets: ControlSockets, prints: Callable[..., str]) -> None:
    serve(sockets, answer(ip=SILENT), answer(), answer(), answer(ip=SILENT))
    lines = prints(*COMMAND, "-i", "0").splitlines()
    assert lines[1] == f"1: {LAYERS.replace('0.395 ms', 'NO REPLY')}"
    assert lines[5:] == ["--- wallet: 4 rounds, 2 answered, 50% lost", "rtt min/avg/max = 0.395/0.395/0.395 ms"]


def test_what_programs_read(sockets: ControlSockets, prints_json: Callable[..., dict[str, Any]]) -> None:
    serve(sockets, answer(), answer(ip=SILENT))
    got = {
        "stream": {"ok": True, "ms": 0.412, "age_seconds": 61.4},
        "handshake": {"ok": True, "ms": 2.113, "age_seconds": 41.2},
    }
    assert prints_json(*COMMAND, "-c", "2", "-i", "0") == {
        "schema": "wgvsock/v1",
        "enclave": "wallet",
        "destination": "10.73.0.2",
        "rounds": [{**got, "ip": {"ok": True, "ms": 0.395}}, {**got, "ip": {"ok": False, "ms": None}}],
        "sent": 2,
        "answered": 1,
        "lost_percent": 50.0,
        "rtt_ms": {"min": 0.395, "avg": 0.395, "max": 0.395},
        "path": True,
        "failed": None,
    }


@pytest.mark.parametrize(
    ("changes", "shown", "error"),
    [
        (
            {"stream": DOWN, "handshake": NO_SESSION, "ip": {**SILENT, "destination": None, "path": None}},
            "stream DOWN | handshake NONE | ip NO REPLY",
            ("wallet: no stream", "no connection to the enclave's port has proved", "that the enclave is running"),
        ),
        (
            {"handshake": NO_SESSION, "ip": {**SILENT, "path": None}},
            "ms to connect, 61 s ago | handshake NONE | ip NO REPLY",
            ("wallet: no WireGuard session", "no session keys that both sides", "that the enclave is attested"),
        ),
        (
            {"ip": {**SILENT, "path": False}},
            "41 s ago | ip NO REPLY",
            ("wallet: no reply to an echo request", "no longer answers", "inside the enclave"),
        ),
        (
            {"ip": {**SILENT, "path": None}},
            "NO REPLY",
            ("wallet: no reply", "has never answered", "icmp_echo_ignore_all"),
        ),
        ({"ip": SILENT}, "NO REPLY", ("wallet: no reply", "packets from the enclave arrive", "nothing is broken")),
    ],
    ids=["stream", "handshake", "a path that died", "a path that never was", "ICMP dropped"],
)
def test_the_first_layer_that_does_not_answer_is_named(
    sockets: ControlSockets,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    shown: str,
    error: tuple[str, str, str],
) -> None:
    serve(sockets, answer(**changes))
    assert main((*COMMAND, "-c", "2", "-i", "0")) == 1
    captured = capsys.readouterr()
    assert shown in captured.out.splitlines()[1]
    assert captured.out.splitlines()[-1] == "--- wallet: 2 rounds, 0 answered, 100% lost"
    for line, words in zip(captured.err.splitlines(), error, strict=True):
        assert words in line
    assert captured.err.startswith("error[WGV-E057]: ")


def test_a_relay_that_does_not_run(sockets: ControlSockets, fails: Callable[..., Failure]) -> None:
    assert fails(*COMMAND, status=3).code == "WGV-E087"
    sockets.serve(SOCKET, {("GET", "/status"): text("older")})
    assert "does not support POST /ping" in fails(*COMMAND, status=6).why


@pytest.mark.parametrize(
    ("name", "known", "error"),
    [
        (None, ["vault", "wallet"], ("cannot tell which enclave to probe", "it serves vault, wallet")),
        ("nobody", ["wallet"], ("the relay has no enclave nobody", "it serves wallet")),
        ("wallet", [], ("the relay has no enclave wallet", "it serves none at present")),
    ],
)
def test_an_enclave_has_to_be_named_as_the_relay_does(
    sockets: ControlSockets, fails: Callable[..., Failure], name: str | None, known: list[str], error: tuple[str, str]
) -> None:
    serve(sockets, {"schema": "wgvsock/v1", "enclave": None, "enclaves": known})
    failure = fails(*COMMAND, *([name] if name else []), status=2)
    assert (failure.code, failure.what, failure.why) == ("WGV-E001", *error)


def test_an_interrupted_ping_ends_with_its_summary(
    sockets: ControlSockets, prints: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(sockets, answer())

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wgvsock.cli.ping.time.sleep", interrupted)
    assert prints(*COMMAND, "-c", "9").splitlines()[2] == "--- wallet: 1 round, 1 answered, 0% lost"
    monkeypatch.setattr("wgvsock.cli.ping.look", lambda *_: interrupted(0))
    assert main(COMMAND) == 130


@pytest.mark.parametrize(
    "argv", [("-c", "0"), ("-c", "100001"), ("-c", "x"), ("-i", "-1"), ("-i", "nan"), ("-i", "3601")]
)
def test_rounds_and_pauses_have_limits(argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main((*COMMAND, *argv))
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": None},
        {"stream": {"ok": True}},
        {"handshake": {**HANDSHAKE, "took_ms": "2"}},
        {"handshake": {**HANDSHAKE, "took_ms": -1}},
        {"ip": {**IP, "rtt_ms": 10**400}},
        {"ip": [IP]},
    ],
    ids=str,
)
def test_what_is_no_answer_is_told(
    sockets: ControlSockets, fails: Callable[..., Failure], changes: dict[str, Any]
) -> None:
    serve(sockets, answer(**changes))
    assert "not one to a ping" in fails(*COMMAND, status=6).why


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*IP, *STREAM, *HANDSHAKE]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["enclave", "stream", "handshake", "ip"]), json_values))
def test_whatever_answers_it_can_be_shown_or_is_refused(changes: dict[str, Any]) -> None:
    try:
        found = _parse(SOCKET, answer(**changes))
    except TransportError:
        return
    assert len(render(1, found)) == 2
    assert render_summary(found.enclave, summarise([found]))
    if found.failed is not None:
        assert unanswered(found).fix
