"""The fake module: takes NSM requests, returns NSM responses, and signs documents in AWS's format with pycose."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pycose.algorithms import Es384
from pycose.headers import Algorithm
from pycose.keys import EC2Key
from pycose.keys.curves import P384
from pycose.messages import Sign1Message

from lab.nsm.faults import Faults
from lab.nsm.pcrs import MAX_PCRS, PCR_SIZE, NsmRefusalError, PcrBank, lab_measurements
from lab.nsm.pki import LabAuthority

MAX_REQUEST_SIZE: Final = 0x1000
_MAX_FIELD_SIZE: Final = 1024
_RANDOM_SIZE: Final = 256
_SIGNATURE_HALF: Final = 48

_MAP_HEAD: Final = 0xA0  # with the number of entries, below 24, in its low bits (RFC 8949, section 3)
_OPEN_MAP: Final = b"\xbf"
_BREAK: Final = b"\xff"


def utc_now() -> datetime:
    """Return the machine's wall-clock time."""
    return datetime.now(UTC)


def new_module_id() -> str:
    """Return a module_id in AWS's format with a random instance and slot."""
    return f"i-{os.urandom(9).hex()[:17]}-enc{os.urandom(8).hex()}"


@dataclass(slots=True)
class LabEnclave:
    """The properties of an enclave that survive boots, and its module's current faults.

    Args:
        module_id: Its identity.
        measurements: PCR0 to PCR15 as measured at each boot. Missing ones are zero.
        faults: The settings. Another value may be assigned at any time.
    """

    module_id: str = field(default_factory=new_module_id)
    measurements: Mapping[int, bytes] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        if not self.measurements:
            self.measurements = lab_measurements("wgvsock-lab", self.module_id.partition("-enc")[0])


