"""Every way in which a command can end, with standard streams that are closed, full or without a reader."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wgvsock.cli.ending import run_command
from wgvsock.cli.output import put
from wgvsock.errors import ConfigurationError

PROGRAM = "import sys; from wgvsock.cli import main; sys.exit(main())"
DEVICE = "import sys; from wgvsock.cli.device import main; sys.exit(main())"
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTHON"))}
"""The environment of a child whose every descriptor is its own, none coverage's, and whose streams have their buffers
(PYTHONUNBUFFERED would take them away, and with them what can be lost at the end)."""
LAB = "import sys; from lab.__main__ import main; sys.exit(main(sys.argv[1:]))"
BENCHMARKS = """
import sys
from benchmarks.__main__ import main
from wgvsock.cli.ending import run_command
sys.exit(run_command(main))
"""


def shell(redirection: str, *argv: str, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    """Run the command as a shell does."""
    line = f"exec {shlex.join([sys.executable, '-c', program, *argv])} {redirection}"
    return subprocess.run(
        ["sh", "-c", line], input="", capture_output=True, text=True, check=False, env=UNMEASURED, timeout=60
    )


def raised(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_the_status_of_what_succeeds() -> None:
    assert run_command(lambda: 4) == 4


def test_an_error_is_told_and_has_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raised(ConfigurationError("no"))) == 2
    assert capsys.readouterr().err.startswith("error[WGV-E001]: no\n")


def test_interrupted() -> None:
    assert run_command(raised(KeyboardInterrupt())) == 130


@pytest.mark.parametrize("bug", [AttributeError("x"), OSError(28, "of some other file")])
def test_a_bug_is_not_hidden(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        run_command(raised(bug))


@pytest.mark.parametrize("argv", [("config", "init", "relay"), ("--version",), ("keys", "--help")])
@pytest.mark.parametrize(
    ("redirection", "why"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")]
)
def test_output_that_cannot_be_written(argv: tuple[str, ...], redirection: str, why: str) -> None:
    ended = shell(redirection, *argv)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[:2] == [
        "error[WGV-E056]: cannot write to standard output",
        f"why: {why}",
    ]
    assert len(ended.stderr.splitlines()) == 3


def test_the_device_s_own_command_ends_alike() -> None:
    ended = shell(">/dev/full", "--version", program=DEVICE)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error[WGV-E056]")


def test_a_command_that_prints_nothing_needs_no_output() -> None:
    ended = shell(">&-", "config", "check", "relay", "/no/such/file")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error[WGV-E004]")


@pytest.mark.parametrize(
    "redirection", ["2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full", ">&- 2>/dev/full"]
)
@pytest.mark.parametrize(
    ("program", "argv", "status"),
    [
        (PROGRAM, ("config", "check", "relay", "/no/such/file"), 2),
        (PROGRAM, ("bogus",), 2),  # argparse writes and ends
        (DEVICE, ("--bogus",), 2),
        (LAB, ("bogus",), 2),
        (LAB, ("capture", "nowhere"), 2),
        (BENCHMARKS, ("--bogus",), 2),
    ],
    ids={PROGRAM: "wgvsock", DEVICE: "device", LAB: "lab", BENCHMARKS: "benchmarks"}.get,
)
def test_errors_that_cannot_be_told_leave_the_status(
    redirection: str, program: str, argv: tuple[str, ...], status: int
) -> None:
    ended = shell(redirection, *argv, program=program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "")


def test_a_bug_with_nowhere_to_tell_of_it_is_still_a_failure() -> None:
    program = "from wgvsock.cli.ending import run_command; run_command(lambda: print(1, 1 / 0))"
    assert shell("2>/dev/full", program=program).returncode != 0


def test_what_was_printed_otherwise_has_to_arrive_too() -> None:
    program = "from wgvsock.cli.ending import run_command; raise SystemExit(run_command(lambda: print('data') or 0))"
    ended = shell(">/dev/full", program=program)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error[WGV-E056]")


def test_nothing_comes_from_an_input_that_is_closed() -> None:
    ended = shell("<&-", "keys", "pub")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error[WGV-E001]: cannot read a private key from standard input\n")


def test_descriptors_that_were_closed_are_taken_by_nothing_else() -> None:
    program = "import os; from wgvsock.cli.ending import run_command; run_command(lambda: os._exit(os.dup(2) - 3))"
    assert shell("<&- >&-", program=program).returncode == 0


def test_a_reader_that_has_gone_is_not_spoken_of() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, "config", "init", "relay"],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=UNMEASURED,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


# And in this process.


def test_a_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run_command(lambda: put("text") or 0) == 141  # type: ignore[func-returns-value]
        stdout.flush()  # goes to nowhere now, as at the end of the interpreter


def test_closed_streams_are_replaced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    status = run_command(lambda: put(sys.stdin.read()) or 0)  # type: ignore[func-returns-value]
    replaced: list[Any] = [sys.stdin, sys.stdout, sys.stderr]
    monkeypatch.undo()
    for stream in replaced:
        stream.close()
    assert status == 1
    assert capsys.readouterr() == ("", "")


def test_help_has_to_arrive(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as stdout:  # noqa: PTH123 (a device, not a file)
        monkeypatch.setattr(sys, "stdout", stdout)

        def print_help() -> int:
            stdout.write("usage: wgvsock")
            raise SystemExit(0)

        assert run_command(print_help) == 1
    assert capsys.readouterr().err.startswith("error[WGV-E056]")


def test_a_wrong_command_line_keeps_its_status() -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command(raised(SystemExit(2)))
