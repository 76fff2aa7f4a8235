from __future__ import annotations

from typing import Any

import cbor2
import pytest

from lab.nsm.client import NsmControl, UnixSecureModule
from lab.nsm.server import main
from lab.nsm.wire import receive_message, send_message
from wgvsock.devices.nsm import NsmClient


def module(board: Any, path: str = "nsm") -> NsmClient:
    return NsmClient(UnixSecureModule(path, connect=board.connect))


def test_one_connection_is_one_boot(switchboard: Any) -> None:
    first = module(switchboard)
    first.extend_pcr(16, b"key")
    first.lock_pcr(16)
    assert first.describe_pcr(16).locked
    assert not module(switchboard).describe_pcr(16).locked
    assert first.describe_pcr(16).locked


def test_a_boot_has_the_measurements_of_its_start(switchboard: Any) -> None:
    control = NsmControl("control", connect=switchboard.connect)
    before = module(switchboard)
    control.set_measurements({0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48})
    assert module(switchboard).describe_pcr(0).value == b"\x01" * 48
    assert before.describe_pcr(0).value != b"\x01" * 48


def test_each_enclave_has_its_own_socket_and_identity(switchboard: Any) -> None:
    control = NsmControl("control", connect=switchboard.connect)
    created = control.create("other", "nsm2", module_id="i-0123456789abcdef0-enc1", measurements={0: b"\x01" * 48})
    assert created.module_id == "i-0123456789abcdef0-enc1"
    assert module(switchboard, "nsm2").describe().module_id == "i-0123456789abcdef0-enc1"
    assert module(switchboard, "nsm2").describe_pcr(0).value == b"\x01" * 48
    assert module(switchboard).describe().module_id == control.describe().module_id != created.module_id
    assert created.root_sha256 == control.describe().root_sha256


@pytest.mark.parametrize(
    "question",
    [
        b"\xff",
        cbor2.dumps([]),
        cbor2.dumps({"op": "describe"}),
        cbor2.dumps({"op": "describe", "enclave": "nobody"}),
        cbor2.dumps({"op": "explode", "enclave": "enclave"}),
        cbor2.dumps({"op": "set-faults", "enclave": "enclave", "faults": {"no_such_knob": True}}),
        cbor2.dumps({"op": "set-faults", "enclave": "enclave", "faults": {"certificates": {"leaf": "rotten"}}}),
        cbor2.dumps({"op": "create", "enclave": "enclave", "socket": "elsewhere"}),
        cbor2.dumps({"op": "create", "enclave": "new", "socket": "nsm"}),
        cbor2.dumps({"op": "create", "enclave": "new"}),
    ],
)
def test_mistakes_on_the_control_socket_are_answered(switchboard: Any, question: bytes) -> None:
    with switchboard.connect("control") as connection:
        for asked, expected in ((question, "error"), (cbor2.dumps({"op": "describe", "enclave": "enclave"}), "socket")):
            send_message(connection, asked)
            answer = receive_message(connection)
            assert answer
            assert expected in cbor2.loads(answer)


def test_the_command_needs_a_state_directory() -> None:
    with pytest.raises(SystemExit):
        main([])
