from __future__ import annotations

import socket
from typing import Any

import cbor2
import pytest

from lab.errors import LabError
from lab.nsm.client import NsmControl, UnixSecureModule, connect_unix
from wgvsock.devices.nsm import NsmClient, NsmError


def test_a_document_over_the_socket(switchboard: Any) -> None:
    client = NsmClient(UnixSecureModule("nsm", connect=switchboard.connect))
    payload = cbor2.loads(cbor2.loads(client.attest(nonce=b"n" * 32))[2])
    assert payload["nonce"] == b"n" * 32


def test_faults_turn_and_go_back(switchboard: Any) -> None:
    control = NsmControl("control", connect=switchboard.connect)
    client = NsmClient(UnixSecureModule("nsm", connect=switchboard.connect))
    control.set_faults(error="InternalError")
    with pytest.raises(NsmError, match="InternalError"):
        client.attest()
    control.set_faults(payload={"nonce": b"other"})
    assert cbor2.loads(cbor2.loads(client.attest(nonce=b"n"))[2])["nonce"] == b"other"
    control.reset()
    assert cbor2.loads(cbor2.loads(client.attest(nonce=b"n"))[2])["nonce"] == b"n"


def test_a_knob_that_does_not_exist_is_refused_here(switchboard: Any) -> None:
    with pytest.raises(TypeError):
        NsmControl("control", connect=switchboard.connect).set_faults(no_such_knob=True)


def test_what_the_server_refuses(switchboard: Any) -> None:
    control = NsmControl("control", connect=switchboard.connect)
    with pytest.raises(LabError, match="create"):
        control.create("enclave", "elsewhere")
    with pytest.raises(LabError, match="describe"):
        control.describe("nobody")


def test_nobody_listens(switchboard: Any, tmp_path: Any) -> None:
    with pytest.raises(NsmError, match="cannot reach"):
        UnixSecureModule("nowhere", connect=switchboard.connect)
    with pytest.raises(LabError, match="cannot reach"):
        NsmControl("nowhere", connect=switchboard.connect).describe()
    with pytest.raises(OSError, match="No such file"):
        connect_unix(str(tmp_path / "absent"))


def test_a_signer_that_goes_away() -> None:
    near, far = socket.socketpair()
    module = UnixSecureModule("nsm", connect=lambda _path: near)
    far.close()
    with pytest.raises(NsmError):
        module.request(b"x")
    module.close()
    module.close()


def test_a_signer_that_hangs_up_between_request_and_response() -> None:
    near, far = socket.socketpair()
    module = UnixSecureModule("nsm", connect=lambda _path: near)
    far.shutdown(socket.SHUT_WR)
    with far, pytest.raises(NsmError, match="closed the connection"):
        module.request(b"x")
    module.close()
