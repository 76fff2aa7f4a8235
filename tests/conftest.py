"""The environment of every test: an AF_VSOCK guard, an end for what hangs, a coverage context per test, properties
without a time limit.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Generator

import coverage
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key, get_timeout_config_value
from hypothesis import settings

FORBIDDEN_EVENTS = frozenset({"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"})
LIBC_CALLS = frozenset({"connect", "bind", "sendto", "sendmsg", "sendmmsg"})
WIDEST_CID = 2**32 - 1


def _refuse_vsock(event: str, arguments: tuple[object, ...]) -> None:
    # A host can own a vsock device that leads to its hypervisor: no test may talk to it. Inside a lab guest the
    # suite does not run; guests are driven from outside.
    if event in FORBIDDEN_EVENTS and isinstance(sock := arguments[0], socket.socket) and sock.family == socket.AF_VSOCK:
        message = f"{event} on AF_VSOCK outside a lab guest"
        raise RuntimeError(message)
    # Python's own connect has no flags of vsock: what passes it by goes through libc, where no event tells the address.
    if event == "ctypes.dlsym" and arguments[1] in LIBC_CALLS:
        message = f"libc's {arguments[1]} outside a lab guest: the guard cannot see where to"
        raise RuntimeError(message)


def _refuse_cut_numbers(event: str, arguments: tuple[object, ...]) -> None:
    # Python truncates a CID or a port to 32 bits: 2**32 + 3 is the parent.
    if event in FORBIDDEN_EVENTS and isinstance(sock := arguments[0], socket.socket) and sock.family == socket.AF_VSOCK:
        numbers = arguments[1] if isinstance(arguments[1], tuple) else ()
        if not all(isinstance(number, int) and 0 <= number <= WIDEST_CID for number in numbers):
            message = f"{event} with the AF_VSOCK address {numbers}, which the kernel would not be told in full"
            raise RuntimeError(message)


sys.addaudithook(_refuse_cut_numbers)
if os.environ.get("LAB") != "vhost":  # a developer who chooses that backend gives it this machine's device
    sys.addaudithook(_refuse_vsock)

# A shell starts background processes with SIGINT ignored. The tested programs and their children should react to it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no bug: by default Hypothesis fails an example that takes longer than 200 ms.
settings.register_profile("wgvsock", deadline=None)
settings.load_profile("wgvsock")


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """End this process if the fixtures of a failed test hang: pytest has just disarmed its timer of the whole test."""
    if not isinstance(node, pytest.Item):  # but a file that cannot be collected
        return
    if seconds := get_timeout_config_value(node.config):
        stderr = node.config.stash[fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Name the coverage context after the test's file, so that a module's coverage by its own file can be read."""
    current = coverage.Coverage.current()
    if current is None:
        return (yield)
    current.switch_context(item.nodeid.partition("::")[0])
    try:
        return (yield)
    finally:
        current.switch_context("")
