from __future__ import annotations

import dataclasses

import cbor2
import pytest

from lab.nsm.faults import Faults
from lab.nsm.pki import CertificateDefect, Level


def test_nothing_is_wrong_unless_asked() -> None:
    faults = Faults()
    assert not any(getattr(faults, field.name) for field in dataclasses.fields(faults))


def test_knobs_cross_the_control_socket() -> None:
    faults = Faults(
        debug=True, certificates={Level.ZONAL: CertificateDefect.EXPIRED}, pcrs={0: bytes(48)}, payload={"nonce": b"x"}
    )
    carried = cbor2.loads(cbor2.dumps(dataclasses.asdict(faults)))
    assert Faults(**carried | {"without_pcrs": (), "without": ()}) == faults


def test_unknown_levels_and_defects_are_refused() -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        Faults(certificates={"top": "expired"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="is not a valid"):
        Faults(certificates={"leaf": "rotten"})  # type: ignore[dict-item]
