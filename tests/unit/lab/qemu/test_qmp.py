from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from lab.qemu.errors import GuestError
from lab.qemu.qmp import Qmp

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}, "capabilities": []}}


class Emulator:
    """The other end: answers are queued before they are requested."""

    def __init__(self) -> None:
        self.client, self._server = socket.socketpair()

    def say(self, *messages: dict[str, Any]) -> None:
        self._server.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    def heard(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._server.recv(65536).splitlines()]

    def go(self) -> None:
        self._server.close()


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    emulator = Emulator()
    yield emulator
    emulator.client.close()
    emulator.go()


def test_capabilities_are_negotiated_and_events_passed_over(emulator: Emulator) -> None:
    emulator.say(GREETING, {"return": {}}, {"event": "STOP"}, {"return": {"status": "paused"}})
    qmp = Qmp(emulator.client)
    assert qmp.execute("query-status", verbose=True) == {"status": "paused"}
    assert emulator.heard() == [
        {"execute": "qmp_capabilities", "arguments": {}},
        {"execute": "query-status", "arguments": {"verbose": True}},
    ]
    qmp.close()
    qmp.close()


def test_a_refusal_is_an_error_with_its_reason(emulator: Emulator) -> None:
    emulator.say(GREETING, {"return": {}}, {"error": {"class": "CommandNotFound", "desc": "no such command"}})
    qmp = Qmp(emulator.client)
    with pytest.raises(GuestError) as caught:
        qmp.execute("jump")
    assert caught.value.why == "no such command"
    qmp.close()


def test_an_emulator_that_goes_is_an_error(emulator: Emulator) -> None:
    emulator.say(GREETING, {"return": {}})
    qmp = Qmp(emulator.client)
    emulator.go()
    with pytest.raises(GuestError, match="cannot control"):
        qmp.execute("stop")
    qmp.close()


def test_what_is_no_qmp_is_refused(emulator: Emulator) -> None:
    emulator.say({"hello": 1})
    with pytest.raises(GuestError):
        Qmp(emulator.client)
