from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import os
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest

from lab.nsm.faults import Faults
from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave
from wgvsock.devices import nsm
from wgvsock.devices.nsm import MAX_REQUEST_SIZE, MAX_RESPONSE_SIZE, NsmClient, NsmDevice, NsmError, call_in_thread

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class FakeDriver:
    """The nsm driver's side of the ioctl: reads and writes the caller's memory at the given addresses."""

    def __init__(self, answer: Callable[[bytes], bytes] = lambda request: request) -> None:
        self.answer = answer
        self.failure: int | None = None

    def ioctl(self, descriptor: int, command: int, argument: bytearray, mutate: bool) -> int:
        assert os.fstat(descriptor)
        assert command == 0xC0200A00
        assert mutate
        assert len(argument) == 32
        if self.failure is not None:
            raise OSError(self.failure, os.strerror(self.failure))
        request_address, request_length, response_address, response_length = struct.unpack("=QQQQ", argument)
        assert response_length == 0x3000
        response = self.answer(ctypes.string_at(request_address, request_length))[:response_length]
        ctypes.memmove(response_address, response, len(response))
        argument[24:32] = struct.pack("=Q", len(response))
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    monkeypatch.setattr("fcntl.ioctl", driver.ioctl)
    return driver


@pytest.fixture
def device(tmp_path: Path, driver: FakeDriver) -> Any:
    node = tmp_path / "nsm"
    node.touch()
    device = NsmDevice(str(node))
    yield device
    device.close()


# The device.


@pytest.mark.parametrize("size", [1, 1000, MAX_REQUEST_SIZE])
def test_bytes_cross_the_ioctl_both_ways(device: NsmDevice, driver: FakeDriver, size: int) -> None:
    driver.answer = lambda request: request[::-1] + b"!"
    request = os.urandom(size)
    assert device.request(request) == request[::-1] + b"!"


def test_the_command_is_the_one_of_the_kernel_header() -> None:
    """_IOWR(0x0A, 0, struct nsm_raw): direction 3, size 32, type 0x0A, number 0 (asm-generic/ioctl.h)."""
    assert nsm._IOCTL_RAW == (3 << 30) | (32 << 16) | (0x0A << 8) | 0
    assert nsm._NSM_RAW.size == 32


def test_a_request_too_large_never_reaches_the_driver(device: NsmDevice, driver: FakeDriver) -> None:
    driver.failure = errno.EIO
    with pytest.raises(NsmError, match="the driver accepts 4096"):
        device.request(bytes(MAX_REQUEST_SIZE + 1))


@pytest.mark.parametrize("length", [MAX_RESPONSE_SIZE, MAX_RESPONSE_SIZE + 1])
def test_a_full_buffer_counts_as_cut_off(device: NsmDevice, driver: FakeDriver, length: int) -> None:
    driver.answer = lambda _request: bytes(length)
    with pytest.raises(NsmError, match="truncated"):
        device.request(b"x")


def test_the_largest_response(device: NsmDevice, driver: FakeDriver) -> None:
    driver.answer = lambda _request: bytes(MAX_RESPONSE_SIZE - 1)
    assert len(device.request(b"x")) == MAX_RESPONSE_SIZE - 1


def test_an_empty_response_is_none(device: NsmDevice, driver: FakeDriver) -> None:
    driver.answer = lambda _request: b""
    with pytest.raises(NsmError, match="empty"):
        device.request(b"x")


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EMSGSIZE, "larger than the driver accepts"),
        (errno.EINVAL, "does not know this command"),
        (errno.ENODATA, "no response"),
        (errno.ETIMEDOUT, "120 seconds"),
        (errno.EIO, "Input/output error"),
        (errno.EFAULT, "Bad address"),
    ],
)
def test_errors_of_the_driver(device: NsmDevice, driver: FakeDriver, number: int, why: str) -> None:
    driver.failure = number
    with pytest.raises(NsmError, match=why) as caught:
        device.request(b"x")
    assert (caught.value.name, caught.value.exit_code, caught.value.code) == ("", 7, "WGV-E075")


def test_a_missing_device(tmp_path: Path) -> None:
    with pytest.raises(NsmError, match="No such file") as caught:
        NsmDevice(str(tmp_path / "absent"))
    assert caught.value.fix


