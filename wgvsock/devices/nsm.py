"""The Nitro Security Module: the character device (`NsmDevice`) and its operations (`NsmClient`).

Device: Linux, drivers/misc/nsm.c and include/uapi/linux/nsm.h. Messages: AWS's NSM API, CBOR in serde's externally
tagged form, that is ``"Name"`` for a request without parameters and ``{"Name": {…}}`` for one with parameters.

The ioctl uses only the standard library's fcntl: ctypes needs libffi, which an enclave's image may lack.
"""

from __future__ import annotations

import array
import asyncio
import concurrent.futures
import errno
import fcntl
import io
import os
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import cbor2

from wgvsock.devices.base import SecureModule
from wgvsock.errors import SystemSetupError

DEVICE_PATH: Final = "/dev/nsm"

MAX_REQUEST_SIZE: Final = 0x1000
"""Bytes. The driver answers EMSGSIZE to a larger request."""

MAX_RESPONSE_SIZE: Final = 0x3000
"""Bytes. The driver silently truncates a longer response, so a full buffer counts as truncated."""

MAX_FIELD_SIZE: Final = 512
"""Bytes of user_data, nonce and public_key. AWS documents both 512 and 1024, so we send no more than the smaller."""

CALL_TIMEOUT: Final = 5.0
"""Seconds. A document takes milliseconds. The driver gives up only after 120 s, and cannot be interrupted."""

_NSM_RAW: Final = struct.Struct("=QQQQ")  # struct nsm_raw: request address and length, response address and length
_IOCTL_RAW: Final = 0xC0200A00  # _IOWR(0x0A, 0, struct nsm_raw)

_OPEN_MAP: Final = b"\xbf"  # of indefinite length, up to the break (RFC 8949, section 3.2.2)
_BREAK: Final = b"\xff"
_MAP_OF_ONE: Final = b"\xa1"
_MAX_DEPTH: Final = 4  # nested containers; the deepest response, DescribeNSM's, has three

_ERRNO_REASONS: Final = {
    errno.EMSGSIZE: "the request is larger than the driver accepts",
    errno.EINVAL: "the driver does not know this command: /dev/nsm is something else",
    errno.ENODATA: "the module returned no response",
    errno.ETIMEDOUT: "the module did not respond within the driver's 120 seconds",
}

_T = TypeVar("_T")


