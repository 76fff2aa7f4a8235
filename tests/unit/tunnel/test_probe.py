from ipaddress import ip_address

import pytest

from wgvsock.testing import ManualClock, SeededRandom
from wgvsock.testing.echo import answer
from wgvsock.tunnel.probe import (
    FAILURES,
    INTERVAL,
    MAX_OUTSTANDING,
    MEASURE_EVERY,
    TIMEOUT,
    WINDOW,
    PathProbe,
    PathSnapshot,
)

OURS, THEIRS = ip_address("10.73.0.1"), ip_address("10.73.0.2")
OURS6, THEIRS6 = ip_address("fd00:73::1"), ip_address("fd00:73::2")


class Asked:
    """A probe with a session, and all its reports."""

    def __init__(self, enclave: str = "i-1-enc1") -> None:
        self.clock = ManualClock()
        self.probe = PathProbe(SeededRandom("probe"))
        self.packet_at = float("-inf")
        self.replies: list[tuple[int, float | None]] = []
        self.probe.on_reply = lambda *reply: self.replies.append(reply)
        self.begin(enclave)

    def begin(self, enclave: str = "i-1-enc1") -> None:
        self.probe.begin(OURS, THEIRS, enclave, self.clock.now)

    def tick(self) -> bytes | None:
        return self.probe.handle_time(self.clock.now, self.packet_at)

    def next_request(self) -> bytes:
        """Wait, as the tunnel does, until there is something to ask."""
        for _ in range(10):
            if (request := self.tick()) is not None:
                return request
            self.clock.advance(self.probe.next_at() - self.clock.now)
        raise AssertionError("nothing is asked")

    def answered(self, request: bytes, after: float = 0.001) -> None:
        assert self.probe.take(memoryview(answer(request)), self.clock.advance(after))

    def unanswered(self, count: int = FAILURES) -> None:
        """Send this many requests, and wait for the end of the last."""
        for _ in range(count):
            self.next_request()
            self.clock.advance(TIMEOUT)
        self.probe.observe(self.clock.now, self.packet_at)

    @property
    def alive(self) -> bool | None:
        return self.probe.snapshot().alive


def test_nothing_is_asked_without_a_session() -> None:
    probe = PathProbe(SeededRandom("probe"))
    assert probe.next_at() == float("inf")
    assert probe.handle_time(5.0, 4.0) is None
    assert probe.ask(5.0) is None
    assert probe.destination is None
    assert not probe.take(memoryview(b""), 5.0)
    assert probe.snapshot() == PathSnapshot()


def test_a_session_is_asked_at_once_and_then_at_intervals() -> None:
    asked = Asked()
    assert asked.probe.destination == THEIRS
    assert asked.alive is None
    first = asked.next_request()
    begun = asked.clock.now
    assert asked.probe.waits
    asked.answered(first)
    assert not asked.probe.waits
    assert asked.alive is True
    asked.next_request()
    assert asked.clock.now == pytest.approx(begun + INTERVAL)


def test_round_trip_times_have_a_window() -> None:
    asked = Asked()
    for count in range(WINDOW + 5):
        asked.answered(asked.next_request(), after=0.001 * (count + 1))
    snapshot = asked.probe.snapshot()
    assert snapshot.last == pytest.approx(0.065)
    assert snapshot.minimum == pytest.approx(0.006)  # the first five are forgotten
    assert snapshot.median == pytest.approx(0.0355)
    assert (snapshot.sent, snapshot.lost) == (WINDOW + 5, 0)


def test_a_path_that_has_worked_and_fails_in_a_row_is_dead() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    begun = asked.clock.now
    asked.unanswered(FAILURES - 1)
    assert asked.alive is True
    asked.unanswered(1)
    assert asked.alive is False
    assert asked.clock.now - begun == pytest.approx(INTERVAL + FAILURES * TIMEOUT, abs=0.01)
    assert asked.probe.snapshot().lost == FAILURES


def test_a_dead_path_is_asked_each_second_and_comes_back_with_its_first_reply() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    asked.unanswered()
    begun = asked.clock.now
    asked.unanswered(3)
    assert asked.clock.now - begun == pytest.approx(3 * TIMEOUT)
    assert asked.alive is False
    asked.answered(asked.next_request())
    assert asked.alive is True


def test_single_losses_do_not_add_up() -> None:
    asked = Asked()
    for _ in range(2 * FAILURES):
        asked.answered(asked.next_request())
        asked.unanswered(1)
        assert asked.alive is True
    assert asked.probe.snapshot().lost == 2 * FAILURES


def test_an_enclave_that_never_answers_is_unknown_and_asked_seldom() -> None:
    asked = Asked()
    asked.unanswered(FAILURES)
    assert asked.alive is None
    begun = asked.clock.now
    asked.unanswered(4)
    assert asked.alive is None
    assert asked.clock.now - begun == pytest.approx(4 * INTERVAL, abs=TIMEOUT)


def test_packets_of_an_enclave_that_never_answers_prove_its_path_while_they_come() -> None:
    asked = Asked()
    asked.next_request()
    asked.packet_at = asked.clock.advance(0.5)
    asked.clock.advance(TIMEOUT)
    assert asked.tick() is None
    assert asked.alive is True
    asked.unanswered()
    assert asked.alive is None


