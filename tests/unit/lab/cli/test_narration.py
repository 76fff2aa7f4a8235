from __future__ import annotations

import io

import pytest

from lab.cli.narration import Narrator, to_terminal
from lab.topology import TOPOLOGY, Point
from lab.watch.walkthrough import Step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def story(stream: io.StringIO) -> str:
    narrator = Narrator(stream)
    narrator.title("wgvsock", "a story")
    narrator.picture(TOPOLOGY)
    narrator.heading("Egress", "aside")
    narrator.message("enclave → relay", "HELLO", 75, "about", 1.25)
    narrator.step(Step(1, "enters wg0", Point.ENCLAVE_WG0, "10.73.0.2 -> 198.51.100.10", ok=True))
    narrator.step(Step(2, "encrypted", Point.VSOCK, "plain", ok=False))
    narrator.failure("cannot", "first\nsecond", "artifacts")
    narrator.verdict([("vsock", "100 bytes")], ok=False, seconds=1.5)
    return stream.getvalue()


def test_the_banner_fits_a_terminal_of_80_columns() -> None:
    stream = io.StringIO()
    narrator = Narrator(stream)
    narrator.picture(TOPOLOGY)
    assert max(map(len, stream.getvalue().splitlines())) <= 80


def test_no_colours_where_there_is_no_terminal() -> None:
    told = story(io.StringIO())
    assert "\x1b" not in told
    assert " ✓ 1  enters wg0\n      enclave.wg0    10.73.0.2 -> 198.51.100.10\n" in told
    assert " ✗ 2  encrypted\n" in told
    assert "   second\n" in told
    assert "NOT as required" in told


def test_an_encoding_without_frames_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        to_terminal().picture(TOPOLOGY)
        monkeypatch.undo()
        assert b"enclave" in stdout.buffer.getvalue()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in story(Terminal())


def test_colours_change_nothing_but_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    told = story(Terminal())
    assert "\x1b[32m✓\x1b[0m" in told
    assert "\x1b[31m✗\x1b[0m" in told


def test_every_line_fits_a_terminal() -> None:
    assert max(map(len, story(io.StringIO()).splitlines())) <= 120