class NsmError(SystemSetupError):
    """The Nitro Security Module is missing, failed, or refused an operation.

    `name` is the module's own word for a refusal, such as ``"ReadOnlyIndex"`` or ``"InputTooLarge"``. It is empty if
    the device failed.
    """

    code = "WGV-E075"

    def __init__(self, what: str, *, why: str = "", fix: str = "", name: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.name = name


class NsmDevice:
    """The character device. Implements `SecureModule`.

    Args:
        path: Path of the device node.

    Raises:
        NsmError: It cannot be opened.
    """

    def __init__(self, path: str = DEVICE_PATH) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise NsmError(
                f"cannot open the Nitro Security Module {path}",
                why=os.strerror(error.errno or 0),
                fix="run the agent as root inside an enclave whose kernel has the nsm driver",
            ) from error

    def request(self, request: bytes) -> bytes:
        """Send one request. Blocks for up to 120 s: see `call_in_thread`.

        Args:
            request: CBOR, at most `MAX_REQUEST_SIZE` bytes.

        Returns:
            The response: CBOR, fewer than `MAX_RESPONSE_SIZE` bytes.

        Raises:
            NsmError: The request is too large, or the device failed.
        """
        if len(request) > MAX_REQUEST_SIZE:
            raise _failed(f"the request has {len(request)} bytes, and the driver accepts {MAX_REQUEST_SIZE}")
        # Keep both arrays referenced until the driver returns: it only gets their addresses.
        outgoing = array.array("B", request)
        incoming = array.array("B", bytes(MAX_RESPONSE_SIZE))
        raw = bytearray(_NSM_RAW.pack(*outgoing.buffer_info(), *incoming.buffer_info()))
        try:
            fcntl.ioctl(self._descriptor, _IOCTL_RAW, raw, True)  # releases the GIL
        except OSError as error:
            raise _failed(_ERRNO_REASONS.get(error.errno or 0, os.strerror(error.errno or 0))) from error
        length = _NSM_RAW.unpack(raw)[3]
        if not 0 < length < MAX_RESPONSE_SIZE:
            raise _failed(f"a response of {length} bytes is empty or truncated")
        return incoming[:length].tobytes()

    def close(self) -> None:
        """Close the device. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True)
class NsmDescription:
    """The answer of DescribeNSM."""

    version: tuple[int, int, int]
    module_id: str
    max_pcrs: int
    locked_pcrs: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class PcrState:
    """The answer of DescribePCR. Documents contain only locked PCRs, and those can no longer change.

    Attributes:
        locked: Whether the PCR is locked.
        value: 48 bytes.
    """

    locked: bool
    value: bytes


class NsmClient:
    """The module's operations, with types. Every method blocks, and raises `NsmError` on failure.

    Args:
        module: Transports the messages.
    """

    def __init__(self, module: SecureModule) -> None:
        self._module = module

    def describe(self) -> NsmDescription:
        """Version, identity and PCR bank of the module."""
        answer = self._call("DescribeNSM")
        return NsmDescription(
            version=(
                _take(answer, "version_major", int),
                _take(answer, "version_minor", int),
                _take(answer, "version_patch", int),
            ),
            module_id=_take(answer, "module_id", str),
            max_pcrs=_take(answer, "max_pcrs", int),
            locked_pcrs=tuple(_take(answer, "locked_pcrs", list)),
            digest=_take(answer, "digest", str),
        )

    def describe_pcr(self, index: int) -> PcrState:
        """Lock state and 48-byte value of one PCR."""
        answer = self._call("DescribePCR", {"index": index})
        return PcrState(locked=_take(answer, "lock", bool), value=_take(answer, "data", bytes))

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """Set an unlocked PCR to SHA384(old || data).

        Args:
            index: Index of the PCR.
            data: The bytes to extend it with.

        Returns:
            The new value, 48 bytes.
        """
        return _take(self._call("ExtendPCR", {"index": index, "data": data}), "data", bytes)

    def lock_pcr(self, index: int) -> None:
        """Make one PCR read-only until the enclave ends. Every document then contains it."""
        self._call("LockPCR", {"index": index})

    def lock_pcrs(self, count: int) -> None:
        """Lock PCRs 0 to `count` - 1."""
        self._call("LockPCRs", {"range": count})

    def random(self) -> bytes:
        """Return 256 bytes from the module's random number generator."""
        return _take(self._call("GetRandom"), "random", bytes)

    def attest(
        self, *, nonce: bytes | None = None, user_data: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """Request an attestation document over the locked PCRs and the given fields.

        Args:
            nonce: At most 512 bytes, or None to leave it out.
            user_data: At most 512 bytes, or None to leave it out.
            public_key: At most 512 bytes, or None to leave it out.

        Returns:
            The document: a COSE_Sign1 structure in CBOR.
        """
        fields = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
        for name, value in fields.items():
            if value is not None and len(value) > MAX_FIELD_SIZE:
                raise _failed(f"{name} has {len(value)} bytes, and {MAX_FIELD_SIZE} fit", name="InputTooLarge")
        return _take(self._call("Attestation", fields), "document", bytes)

    def _call(self, operation: str, parameters: Mapping[str, object] | None = None) -> Mapping[str, object]:
        request: object = operation if parameters is None else {operation: parameters}
        response = self._module.request(cbor2.dumps(request))
        try:
            answer = _decode(response)
        except cbor2.CBORDecodeError as error:
            raise _failed("the response is not CBOR") from error
        match answer:
            case {"Error": str() as name}:
                raise _failed(f"it refused {operation} with {name[:32]!a}", name=name)
            case str() if answer == operation:
                return {}
            case dict() if isinstance(answer.get(operation), dict):
                return dict(answer[operation])
            case _:
                raise _failed(f"the response does not answer {operation}")


async def call_in_thread(call: Callable[[], _T], *, timeout: float = CALL_TIMEOUT) -> _T:  # noqa: ASYNC109 - the point
    """Run a blocking call to the module outside the event loop, for at most `timeout` seconds.

    The thread is a daemon, and not one of the executor's: a thread that hangs in the driver delays neither the next
    call nor the end of the process.

    Raises:
        NsmError: It took longer. The call itself continues, and its result is dropped.
    """
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()  # from here on only the thread completes it

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - passed on to the task that awaits it
            outcome.set_exception(error)

    threading.Thread(target=run, name="nsm", daemon=True).start()
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(outcome)
    except TimeoutError:
        raise _failed(f"it did not answer within {timeout:g} seconds") from None


def _decode(response: bytes) -> object:
    """Decode the one item of a response. Nothing may follow it, as in AWS's own library.

    The outermost map may be of indefinite length (``bf … ff``), as the payloads of documents are since 2025. It has one
    entry, so replacing its head makes it definite. Everything inside must be of definite length.
    """
    if response[:1] == _OPEN_MAP and response[-1:] == _BREAK:
        response = _MAP_OF_ONE + response[1:-1]
    rest = io.BytesIO(response)
    decoder = cbor2.CBORDecoder(
        rest, max_depth=_MAX_DEPTH, allow_indefinite=False, allow_duplicate_keys=False, read_size=1
    )
    answer: object = decoder.decode()
    if rest.read(1):
        raise cbor2.CBORDecodeError("bytes follow the item")
    return answer


def _take(answer: Mapping[str, object], field: str, kind: type[_T]) -> _T:
    value = answer.get(field)
    if not isinstance(value, kind):
        raise _failed(f"the response lacks {field}, or it has another type")
    return value


def _failed(why: str, *, name: str = "") -> NsmError:
    return NsmError(
        "the Nitro Security Module failed",
        why=why,
        fix="read the enclave's console, and check with nitro-cli describe-enclaves that the enclave is still running",
        name=name,
    )
