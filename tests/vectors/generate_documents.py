"""Write documents.json with the laboratory's authority and module: ``python -m tests.vectors.generate_documents``.

Keys and signatures are random, and the keys are not kept: a run writes other documents of the same content.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from lab.nsm.faults import Faults
from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave
from wgvsock.attestation.binding import encode_x25519_spki, wireguard_key_commitment
from wgvsock.devices.nsm import NsmClient

FILE = Path(__file__).parent / "documents.json"
SOURCE = "tests/vectors/generate_documents.py, signed by lab/nsm through pycose"
AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NONCE, USER_DATA, PUBLIC_KEY = bytes(range(32)), b"wgvsock/prov/1\0\0" + bytes(48), bytes(range(100, 132))
DOCUMENTS = {
    "open": Faults(),
    "closed": Faults(closed_map=True),
    "open-debug": Faults(debug=True),
    "open-empty-public-key": Faults(payload={"public_key": b""}),
}


def documents() -> dict[str, object]:
    """One enclave's documents, with their contents."""
    authority = LabAuthority(lambda: AT)
    enclave = LabEnclave(module_id="i-0123456789abcdef0-enc0123456789abcdef")
    module = NsmClient(FakeNsm(authority, enclave, clock=lambda: AT))
    spki = encode_x25519_spki(PUBLIC_KEY)
    module.extend_pcr(16, wireguard_key_commitment(spki))
    module.lock_pcr(16)
    signed = {}
    for name, faults in DOCUMENTS.items():
        enclave.faults = faults
        signed[name] = module.attest(nonce=NONCE, user_data=USER_DATA, public_key=spki).hex()
    return {
        "source": SOURCE,
        "at": AT.isoformat(),
        "root_sha256": authority.root_fingerprint.hex(),
        "module_id": enclave.module_id,
        "pcrs": {f"PCR{index}": value.hex() for index, value in enclave.measurements.items()},
        "nonce": NONCE.hex(),
        "user_data": USER_DATA.hex(),
        "wireguard_public_key": PUBLIC_KEY.hex(),
        "documents": signed,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(documents(), indent=2) + "\n")