def test_close_closes_once(tmp_path: Path) -> None:
    node = tmp_path / "nsm"
    node.touch()
    device = NsmDevice(str(node))
    descriptor = device._descriptor
    device.close()
    device.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


# The operations, against the lab's module.


@pytest.fixture
def enclave() -> LabEnclave:
    return LabEnclave(module_id="i-0123456789abcdef0-enc0123456789abcdef")


@pytest.fixture
def client(enclave: LabEnclave, device: NsmDevice, driver: FakeDriver) -> NsmClient:
    """The client over the device over the lab's module: every byte passes the ioctl."""
    driver.answer = FakeNsm(LabAuthority(lambda: NOW), enclave, clock=lambda: NOW).request
    return NsmClient(device)


def test_describe(client: NsmClient, enclave: LabEnclave) -> None:
    description = client.describe()
    assert description.module_id == enclave.module_id
    assert description.version == (1, 0, 0)
    assert description.max_pcrs == 32
    assert description.locked_pcrs == tuple(range(16))
    assert description.digest == "SHA384"


def test_extend_lock_and_describe_a_pcr(client: NsmClient, enclave: LabEnclave) -> None:
    assert client.describe_pcr(0) == nsm.PcrState(locked=True, value=enclave.measurements[0])
    assert client.describe_pcr(16) == nsm.PcrState(locked=False, value=bytes(48))
    value = hashlib.sha384(bytes(48) + b"data").digest()
    assert client.extend_pcr(16, b"data") == value
    client.lock_pcr(16)
    assert client.describe_pcr(16) == nsm.PcrState(locked=True, value=value)
    client.lock_pcrs(20)
    assert client.describe().locked_pcrs == tuple(range(20))


def test_refusals_carry_the_modules_word(client: NsmClient) -> None:
    for call, name in (
        (lambda: client.extend_pcr(0, b"x"), "ReadOnlyIndex"),
        (lambda: client.lock_pcr(0), "ReadOnlyIndex"),
        (lambda: client.describe_pcr(32), "InvalidIndex"),
        (lambda: client.lock_pcrs(33), "InvalidIndex"),
    ):
        with pytest.raises(NsmError, match=name) as caught:
            call()
        assert caught.value.name == name


def test_random(client: NsmClient) -> None:
    first, second = client.random(), client.random()
    assert len(first) == len(second) == 256
    assert first != second


def test_attest(client: NsmClient, enclave: LabEnclave) -> None:
    document = client.attest(nonce=b"n" * 32, user_data=b"u", public_key=b"p")
    payload = cbor2.loads(cbor2.loads(document)[2])
    assert payload["module_id"] == enclave.module_id
    assert (payload["nonce"], payload["user_data"], payload["public_key"]) == (b"n" * 32, b"u", b"p")
    assert cbor2.loads(cbor2.loads(client.attest())[2])["nonce"] is None


@pytest.mark.parametrize("field", ["nonce", "user_data", "public_key"])
def test_no_field_above_512_bytes_is_emitted(client: NsmClient, field: str) -> None:
    fields: dict[str, Any] = {field: bytes(512)}
    client.attest(**fields)
    with pytest.raises(NsmError, match="and 512 fit") as caught:
        client.attest(**{field: bytes(513)})
    assert caught.value.name == "InputTooLarge"


def test_a_module_that_refuses_to_attest(client: NsmClient, enclave: LabEnclave) -> None:
    enclave.faults = Faults(error="InternalError")
    with pytest.raises(NsmError, match="InternalError"):
        client.attest()


RANDOM = cbor2.dumps("GetRandom") + cbor2.dumps({"random": b"x"})


@pytest.mark.parametrize("response", [b"\xa1" + RANDOM, b"\xbf" + RANDOM + b"\xff"], ids=["closed", "open"])
def test_the_outermost_map_of_a_response_may_be_open(device: NsmDevice, driver: FakeDriver, response: bytes) -> None:
    driver.answer = lambda _request: response
    assert NsmClient(device).random() == b"x"


