"""What an enclave may reach and what was refused, for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import pytest

from tests.unit.cli.conftest import Failure
from tests.unit.control_sockets import ControlSockets
from wgvsock.cli.egress import render
from wgvsock.telemetry.endpoint import Answer, Inquiry, as_json

SOCKET = "/run/wgvsock/relay.sock"
COMMAND = ("egress", "--socket", SOCKET)

WALLET = {
    "name": "wallet",
    "default": "deny",
    "flows": {"allow 1": 7, "default": 2, "resolver": 0},
    "pins": 1,
    "names_refused": 3,
    "addresses_withheld": 1,
    "rules": [{"key": "allow 1", "rule": "allow tcp 443 to www.lab.test", "flows": 7}],
    "pinned": [{"name": "www.lab.test", "address": "203.0.113.10", "seconds_left": 55.5}],
    "denied": [
        {
            "address": "203.0.113.1",
            "protocol": "tcp",
            "port": 443,
            "name": "www.lab.test",
            "packets": 2,
            "first_seconds_ago": 9.0,
            "last_seconds_ago": 1.0,
            "by": "denied by default",
        },
        {
            "address": "203.0.113.2",
            "protocol": "icmp",
            "port": None,
            "name": None,
            "packets": 1,
            "first_seconds_ago": 9.0,
            "last_seconds_ago": 3.0,
            "by": "denied by default",
        },
    ],
    "refused": [
        {"name": "b.test", "questions": 3, "last_seconds_ago": 2.0, "withheld": []},
        {"name": "c.test", "questions": 1, "last_seconds_ago": 4.0, "withheld": ["169.254.169.254"]},
    ],
}
LINES = [
    "enclave wallet: deny by default",
    "         7  allow tcp 443 to www.lab.test",
    "         2  default",
    "pinned:",
    "  www.lab.test 203.0.113.10, 56 s left",
    "refused:",
    "  b.test: not allowed, 3 times, last 2 s ago",
    "  c.test: withheld 169.254.169.254, 1 times, last 4 s ago",
    "denied:",
    "  tcp 443 to 203.0.113.1 (www.lab.test): 2 times, last 1 s ago, now denied by default",
    "  icmp to 203.0.113.2: 1 times, last 3 s ago, now denied by default",
]


def serve(sockets: ControlSockets, answer: Answer) -> list[Mapping[str, str]]:
    queries: list[Mapping[str, str]] = []

    async def reply(query: Mapping[str, str]) -> Answer:
        queries.append(query)
        return answer

    sockets.serve(SOCKET, {("GET", "/egress"): Inquiry(reply)})
    return queries


def answer(*enclaves: Any) -> dict[str, Any]:
    return {"schema": "wgvsock/v1", "enclaves": list(enclaves)}


def test_for_people(sockets: ControlSockets, prints: Callable[..., str]) -> None:
    queries = serve(sockets, as_json(answer(WALLET)))
    assert prints(*COMMAND, "--enclave", "wallet").splitlines() == LINES
    assert queries == [{"enclave": "wallet"}]


def test_as_json(sockets: ControlSockets, prints_json: Callable[..., dict[str, Any]]) -> None:
    queries = serve(sockets, as_json(answer(WALLET)))
    assert prints_json(*COMMAND)["enclaves"] == [WALLET]
    assert queries == [{}]


def test_an_enclave_that_there_is_not(sockets: ControlSockets, fails: Callable[..., Failure]) -> None:
    serve(sockets, as_json(answer("vault", "wallet"), HTTPStatus.NOT_FOUND))
    failure = fails(*COMMAND, "--enclave", "walet", status=2)
    assert "vault, wallet" in failure.why


def test_again_every_second(
    sockets: ControlSockets, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wgvsock.cli import main

    queries = serve(sockets, as_json(answer(WALLET)))

    def sleep(_seconds: float) -> None:
        if len(queries) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("wgvsock.cli.egress.time.sleep", sleep)
    main([*COMMAND, "--watch"])
    assert capsys.readouterr().out.splitlines() == LINES * 2


@pytest.mark.parametrize(
    "enclave",
    [None, 5, [], {}, {"rules": 5, "pinned": [5, {}], "denied": [{}], "refused": [{"withheld": [None]}], "flows": 5}],
)
def test_an_answer_of_another_version_is_shown_as_far_as_it_is_understood(enclave: object) -> None:
    assert render(answer(enclave))[0] == "enclave ?: ? by default"
    assert render({}) == []


def test_no_more_is_shown_than_can_be_read() -> None:
    lines = render(answer({**WALLET, "pinned": WALLET["pinned"] * 50}))  # type: ignore[operator]
    assert sum("www.lab.test 203" in line for line in lines) == 20
    assert "  and 30 more: --json" in lines
