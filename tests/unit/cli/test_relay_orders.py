"""`wgvsock relay reload` and `reattest` end according to the order's outcome."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control_sockets import ControlSockets
from wgvsock.cli import main
from wgvsock.telemetry.endpoint import Answer, Inquiry, as_json

SCHEMA = {"schema": "wgvsock/v1"}
REFUSED = {"code": "WGV-E083", "what": "cannot reload", "why": '"name" has changed', "fix": "restart", "exit": 2}


def order(*, done: bool = True, error: Any = None, **enclaves: Any) -> dict[str, Any]:
    told = {name: {"done": outcome != "waits", "error": None if outcome in ("waits", "well") else outcome}
            for name, outcome in enclaves.items()}  # fmt: skip
    return {**SCHEMA, "order": 7, "kind": "reload", "done": done, "error": error, "enclaves": told, "replacing": []}


class Relay:
    """Answers an order with these, one after the other, then repeats the last."""

    def __init__(self, sockets: ControlSockets, folder: Path) -> None:
        self.sockets = sockets
        self.file = folder / "relay.toml"
        self.file.write_text(f'runtime_directory = "{folder}"\n')
        self.path = str(folder / "relay.sock")
        self.asked: list[str] = []
        self.answers: list[dict[str, Any]] = []

    def run(self, *arguments: str) -> int:
        return main(["relay", arguments[0], "-c", str(self.file), *arguments[1:]])

    def answer(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)

        def reply(what: str) -> Answer:
            self.asked.append(what)
            return as_json(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

        async def by_number(query: Any) -> Answer:
            return reply(f"order {query['number']}")

        routes = {("POST", f"/{verb}"): (lambda verb=verb: reply(verb)) for verb in ("reload", "reattest")}
        self.sockets.serve(self.path, {**routes, ("GET", "/order"): Inquiry(by_number)})


@pytest.fixture
def relay(sockets: ControlSockets, tmp_path: Path) -> Relay:
    return Relay(sockets, tmp_path)


def test_a_reload_that_was_carried_out(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    relay.answer({**order(wallet="well", vault="well"), "replacing": ["third"]})
    assert relay.run("reload") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "wallet: reloaded",
        "vault: reloaded",
        "third: is being replaced; wgvsock status shows the progress",
    ]
    assert not captured.err


def test_a_reload_that_was_refused_ends_with_its_error(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    relay.answer(order(error=REFUSED))
    assert relay.run("reload") == 2
    captured = capsys.readouterr()
    assert captured.err == 'error[WGV-E083]: cannot reload\nwhy: "name" has changed\nfix: restart\n'
    assert not captured.out


def test_one_enclave_of_two_that_failed_is_the_outcome(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    relay.answer(order(wallet="well", vault={**REFUSED, "exit": 7}))
    assert relay.run("reload") == 7
    assert capsys.readouterr().out.splitlines() == ["wallet: reloaded", "vault: failed"]


def test_the_outcome_is_asked_for_until_it_is_there(relay: Relay) -> None:
    relay.answer(order(done=False, wallet="waits"), order(done=False, wallet="waits"), order(wallet="well"))
    assert relay.run("reload") == 0
    assert relay.asked == ["reload", "order 7", "order 7"]


@pytest.mark.parametrize("verb", [("reload",), ("reattest", "--wait")])
def test_the_outcome_has_a_time_limit(relay: Relay, verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    relay.answer(order(done=False, wallet="waits"))
    assert relay.run(*verb, "--timeout", "0") == 6
    assert "error[WGV-E101]" in capsys.readouterr().err


def test_reattest_does_not_wait_unless_told_to(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    relay.answer(order(done=False, wallet="waits"), order(wallet={**REFUSED, "code": "WGV-E030", "exit": 5}))
    assert relay.run("reattest") == 0
    assert capsys.readouterr().out == "wallet: ordered\n"
    relay.answer(order(done=False, wallet="waits"), order(wallet={**REFUSED, "code": "WGV-E030", "exit": 5}))
    assert relay.run("reattest", "--wait") == 5
    assert "error[WGV-E030]" in capsys.readouterr().err


def test_as_json(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    relay.answer(order(wallet="well"))
    assert relay.run("reload", "--json") == 0
    assert json.loads(capsys.readouterr().out)["enclaves"]["wallet"] == {"done": True, "error": None}


def test_a_relay_of_another_version_tells_no_outcome(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    relay.answer({**SCHEMA, "accepted": True})
    assert relay.run("reload") == 0
    assert "does not report" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["x", 0, 400, None])
def test_an_odd_exit_status_is_a_failure(relay: Relay, status: object) -> None:
    relay.answer(order(error={**REFUSED, "exit": status}))
    assert relay.run("reload") == 1


@pytest.mark.parametrize("verb", ["reattest", "reload"])
def test_an_order_that_is_not_known_there(relay: Relay, verb: str, fails: Callable[..., Any]) -> None:
    relay.sockets.serve(relay.path, {})
    assert fails("relay", verb, "-c", str(relay.file), status=6).why == f"it does not support POST /{verb}"


def test_an_order_to_nobody(relay: Relay, fails: Callable[..., Any]) -> None:
    assert fails("relay", "reattest", "-c", str(relay.file), status=3).code == "WGV-E087"


@pytest.mark.parametrize("seconds", ["-1", "nan", "x"])
def test_a_time_limit_is_a_number(relay: Relay, seconds: str) -> None:
    with pytest.raises(SystemExit):
        relay.run("reload", "--timeout", seconds)
