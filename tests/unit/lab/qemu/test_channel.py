"""The channel and the agent are tested against each other: a socket pair replaces the virtio-serial port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.deadline import Deadline
from lab.errors import LabError, LabTimeoutError
from lab.guest import agent
from lab.qemu.channel import Channel, GuestProcess
from lab.qemu.errors import GuestError

SERVE = """
import sys
import threading
sys.path.insert(0, sys.argv[2])
from lab.guest.agent import Agent, Port
import os
os.set_blocking(int(sys.argv[1]), False)
Agent([Port(int(sys.argv[1]))], lambda pid, code: None).serve()
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


def spawn(channel: Channel, folder: Path, script: str, *, name: str = "spawned") -> GuestProcess:
    remote = folder / f"remote/{name}.log"
    pid = channel.spawn(["sh", "-c", script], stdout=str(remote), stderr=str(remote))
    return GuestProcess(name, folder / "log", lambda: channel, pid=pid, remote_log=str(remote))


def test_a_spawned_command_logs_ends_and_is_signalled(channel: Channel, tmp_path: Path) -> None:
    process = spawn(
        channel, tmp_path, "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.01; done", name="sleeper"
    )
    process.wait_for_line("ready", Deadline(20))
    assert process.poll() is None
    process.signal(signal.SIGTERM)
    assert process.wait(Deadline(20)) == 7
    assert process.output() == "ready\ntold\n"
    assert (tmp_path / "log").read_text() == "ready\ntold\n"
    process.signal(signal.SIGTERM)
    process.kill()


def test_kill_takes_the_whole_group(channel: Channel, tmp_path: Path) -> None:
    process = spawn(channel, tmp_path, "sleep 60 & echo $! ; wait")
    child = Deadline(20).poll(lambda: process.output().strip(), "the child")
    process.kill()
    assert process.poll() == -signal.SIGKILL
    Deadline(10).poll(lambda: not running(child), "the child to go")


