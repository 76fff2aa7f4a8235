"""What a process sets for itself. Each test has a separate process, as the settings stay."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(script: str, *, setup: str = "") -> subprocess.CompletedProcess[str]:
    whole = f"import os, signal, sys\n{setup}\nfrom wgvsock.runtime.process import *\n{script}"
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)


def test_a_signal_waits_until_there_is_a_handler() -> None:
    ended = run(
        """
from wgvsock.runtime import process
process.hold_signals()
for number in process.HELD:
    os.kill(os.getpid(), number)
came = []
for number in process.HELD:
    signal.signal(number, lambda number, _: came.append(number))
assert not came
process.release_signals()
assert set(came) == process.HELD, came
print("heeded")
"""
    )
    assert ended.stdout == "heeded\n", ended.stderr


def test_without_holding_it_a_signal_ends_the_process() -> None:
    assert run("os.kill(os.getpid(), signal.SIGUSR1)").returncode == -10


# Core dumps.

LIMITS = "import resource; _, most = resource.getrlimit(4); resource.setrlimit(4, (most, most))"
READ = """
import ctypes, resource
soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), soft, hard != 0 or soft == hard)
"""
"""PR_GET_DUMPABLE, the limit, and whether it can be raised again."""


def test_no_core_is_dumped() -> None:
    ended = run(f"forbid_core_dumps()\n{READ}", setup=LIMITS)
    assert ended.stdout == "0 0 True\n", ended.stderr


def test_without_libffi_the_limit_holds_all_the_same() -> None:
    ended = run(f"sys.modules['ctypes'] = None\nforbid_core_dumps()\ndel sys.modules['ctypes']\n{READ}", setup=LIMITS)
    assert ended.stdout == "1 0 True\n", ended.stderr


@pytest.mark.parametrize("what", ["fd", "maps", "status", "ns/net", "cmdline"])
def test_a_process_goes_on_reading_about_itself(what: str) -> None:
    # What is not dumpable belongs to root in proc(5). We run as an ordinary user here, if we can become one.
    script = f"""
import ctypes, resource  # which may lie in a home of root's
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
forbid_core_dumps()
path = "/proc/self/{what}"
print(len(os.listdir(path) if os.path.isdir(path) else os.readlink(path) if "ns/" in path else open(path).read()) > 0)
"""
    ended = run(script)
    assert ended.stdout == "True\n", ended.stderr


def test_what_is_started_is_an_ordinary_program() -> None:
    ended = run(
        f"import subprocess; forbid_core_dumps(); subprocess.run([sys.executable, '-c', {READ!r}], check=True)",
        setup=LIMITS,
    )
    assert ended.stdout == "1 0 True\n", ended.stderr


# Descriptors.


def limits(setup: str) -> str:
    ended = run("import resource\nallow_descriptors()\nprint(*resource.getrlimit(resource.RLIMIT_NOFILE))", setup=setup)
    assert not ended.returncode, ended.stderr
    return ended.stdout.strip()


def test_as_many_descriptors_as_there_may_be() -> None:
    assert limits("import resource; resource.setrlimit(7, (256, 1000))") == "1000 1000"


def test_more_than_enough_stays() -> None:
    assert limits("import resource; resource.setrlimit(7, (1000, 1000)); DESCRIPTORS = 500") == "1000 1000"


def test_no_more_than_are_ever_needed() -> None:
    setup = """
import resource
from wgvsock.runtime import process
process.DESCRIPTORS = 512
resource.setrlimit(7, (256, 1000))
"""
    assert limits(setup) == "512 1000"
