"""The scripted kernel under the UDP transport."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.unit.transports.udp_kernel import Kernel
from wgvsock.transports import udp_sockets


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel()
    scripted = ModuleType("socket")
    vars(scripted).update(vars(socket), socket=kernel)
    monkeypatch.setattr(udp_sockets, "socket", scripted)
    yield kernel
    for sock in kernel.sockets:
        sock.close()
