from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from lab.guest import chatter
from lab.guest.chatter import LINE, burst


def test_a_burst_is_whole_lines_and_a_word_at_its_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:

        def write() -> None:
            burst(writing, 200_000)
            os.close(writing)

        thread = threading.Thread(target=write)
        thread.start()
        *lines, last = pipe.read().splitlines(keepends=True)
        thread.join(60)
    assert set(lines) == {LINE}
    assert len(b"".join(lines)) >= 200_000
    assert last == b"written %d bytes\n" % len(b"".join(lines))


def test_each_signal_is_a_burst() -> None:
    command = [sys.executable, "-I", "-S", chatter.__file__, "--bytes", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            lines = iter(process.stdout.readline, b"")
            assert next(line for line in lines if line != LINE).startswith(b"written ")
        process.kill()


def test_a_burst_elsewhere_leaves_standard_output_alone() -> None:
    command = [sys.executable, "-I", "-S", chatter.__file__, "--bytes", "1000000", "--elsewhere"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGHUP)
        process.terminate()  # while it writes, or before, or after
        assert process.stdout.read() == b""
