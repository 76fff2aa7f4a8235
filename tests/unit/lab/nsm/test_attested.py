from __future__ import annotations

from lab.nsm.attested import attested_enclave
from lab.nsm.signer import LabEnclave


def test_it_is_the_real_verifiers_result() -> None:
    enclave = LabEnclave()
    attested = attested_enclave(bytes(range(32)), enclave)
    assert attested.wireguard_public_key == bytes(range(32))
    assert attested.module_id == enclave.module_id
    assert attested.pcrs[0] == enclave.measurements[0]
    assert attested_enclave(bytes(range(32))).module_id != attested.module_id
