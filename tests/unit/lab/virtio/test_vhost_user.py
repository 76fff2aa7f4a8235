from __future__ import annotations

import select
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.virtio.ring import RingError
from lab.virtio.vhost_user import Request, VhostUserError
from tests.unit.vhost_user_front_end import GUEST, SIZE, USER, WRITE, FrontEnd

Make = Callable[..., FrontEnd]


@pytest.fixture
def front_end() -> Iterator[Make]:
    made: list[FrontEnd] = []

    def make(answer: Callable[[bytes], bytes] = lambda request: b"re:" + request) -> FrontEnd:
        made.append(FrontEnd(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def number(value: int) -> bytes:
    return struct.pack("=Q", value)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def state(index: int, value: int) -> bytes:
    return struct.pack("=II", index, value)


def test_it_offers_what_it_has_and_nothing_more(front_end: Make) -> None:
    qemu = front_end()
    assert qemu.ask(Request.GET_FEATURES) == number(1 << 32 | 1 << 30)  # version 1, protocol features
    assert qemu.ask(Request.GET_PROTOCOL_FEATURES) == number(1 << 0 | 1 << 3)  # queue number, reply acknowledgement
    assert qemu.ask(Request.GET_QUEUE_NUM) == number(1)


def test_a_request_and_its_room_in_two_chains_are_answered_with_one_call(front_end: Make) -> None:
    qemu = front_end()
    qemu.start()
    assert qemu.called()  # at SET_VRING_CALL: what the one before it was told may be lost
    qemu.queue(b"hello")
    qemu.kick()
    assert qemu.called()
    assert qemu.responses() == [b"re:hello"]
    assert not select.select([qemu.call_fd], [], [], 0)[0]


def test_a_request_and_its_room_in_one_chain_are_answered_too(front_end: Make) -> None:
    qemu = front_end()
    qemu.start()
    qemu.memory[0x2000:0x2005] = b"hello"
    qemu.write_descriptor(0, GUEST + 0x2000, 5, 1, 1)
    qemu.write_descriptor(1, GUEST + 0x3000, 64, WRITE)
    qemu.offer(0)
    qemu.kick()
    used: list[tuple[int, int]] = []
    while not used:
        assert qemu.called()
        used = qemu.used()
    assert used == [(0, len(b"re:hello"))]
    assert bytes(qemu.memory[0x3000:0x3008]) == b"re:hello"


def test_many_requests_go_round_the_ring(front_end: Make) -> None:
    qemu = front_end()
    qemu.start()
    for at in range(50):
        assert qemu.request(f"{at}".encode()) == f"re:{at}".encode()


def test_what_was_asked_before_the_queue_is_enabled_is_answered_then(front_end: Make) -> None:
    qemu = front_end()
    qemu.start(enable=False)
    qemu.queue(b"early")
    qemu.kick()
    qemu.order(Request.SET_OWNER)  # the kick has been seen by now, or is with the next message
    assert qemu.responses() == []
    qemu.enable()
    assert qemu.responses() == [b"re:early"]


def test_a_stopped_queue_rests_and_goes_on_where_it_was(front_end: Make) -> None:
    qemu = front_end()
    qemu.start()
    assert qemu.request(b"one") == b"re:one"
    base = qemu.stop()
    assert base == 2  # chains
    qemu.queue(b"two")
    qemu.start(base=base)
    qemu.kick()
    while not (responses := qemu.responses()):
        assert qemu.called()
    assert responses == [b"re:two"]


def test_new_memory_does_not_lose_the_place(front_end: Make) -> None:
    qemu = front_end()
    qemu.start()
    assert qemu.request(b"one") == b"re:one"
    qemu.share_memory()
    assert qemu.request(b"two") == b"re:two"


def test_a_function_that_fails_is_an_empty_response_and_a_complaint(front_end: Make) -> None:
    def fail(_request: bytes) -> bytes:
        raise ConnectionError("the signer is gone")

    qemu = front_end(fail)
    qemu.start()
    assert qemu.request(b"hello") == b""
    assert qemu.complaints == ["a request was not answered: the signer is gone"]


def test_a_request_above_the_limit_reaches_no_function(front_end: Make) -> None:
    seen: list[bytes] = []
    qemu = front_end(lambda request: seen.append(request) or b"x")  # type: ignore[func-returns-value]
    qemu.start()
    qemu.write_descriptor(0, GUEST, 0x1001, 0)
    qemu.write_descriptor(1, GUEST + 0x3000, 64, WRITE)
    qemu.offer(0)
    qemu.offer(1)
    qemu.kick()
    while not qemu.used():
        assert qemu.called()
    assert seen == []
    assert qemu.complaints == ["a request was not answered: a request of 4097 bytes"]


def test_qemu_may_hang_up_at_any_time(front_end: Make) -> None:
    qemu = front_end()
    qemu.start()
    qemu.connection.close()
    assert qemu.ended() is None


def test_no_file_descriptor_is_left(front_end: Make) -> None:
    before = open_files()
    qemu = front_end()
    qemu.start()
    qemu.start()
    qemu.request(b"hello")
    qemu.stop()
    qemu.start(base=2)
    qemu.close()
    assert qemu.ended() is None
    assert open_files() == before


@pytest.mark.parametrize(
    ("request_", "payload", "why"),
    [
        (99, b"", "message 99"),
        (Request.SET_VRING_NUM, state(1, 8), "no queue 1"),
        (Request.SET_VRING_NUM, state(0, 7), "7 entries"),
        (Request.SET_VRING_NUM, state(0, 0), "0 entries"),
        (Request.SET_VRING_NUM, state(0, 65536), "65536 entries"),
        (Request.SET_VRING_NUM, b"\0", "1 bytes instead of 8"),
        (Request.SET_VRING_KICK, number(0), "0 file descriptors"),
        (Request.SET_VRING_CALL, number(3), "no queue 3"),
        (Request.SET_MEM_TABLE, struct.pack("=II", 1, 0), "1 regions"),
        (Request.SET_OWNER, bytes(4097), "4097 bytes"),
    ],
)
def test_what_the_protocol_does_not_have_ends_the_connection(
    front_end: Make, request_: int, payload: bytes, why: str
) -> None:
    qemu = front_end()
    qemu.send(request_, payload)
    error = qemu.ended()
    assert isinstance(error, VhostUserError)
    assert why in str(error)


def test_memory_that_is_larger_than_its_file_is_refused(front_end: Make) -> None:
    qemu = front_end()
    qemu.send(Request.SET_MEM_TABLE, struct.pack("=IIQQQQ", 1, 0, GUEST, 1 << 40, USER, 0), qemu.file)
    assert isinstance(qemu.ended(), VhostUserError)


def test_a_ring_outside_the_memory_is_refused(front_end: Make) -> None:
    qemu = front_end()
    qemu.share_memory()
    qemu.order(Request.SET_VRING_NUM, state(0, 8))
    places = (USER + SIZE - 1, USER + 0x400, USER + 0x600)
    qemu.send(Request.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, *places, 0))
    assert isinstance(qemu.ended(), RingError)


def test_a_malformed_queue_ends_the_connection(front_end: Make) -> None:
    qemu = front_end()
    qemu.start()
    qemu.offer(1000)
    qemu.kick()
    assert isinstance(qemu.ended(), RingError)
