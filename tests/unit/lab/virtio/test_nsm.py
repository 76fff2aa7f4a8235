from __future__ import annotations

import signal
import socket
import sys
import threading
from pathlib import Path

import cbor2
import pytest

from lab.deadline import Deadline
from lab.nsm.server import NsmServer, listen_unix
from lab.nsm.signer import LabEnclave
from lab.process import LocalProcess
from lab.virtio.nsm import Boots, serve

LOCK = cbor2.dumps({"LockPCR": {"index": 16}})
DESCRIBE = cbor2.dumps({"DescribePCR": {"index": 16}})


@pytest.fixture
def signer(tmp_path: Path) -> str:
    path = str(tmp_path / "nsm.sock")
    NsmServer(listen_unix).create("enclave", path, LabEnclave())
    return path


def locked(boots: Boots) -> bool:
    return bool(cbor2.loads(boots.request(DESCRIBE))["DescribePCR"]["lock"])


def test_registers_stay_for_a_boot_and_are_fresh_in_the_next(signer: str) -> None:
    boots = Boots(signer)
    assert not locked(boots)
    boots.request(LOCK)
    assert locked(boots)
    boots.next()
    assert not locked(boots)
    boots.request(LOCK)
    for _ in range(2):
        boots.end()
    assert not locked(boots)
    boots.end()


def test_a_signer_that_is_gone_is_an_error_and_not_an_end(tmp_path: Path, signer: str) -> None:
    with pytest.raises(ConnectionError, match="cannot reach the fake Nitro Security Module"):
        Boots(str(tmp_path / "nowhere")).request(DESCRIBE)
    boots = Boots(signer)
    assert boots.request(DESCRIBE)
    boots.end()


def test_a_front_end_that_breaks_the_protocol_loses_the_device_and_is_told_of(
    signer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    near, far = socket.socketpair()
    thread = threading.Thread(target=serve, args=(far, Boots(signer)))
    thread.start()
    with near:
        near.sendall(b"\xff" * 12)
        assert near.recv(1) == b""
    thread.join()
    assert "the device is lost to this guest" in capfd.readouterr().err


def test_the_process_serves_one_qemu_after_the_other_and_outlives_a_reset(tmp_path: Path, signer: str) -> None:
    device = str(tmp_path / "device.sock")
    argv = [sys.executable, "-m", "lab.virtio.nsm", "--socket", device, "--signer", signer]
    process = LocalProcess.start("device", argv, log=tmp_path / "log")
    try:
        process.wait_for_line("ready", Deadline(60))
        process.signal(signal.SIGHUP)
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as qemu:
                qemu.connect(device)
                qemu.sendall(b"\x01\0\0\0\x01\0\0\0\0\0\0\0")  # GET_FEATURES
                assert qemu.recv(20, socket.MSG_WAITALL)[12:] == (1 << 32 | 1 << 30).to_bytes(8, "little")
        assert process.poll() is None
    finally:
        process.kill()
