"""wgvsock signal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control_sockets import PATH, ControlSockets
from wgvsock.cli import main
from wgvsock.telemetry.endpoint import Answer, Inquiry, as_json
from wgvsock.telemetry.schema import SCHEMA


def relay(sockets: ControlSockets, **answer: Any) -> list[dict[str, str]]:
    """A relay with this answer. Returns the requests."""
    asked: list[dict[str, str]] = []

    async def respond(query: Any) -> Answer:
        asked.append(dict(query))
        return as_json({"schema": SCHEMA, **answer})

    sockets.serve(PATH, {("POST", "/signal"): Inquiry(respond)})
    return asked


@pytest.mark.parametrize("name", ["HUP", "SIGHUP", "hup"])
def test_a_signal_is_sent(sockets: ControlSockets, name: str) -> None:
    asked = relay(sockets, sent=True, why="")
    assert main(["signal", "wallet", name, "--socket", PATH]) == 0
    assert asked == [{"enclave": "wallet", "name": "HUP"}]


def test_one_that_the_image_does_not_permit(sockets: ControlSockets, capsys: pytest.CaptureFixture[str]) -> None:
    relay(sockets, sent=False, why="the image permits none\x1b[2J")
    assert main(["signal", "USR1", "--socket", PATH]) == 6
    error = capsys.readouterr().err
    assert "error[WGV-E089]: cannot send the application SIGUSR1" in error
    assert "why: the image permits none\\u001b[2J" in error


def test_an_answer_that_says_nothing(sockets: ControlSockets, capsys: pytest.CaptureFixture[str]) -> None:
    relay(sockets)
    assert main(["signal", "HUP", "--socket", PATH]) == 6
    assert "the relay gave no reason" in capsys.readouterr().err


def test_a_signal_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["signal", "KILL"])
    assert caught.value.code == 2


def test_an_enclave_that_is_not_there(sockets: ControlSockets) -> None:
    relay(sockets, enclave=None, enclaves=["a", "b"])
    assert main(["signal", "HUP", "--socket", PATH]) == 2