def test_a_busy_tunnel_is_only_asked_for_its_round_trip_time() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    begun = asked.clock.now
    while (asked.tick()) is None:
        asked.packet_at = asked.clock.advance(0.25)
        assert asked.alive is True
    assert asked.clock.now - begun == pytest.approx(MEASURE_EVERY, abs=0.5)


def test_a_tunnel_that_falls_silent_is_asked_an_interval_after_its_last_packet() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    asked.packet_at = asked.clock.advance(4.5)
    asked.next_request()
    assert asked.clock.now == pytest.approx(asked.packet_at + INTERVAL)


def test_a_request_lost_among_packets_is_lost_and_no_failure() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    for _ in range(3 * FAILURES):
        asked.next_request()
        asked.packet_at = asked.clock.advance(0.1)
        asked.clock.advance(INTERVAL)
    asked.probe.observe(asked.clock.now, asked.packet_at)
    assert asked.alive is True
    assert asked.probe.snapshot().lost == 3 * FAILURES


def test_one_long_stall_of_the_relay_is_one_failure() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    request = asked.next_request()
    asked.clock.advance(100.0)
    assert asked.tick() is not None
    assert asked.alive is True
    assert not asked.probe.take(memoryview(answer(request)), asked.clock.now)  # late: the kernel may have it
    assert asked.probe.snapshot().lost == 1


def test_what_somebody_asks_proves_when_answered_and_counts_for_nothing_when_not() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    sequences = [number for number, _ in (asked.probe.ask(asked.clock.now) or (0, b"") for _ in range(2 * FAILURES))]
    asked.clock.advance(TIMEOUT)
    asked.probe.observe(asked.clock.now, asked.packet_at)
    assert asked.alive is True
    assert asked.replies[1:] == [(sequence, None) for sequence in sequences]
    asked.unanswered()
    assert asked.alive is False
    question = asked.probe.ask(asked.clock.now)
    assert question is not None
    asked.answered(question[1], after=0.25)
    assert asked.alive is True
    assert asked.replies[-1] == (question[0], pytest.approx(0.25))


def test_a_reply_counts_once_and_only_with_the_bytes_that_were_sent() -> None:
    asked = Asked()
    request = asked.next_request()
    forged = bytearray(answer(request))
    forged[-1] ^= 1
    assert not asked.probe.take(memoryview(bytes(forged)), asked.clock.now)
    assert asked.alive is None
    asked.answered(request)
    assert not asked.probe.take(memoryview(answer(request)), asked.clock.now)
    assert asked.probe.snapshot().sent == 1


def test_an_operators_ping_is_none_of_our_business() -> None:
    asked = Asked()
    theirs = PathProbe(SeededRandom("an operator's ping"))
    theirs.begin(OURS, THEIRS, "", 0.0)
    request = theirs.handle_time(0.0, 0.0)
    assert request is not None
    asked.next_request()
    assert not asked.probe.take(memoryview(answer(request)), asked.clock.now)


def test_requests_that_wait_are_bounded() -> None:
    asked = Asked()
    for _ in range(MAX_OUTSTANDING + 3):
        asked.probe.ask(asked.clock.now)
    assert asked.replies == [(1, None), (2, None), (3, None)]
    asked.clock.advance(TIMEOUT)
    asked.probe.observe(asked.clock.now, asked.packet_at)
    assert not asked.probe.waits


@pytest.mark.slow
def test_sequence_numbers_begin_again() -> None:
    asked = Asked()
    for _ in range(0x10000 + 2):
        question = asked.probe.ask(asked.clock.now)
        assert question is not None
        asked.probe.take(memoryview(answer(question[1])), asked.clock.now)
    assert [sequence for sequence, _ in asked.replies[-4:]] == [0xFFFF, 0, 1, 2]
    assert asked.probe.snapshot().lost == 0


def test_an_attestation_of_the_same_enclave_does_not_forget_that_its_path_is_dead() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    asked.unanswered()
    asked.begin()
    assert asked.alive is False


def test_a_new_session_with_the_same_enclave_has_to_prove_itself_and_may_fail() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    asked.next_request()
    asked.probe.end()
    assert asked.alive is None
    assert asked.probe.next_at() == float("inf")
    assert not asked.probe.waits
    asked.packet_at = asked.clock.advance(1.0)  # still of the old session
    asked.clock.advance(1.0)
    asked.begin()
    asked.unanswered()
    assert asked.alive is False
    assert asked.probe.snapshot().last is not None


def test_another_enclave_may_be_one_that_never_answers() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    asked.begin("i-1-enc2")
    snapshot = asked.probe.snapshot()
    assert snapshot.alive is None
    assert snapshot.last is None
    asked.unanswered()
    assert asked.alive is None


def test_other_addresses_are_another_path_of_the_same_enclave() -> None:
    asked = Asked()
    asked.answered(asked.next_request())
    asked.next_request()
    asked.probe.begin(OURS6, THEIRS6, "i-1-enc1", asked.clock.now)
    assert not asked.probe.waits
    request = asked.next_request()
    assert request[0] >> 4 == 6
    asked.answered(request)
