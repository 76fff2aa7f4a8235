from __future__ import annotations

import pytest

from wgvsock import errors


def test_text_is_what_and_why() -> None:
    error = errors.TransportError("cannot reach vsock:16:51820", why="connection timed out", fix="start the enclave")
    assert str(error) == "cannot reach vsock:16:51820: connection timed out"
    assert (error.what, error.why, error.fix) == (
        "cannot reach vsock:16:51820",
        "connection timed out",
        "start the enclave",
    )
    assert str(errors.WgvsockError("plain")) == "plain"


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.ConfigurationError, 2),
        (errors.TransportError, 6),
        (errors.FramingError, 6),
        (errors.LocalProtocolError, 1),
        (errors.RemoteProtocolError, 1),
        (errors.AttestationError, 5),
        (errors.ProvisioningError, 1),
        (errors.SystemSetupError, 7),
    ],
)
def test_exit_codes(kind: type[errors.WgvsockError], exit_code: int) -> None:
    assert kind.exit_code == exit_code
    assert issubclass(kind, errors.WgvsockError)
