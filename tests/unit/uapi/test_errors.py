from __future__ import annotations

import errno

from wgvsock.errors import RemoteProtocolError, SystemSetupError
from wgvsock.uapi.errors import ControlSocketError, UapiError


def test_a_refusal_carries_its_number() -> None:
    error = UapiError(errno.EINVAL, "a key is too short")
    assert isinstance(error, RemoteProtocolError)
    assert (error.errno, str(error)) == (errno.EINVAL, "a key is too short")


def test_a_missing_control_socket_is_a_missing_prerequisite() -> None:
    assert issubclass(ControlSocketError, SystemSetupError)
    assert (ControlSocketError.code, ControlSocketError.exit_code) == ("WGV-E068", 7)
