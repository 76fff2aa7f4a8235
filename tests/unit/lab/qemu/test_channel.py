"""The channel and the agent are tested against each other: a socket pair stands for the virtio-serial port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.deadline import Deadline
from lab.errors import LabTimeoutError
from lab.qemu import agent
from lab.qemu.channel import Channel
from lab.qemu.errors import GuestError

SERVE = """
import sys
sys.path.insert(0, sys.argv[2])
from lab.qemu.agent import Agent
import os
os.set_blocking(int(sys.argv[1]), False)
Agent(int(sys.argv[1]), lambda pid, code: None).serve()
"""


@pytest.fixture
def channel() -> Iterator[Channel]:
    ours, theirs = socket.socketpair()
    root = str(Path(agent.__file__).parents[2])
    argv = [sys.executable, "-I", "-S", "-c", SERVE, str(theirs.fileno()), root]
    with theirs, subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as process:
        channel = Channel(ours, "test")
        theirs.close()
        try:
            yield channel
        finally:
            process.kill()
            process.wait()
            channel.close()


def run(channel: Channel, script: str, *, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    done = channel.run(["sh", "-c", script], stdin=stdin, deadline=Deadline(20))
    return done.exit_code, done.stdout, done.stderr


def test_a_command_runs_to_its_end(channel: Channel) -> None:
    assert run(channel, "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")


def test_what_a_command_reads_and_how_much_it_writes(channel: Channel) -> None:
    data = os.urandom(300_000)
    assert run(channel, "cat", stdin=data) == (0, data, b"")


def test_a_command_killed_by_a_signal_has_a_negative_code(channel: Channel) -> None:
    assert run(channel, "kill -TERM $$")[0] == -signal.SIGTERM


def test_a_command_that_does_not_exist_is_an_error(channel: Channel) -> None:
    with pytest.raises(GuestError) as caught:
        channel.run(["/nonexistent"], deadline=Deadline(20))
    assert "FileNotFoundError" in caught.value.why
    assert run(channel, "true")[0] == 0


def test_a_command_that_is_too_slow_is_killed(channel: Channel, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(LabTimeoutError):
        channel.run(["sh", "-c", f"echo $$ > {pid}; exec sleep 60"], deadline=Deadline(0.3))
    if pid.exists():
        Deadline(10).poll(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists(), "the command to be reaped")


def test_environment_is_added(channel: Channel) -> None:
    done = channel.run(["sh", "-c", "echo $WORD"], environment={"WORD": "word"}, deadline=Deadline(20))
    assert done.stdout == b"word\n"


def test_a_spawned_command_logs_ends_and_is_signalled(channel: Channel, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    process = channel.spawn(["sh", "-c", script], name="sleeper", log=log, deadline=Deadline(20))
    process.wait_for_line("ready", Deadline(20))
    assert process.poll() is None
    process.signal(signal.SIGTERM)
    assert process.wait(Deadline(20)) == 7
    Deadline(20).poll(lambda: "told" in process.output(), "the last line")
    process.signal(signal.SIGTERM)
    process.kill()


def test_kill_takes_the_whole_group(channel: Channel, tmp_path: Path) -> None:
    argv = ["sh", "-c", "sleep 60 & echo $! ; wait"]
    process = channel.spawn(argv, name="parent", log=tmp_path / "log", deadline=Deadline(20))
    child = Deadline(20).poll(lambda: process.output().strip(), "the child")
    process.kill()
    assert process.poll() == -signal.SIGKILL
    Deadline(10).poll(lambda: not running(child), "the child to go")


def running(pid: str) -> bool:
    """A zombie whose parent is gone waits for whoever adopted it, which here is not the agent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_standard_output_can_go_to_a_file_of_its_own(channel: Channel, tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo data; echo log >&2"]
    process = channel.spawn(argv, name="capture", log=tmp_path / "log", stdout=tmp_path / "data", deadline=Deadline(20))
    assert process.wait(Deadline(20)) == 0
    Deadline(10).poll(lambda: (tmp_path / "data").read_bytes() == b"data\n", "the data")
    assert process.output() == "log\n"


def test_files_go_both_ways(channel: Channel, tmp_path: Path) -> None:
    path = tmp_path / "a/b/script"
    channel.write_file(str(path), b"#!/bin/sh\n", mode=0o700)
    assert path.stat().st_mode & 0o777 == 0o700
    assert channel.read_file(str(path)) == b"#!/bin/sh\n"
    with pytest.raises(GuestError, match="could not read"):
        channel.read_file(str(tmp_path / "nothing"))


def test_a_guest_that_goes_ends_what_waits_for_it(channel: Channel, tmp_path: Path) -> None:
    process = channel.spawn(["sleep", "60"], name="sleeper", log=tmp_path / "log", deadline=Deadline(20))
    with pytest.raises((GuestError, LabTimeoutError)):
        channel.run(["sh", "-c", "kill -KILL $PPID; sleep 60"], deadline=Deadline(20))
    assert process.wait(Deadline(20)) == -signal.SIGKILL
    process.kill()
    os.kill(process.pid, signal.SIGKILL)


def test_calibration_takes_time() -> None:
    assert agent.calibrate() > 0
