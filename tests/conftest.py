"""What every test gets: the AF_VSOCK guard, one coverage context per test, and properties without a time limit."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Generator

import coverage
import pytest
from hypothesis import settings

FORBIDDEN_EVENTS = frozenset({"socket.connect", "socket.bind", "socket.sendto"})


def _refuse_vsock(event: str, arguments: tuple[object, ...]) -> None:
    # A host can own a vsock device that leads to its hypervisor: no test may talk to it. Inside a lab guest the
    # suite does not run; guests are driven from outside.
    if event in FORBIDDEN_EVENTS and isinstance(sock := arguments[0], socket.socket) and sock.family == socket.AF_VSOCK:
        message = f"{event} on AF_VSOCK outside a lab guest"
        raise RuntimeError(message)


if os.environ.get("LAB") != "vhost":  # whoever asks for that backend says that this machine's device is theirs
    sys.addaudithook(_refuse_vsock)

# A shell starts what it runs in the background with SIGINT ignored; what is tested, and its children, should heed it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no bug: by default Hypothesis fails an example that takes longer than 200 ms.
settings.register_profile("wgvsock", deadline=None)
settings.load_profile("wgvsock")


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