class FakeNsm:
    """One enclave's module after its boot. Implements `wgvsock.devices.base.SecureModule`.

    Args:
        authority: Issues the certificates.
        enclave: The module's enclave.
        clock: Returns aware wall-clock time. The authority should have the same clock.
        sleep: Implements `Faults.delay`.
    """

    def __init__(
        self,
        authority: LabAuthority,
        enclave: LabEnclave,
        *,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._authority = authority
        self._enclave = enclave
        self._clock = clock
        self._sleep = sleep
        self._bank = PcrBank(enclave.measurements)

    def request(self, request: bytes) -> bytes:
        """Answer one request. Any mistake in it gives an error name in the response, as in the real module."""
        if self._enclave.faults.delay:
            self._sleep(self._enclave.faults.delay)
        try:
            response = self._answer(request)
        except NsmRefusalError as refusal:
            response = {"Error": refusal.name}
        return cbor2.dumps(response)

    def _answer(self, request: bytes) -> object:
        operation, parameters = _parse(request)
        match operation, parameters:
            case "DescribeNSM", None:
                return {"DescribeNSM": self._description()}
            case "DescribePCR", {"index": int(index)}:
                locked, value = self._bank.describe(index)
                return {"DescribePCR": {"lock": locked, "data": value}}
            case "ExtendPCR", {"index": int(index), "data": bytes(data)}:
                return {"ExtendPCR": {"data": self._bank.extend(index, data)}}
            case "LockPCR", {"index": int(index)}:
                self._bank.lock(index)
                return "LockPCR"
            case "LockPCRs", {"range": int(count)}:
                self._bank.lock_range(count)
                return "LockPCRs"
            case "GetRandom", None:
                return {"GetRandom": {"random": os.urandom(_RANDOM_SIZE)}}
            case "Attestation", dict():
                return {"Attestation": {"document": self._attest(parameters)}}
            case _:
                raise NsmRefusalError("InvalidOperation")

    def _description(self) -> dict[str, object]:
        return {
            "version_major": 1,
            "version_minor": 0,
            "version_patch": 0,
            "module_id": self._enclave.module_id,
            "max_pcrs": MAX_PCRS,
            "locked_pcrs": list(self._bank.locked()),
            "digest": "SHA384",
        }

    def _attest(self, parameters: Mapping[str, object]) -> bytes:
        faults = self._enclave.faults
        if faults.error is not None:
            raise NsmRefusalError(faults.error)
        fields = {name: parameters.get(name) for name in ("public_key", "user_data", "nonce")}
        for value in fields.values():
            if value is not None and not isinstance(value, bytes):
                raise NsmRefusalError("InvalidArgument")
            if value is not None and len(value) > _MAX_FIELD_SIZE:
                raise NsmRefusalError("InputTooLarge")
        return self._document(fields, faults)

    def _document(self, fields: Mapping[str, object], faults: Faults) -> bytes:
        module_id = faults.module_id or self._enclave.module_id
        authority = LabAuthority(self._clock) if faults.wrong_root else self._authority
        chain = authority.chain(faults.leaf_module_id or module_id, faults.certificates)
        timestamp = self._clock() + timedelta(seconds=faults.clock_offset)
        payload = {  # in the order of real documents
            "module_id": module_id,
            "digest": "SHA384",
            "timestamp": int(timestamp.timestamp() * 1000),
            "pcrs": self._pcrs(faults),
            "certificate": chain.leaf.der,
            "cabundle": chain.cabundle,
            **fields,
        }
        payload |= faults.payload
        for name in faults.without:
            del payload[name]
        return _sign(_encode_payload(payload, faults), chain.leaf.key, faults)

    def _pcrs(self, faults: Faults) -> dict[int, bytes]:
        pcrs = self._bank.locked()
        if faults.debug:
            pcrs |= dict.fromkeys((0, 1, 2), bytes(PCR_SIZE))
        pcrs |= faults.pcrs
        return {index: value for index, value in pcrs.items() if index not in faults.without_pcrs}


def _parse(request: bytes) -> tuple[str, dict[str, Any] | None]:
    """Serde's externally tagged form: ``"Name"`` or ``{"Name": {…}}``."""
    if len(request) > MAX_REQUEST_SIZE:
        raise NsmRefusalError("InputTooLarge")
    try:
        message = cbor2.loads(request)
    except cbor2.CBORDecodeError:
        raise NsmRefusalError("InvalidOperation") from None
    match message:
        case str():
            return message, None
        case dict() if len(message) == 1:
            [(operation, parameters)] = message.items()
            if isinstance(operation, str) and isinstance(parameters, dict):
                return operation, parameters
    raise NsmRefusalError("InvalidOperation")


def _encode_payload(payload: Mapping[str, object], faults: Faults) -> bytes:
    entries = [*payload.items()]
    if faults.duplicate_key:
        entries.append(("nonce", payload["nonce"]))
    encoded = b"".join(cbor2.dumps(part) for entry in entries for part in entry)
    if faults.closed_map:
        return bytes((_MAP_HEAD + len(entries),)) + encoded
    return _OPEN_MAP + encoded + _BREAK


def _sign(payload: bytes, key: ec.EllipticCurvePrivateKey, faults: Faults) -> bytes:
    message = Sign1Message(phdr={Algorithm: Es384}, payload=payload)
    message.key = _cose_key(key)
    protected, unprotected, payload, signature = cbor2.loads(message.encode(tag=False))
    if faults.der_signature:
        r, s = signature[:_SIGNATURE_HALF], signature[_SIGNATURE_HALF:]
        signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    if faults.corrupt_signature:
        signature = signature[:-1] + bytes((signature[-1] ^ 1,))
    envelope = [protected if faults.protected is None else faults.protected, unprotected, payload, signature]
    document = cbor2.dumps(cbor2.CBORTag(18, envelope) if faults.tagged else envelope)
    return (document + bytes(faults.trailing_bytes))[: faults.truncated_to]


def _cose_key(key: ec.EllipticCurvePrivateKey) -> EC2Key:
    numbers = key.private_numbers()
    x, y, d = (
        number.to_bytes(_SIGNATURE_HALF, "big")
        for number in (numbers.public_numbers.x, numbers.public_numbers.y, numbers.private_value)
    )
    return EC2Key(crv=P384, x=x, y=y, d=d)