def test_a_spawned_command_is_found_again_by_its_description(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of an earlier one\n")
    pid = channel.spawn(["sh", "-c", "echo one; exec sleep 60"], stdout=f"{tmp_path}/r", stderr=f"{tmp_path}/r")
    first = GuestProcess("x", tmp_path / "log", lambda: channel, pid=pid, remote_log=f"{tmp_path}/r", offset=18)
    first.wait_for_line("one", Deadline(20))
    description = first.describe()
    del description["name"]
    second = GuestProcess("x", tmp_path / "log", lambda: channel, **description)
    assert second.output() == first.output() == "one\n"
    assert second.poll() is None
    second.kill()


def running(pid: str) -> bool:
    """A zombie whose parent is gone waits for the process that adopted it, which here is not the agent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_standard_output_can_go_to_a_file_of_its_own(channel: Channel, tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo data; echo log >&2"]
    pid = channel.spawn(argv, stdout=f"{tmp_path}/data", stderr=f"{tmp_path}/errors")
    Deadline(20).poll(lambda: channel.poll(pid) == 0, "the command to end")
    assert channel.read_file(f"{tmp_path}/data") == b"data\n"
    assert channel.read_file(f"{tmp_path}/data", 2) == b"ta\n"
    assert channel.read_file(f"{tmp_path}/errors") == b"log\n"


def test_a_spawned_command_can_have_a_standard_input(channel: Channel, tmp_path: Path) -> None:
    log = str(tmp_path / "remote")
    pid = channel.spawn(["sh", "-c", "cat; echo end"], stdin=True, stdout=log, stderr=log)
    process = GuestProcess("cat", tmp_path / "log", lambda: channel, pid=pid, remote_log=log, stdin=True)
    process.stdin.write(b"one\n")
    process.stdin.flush()
    process.wait_for_line("one", Deadline(20))
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(Deadline(20)) == 0
    assert process.output() == "one\nend\n"
    process.kill()


def test_a_command_that_does_not_read_is_an_error(channel: Channel, tmp_path: Path) -> None:
    pid = channel.spawn(["sleep", "60"], stdin=True, stdout=f"{tmp_path}/log", stderr=f"{tmp_path}/log")
    with pytest.raises(GuestError, match="feed a command"):
        channel.write_input(pid, bytes(1 << 20))
    channel.signal(pid, signal.SIGKILL)


def test_without_asking_for_it_there_is_no_standard_input(channel: Channel, tmp_path: Path) -> None:
    process = spawn(channel, tmp_path, "cat")
    with pytest.raises(LabError, match="no standard input"):
        process.stdin.write(b"")
    assert process.wait(Deadline(20)) == 0


def test_a_terminal_echoes_and_ends(channel: Channel) -> None:
    shown: list[bytes] = []

    def show(_stream: str, data: bytes) -> None:
        shown.append(data)

    script = "test -t 0 && read word && echo got $word && exit 5"
    assert channel.interact(["sh", "-c", script], show, lambda pid: channel.feed(pid, b"hello\n")) == 5
    assert b"got hello" in b"".join(shown)


def test_one_machines_clock_has_no_offset_to_itself(channel: Channel) -> None:
    offset, error = channel.clock_offset()
    assert abs(offset) <= error < 5


def test_a_large_file_comes_whole(channel: Channel, tmp_path: Path) -> None:
    data = os.urandom(agent.READ_LIMIT * 2 + 17)
    channel.write_file(f"{tmp_path}/large", data)
    assert channel.read_file(f"{tmp_path}/large") == data


def test_files_go_both_ways(channel: Channel, tmp_path: Path) -> None:
    path = tmp_path / "a/b/script"
    channel.write_file(str(path), b"#!/bin/sh\n", mode=0o700)
    assert path.stat().st_mode & 0o777 == 0o700
    assert channel.read_file(str(path)) == b"#!/bin/sh\n"
    with pytest.raises(GuestError, match="could not read"):
        channel.read_file(str(tmp_path / "nothing"))


def test_a_guest_that_goes_ends_what_waits_for_it(channel: Channel, tmp_path: Path) -> None:
    process = spawn(channel, tmp_path, "exec sleep 60")
    with pytest.raises(GuestError):
        channel.run(["sh", "-c", "kill -KILL $PPID; sleep 60"], deadline=Deadline(20))
    assert process.poll() == -signal.SIGKILL
    process.kill()
    process.signal(signal.SIGTERM)
    assert process.output() == ""
    os.kill(process.pid, signal.SIGKILL)


def test_what_an_earlier_host_left_half_written_is_passed_over() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours, "test")
        assert theirs.recv(100) == b"\n"
        port = agent.Port(theirs.detach())
        os.set_blocking(port.descriptor, False)
        os.write(port.descriptor, b'"half of an answer\n{"id": 1, "event": "done"}\n')
        ours.sendall(b'{"half of a request\n{"id": 2, "op": "x"}\n')
        assert Deadline(5).poll(port.requests, "the request") == [{"id": 2, "op": "x"}]
        os.close(port.descriptor)
        channel.close()


def test_calibration_takes_time() -> None:
    assert agent.calibrate() > 0


def test_a_server_in_the_guest_is_asked_without_a_command(channel: Channel, tmp_path: Path) -> None:
    path = str(tmp_path / "server.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(100))
                for _ in range(3):
                    connection.sendall(b"answer" * 20_000)

        server = threading.Thread(target=serve)
        server.start()
        assert channel.ask(path, b"question", Deadline(20)) == b"answer" * 60_000
        server.join()
    assert asked == [b"question"]


def test_a_server_that_is_not_there(channel: Channel, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="could not answer at"):
        channel.ask(str(tmp_path / "nobody"), b"question", Deadline(20))


def test_a_server_that_says_nothing(channel: Channel, tmp_path: Path) -> None:
    path = str(tmp_path / "server.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(LabTimeoutError):
            channel.ask(path, b"question", Deadline(0.05))
    assert run(channel, "echo on") == (0, b"on\n", b"")
