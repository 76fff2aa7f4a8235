from __future__ import annotations

import asyncio
import json

import pytest

from lab.guest import crowd
from lab.guest.crowd import main
from tests.unit.tcp_server import serving


@pytest.mark.asyncio
async def test_every_answer_is_counted_by_its_status() -> None:
    answers = [b"HTTP/1.1 200 OK\r\n\r\nbody", b"HTTP/1.1 429 Too Many\r\n\r\n", b"", b"nonsense", b"HTTP/1.1 429 \r\n"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: TID251 (a server's)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /path?nonce=ab HTTP/1.0\r\n")
        writer.write(answers.pop())

    async with serving(answer) as port:
        told = await crowd.crowd(f"http://127.0.0.1:{port}/path?nonce=ab", 1000.0, 0.005)
    assert told["asked"] == 5
    assert told["statuses"] == {"200": 1, "429": 2, "0": 2}


@pytest.mark.asyncio
async def test_who_is_under_way_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "MOST", 0)
    assert (await crowd.crowd("http://127.0.0.1:1/", 1000.0, 0.005))["asked"] == 0


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    main(["http://127.0.0.1:1/", "--rate", "100", "--seconds", "0.01"])
    assert json.loads(capsys.readouterr().out)["statuses"] == {"0": 1}
