"""An Enclave's machine: the operations that need no privilege. The behaviour suite tests the others."""

from __future__ import annotations

import asyncio
import threading

import pytest

from wgvsock.devices.nsm import NsmError
from wgvsock.machine.enclave import LinuxEnclaveMachine


def test_a_security_module_that_hangs_is_waited_for_no_longer_than_asked() -> None:
    machine = LinuxEnclaveMachine()
    assert asyncio.run(machine.ask_module(threading.get_ident, timeout=60)) != threading.get_ident()
    hung = threading.Event()
    with pytest.raises(NsmError, match="did not answer"):
        asyncio.run(machine.ask_module(hung.wait, timeout=0))
    hung.set()


def test_everything_that_is_changed_can_be_taken_back() -> None:
    assert {"resolv_conf", "sysctl"} <= LinuxEnclaveMachine().performers().keys()
