"""One line per state change, whatever it contains."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.errors import ConfigurationError
from wgvsock.telemetry.logs import (
    MAX_TRACEBACK,
    MAX_VALUE,
    CountingHandler,
    LogfmtFormatter,
    configure,
    error_fields,
    fields,
)
from wgvsock.telemetry.repetition import BURST, INTERVAL
from wgvsock.testing import without_waiting

ANY_TEXT = st.text(st.characters())
"""Also lone surrogates: they represent bytes of a file name that are not UTF-8."""


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "wgvsock.relay.service", "levelname": "INFO", "msg": message, "args": arguments, **extra}
    )
    made.created = 1_795_428_000.1239  # 2026-11-23 10:00 UTC
    return made


def line(message: str, *arguments: object, **extra: object) -> str:
    return LogfmtFormatter().format(record(message, *arguments, **extra))


@pytest.fixture
def _loggers() -> Iterator[None]:
    """Restore logging afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("wgvsock")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers.clear()  # or `configure` would close pytest's
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_a_line() -> None:
    assert line("the tunnel is up", **fields(interface="wg0", peers=1)) == (
        'time=2026-11-23T10:00:00.123Z level=info at=relay.service msg="the tunnel is up" interface=wg0 peers=1'
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


def test_a_long_value_is_cut() -> None:
    formatted = line("x", **fields(value="y" * 1_000_000))
    assert formatted.endswith(f'y… ({1_000_000 - MAX_VALUE} more characters)"')
    assert len(line("z" * 1_000_000, **fields(value="\x1b" * 1_000_000))) < 16_384


def test_of_a_long_traceback_the_end_is_kept() -> None:
    error = ValueError("x" * 100_000 + "the end")
    formatted = line("it failed", exc_info=(ValueError, error, None))
    assert formatted.endswith('the end"')
    assert len(formatted) < MAX_TRACEBACK + 200


# Repeated lines.


@pytest.fixture
def flooded(_loggers: None) -> tuple[io.StringIO, logging.Logger]:
    """Log into a text, with a logger of the test's."""
    stream = io.StringIO()
    configure("info", stream)
    return stream, logging.getLogger("wgvsock.transports.stream")


def messages(stream: io.StringIO) -> list[str]:
    return [entry.partition(" msg=")[2] for entry in stream.getvalue().splitlines()]


def logger_of(handler: logging.Handler) -> logging.Logger:
    """A separate logger."""
    log = logging.Logger("wgvsock.test")  # noqa: LOG001
    log.addHandler(handler)
    return log


def flood(log: logging.Logger, count: int = 10_000) -> None:
    for number in range(count):
        log.warning("refused a stream from %s", f"tcp:10.0.0.1:{number}")


def test_a_flood_is_a_few_lines_and_its_count_comes_at_the_end(flooded: tuple[io.StringIO, logging.Logger]) -> None:
    stream, log = flooded
    flood(log)
    assert len(messages(stream)) == BURST
    logging.getLogger().handlers[0].close()  # as logging.shutdown does when the process ends
    more = 10_000 - BURST
    assert messages(stream)[BURST:] == [
        f'"… and {more} more like it (last: refused a stream from tcp:10.0.0.1:9999)" repeated={more}'
    ]


def test_other_lines_pass_while_one_floods(flooded: tuple[io.StringIO, logging.Logger]) -> None:
    stream, log = flooded
    flood(log)
    log.error("something else")
    assert messages(stream)[-1] == '"something else"'


@without_waiting
async def test_the_count_comes_when_the_flood_has_stopped() -> None:
    loop = asyncio.get_running_loop()
    stream = io.StringIO()
    handler = CountingHandler(stream, loop.time)
    log = logger_of(handler)
    flood(log)
    await asyncio.sleep(INTERVAL - 1)
    flood(log, 1)
    assert len(stream.getvalue().splitlines()) == BURST
    await asyncio.sleep(1.1)
    assert f"{10_000 - BURST + 1} more like it" in stream.getvalue().splitlines()[BURST]
    flood(log, 3)
    await asyncio.sleep(INTERVAL)
    assert "3 more like it" in stream.getvalue().splitlines()[BURST + 1]
    handler.close()
    assert len(stream.getvalue().splitlines()) == BURST + 2


def test_the_count_comes_with_the_next_line_where_no_event_loop_runs() -> None:
    stream, now = io.StringIO(), 0.0
    log = logger_of(CountingHandler(stream, lambda: now))
    flood(log)
    now = INTERVAL
    log.warning("something else")
    assert [entry.partition(" (")[0] for entry in stream.getvalue().splitlines()[BURST:]] == [
        f"… and {10_000 - BURST} more like it",
        "something else",
    ]


def test_threads_may_log() -> None:
    stream = io.StringIO()
    handler = CountingHandler(stream)
    log = logger_of(handler)
    threads = [threading.Thread(target=flood, args=(log, 1000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == BURST + 1
    assert f"{4000 - BURST} more like it" in lines[-1]


def test_a_line_that_cannot_be_formed_ends_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    handler = CountingHandler(stream)
    log = logger_of(handler)
    for number in range(BURST + 1):
        log.warning("%d and %d", number)  # noqa: PLE1206
    handler.close()
    assert stream.getvalue() == "… and 1 more like it (last: %d and %d)\n"
    assert capsys.readouterr().err.count("Logging error") == BURST


def test_an_error_has_its_code_and_its_remedy() -> None:
    error = ConfigurationError("no way", why="no route", fix="add one")
    assert error_fields(error, enclave="one") == fields(enclave="one", code=error.code, error=error, fix="add one")
