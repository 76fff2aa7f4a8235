from __future__ import annotations

import inspect
import re

import pytest

from wgvsock.attestation import errors
from wgvsock.errors import AttestationError, RemoteProtocolError

REJECTIONS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.RejectedDocumentError)
    and kind not in {errors.RejectedDocumentError, errors.MeasurementError}
]


def test_each_check_has_a_class_and_a_name_of_its_own() -> None:
    names = [kind.check for kind in REJECTIONS]
    assert len(set(names)) == len(names) > 30
    assert all(re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", name) for name in names)
    assert {"size", "cbor", "chain.root", "chain.validity", "cose.sig", "pcr.debug", "module_id"} <= set(names)


@pytest.mark.parametrize("kind", REJECTIONS, ids=lambda kind: str(kind.check))
def test_a_rejection_says_what_why_and_what_to_do(kind: type[errors.RejectedDocumentError]) -> None:
    error = kind("a reason")
    assert isinstance(error, AttestationError)
    assert kind.check in error.what
    assert (error.why, error.exit_code, error.code) == ("a reason", 5, "WGV-E030")
    assert error.fix
    assert kind.__doc__


def test_malformed_cbor_is_the_peers_fault() -> None:
    assert issubclass(errors.CborError, RemoteProtocolError)
    assert errors.CborError.code == "WGV-E031"
