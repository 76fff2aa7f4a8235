"""wgvsock logs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.control_sockets import PATH, ControlSockets
from wgvsock.cli import main
from wgvsock.telemetry.endpoint import Answer, Inquiry, as_json
from wgvsock.telemetry.schema import SCHEMA


class Relay:
    """Answers with lines, one page at a time, and records the requests."""

    def __init__(self, sockets: ControlSockets, *pages: list[str], **other: Any) -> None:
        self.asked: list[dict[str, str]] = []
        self._pages = list(pages)
        self._other = other
        sockets.serve(PATH, {("GET", "/logs"): Inquiry(self._answer)})

    async def _answer(self, query: Any) -> Answer:
        self.asked.append(dict(query))
        if self._other:
            return as_json({"schema": SCHEMA, **self._other})
        first = int(query["after"])
        texts = self._pages.pop(0) if self._pages else []
        lines = [{"number": first + n + 1, "stream": "stdout", "text": text} for n, text in enumerate(texts)]
        return as_json({"schema": SCHEMA, "enclave": "e", "lines": lines, "last": first + len(texts)})


def test_all_that_is_kept_is_shown(sockets: ControlSockets, capsys: pytest.CaptureFixture[str]) -> None:
    relay = Relay(sockets, ["one", "two"], ["three \x1b[2J"])
    assert main(["logs", "--socket", PATH, "--enclave", "wallet"]) == 0
    assert capsys.readouterr().out == "stdout: one\nstdout: two\nstdout: three \\u001b[2J\n"
    assert relay.asked[0] == {"enclave": "wallet", "after": "0", "wait": "0"}
    assert [asked["after"] for asked in relay.asked] == ["0", "2", "3"]


def test_where_nothing_has_come_it_says_who_decides(
    sockets: ControlSockets, capsys: pytest.CaptureFixture[str]
) -> None:
    Relay(sockets)
    assert main(["logs", "--socket", PATH]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "forward_output" in err


def test_following_goes_on_until_interrupted(sockets: ControlSockets, capsys: pytest.CaptureFixture[str]) -> None:
    relay = Relay(sockets, ["one"], [], ["two"])
    answer = relay._answer

    async def interrupted(query: Any) -> Answer:
        if len(relay.asked) == 3:
            raise KeyboardInterrupt
        return await answer(query)

    sockets.serve(PATH, {("GET", "/logs"): Inquiry(interrupted)})
    assert main(["logs", "-f", "--socket", PATH]) == 130
    assert capsys.readouterr().out == "stdout: one\nstdout: two\n"
    assert {asked["wait"] for asked in relay.asked} == {"1"}


@pytest.mark.parametrize(
    ("arguments", "what"), [([], "several enclaves"), (["--enclave", "walet"], "did you mean wallet?")]
)
def test_an_enclave_that_is_not_there(
    sockets: ControlSockets, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    Relay(sockets, enclave=None, enclaves=["vault", "wallet"])
    assert main(["logs", "--socket", PATH, *arguments]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert "this relay serves vault, wallet" in error


@pytest.mark.parametrize("answer", [{"lines": 5, "last": 1}, {"lines": [], "last": "x"}, {"lines": []}])
def test_an_answer_that_is_none(sockets: ControlSockets, answer: Any) -> None:
    Relay(sockets, **answer)
    assert main(["logs", "--socket", PATH]) == 6


def test_odd_lines_are_shown_as_they_are(sockets: ControlSockets, capsys: pytest.CaptureFixture[str]) -> None:
    class Once:
        left = 1

    async def answer(_query: Any) -> Answer:
        Once.left -= 1
        lines = [5, {"text": ["x"]}] if Once.left == 0 else []
        return as_json(json.loads(json.dumps({"schema": SCHEMA, "lines": lines, "last": 2})))

    sockets.serve(PATH, {("GET", "/logs"): Inquiry(answer)})
    assert main(["logs", "--socket", PATH]) == 0
    assert capsys.readouterr().out == "?: ?\nNone: ['x']\n"


def test_a_relay_that_always_has_more_is_not_listed_for_ever(sockets: ControlSockets) -> None:
    relay = Relay(sockets, *[["x"]] * 1000)
    assert main(["logs", "--socket", PATH]) == 0
    assert len(relay.asked) == 100
