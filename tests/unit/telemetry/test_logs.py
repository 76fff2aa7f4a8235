"""One line a state change, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.telemetry.logs import LogfmtFormatter, configure, fields

ANY_TEXT = st.text(st.characters())
"""Lone surrogates as well: they stand for bytes of a file name that are no UTF-8."""


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "wgvsock.relay.supervisor", "levelname": "INFO", "msg": message, "args": arguments, **extra}
    )
    made.created = 1_795_428_000.1239  # 2026-11-23 10:00 UTC
    return made


def line(message: str, *arguments: object, **extra: object) -> str:
    return LogfmtFormatter().format(record(message, *arguments, **extra))


@pytest.fixture
def _loggers() -> Iterator[None]:
    """Logging as it was, afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("wgvsock")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers.clear()  # or `configure` would close pytest's
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_a_line() -> None:
    assert line("the tunnel is up", **fields(interface="wg0", peers=1)) == (
        'time=2026-11-23T10:00:00.123Z level=info at=relay.supervisor msg="the tunnel is up" interface=wg0 peers=1'
    )


def test_arguments_are_put_in() -> None:
    assert line("CID %d", 16).endswith(' msg="CID 16"')


def test_other_libraries_keep_their_names() -> None:
    assert " at=asyncio " in line("x", name="asyncio")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("vsock:16:51820", "vsock:16:51820"),
        ("[fd73::1]/64", "[fd73::1]/64"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a "quote"', r'"a \"quote\""'),
        ("a=b", '"a=b"'),
        ("two\nlines", r'"two\nlines"'),
        ("Zürich", '"Zürich"'),
        ("\x1b[2J", r'"\u001b[2J"'),
        ("\x9b2J", r'"\u009b2J"'),
        ("next\x85line", r'"next\u0085line"'),
        (1.23456789, "1.23457"),
        (1e9, "1e+09"),
        (True, "True"),
        (None, "None"),
    ],
)
def test_values(value: object, written: str) -> None:
    assert line("x", **fields(value=value)).endswith(f" msg=x value={written}")


@given(ANY_TEXT, ANY_TEXT)
def test_one_printable_line_whatever_the_message_holds(message: str, value: str) -> None:
    formatted = line(message.replace("%", "%%"), **fields(value=value))
    assert formatted.isprintable()
    formatted.encode()


@given(ANY_TEXT)
def test_a_value_can_be_read_back(value: str) -> None:
    written = line("x", **fields(value=value)).partition(" value=")[2]
    assert (json.loads(written) if written.startswith('"') else written) == value


def test_an_exception_stays_on_the_line() -> None:
    with pytest.raises(ValueError, match="two") as caught:
        int("two\nlines")
    error = caught.value
    formatted = line("it failed", exc_info=(ValueError, error, error.__traceback__))
    assert len(formatted.splitlines()) == 1
    assert r"Traceback (most recent call last):\n" in formatted
    assert r"\nValueError: invalid literal" in formatted


@pytest.mark.usefixtures("_loggers")
def test_our_level_and_the_others() -> None:
    stream = io.StringIO()
    configure("info", stream)
    logging.getLogger("wgvsock.relay").debug("ours, in detail")
    logging.getLogger("wgvsock.relay").info("ours")
    logging.getLogger("asyncio").info("theirs")
    logging.getLogger("asyncio").warning("their warning")
    written = [entry.partition(" level=")[2] for entry in stream.getvalue().splitlines()]
    assert written == ["info at=relay msg=ours", 'warning at=asyncio msg="their warning"']


@pytest.mark.usefixtures("_loggers")
def test_a_second_call_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("debug", first)
    configure("error", second)
    logging.getLogger("wgvsock").warning("once")
    logging.getLogger("wgvsock").error("once")
    assert not first.getvalue()
    assert second.getvalue().count("msg=once") == 1


@pytest.mark.usefixtures("_loggers")
def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info")
    logging.getLogger("wgvsock").info("hello")
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.endswith(" level=info at=wgvsock msg=hello\n")