@pytest.mark.parametrize("refusal", [b"\xa1%s", b"\xbf%s\xff"], ids=["closed", "open"])
def test_a_refusal_in_either_form(device: NsmDevice, driver: FakeDriver, refusal: bytes) -> None:
    driver.answer = lambda _request: refusal % (cbor2.dumps("Error") + cbor2.dumps("InvalidIndex"))
    with pytest.raises(NsmError) as caught:
        NsmClient(device).describe_pcr(32)
    assert caught.value.name == "InvalidIndex"


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"\xff",
        b"\xa1",
        cbor2.dumps("LockPCR"),
        cbor2.dumps("GetRandom"),
        cbor2.dumps({"LockPCR": {}}),
        cbor2.dumps({"GetRandom": b"x"}),
        cbor2.dumps({"GetRandom": {}}),
        cbor2.dumps({"GetRandom": {"random": "text"}}),
        cbor2.dumps({"Error": 1}),
        cbor2.dumps([]),
        b"\xa2" + (cbor2.dumps("GetRandom") + cbor2.dumps({"random": b"x"})) * 2,
        cbor2.dumps({"GetRandom": {"random": b"x"}}) + b"\x00",
        # An open map at the top weakens nothing else.
        b"\xbf",
        b"\xbf\xff",
        b"\xbf" + RANDOM,
        b"\xbf" + RANDOM + b"\xff\xff",
        b"\xbf" + RANDOM + b"\xff\x00",
        b"\xbf" + RANDOM * 2 + b"\xff",
        b"\xbf" + RANDOM + cbor2.dumps("more") + cbor2.dumps({}) + b"\xff",
        b"\xbf" + cbor2.dumps("GetRandom") + b"\xff",
        b"\xbf" + cbor2.dumps("GetRandom") + b"\xbf" + cbor2.dumps("random") + b"\x41x\xff\xff",
        b"\xa1" + cbor2.dumps("GetRandom") + b"\xbf" + cbor2.dumps("random") + b"\x41x\xff",
        b"\xbf" + cbor2.dumps("GetRandom") + b"\xa1" + cbor2.dumps("random") + b"\x5f\x41x\xff\xff",
        b"\x9f" + cbor2.dumps("GetRandom") + b"\xff",
    ],
)
def test_responses_that_do_not_answer(device: NsmDevice, driver: FakeDriver, response: bytes) -> None:
    driver.answer = lambda _request: response
    with pytest.raises(NsmError):
        NsmClient(device).random()


def test_requests_are_serdes_form(device: NsmDevice, driver: FakeDriver) -> None:
    requests = []

    def record(request: bytes) -> bytes:
        requests.append(cbor2.loads(request))
        return cbor2.dumps({"Error": "InternalError"})

    driver.answer = record
    client = NsmClient(device)
    for call in (
        client.describe,
        lambda: client.describe_pcr(3),
        lambda: client.extend_pcr(16, b"d"),
        lambda: client.lock_pcr(16),
        lambda: client.lock_pcrs(20),
        client.random,
        lambda: client.attest(nonce=b"n"),
    ):
        with pytest.raises(NsmError):
            call()
    assert requests == [
        "DescribeNSM",
        {"DescribePCR": {"index": 3}},
        {"ExtendPCR": {"index": 16, "data": b"d"}},
        {"LockPCR": {"index": 16}},
        {"LockPCRs": {"range": 20}},
        "GetRandom",
        {"Attestation": {"user_data": None, "nonce": b"n", "public_key": None}},
    ]


# The deadline.


@pytest.mark.asyncio
async def test_a_call_beside_the_loop() -> None:
    ident = await call_in_thread(threading.get_ident)
    assert ident != threading.get_ident()


@pytest.mark.asyncio
async def test_an_error_comes_back_as_it_is() -> None:
    def fail() -> None:
        raise NsmError("cannot", name="InvalidIndex")

    with pytest.raises(NsmError) as caught:
        await call_in_thread(fail)
    assert caught.value.name == "InvalidIndex"


@pytest.mark.asyncio
async def test_a_hanging_call_is_left_behind() -> None:
    release, returned = threading.Event(), threading.Event()

    def hang() -> None:
        release.wait()
        returned.set()

    with pytest.raises(NsmError, match="within 0 seconds"):
        await call_in_thread(hang, timeout=0)
    assert await call_in_thread(lambda: "the next one works") == "the next one works"
    release.set()
    await asyncio.to_thread(returned.wait)
