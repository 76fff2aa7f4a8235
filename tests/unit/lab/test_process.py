from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.deadline import Deadline
from lab.errors import LabError, LabTimeoutError
from lab.process import LocalProcess


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[LocalProcess]]:
    processes: list[LocalProcess] = []
    yield processes
    for process in processes:
        process.kill()


def start(started: list[LocalProcess], log: Path, program: str, *, stdin: bool = False) -> LocalProcess:
    process = LocalProcess.start("program", [sys.executable, "-c", program], log=log, stdin=stdin)
    started.append(process)
    return process


def test_output_and_exit_code(tmp_path: Path, started: list[LocalProcess]) -> None:
    process = start(started, tmp_path / "log", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert process.wait(Deadline(20)) == 3
    assert sorted(process.output().split()) == ["err", "out"]


def test_output_is_that_of_this_run_alone(tmp_path: Path, started: list[LocalProcess]) -> None:
    for text in ("first", "second"):
        process = start(started, tmp_path / "log", f"print({text!r})")
        process.wait(Deadline(20))
    assert process.output() == "second\n"
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


def test_waiting_for_a_line(tmp_path: Path, started: list[LocalProcess]) -> None:
    process = start(started, tmp_path / "log", "print('not yet'); print('ready: 7'); input()", stdin=True)
    assert process.wait_for_line("ready", Deadline(20)) == "ready: 7"
    process.stdin.close()
    assert process.wait(Deadline(20)) == 1  # input() met the end of its input


def test_a_process_that_ends_without_the_line_is_an_error(tmp_path: Path, started: list[LocalProcess]) -> None:
    process = start(started, tmp_path / "log", "raise SystemExit('cannot')")
    with pytest.raises(LabError, match="program ended with 1: cannot"):
        process.wait_for_line("ready", Deadline(20))


def test_a_process_that_stays_is_a_timeout_and_can_be_killed(tmp_path: Path, started: list[LocalProcess]) -> None:
    process = start(started, tmp_path / "log", "import threading; threading.Event().wait()")
    with pytest.raises(LabTimeoutError, match="program to end"):
        process.wait(Deadline(0))
    process.kill()
    process.kill()
    assert process.poll() == -signal.SIGKILL


def test_signals_reach_the_command(tmp_path: Path, started: list[LocalProcess]) -> None:
    program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()"
    process = start(started, tmp_path / "log", program)
    process.wait_for_line("up", Deadline(20))
    process.signal(signal.SIGTERM)
    assert process.wait(Deadline(20)) == 0


def test_no_pipe_no_standard_input(tmp_path: Path, started: list[LocalProcess]) -> None:
    process = start(started, tmp_path / "log", "pass")
    with pytest.raises(LabError, match="no standard input"):
        process.stdin.write(b"")


def test_a_running_process_is_found_again_and_ended(tmp_path: Path, started: list[LocalProcess]) -> None:
    original = start(started, tmp_path / "log", "print('up', flush=True); import signal; signal.pause()")
    original.wait_for_line("up", Deadline(20))
    found = LocalProcess.adopt(original.describe())
    assert (found.name, found.pid, found.poll()) == ("program", original.pid, None)
    found.kill()
    assert found.poll() == 0
    assert original.poll() == -signal.SIGKILL


def test_a_number_that_was_given_to_another_process_is_not_mistaken(
    tmp_path: Path, started: list[LocalProcess]
) -> None:
    original = start(started, tmp_path / "log", "print('up', flush=True); import signal; signal.pause()")
    original.wait_for_line("up", Deadline(20))
    stranger = LocalProcess.adopt({**original.describe(), "started": "1"})
    assert stranger.poll() == 0
    stranger.kill()
    stranger.signal(signal.SIGKILL)
    assert original.poll() is None


def has_ended(process: Path) -> bool:
    """Return whether it is gone, or waits to be collected."""
    try:
        return b" Z " in (process / "stat").read_bytes()
    except FileNotFoundError:
        return True


def test_a_process_can_end_with_the_one_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from lab.process import LocalProcess\n"
        "LocalProcess.dies_with_starter = True\n"
        "process = LocalProcess.start('sleeper', ['sleep', '60'], log=Path(sys.argv[1]))\n"
        "print(process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        sleeper = Path(f"/proc/{int(starter.stdout.readline())}")
        assert sleeper.exists()
        starter.kill()
    Deadline(20).poll(lambda: has_ended(sleeper), "the sleeper to end")
