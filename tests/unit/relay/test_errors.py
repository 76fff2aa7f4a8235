"""Codes and exit codes of the relay's errors."""

from __future__ import annotations

from wgvsock.relay.errors import HandshakeTimeoutError, ReloadError, SigningKeyError, UplinkError


def test_each_has_its_code_and_exit_status() -> None:
    found = {kind.code: kind.exit_code for kind in (HandshakeTimeoutError, SigningKeyError, UplinkError, ReloadError)}
    assert found == {"WGV-E080": 6, "WGV-E081": 2, "WGV-E082": 7, "WGV-E083": 2}
